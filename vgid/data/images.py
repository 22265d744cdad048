"""The only place that decodes images: format allow-list, pixel cap, EXIF orientation, RGB.

vLLM transposes by EXIF and transformers does not, so both engines are handed an upright RGB image without metadata.
Alpha is composed over white, as vLLM does.
"""

from __future__ import annotations

import io
import warnings
from hashlib import sha256
from pathlib import Path

from PIL import ExifTags, ImageOps
from PIL import Image as PIL

from vgid.data.examples import Image
from vgid.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 50_000_000


def read_image_bytes(image: Image) -> bytes:
    """Return the encoded bytes of an image given as bytes or path.

    Raises:
        DataError: the file is missing or unreadable.
    """
    if isinstance(image, bytes):
        return image
    try:
        return image.read_bytes()
    except OSError as error:
        raise DataError(f"image {image}: {error.strerror or error}; restore the file or drop the row") from error


def image_sha256(image: Image) -> str:
    """Hash of the encoded source bytes, in hex."""
    return sha256(read_image_bytes(image)).hexdigest()


def open_image(image: Image, *, where: str, max_pixels: int = MAX_PIXELS) -> PIL.Image:
    """Decode to an upright 8-bit RGB image without metadata.

    Args:
        image: Encoded bytes or a path.
        where: What to call the image in an error, for example a file and row.
        max_pixels: Largest width times height accepted (a decompression bomb is smaller than its file suggests).

    Raises:
        DataError: unknown format, damaged data, or more pixels than `max_pixels`.
    """
    data = read_image_bytes(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.DecompressionBombWarning)
            picture = PIL.open(io.BytesIO(data), formats=FORMATS)
            width, height = picture.size
            if width * height > max_pixels:
                raise DataError(
                    f"{where}: image of {width}x{height} pixels is over the cap of {max_pixels:,}; resize it"
                )
            if picture.mode.startswith(("I", "F")):
                # Converting these to 8 bits clips instead of scaling: most of the picture would turn white.
                raise DataError(
                    f"{where}: image has {picture.mode} pixels (over 8 bits); save it with 8 bits a channel"
                )
            return _over_white(ImageOps.exif_transpose(picture))
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, PIL.DecompressionBombError, PIL.DecompressionBombWarning) as error:
        known = ", ".join(FORMATS)
        raise DataError(f"{where}: image cannot be read ({error}); expected an intact {known} file") from error


def image_size(image: Image, *, where: str) -> tuple[int, int]:
    """Width and height of the upright image, from its header.

    Raises:
        DataError: it is no image of a known format.
    """
    try:
        with PIL.open(io.BytesIO(read_image_bytes(image)), formats=FORMATS) as picture:
            width, height = picture.size
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except (OSError, ValueError, SyntaxError, PIL.DecompressionBombError) as error:
        raise DataError(
            f"{where}: image cannot be read ({error}); expected an intact {', '.join(FORMATS)} file"
        ) from error
    return (height, width) if turned else (width, height)


def open_image_path(path: str, *, root: Path, where: str) -> Path:
    """Resolve an image path from a data set; it must stay under `root`, symbolic links followed.

    Raises:
        DataError: a URL, a path outside `root`, or no such file.
    """
    if "://" in path:
        raise DataError(f"{where}: image {path!r} is a URL; vgid reads local files only")
    try:
        resolved = (root / path).resolve()
        is_inside, is_file = resolved.is_relative_to(root.resolve()), resolved.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        # A null byte, a name too long for the file system, a loop of symbolic links: pathlib raises a kind for each.
        raise DataError(f"{where}: image {path[:80]!r} is no usable path ({error})") from error
    if not is_inside:
        raise DataError(f"{where}: image {path!r} leads outside the data root {root}; move it inside")
    if not is_file:
        raise DataError(f"{where}: image {path!r} not found under {root}")
    return resolved


def _over_white(picture: PIL.Image) -> PIL.Image:
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = PIL.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = PIL.alpha_composite(white, picture)
    rgb = picture.convert("RGB")
    rgb.info.clear()
    return rgb
