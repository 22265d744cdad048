"""Visual perturbations of one image: pure, keyed by (seed, image hash, draw), the same pixels anywhere.

The canonical pixel form is an 8-bit RGB image: what both engines take as it is. In space `pixel` it has the source's
size; in space `processor` it is first brought to the size the model sees (`fit_to_processor`), so that no later scaling
averages the noise away. Randomness comes from NumPy's counter-based Philox generator with an explicit key, never from
a global state, so a shard, a host or a resume changes nothing. Strengths are described at each function; 0 is the
identity everywhere (in space `processor`: the fitted picture).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, Literal

import numpy as np
from PIL import Image as PIL

from vgid.data.examples import Image
from vgid.errors import ConfigError
from vgid.stage1_teacher.fit import fit_to_processor

PerturbationName = Literal[
    "gaussian", "diffusion", "uniform-replace", "blank", "patch-shuffle", "blur", "other-subject"
]
PerturbationSpace = Literal["pixel", "processor"]
PIXEL_FORM = "rgb8-v1"

DIFFUSION_STEPS = 1000
_BETA_START, _BETA_END = 1e-4, 0.02

GRID = 8
"""Tiles along each side of a picture in `patch-shuffle`."""
BLUR_SIDES = 8
"""A blur of strength 1 has a sigma of the shorter side over this."""
_BLUR_UNIT = 2**20

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711])


@dataclass(frozen=True, slots=True, kw_only=True)
class Donor:
    """Somebody's picture that `other-subject` may put in place of another's."""

    subject_id: str
    image_sha256: str
    image: Image
    """Encoded bytes or a path: a pool of donors holds no decoded pictures."""


def perturb(
    image: PIL.Image,
    name: str,
    *,
    strength: float,
    seed: int,
    image_sha256: str,
    draw: int,
    space: PerturbationSpace = "pixel",
    image_processor: Any = None,
    donor: PIL.Image | None = None,
) -> PIL.Image:
    """Perturb an RGB image.

    Args:
        image: 8-bit RGB.
        name: Which one; see `PERTURBATIONS`.
        strength: Its own unit, see `check_strength`.
        seed: Noise seed of the recipe.
        image_sha256: Hash of the source bytes; two images never share their noise.
        draw: Which of several noise draws, 0-based.
        space: `pixel` perturbs the picture as it is; `processor` at the size and with the mean and standard deviation
            of the model's processor.
        image_processor: The model's; needed in space `processor`.
        donor: 8-bit RGB, of `choose_donor`; needed by `other-subject`.

    Returns:
        8-bit RGB; in space `pixel` of the same size.

    Raises:
        ConfigError: unknown perturbation or space, a strength outside its range, or the processor or donor is missing.
        DataError: the processor refuses the picture.
    """
    check_strength(name, strength)
    if space not in ("pixel", "processor"):
        raise ConfigError(f"perturbation space {space!r} is unknown; choose pixel or processor")
    if space == "processor":
        if image_processor is None:
            raise ConfigError(f"perturbation {name} in space 'processor' needs the model's image processor; give it")
        image = fit_to_processor(image, image_processor)
    if strength == 0:
        return image.copy()
    kernel = PERTURBATIONS[name]
    if name == "uniform-replace" and space == "processor":
        kernel = partial(kernel, mean=np.array(image_processor.image_mean), std=np.array(image_processor.image_std))
    if needs_donor(name):
        if donor is None:
            raise ConfigError(f"perturbation {name} needs another subject's picture; give donor")
        kernel = partial(kernel, donor=_unit(donor.resize(image.size, PIL.Resampling.BICUBIC)))
    noisy = kernel(_unit(image), strength, keyed_generator(seed, image_sha256, draw))
    return PIL.fromarray(np.rint(np.clip(noisy, 0.0, 1.0) * 255.0).astype(np.uint8))


def full_strength(name: str) -> int:
    """The highest strength of a perturbation."""
    return DIFFUSION_STEPS - 1 if name == "diffusion" else 1


def is_random(name: str) -> bool:
    """Whether another draw gives another picture; without it, several draws would be one target several times."""
    return name not in ("blank", "blur")


def needs_donor(name: str) -> bool:
    """Whether the perturbation takes another subject's picture."""
    return name == "other-subject"


def choose_donor(pool: Sequence[Donor], *, subject_id: str, seed: int, image_sha256: str, draw: int) -> Donor:
    """Choose whose picture stands in, as a pure function of the key and of who is in the pool, whatever their order.

    Donors are ranked by a hash of (seed, image, donor's image) and draw d takes the d-th (rendezvous hashing): draws of
    one image never share a donor, and one more picture among n changes the choice of draw d with probability
    (d + 1) / (n + 1).

    Args:
        pool: All pictures there are; those of the same subject and the same picture under another name are left out.
        subject_id: Whose picture is perturbed.
        seed: Noise seed of the recipe.
        image_sha256: Hash of the source bytes of the picture that is perturbed.
        draw: Which of several draws, 0-based.

    Raises:
        ConfigError: the pool has no picture of anybody else, or fewer than there are draws.
    """
    own = {image_sha256} | {donor.image_sha256 for donor in pool if donor.subject_id == subject_id}
    others = {
        donor.image_sha256: donor
        for donor in sorted(pool, key=lambda donor: donor.subject_id, reverse=True)
        if donor.image_sha256 not in own
    }
    if draw >= len(others):
        raise ConfigError(
            f"perturbation other-subject: the data has {len(others)} pictures of others than subject {subject_id!r}, "
            f"and draw {draw} needs {draw + 1}; add other people's pictures or take fewer draws"
        )

    def rank(donor: Donor) -> bytes:
        return sha256(f"vgid-donor-v1:{seed}:{image_sha256}:{donor.image_sha256}".encode()).digest()

    return sorted(others.values(), key=rank)[draw]


