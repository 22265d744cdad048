"""Perturbations are pure functions of (seed, image hash, draw), and strength means what it says."""

import io
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vgid.data.images import open_image
from vgid.errors import ConfigError
from vgid.stage1_teacher.perturb import (
    PERTURBATIONS,
    Donor,
    check_strength,
    choose_donor,
    is_random,
    needs_donor,
    perturb,
)

NAMES = sorted(PERTURBATIONS)
FULL = dict.fromkeys(NAMES, 1.0) | {"diffusion": 999}
RANDOM = [name for name in NAMES if is_random(name)]
MODES = ["RGB", "RGBA", "LA", "L", "P", "1"]
ROTATED = 6
"""EXIF orientation: the picture lies on its side."""


def picture(width: int = 20, height: int = 14, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def donor(draw: int = 0, seed: int = 3, image_sha256: str = "a" * 64) -> Image.Image:
    """The picture that the key chooses of nine."""
    pool = [Donor(subject_id=f"p{i}", image_sha256=f"{i}" * 64, image=b"") for i in range(9)]
    chosen = choose_donor(pool, subject_id="own", seed=seed, image_sha256=image_sha256, draw=draw)
    return picture(11, 7, seed=int(chosen.subject_id[1:]) + 100)


def noised(name: str, image: Image.Image | None = None, **changes: object) -> bytes:
    arguments = {"strength": FULL[name], "seed": 3, "image_sha256": "a" * 64, "draw": 0} | changes
    key = {part: arguments[part] for part in ("seed", "image_sha256", "draw")}
    return perturb(image or picture(), name, donor=donor(**key), **arguments).tobytes()  # type: ignore[arg-type]


def encoded(image: Image.Image, mode: str, orientation: int) -> bytes:
    """A PNG as somebody's phone or editor writes it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40)) | st.sampled_from(
    [(1, 1), (1, 200), (200, 1), (7, 8), (8, 8)]
)
PHOTOS = st.builds(
    lambda size, mode, orientation: encoded(picture(*size), mode, orientation),
    SIZES,
    st.sampled_from(MODES),
    st.sampled_from([1, ROTATED]),
)


@pytest.mark.parametrize("name", NAMES)
@given(PHOTOS, st.floats(0, 1))
@settings(max_examples=40)
def test_same_key_gives_the_same_rgb_bytes_at_any_size_and_mode(name, photo, share):
    image = open_image(photo, where="x")
    first, again = (
        perturb(image, name, strength=share * FULL[name], seed=1, image_sha256="b", draw=2, donor=picture(5, 9))
        for _ in range(2)
    )
    assert (first.mode, first.size) == ("RGB", image.size)
    assert first.tobytes() == again.tobytes()


@pytest.mark.parametrize("name", NAMES)
@given(PHOTOS)
@settings(max_examples=20)
def test_strength_zero_is_the_identity(name, photo):
    image = open_image(photo, where="x")
    assert noised(name, image, strength=0) == image.tobytes()


def golden_picture() -> Image.Image:
    """Slopes and a square, from a formula."""
    y, x = np.mgrid[0:23, 0:37]
    planes = [x * 6 % 256, y * 11 % 256, ((x // 5 + y // 5) % 2) * 200]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


GOLDEN_STRENGTHS = {"diffusion": (500, 999)}
GOLDEN = {
    "blank 0.5 0 0": "e943dafef76f9568",
    "blank 0.5 7 3": "e943dafef76f9568",
    "blank 1.0 0 0": "9c40e49948df0313",
    "blank 1.0 7 3": "9c40e49948df0313",
    "blur 0.5 0 0": "4402a43ffa59ae64",
    "blur 0.5 7 3": "4402a43ffa59ae64",
    "blur 1.0 0 0": "4f02db14af6b8bf4",
    "blur 1.0 7 3": "4f02db14af6b8bf4",
    "diffusion 500 0 0": "601ec48193da0dd6",
    "diffusion 500 7 3": "6a1107d27996bb8b",
    "diffusion 999 0 0": "58139b9a0c02df2a",
    "diffusion 999 7 3": "f90e872c6b15bc7a",
    "gaussian 0.5 0 0": "0aa65fb4a3badba6",
    "gaussian 0.5 7 3": "d88338afc98c3071",
    "gaussian 1.0 0 0": "49ab684b783a3a42",
    "gaussian 1.0 7 3": "e6f22015fefecfb5",
    "other-subject 0.5 0 0": "192f8b71f8134bbd",
    "other-subject 0.5 7 3": "192f8b71f8134bbd",
    "other-subject 1.0 0 0": "2670a79a6927ba96",
    "other-subject 1.0 7 3": "2670a79a6927ba96",
    "patch-shuffle 0.5 0 0": "951ca79ea48f96e4",
    "patch-shuffle 0.5 7 3": "d040dce9a7d32f6c",
    "patch-shuffle 1.0 0 0": "6781be8bfe86cabc",
    "patch-shuffle 1.0 7 3": "83f28e596003330b",
    "uniform-replace 0.5 0 0": "49c35dd9bd1e621b",
    "uniform-replace 0.5 7 3": "847e761a0ee26ab4",
    "uniform-replace 1.0 0 0": "1358d15bcafacf8a",
    "uniform-replace 1.0 7 3": "0df67b38cd6f3560",
}


def golden_hashes() -> dict[str, str]:
    """Name, strength, seed and draw -> hash of the pixels."""
    return {
        f"{name} {strength} {seed} {draw}": sha256(
            perturb(
                golden_picture(),
                name,
                strength=strength,
                seed=seed,
                image_sha256="c" * 64,
                draw=draw,
                donor=golden_picture().rotate(90).resize((20, 30)),
            ).tobytes()
        ).hexdigest()[:16]
        for name in NAMES
        for strength in GOLDEN_STRENGTHS.get(name, (0.5, 1.0))
        for seed, draw in ((0, 0), (7, 3))
    }


def test_pixels_are_those_of_every_earlier_release():
    """Where only `other-subject` differs, Pillow has changed its bicubic; anything else makes every target anew."""
    assert golden_hashes() == GOLDEN


def test_a_fresh_process_with_other_global_randomness_makes_the_same_bytes():
    code = "import numpy; numpy.random.seed(5); from test_perturb import *; print(golden_hashes())"
    folder = Path(__file__).parent
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": "11"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=folder)
    assert done.stdout.strip() == str(golden_hashes()), done.stderr


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("change", [{"seed": 4}, {"draw": 1}, {"image_sha256": "b" * 64}])
def test_another_key_gives_other_noise(name, change):
    assert noised(name) != noised(name, **change)


@pytest.mark.parametrize("name", ["blank", "blur"])
def test_without_randomness_another_draw_is_the_same_picture(name):
    assert not is_random(name)
    assert noised(name) == noised(name, draw=1, seed=9, image_sha256="b" * 64)


@pytest.mark.parametrize("name", ["gaussian", "uniform-replace", "diffusion", "other-subject"])
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


@pytest.mark.parametrize(("width", "height"), [(64, 64), (37, 91), (8, 200), (5, 3), (2, 1)])
def test_a_full_shuffle_leaves_no_tile_in_its_place(width, height):
    pixels = np.arange(width * height * 3).reshape(height, width, 3).astype(float)
    rng = np.random.default_rng(0)
    shuffled = PERTURBATIONS["patch-shuffle"](pixels, 1.0, rng)
    assert (shuffled != pixels).all()
    assert np.isin(shuffled, pixels).all()
    if width % 8 == height % 8 == 0 or max(width, height) < 8:
        assert (np.sort(shuffled, axis=None) == pixels.ravel()).all()


@given(st.floats(0.01, 1))
def test_strength_is_the_share_of_tiles_that_change_places(strength):
    pixels = np.arange(16 * 24 * 3).reshape(16, 24, 3).astype(float)
    moved = (PERTURBATIONS["patch-shuffle"](pixels, strength, np.random.default_rng(1)) != pixels).mean()
    assert round(moved * 64) == max(2, round(strength * 64))


def test_a_picture_of_one_pixel_has_no_tiles_to_shuffle():
    assert noised("patch-shuffle", picture(1, 1)) == picture(1, 1).tobytes()


def test_a_blurred_edge_is_the_normal_distribution_of_the_documented_width():
    from math import erf

    step = Image.fromarray(np.repeat(np.array([[0] * 80 + [255] * 80], np.uint8), 160, axis=0)).convert("RGB")
    blurred = np.frombuffer(noised("blur", step, strength=0.5), np.uint8).reshape(160, 160, 3)
    sigma = 0.5 * 160 / 8
    expected = [255 * (1 + erf((x - 79.5) / sigma / 2**0.5)) / 2 for x in range(160)]
    assert np.abs(blurred[80, :, 0] - np.array(expected)).max() < 2  # cut at 3 sigma, 8 bits
    assert (blurred == blurred[:1]).all()


@given(SIZES, st.integers(0, 255), st.floats(0, 1))
def test_blur_leaves_a_flat_picture_as_it_is(size, level, strength):
    flat = Image.new("RGB", size, (level, 0, 255))
    assert noised("blur", flat, strength=strength) == flat.tobytes()


def test_half_of_another_subject_is_the_mean_of_both_pictures():
    image, other = picture(40, 30), picture(40, 30, seed=5)
    blended = perturb(image, "other-subject", strength=0.5, seed=0, image_sha256="a", draw=0, donor=other)
    expected = (np.asarray(image, float) + np.asarray(other, float)) / 2
    assert np.abs(np.asarray(blended, float) - expected).max() <= 0.5


def test_another_subject_without_a_picture_is_refused():
    assert [name for name in NAMES if needs_donor(name)] == ["other-subject"]
    with pytest.raises(ConfigError, match="another subject's picture"):
        perturb(picture(), "other-subject", strength=1, seed=0, image_sha256="a", draw=0)


def people(count: int) -> list[Donor]:
    return [
        Donor(subject_id=f"person {i // 2}", image_sha256=sha256(f"{i}".encode()).hexdigest(), image=b"")
        for i in range(count)
    ]


@given(st.integers(4, 30), st.integers(0, 29), st.integers(0, 5), st.randoms())
def test_a_donor_is_never_the_subject_and_does_not_depend_on_the_order_of_the_pool(count, own, seed, random):
    pool = people(count)
    subject, image = pool[own % count].subject_id, pool[own % count].image_sha256
    draws = range(len([one for one in pool if one.subject_id != subject]))
    chosen = [choose_donor(pool, subject_id=subject, seed=seed, image_sha256=image, draw=draw) for draw in draws]
    assert subject not in {one.subject_id for one in chosen}
    assert len({one.image_sha256 for one in chosen}) == len(chosen)  # draws of one image never share a donor
    random.shuffle(pool)
    assert chosen[0] == choose_donor(pool, subject_id=subject, seed=seed, image_sha256=image, draw=0)


def test_one_more_person_rarely_changes_a_choice():
    before, after = people(40), people(41)
    images = [sha256(f"image {i}".encode()).hexdigest() for i in range(400)]
    changed = sum(
        choose_donor(before, subject_id="x", seed=0, image_sha256=image, draw=0)
        != choose_donor(after, subject_id="x", seed=0, image_sha256=image, draw=0)
        for image in images
    )
    assert 0 < changed < 400 * 2 / 41


def test_other_seeds_and_images_choose_other_donors():
    def chosen(seed: int, image: str) -> list[str]:
        return [
            choose_donor(people(40), subject_id="x", seed=seed, image_sha256=f"{image}{i}", draw=0).image_sha256
            for i in range(20)
        ]

    assert chosen(0, "a") != chosen(1, "a") and chosen(0, "a") != chosen(0, "b")
    assert len(set(chosen(0, "a"))) > 8


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_picture_of_anybody_else_is_a_clear_error(count):
    with pytest.raises(ConfigError, match=r"the data has 0 pictures of others than subject 'person 0'"):
        choose_donor(people(count), subject_id="person 0", seed=0, image_sha256="a", draw=0)


def test_the_same_photo_under_another_name_is_no_donor():
    own, same = people(1)[0], Donor(subject_id="alias", image_sha256=people(1)[0].image_sha256, image=b"")
    with pytest.raises(ConfigError, match="0 pictures of others"):
        choose_donor([own, same], subject_id="person 0", seed=0, image_sha256="a", draw=0)


def test_space_processor_without_a_processor_and_an_unknown_space_are_refused():
    with pytest.raises(ConfigError, match="image processor"):
        perturb(picture(), "blank", strength=1, seed=0, image_sha256="a", draw=0, space="processor")
    with pytest.raises(ConfigError, match="pixel or processor"):
        perturb(picture(), "blank", strength=1, seed=0, image_sha256="a", draw=0, space="latent")  # type: ignore[arg-type]
