"""Pictures as data sets write them, each decoded once to make sure that it can be.

Values are encoded bytes, a path under the data root, or the `{bytes, path}` pair of Hugging Face data sets. Only the
size is kept from decoding: the pixels are made again where they are used, which is cheap beside a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from vgid.data.examples import Image
from vgid.data.images import open_image, open_image_path
from vgid.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """The pictures admitted so far, in one reading of the data."""

    root: Path
    """Image paths in the data are relative to this folder and may not leave it."""
    sizes: dict[Path | str, tuple[int, int]] = field(default_factory=dict)
    """Width and height in pixels, upright, by path or by the sha256 of the bytes."""

    def admit(self, value: Any, *, where: str) -> Image | None:
        """Resolve and decode one picture; None where the value says that there is none.

        Raises:
            DataError: of the wrong type, outside the root, missing, damaged, or too large.
        """
        image = self._resolve(value, where=where)
        if image is not None:
            key = sha256(image).hexdigest() if isinstance(image, bytes) else image
            if key not in self.sizes:
                self.sizes[key] = open_image(image, where=where).size
        return image

    def _resolve(self, value: Any, *, where: str) -> Image | None:
        if isinstance(value, Mapping) and set(value) <= {"bytes", "path"}:
            value = value.get("bytes") or value.get("path")
        if value is None or value in ("", b""):
            return None
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return open_image_path(value, root=self.root, where=where)
        raise DataError(f"{where}: an image is bytes, a path or a pair of both, not {type(value).__name__}")