def keyed_generator(seed: int, image_sha256: str, draw: int) -> np.random.Generator:
    """A random generator that is a function of its key alone."""
    key = sha256(f"vgid-noise-v1:{seed}:{image_sha256}:{draw}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key[:16], np.uint64)))


def check_strength(perturbation: str, strength: float) -> None:
    """Refuse an unknown perturbation or a strength outside its range.

    `diffusion` takes a step in [0, 999], all others a strength in [0, 1].

    Raises:
        ConfigError: naming what is allowed.
    """
    if perturbation not in PERTURBATIONS:
        raise ConfigError(f"perturbation {perturbation!r} is unknown; choose one of {', '.join(sorted(PERTURBATIONS))}")
    highest = full_strength(perturbation)
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


def uniform_replace(
    pixels: np.ndarray,
    strength: float,
    rng: np.random.Generator,
    *,
    mean: np.ndarray = CLIP_MEAN,
    std: np.ndarray = CLIP_STD,
) -> np.ndarray:
    """Replace by U[0, 1) in the processor's normalised space, written as pixels std·u + mean: low-contrast grey static.

    What the authors' released code does at strength 1 (repository JackChen-seu/VGID, baselines/Vgid.py). In space
    `pixel` with CLIP's mean and standard deviation, which LLaVA-1.5 and Qwen2-VL share; in space `processor` with the
    processor's own. Below 1 it is blended with the image.
    """
    return (1 - strength) * pixels + strength * (std * rng.random(pixels.shape) + mean)


def blank(pixels: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Blend towards the image's own mean colour; at 1 the picture is one flat colour. Uses no randomness."""
    return (1 - strength) * pixels + strength * pixels.mean(axis=(0, 1))


def patch_shuffle(pixels: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Let a share s of the tiles of an 8x8 grid change places, in one random cycle; at 1 no tile is where it was.

    Everything of the image is still there, only not in its place. At least two tiles move; a side under 8 pixels has a
    tile for each pixel, and a picture of one pixel stays as it is. Where 8 does not divide a side, tiles differ by one
    pixel: a tile that comes to a larger place repeats its last row or column, one that comes to a smaller loses it.
    """
    rows, columns = (_edges(length) for length in pixels.shape[:2])
    places = [(row, column) for row in range(len(rows) - 1) for column in range(len(columns) - 1)]
    if len(places) < 2:
        return pixels
    # An order from uniform numbers: NumPy may change how it draws permutations, the numbers themselves hardly.
    order = np.argsort(rng.random(len(places)), kind="stable")[: max(2, round(strength * len(places)))]
    shuffled = pixels.copy()
    for place, source in zip(order, np.roll(order, 1), strict=True):
        (row, column), (source_row, source_column) = places[place], places[source]
        y = np.arange(rows[row], rows[row + 1]) - rows[row] + rows[source_row]
        x = np.arange(columns[column], columns[column + 1]) - columns[column] + columns[source_column]
        inside = np.ix_(np.minimum(y, rows[source_row + 1] - 1), np.minimum(x, columns[source_column + 1] - 1))
        shuffled[rows[row] : rows[row + 1], columns[column] : columns[column + 1]] = pixels[inside]
    return shuffled


def blur(pixels: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur with a sigma of s/8 of the shorter side, cut at 3 sigma, mirrored at the edges. Uses no randomness.

    Colours and coarse shapes are left even at 1. Weights and pixels are whole numbers (of 2^-20 and 1/255), so every
    sum is exact in float64 and the same on any machine, and no library's resampling is in it.
    """
    sigma = max(0.1, strength * min(pixels.shape[:2]) / BLUR_SIDES)  # one below 0.18 pixels moves nothing
    offsets = np.arange(-np.ceil(3 * sigma), np.ceil(3 * sigma) + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights = np.rint(_BLUR_UNIT * weights / weights.sum())
    levels = np.rint(pixels * 255).transpose(2, 0, 1)
    for _ in range(2):  # along the rows, then along the columns
        levels = _weigh(levels, weights).transpose(0, 2, 1)
    return levels.transpose(1, 2, 0) / weights.sum() ** 2 / 255


def other_subject(pixels: np.ndarray, strength: float, rng: np.random.Generator, *, donor: np.ndarray) -> np.ndarray:
    """Blend towards another subject's picture, stretched to this one's size: (1 - s)·x + s·donor.

    At 1 nothing of the image is left. The donor is a function of the key too (`choose_donor`); the stretching is
    Pillow's bicubic.
    """
    return (1 - strength) * pixels + strength * donor


def _unit(image: PIL.Image) -> np.ndarray:
    """Pixels as float64 [H, W, 3] in [0, 1]."""
    return np.asarray(image, np.float64) / 255.0


def _edges(length: int) -> np.ndarray:
    """Where the tiles of a side begin and end, in pixels; all of them a pixel long at least."""
    tiles = min(GRID, length)
    return np.arange(tiles + 1) * length // tiles


def _weigh(levels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums along the last axis of [C, H, W], mirrored at its ends."""
    reach = len(weights) // 2
    mirrored = np.pad(levels, ((0, 0), (0, 0), (reach, reach)), mode="symmetric")
    lines = mirrored.reshape(-1, mirrored.shape[-1])
    return np.stack([np.convolve(line, weights, mode="valid") for line in lines]).reshape(levels.shape)


PERTURBATIONS: dict[str, Callable[..., np.ndarray]] = {
    "gaussian": gaussian,
    "diffusion": diffusion,
    "uniform-replace": uniform_replace,
    "blank": blank,
    "patch-shuffle": patch_shuffle,
    "blur": blur,
    "other-subject": other_subject,
}
