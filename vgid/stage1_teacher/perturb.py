"""Visual perturbations of one image: pure, keyed by (seed, image hash, draw), the same pixels anywhere.

The canonical pixel form is an 8-bit RGB image of the source's size: what both engines take as it is. Randomness comes
from NumPy's counter-based Philox generator with an explicit key, never from a global state, so a shard, a host or a
resume changes nothing. Strengths are described at each function; 0 is the identity everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Literal

import numpy as np
from PIL import Image as PIL

from vgid.errors import ConfigError

PerturbationName = Literal["gaussian", "diffusion", "uniform-replace", "blank"]
PIXEL_FORM = "rgb8-v1"

DIFFUSION_STEPS = 1000
_BETA_START, _BETA_END = 1e-4, 0.02

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711])


def perturb(
    image: PIL.Image, perturbation: PerturbationName, *, strength: float, seed: int, image_sha256: str, draw: int
) -> PIL.Image:
    """Perturb an RGB image.

    Args:
        image: 8-bit RGB.
        perturbation: Which one; see `PERTURBATIONS`.
        strength: Its own unit, see `check_strength`.
        seed: Noise seed of the recipe.
        image_sha256: Hash of the source bytes; two images never share their noise.
        draw: Which of several noise draws, 0-based.

    Returns:
        8-bit RGB of the same size.

    Raises:
        ConfigError: unknown perturbation or a strength outside its range.
    """
    check_strength(perturbation, strength)
    if strength == 0:
        return image.copy()
    pixels = np.asarray(image, np.float64) / 255.0
    noisy = PERTURBATIONS[perturbation](pixels, strength, keyed_generator(seed, image_sha256, draw))
    return PIL.fromarray(np.rint(np.clip(noisy, 0.0, 1.0) * 255.0).astype(np.uint8))


def keyed_generator(seed: int, image_sha256: str, draw: int) -> np.random.Generator:
    """A random generator that is a function of its key alone."""
    key = sha256(f"vgid-noise-v1:{seed}:{image_sha256}:{draw}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key[:16], np.uint64)))


def check_strength(perturbation: str, strength: float) -> None:
    """Refuse an unknown perturbation or a strength outside its range.

    `gaussian`, `uniform-replace` and `blank` take a strength in [0, 1]; `diffusion` a step in [0, 999].

    Raises:
        ConfigError: naming what is allowed.
    """
    if perturbation not in PERTURBATIONS:
        raise ConfigError(f"perturbation {perturbation!r} is unknown; choose one of {', '.join(sorted(PERTURBATIONS))}")
    highest = DIFFUSION_STEPS - 1 if perturbation == "diffusion" else 1
    if not 0 <= strength <= highest:
        raise ConfigError(f"strength {strength} of {perturbation} is outside [0, {highest}]")


def gaussian(pixels: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Blend towards grey Gaussian noise: (1 - s)·x + s·(0.5 + 0.25·ε); at 1 nothing of the image is left."""
    return (1 - strength) * pixels + strength * (0.5 + 0.25 * rng.standard_normal(pixels.shape))


def diffusion(pixels: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """DDPM forward process at step t = strength: sqrt(ᾱ)·x + sqrt(1 - ᾱ)·ε in [-1, 1], linear betas 1e-4 to 0.02.

    The schedule of Ho et al. 2020, as used for images by visual contrastive decoding.
    """
    betas = np.linspace(_BETA_START, _BETA_END, DIFFUSION_STEPS)
    alpha_bar = np.cumprod(1 - betas)[round(strength)]
    centred = 2 * pixels - 1
    noised = np.sqrt(alpha_bar) * centred + np.sqrt(1 - alpha_bar) * rng.standard_normal(pixels.shape)
    return (noised + 1) / 2


def uniform_replace(pixels: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Replace by U[0, 1) in the processor's normalised space, written as pixels std·u + mean: low-contrast grey static.

    What the authors' released code does at strength 1 (repository JackChen-seu/VGID, baselines/Vgid.py), with CLIP's
    mean and standard deviation, which LLaVA-1.5 and Qwen2-VL share. Below 1 it is blended with the image.
    """
    return (1 - strength) * pixels + strength * (CLIP_STD * rng.random(pixels.shape) + CLIP_MEAN)


def blank(pixels: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Blend towards the image's own mean colour; at 1 the picture is one flat colour. Uses no randomness."""
    return (1 - strength) * pixels + strength * pixels.mean(axis=(0, 1))


PERTURBATIONS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "gaussian": gaussian,
    "diffusion": diffusion,
    "uniform-replace": uniform_replace,
    "blank": blank,
}
