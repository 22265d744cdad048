"""How a file of a cache appears: whole or not at all, on disk to stay, and readable by its owner only.

A file is written under a private temporary name, synced, and then *linked* to its final name: unlike a rename, a link
fails when the name is taken, so of two writers exactly one wins. What this gives up: file systems without hard links.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

TEMPORARY_PREFIX = ".tmp-"
STALE_S = 24 * 3600.0


def make_private_directory(path: Path) -> Path:
    """Make `path` with mode 0700 unless it exists (whose mode is left alone), and sync its parent."""
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_directory(path.parent)
    return path


@contextmanager
def temporary_file(directory: Path, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
    """Write and sync a file of mode 0600 under a fresh temporary name; the name is gone when the block ends."""
    path = directory / f"{TEMPORARY_PREFIX}{uuid4().hex}"
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


def link_new(temporary: Path, final: Path) -> bool:
    """Give a finished temporary file its final name; False (and nothing changed) if that name is taken."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        return False
    sync_directory(final.parent)
    return True


def sync_directory(path: Path) -> None:
    """Make new names in a directory survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_stale(directory: Path, *, older_than_s: float = STALE_S) -> None:
    """Remove temporary files that a dead writer left; younger ones may belong to a living one."""
    for path in directory.glob(f"{TEMPORARY_PREFIX}*"):
        try:
            if time.time() - path.stat().st_mtime > older_than_s:
                path.unlink()
        except FileNotFoundError:
            continue
