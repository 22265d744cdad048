"""Training's way into a cache: every part verified and decoded once, then any row at any time from a memory map.

The decoded copy is an uncompressed Arrow file, one record batch a part, named
`<manifest's sha256, 24 hex>-<its own sha256, 24 hex>.arrow`: the first half says whether it is of today's cache, the
second whether it is still what was decoded. It is hashed through the very map that is read afterwards, so it needs no
sidecar, no lock and no fsync: what a killed or a second builder, a power cut or a bad disk leaves is either right or
made anew. What this gives up: disk (about 530 bytes a token at k = 64), a new copy after every commit, and builders
that start together on a cold cache each do the work.
"""

from __future__ import annotations

import logging
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, overload
from uuid import uuid4

import numpy as np
import pyarrow as pa

from vgid.cache.reader import Cache, read_part
from vgid.cache.schema import SCHEMA, RowReader, Target
from vgid.cache.scratch import SUFFIX, make_folder, scratch_folder
from vgid.cache.store import TEMPORARY_PREFIX
from vgid.errors import CacheError

_HASH_DIGITS = 24
_HASH_CHUNK_BYTES = 1 << 24
_DEAD_AFTER_S = 3600.0
"""A living builder writes to its temporary file every few seconds."""
_OPEN_BATCHES = 256
"""Record batches whose readers are kept; each costs some 10 kB."""
_FIELDS = frozenset(SCHEMA.names)
"""The list is made anew whenever Arrow is asked for it, which took half the time of reading a value."""

_LOG = logging.getLogger(__name__)


