"""Bring a picture to exactly what a model's processor makes of it, so that the processor then changes nothing.

Scaling averages noise away; noise that is added after the scaling reaches the model as it is. No resampling is written
again here: the picture is read back out of the processor's own pixel values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image as PIL

from vgid.errors import ConfigError, DataError


def fit_to_processor(picture: PIL.Image, image_processor: Any) -> PIL.Image:
    """The picture that the model sees, as 8-bit RGB: scaled, and cropped where the processor crops.

    Known are processors that give patches (`image_grid_thw`: Qwen2-VL, Qwen2.5-VL, Qwen3-VL) and those that give one
    picture (`pixel_values` [1, 3, H, W]: CLIP, LLaVA-1.5). The result is put through the processor once more: it must
    come out as the original does, else the processor is one that this does not work for.

    Args:
        picture: 8-bit RGB.
        image_processor: A Hugging Face image processor.

    Raises:
        ConfigError: the processor is of another kind, or changes the fitted picture again.
        DataError: the processor refuses the picture (Qwen's refuse sides of over 200 to 1).
    """
    seen = _seen(picture, image_processor)
    fitted = PIL.fromarray(np.rint(seen).clip(0, 255).astype(np.uint8))
    again = _seen(fitted, image_processor)
    if again.shape != seen.shape or np.abs(again - seen).max() > 0.51:  # half a level and the rounding of float32
        raise ConfigError(
            f"{type(image_processor).__name__} changes a picture of its own size {fitted.width}x{fitted.height} again; "
            "perturb in space 'pixel'"
        )
    return fitted


def _seen(picture: PIL.Image, image_processor: Any) -> np.ndarray:
    """What the processor makes of a picture, as float64 levels 0 to 255, [H, W, 3]."""
    try:
        output = image_processor(images=[picture], return_tensors="pt")
    except ValueError as error:
        raise DataError(
            f"{type(image_processor).__name__} takes no picture of {picture.width}x{picture.height} pixels "
            f"({str(error).splitlines()[0]}); crop it or drop it"
        ) from error
    values = np.asarray(output["pixel_values"], np.float64)
    if "image_grid_thw" in output:
        planes = _join_patches(values, np.asarray(output["image_grid_thw"])[0], image_processor)
    elif values.ndim == 4 and values.shape[:2] == (1, 3):
        planes = values[0]
    else:
        raise ConfigError(
            f"{type(image_processor).__name__} gives pixel values of shape {list(values.shape)}, and vgid cannot tell "
            "the picture that the model sees from them; perturb in space 'pixel'"
        )
    levels = planes.transpose(1, 2, 0)
    if image_processor.do_normalize:
        levels = levels * np.array(image_processor.image_std) + np.array(image_processor.image_mean)
    return levels / image_processor.rescale_factor if image_processor.do_rescale else levels


def _join_patches(values: np.ndarray, grid: np.ndarray, image_processor: Any) -> np.ndarray:
    """Planes [3, H, W] from Qwen's rows of patches, which go by groups of merge x merge; of equal frames the first."""
    size, merge, frames = (
        getattr(image_processor, name, 0) for name in ("patch_size", "merge_size", "temporal_patch_size")
    )
    _, rows, columns = (int(count) for count in grid)
    if not (size and merge and frames) or values.shape != (rows * columns, 3 * frames * size * size):
        raise ConfigError(
            f"{type(image_processor).__name__} gives patches of shape {list(values.shape)}, not in Qwen's layout; "
            "perturb in space 'pixel'"
        )
    patches = values.reshape(rows // merge, columns // merge, merge, merge, 3, frames, size, size)[:, :, :, :, :, 0]
    # group row, group column, row, column, colour, y, x -> colour, (group row, row, y), (group column, column, x)
    return patches.transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * size, columns * size)
