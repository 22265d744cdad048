"""Where the files of a cache live: created whole or not at all, there to stay, readable by their owner only.

A file of a cache is written once and never changed, so a store needs one strong operation: `create`, of which exactly
one of several contents for a name wins. On a local disk that is a temporary file, synced and read back, then *linked*
to its name: unlike a rename, a link fails when the name is taken. What this gives up: file systems without hard links.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from vgid.errors import CacheError

TEMPORARY_PREFIX = ".tmp-"
_ATTEMPTS = 3


class Store(Protocol):
    """The files of one cache. Names are relative to it, with "/"; errors of the medium are `OSError`s."""

    location: str
    """Path or URL, for messages."""

    def describe(self, name: str) -> str:
        """What to call a file in a message."""
        ...

    def read(self, name: str) -> bytes:
        """A whole file; `FileNotFoundError` if there is none."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Make a file that did not exist, to stay; False (and nothing changed) if the name is taken.

        What has the name is there to stay as well, even if its maker died at once. Where it is taken by these very
        bytes, a store that cannot tell its own from another's says True.
        """
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Make or overwrite a file, old or new content visible at any moment; only for files that are no evidence."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file; a missing one is fine."""
        ...

    def names(self, folder: str = "") -> list[str]:
        """All files below a folder, sorted; none if it does not exist."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file; `FileNotFoundError` if there is none."""
        ...

    def sweep(self, *, older_than_s: float) -> None:
        """Have what dead writers made stay, and remove what they left half written.

        Younger files may belong to a living one.
        """
        ...


def open_store(cache: Path | str | Store) -> Store:
    """The store of a cache that is named by a path or URL; nothing is read or made.

    Raises:
        ConfigError: the URL is of a kind that cannot hold a cache, or a package is missing for it.
    """
    if not isinstance(cache, Path | str):
        return cache
    place = str(cache).removeprefix("file://")
    if "://" not in place:
        return LocalStore(Path(place))
    from vgid.cache.object_store import ObjectStore  # brings client libraries along

    return ObjectStore(place)


def is_remote(store: Store) -> bool:
    """Whether a store is named by a URL; the files of the others lie on a disk of this machine, or look so."""
    return "://" in store.location


@contextmanager
def explained(store: Store) -> Iterator[None]:
    """Turn what a medium refuses into one line that says what it needs."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"cache {store.location}: cannot write {error.filename or ''} ({error.strerror or error}); it needs free "
            "space, write permission and, on a disk, hard links. What was committed is safe: rerun to continue"
        ) from error


class LocalStore:
    """A directory. Folders that it makes have mode 0700, files 0600."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.location = str(root)
        self._settled: set[Path] = set()
        """Folders that are there to stay; merely finding one says nothing, since its maker may have died at once."""

    def describe(self, name: str) -> str:
        """The file's path."""
        return str(self.root / name)

    def read(self, name: str) -> bytes:
        """See `Store`."""
        return (self.root / name).read_bytes()

    def create(self, name: str, data: bytes) -> bool:
        """See `Store`. The temporary file is read back before it gets its name."""
        return self._put(name, data, _link)

    def replace(self, name: str, data: bytes) -> None:
        """See `Store`."""
        self._put(name, data, _rename)

    def delete(self, name: str) -> None:
        """See `Store`."""
        path = self.root / name
        if path.exists():
            path.unlink(missing_ok=True)
            _sync_directory(path.parent)

    def names(self, folder: str = "") -> list[str]:
        """See `Store`."""
        walk = os.walk(self.root / folder, onerror=_raise_unless_missing)
        found = (Path(place) / name for place, _, names in walk for name in names)
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def size(self, name: str) -> int:
        """See `Store`."""
        return (self.root / name).stat().st_size

    def sweep(self, *, older_than_s: float) -> None:
        """See `Store`."""
        paths = [self.root / name for name in self.names()]
        for path in paths:
            with suppress(FileNotFoundError):
                if path.name.startswith(TEMPORARY_PREFIX) and time.time() - path.stat().st_mtime > older_than_s:
                    path.unlink()
        for folder in {path.parent for path in paths}:
            with suppress(FileNotFoundError):
                _sync_directory(folder)

    def _put(self, name: str, data: bytes, publish: Callable[[Path, Path], bool]) -> bool:
        path = self.root / name
        for _ in range(_ATTEMPTS):
            self._make_folder(path.parent)
            # A missing file here is a temporary that was swept under our eyes.
            with suppress(FileNotFoundError), _temporary_file(path.parent, data) as temporary:
                if temporary.read_bytes() != data:
                    raise OSError(0, "the disk gave back other bytes than were written", str(temporary))
                is_published = publish(temporary, path)
                _sync_directory(path.parent)
                return is_published
        raise FileNotFoundError(2, "its temporary file vanished again and again", str(path))

    def _make_folder(self, folder: Path) -> None:
        """Make the cache's own folders private and sync each; an existing one's mode is left alone."""
        is_new = not folder.is_dir()
        if folder in self._settled and not is_new:
            return
        if folder == self.root:
            folder.parent.mkdir(parents=True, exist_ok=True)
        else:
            self._make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            _sync_directory(folder.parent)
        except PermissionError:  # an old cache may lie in a folder that may not be listed
            if is_new:
                raise
        self._settled.add(folder)


def _link(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    return True


def _rename(temporary: Path, path: Path) -> bool:
    os.replace(temporary, path)
    return True


@contextmanager
def _temporary_file(directory: Path, data: bytes) -> Iterator[Path]:
    """A synced file of mode 0600 under a fresh temporary name, which is gone when the block ends."""
    path = directory / f"{TEMPORARY_PREFIX}{uuid4().hex}"
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _sync_directory(path: Path) -> None:
    """Make new names in a directory survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