class MappedTargets(Sequence[Target]):
    """Rows of a decoded copy, read when they are asked for: neither this nor its rows hold any of their content.

    A row is a `Target` that reads each field from the map at every access; arrays are read-only views of the map
    (copies only where positions differ in width). Pickles as its path and row numbers.
    """

    def __init__(self, copy: _Copy, rows: range | np.ndarray) -> None:
        """Use `map_targets`; `rows` are places in the copy."""
        self._copy, self._rows = copy, rows

    @property
    def path(self) -> Path:
        """The decoded copy."""
        return self._copy.path

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Target: ...
    @overload
    def __getitem__(self, index: slice) -> MappedTargets: ...
    def __getitem__(self, index: int | slice) -> Target | MappedTargets:
        if isinstance(index, slice):
            return MappedTargets(self._copy, self._rows[index])
        return _MappedTarget.at(self._copy, int(self._rows[index]))

    def select(self, indices: Sequence[int] | np.ndarray) -> MappedTargets:
        """The rows with these indices, in this order."""
        return MappedTargets(self._copy, np.asarray(self._rows)[np.asarray(indices, np.int64)])

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all rows; of the whole copy a view, of a selection a copy of that column alone."""
        column = self._copy.column(name)
        if isinstance(self._rows, range) and self._rows == range(len(column)):
            return column
        return column.take(pa.array(np.asarray(self._rows, np.int64)))


def map_targets(
    cache: Cache, *, scratch: Path | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> MappedTargets:
    """All rows of a cache, part after part in path order, decoded first if no sound copy is there.

    Args:
        cache: A committed state; the copy belongs to exactly this one, and copies of others are removed.
        scratch: Where copies are kept; see `scratch_folder`.
        progress: Told how many rows of how many are decoded; not called if a copy is there.

    Raises:
        CacheError: a part is missing or damaged, or the disk refuses the copy; the message names it.
    """
    folder = scratch_folder(cache.store, scratch)
    stem = cache.manifest.sha256[:_HASH_DIGITS]
    with _explained(cache, folder):
        for path in sorted(folder.glob(f"{stem}-*{SUFFIX}")):
            # Whoever maps another state of the cache may remove it under our eyes.
            with suppress(FileNotFoundError):
                if mapped := _open_verified(path):
                    return mapped
                _LOG.warning("%s: does not hold what was decoded; decoding the cache again", path)
                path.unlink()
        make_folder(folder, store=cache.store)
        _remove_others(folder, stem)
        path = _decode(cache, folder, stem, progress)
        mapped = _open_verified(path)
    if mapped is None:
        raise CacheError(f"{path}: the disk gave back other bytes than were written; give another with --scratch DIR")
    return mapped


class _Copy:
    """An open decoded copy: the values of a row by its place."""

    def __init__(self, path: Path, data: pa.Buffer) -> None:
        self.path = path
        # Threads would not survive the fork of a data loader's workers.
        self._file = pa.ipc.open_file(data, options=pa.ipc.IpcReadOptions(use_threads=False))
        self._starts = [0, *accumulate(batch.num_rows for batch in self._batches())]
        self.schema: pa.Schema = self._file.schema
        self._reader = lru_cache(_OPEN_BATCHES)(lambda number: RowReader(self._file.get_batch(number)))

    def value(self, place: int, name: str) -> Any:
        number = bisect_right(self._starts, place) - 1
        return self._reader(number).value(place - self._starts[number], name)

    def column(self, name: str) -> pa.ChunkedArray:
        return pa.chunked_array([batch.column(name) for batch in self._batches()], SCHEMA.field(name).type)

    def __len__(self) -> int:
        return self._starts[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path,)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        return map(self._file.get_batch, range(self._file.num_record_batches))


class _MappedTarget(Target):
    """A `Target` with nothing in its own slots but its place: each field is read from the copy at every access.

    So a million of them can be held where one holds them as items to train on.
    """

    __slots__ = ("_copy", "_place")

    def __new__(cls, **fields: Any) -> Target:  # type: ignore[misc]
        """What `dataclasses.replace` calls: an ordinary row."""
        return Target(**fields)

    @staticmethod
    def at(copy: _Copy, place: int) -> Target:
        row = object.__new__(_MappedTarget)
        object.__setattr__(row, "_copy", copy)
        object.__setattr__(row, "_place", place)
        return row

    def __getattr__(self, name: str) -> Any:  # called for slots that hold nothing
        if name not in _FIELDS:
            raise AttributeError(name)
        return self._copy.value(self._place, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _MappedTarget.at, (self._copy, self._place)


def _reopen(path: Path) -> _Copy:
    """Map a copy again that another process of this run has verified."""
    try:
        return _Copy(path, _map(path))
    except OSError as error:
        raise CacheError(
            f"{path}: cannot be read ({error.strerror or error}); if the cache was erased or added to meanwhile, rerun"
        ) from error


def _open_verified(path: Path) -> MappedTargets | None:
    """Map a copy if it is what its name says, with the columns of today."""
    data = _map(path)
    if _content_hash(data) != path.stem.partition("-")[2]:
        return None
    copy = _Copy(path, data)
    return MappedTargets(copy, range(len(copy))) if copy.schema.equals(SCHEMA) else None


def _map(path: Path) -> pa.Buffer:
    return pa.memory_map(str(path)).read_buffer()


def _content_hash(data: pa.Buffer) -> str:
    digest, view = sha256(), memoryview(data)
    for start in range(0, len(view), _HASH_CHUNK_BYTES):
        digest.update(view[start : start + _HASH_CHUNK_BYTES])
    return digest.hexdigest()[:_HASH_DIGITS]


def _decode(cache: Cache, folder: Path, stem: str, progress: Callable[[int, int], None]) -> Path:
    """Write the copy under a temporary name, one part in memory at a time, and name it by what was meant."""
    temporary = folder / f"{TEMPORARY_PREFIX}{uuid4().hex}"
    parts = cache.manifest.parts
    total, done = sum(part.rows for part in parts), 0
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            sink = _HashedFile(file)
            with pa.ipc.new_file(sink, SCHEMA) as writer:
                for part in parts:
                    writer.write_table(read_part(cache.store, part).combine_chunks())
                    done += part.rows
                    progress(done, total)
        path = folder / f"{stem}-{sink.digest.hexdigest()[:_HASH_DIGITS]}{SUFFIX}"
        temporary.replace(path)
        return path
    finally:
        temporary.unlink(missing_ok=True)


class _HashedFile:
    """A file to write to that knows the hash of what it was given."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _remove_others(folder: Path, stem: str) -> None:
    """Remove copies of other states and what dead builders left; whoever has one mapped keeps it until it ends."""
    for path in folder.glob(f"*{SUFFIX}"):
        if not path.name.startswith(stem):
            path.unlink(missing_ok=True)
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _DEAD_AFTER_S:
                path.unlink()


@contextmanager
def _explained(cache: Cache, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"cache {cache.location}: cannot keep a decoded copy in {folder} ({error.strerror or error}); it needs "
            "about 530 bytes a token at k = 64 and write permission: name a place that has both with --scratch DIR"
        ) from error
