"""Files that a command leaves for its user: whole or not at all, and for the owner's eyes only.

What vgid writes out (rows, pictures, questions) is a copy of what must be forgotten.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from vgid.errors import ConfigError


def check_free(path: Path, *, option: str, overwrite: bool) -> None:
    """Refuse a name that is taken, before hours are spent.

    Raises:
        ConfigError: the file exists and `overwrite` is not set, or its folder does not.
    """
    if path.exists() and not overwrite:
        raise ConfigError(f"{option} {path} exists; choose another name, or add --overwrite")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}")


@contextmanager
def new_private_file(path: Path, *, option: str, overwrite: bool) -> Iterator[BinaryIO]:
    """A file of mode 0600 that has its name once the block ends well; an existing one is left alone unless told.

    Args:
        path: Where it will be.
        option: What the user called it, for errors.
        overwrite: Whether it may exist.

    Raises:
        ConfigError: see `check_free`.
    """
    check_free(path, option=option, overwrite=overwrite)
    temporary = path.with_name(f".tmp-{uuid4().hex}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
