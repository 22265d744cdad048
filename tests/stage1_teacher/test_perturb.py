"""Perturbations are pure functions of (seed, image hash, draw), and strength means what it says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vgid.errors import ConfigError
from vgid.stage1_teacher.perturb import PERTURBATIONS, check_strength, perturb

FULL = {"gaussian": 1.0, "diffusion": 999, "uniform-replace": 1.0, "blank": 1.0}
NAMES = sorted(PERTURBATIONS)


def picture(width: int = 20, height: int = 14, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def noised(name: str, image: Image.Image | None = None, **changes: object) -> bytes:
    arguments = {"strength": FULL[name], "seed": 3, "image_sha256": "a" * 64, "draw": 0} | changes
    return perturb(image or picture(), name, **arguments).tobytes()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
@given(st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=10, deadline=None)
def test_same_key_gives_same_bytes_at_any_size(name, width, height):
    image = picture(width, height)
    assert noised(name, image) == noised(name, image)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "blank"])
@pytest.mark.parametrize("change", [{"seed": 4}, {"draw": 1}, {"image_sha256": "b" * 64}])
def test_another_key_gives_other_noise(name, change):
    assert noised(name) != noised(name, **change)


@pytest.mark.parametrize("name", NAMES)
def test_strength_zero_is_the_identity(name):
    image = picture()
    assert noised(name, image, strength=0) == image.tobytes()


@pytest.mark.parametrize("name", ["gaussian", "uniform-replace", "diffusion"])
def test_full_strength_leaves_nothing_of_the_image(name):
    first, second = (np.frombuffer(noised(name, picture(64, 64, seed)), np.uint8) for seed in (1, 2))
    # The same key and two images: only the image could differ. Diffusion at t = 999 keeps a share of 0.006.
    assert np.abs(first.astype(int) - second.astype(int)).max() <= (2 if name == "diffusion" else 0)


def test_blank_is_one_flat_colour_of_the_mean():
    image = picture()
    flat = np.frombuffer(noised("blank", image), np.uint8).reshape(-1, 3)
    assert (flat == flat[0]).all()
    assert np.abs(flat[0] - np.asarray(image).reshape(-1, 3).mean(0)).max() <= 1


def test_more_strength_moves_pixels_further():
    image = picture(64, 64)
    original = np.asarray(image, float)
    moved = [
        np.abs(np.frombuffer(noised("gaussian", image, strength=s), np.uint8) - original.ravel()).mean()
        for s in (0.2, 0.5, 1.0)
    ]
    assert moved == sorted(moved) and moved[0] < moved[2] / 2


def test_uniform_replace_matches_the_released_code_in_normalised_space():
    from vgid.stage1_teacher.perturb import CLIP_MEAN, CLIP_STD

    pixels = np.frombuffer(noised("uniform-replace", picture(200, 200)), np.uint8).reshape(-1, 3) / 255
    normalised = (pixels - CLIP_MEAN) / CLIP_STD
    assert normalised.min() >= -0.01 and normalised.max() <= 1.01
    assert np.allclose(normalised.mean(0), 0.5, atol=0.01) and np.allclose(normalised.std(0), 12**-0.5, atol=0.01)


@pytest.mark.parametrize(("name", "strength"), [("gaussian", 1.1), ("blank", -0.1), ("diffusion", 1000)])
def test_strength_outside_its_range_is_refused(name, strength):
    with pytest.raises(ConfigError, match="outside"):
        check_strength(name, strength)


def test_unknown_perturbation_is_refused_naming_those_there_are():
    with pytest.raises(ConfigError, match="gaussian"):
        perturb(picture(), "sepia", strength=1, seed=0, image_sha256="", draw=0)  # type: ignore[arg-type]
