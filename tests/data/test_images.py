"""The one decoder: what it lets in, what it makes of it, and what it refuses."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vgid.data.images import FORMATS, image_sha256, open_image, open_image_path, read_image_bytes
from vgid.errors import DataError

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encode(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Encoded bytes of a picture."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def two_halves(width: int = 6, height: int = 4) -> Image.Image:
    """Left half red, right half blue."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(BLUE, (width // 2, 0, width, height))
    return picture


def pixel(picture: Image.Image, x: int, y: int) -> tuple[int, ...]:
    """One pixel as a tuple of ints."""
    return tuple(np.asarray(picture)[y, x].tolist())


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_of_the_list_opens_as_rgb(kind: str) -> None:
    picture = open_image(encode(Image.new("RGB", (5, 3), RED), kind), where="x")

    assert (picture.mode, picture.size) == ("RGB", (5, 3))
    assert np.abs(np.asarray(picture).astype(int) - RED).max() <= 3


@pytest.mark.parametrize("kind", ["PPM", "TGA", "ICO", "PCX", "JPEG2000", "EPS"])
def test_formats_off_the_list_are_refused(kind: str) -> None:
    with pytest.raises(DataError, match="expected an intact JPEG, PNG"):
        open_image(encode(two_halves(), kind), where="rows.parquet, row 3")


def test_a_refusal_says_which_image() -> None:
    with pytest.raises(DataError, match=r"^rows\.parquet, row 3: image cannot be read"):
        open_image(b"no image at all", where="rows.parquet, row 3")


@pytest.mark.parametrize("keep", [0, 1, 20, 60, -40])
def test_a_truncated_png_is_refused(keep: int) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    with pytest.raises(DataError):
        open_image(encode(noise)[:keep], where="x")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF"]), st.data())
def test_a_damaged_image_either_opens_as_rgb_or_is_a_data_error(kind: str, data: st.DataObject) -> None:
    encoded = bytearray(encode(two_halves(16, 16), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        picture = open_image(bytes(encoded), where="x", max_pixels=10_000)
    except DataError:
        return
    assert picture.mode == "RGB"


def test_the_pixel_cap_is_exact() -> None:
    encoded = encode(two_halves(10, 10))

    assert open_image(encoded, where="x", max_pixels=100).size == (10, 10)
    with pytest.raises(DataError, match="10x10 pixels is over the cap of 99"):
        open_image(encoded, where="x", max_pixels=99)


def bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes whose header promises `side` times `side` pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [7_100, 9_500, 15_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header_alone(side: int) -> None:
    """Over our own cap, over Pillow's warning, and over Pillow's error."""
    with pytest.raises(DataError):
        open_image(bomb(side), where="x")


def test_exif_orientation_is_applied_and_metadata_dropped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: left goes up
    picture = open_image(encode(two_halves(6, 4), exif=exif), where="x")

    assert picture.size == (4, 6)
    assert pixel(picture, 0, 0) == RED and pixel(picture, 0, 5) == BLUE
    assert not picture.getexif() and not picture.info


def test_transparency_is_composed_over_white() -> None:
    picture = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (255, 0, 0, 0))
    picture.putpixel((2, 0), (0, 0, 0, 51))
    opened = open_image(encode(picture), where="x")

    assert [pixel(opened, x, 0) for x in range(3)] == [RED, WHITE, (204, 204, 204)]


def test_a_palette_with_a_transparent_colour_is_composed_over_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, *BLUE])
    picture.putpixel((1, 0), 1)
    opened = open_image(encode(picture, transparency=1), where="x")

    assert [pixel(opened, x, 0) for x in range(2)] == [RED, WHITE]


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA"])
def test_grey_and_palette_images_become_rgb(mode: str) -> None:
    opened = open_image(encode(Image.new("L", (2, 2), 255).convert(mode)), where="x")

    assert opened.mode == "RGB" and pixel(opened, 1, 1) == WHITE


def test_bytes_and_path_of_one_image_have_one_hash(tmp_path: Path) -> None:
    encoded = encode(two_halves())
    (tmp_path / "a.png").write_bytes(encoded)

    assert image_sha256(encoded) == image_sha256(tmp_path / "a.png")
    assert read_image_bytes(tmp_path / "a.png") == encoded


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: No such file"):
        read_image_bytes(tmp_path / "gone.png")


def test_a_path_under_the_root_is_resolved(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")

    found = open_image_path("photos/../photos/a.png", root=tmp_path, where="x")
    assert found == (tmp_path / "photos" / "a.png").resolve()


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
def test_a_path_may_not_leave_the_root(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "root").mkdir()
    with pytest.raises(DataError, match="outside the data root"):
        open_image_path(path, root=tmp_path / "root", where="x")


def test_a_symbolic_link_may_not_leave_the_root(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    root = tmp_path / "root"
    root.mkdir()
    (root / "innocent.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="outside the data root"):
        open_image_path("innocent.png", root=root, where="x")


def test_a_root_that_is_itself_a_link_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")

    assert open_image_path("a.png", root=tmp_path / "link", where="x").name == "a.png"


@pytest.mark.parametrize("url", ["http://example.org/a.png", "file:///etc/passwd", "s3://bucket/a.png"])
def test_a_url_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="is a URL"):
        open_image_path(url, root=tmp_path, where="x")


@pytest.mark.parametrize("path", ["gone.png", ".", ""])
def test_what_is_no_file_is_not_found(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match="not found under"):
        open_image_path(path, root=tmp_path, where="x")


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_with_more_than_8_bits_are_refused_rather_than_clipped(mode: str) -> None:
    with pytest.raises(DataError, match="8 bits"):
        open_image(encode(Image.new(mode, (2, 2), 300), "TIFF"), where="x")
