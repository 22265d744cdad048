"""From `Target`s to committed parts: write, verify, link, commit; rows that the cache has are left out.

Any number of writers may work on one cache without a lock. A writer killed at any moment loses the rows it had not
committed (at most `rows_per_part` a split) and harms nothing. What this gives up: a killed writer can leave a part that
no manifest names; it is never read, and adopted only if the same rows come again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vgid.cache.card import write_card
from vgid.cache.files import link_new, make_private_directory, sweep_stale, temporary_file
from vgid.cache.manifest import SPLIT_NAME, Manifest, Part, commit
from vgid.cache.reader import decode_part, read_part
from vgid.cache.schema import SCHEMA, Target, to_table
from vgid.errors import CacheError

ROW_GROUP_ROWS = 128

_TEXT = [field.name for field in SCHEMA if pa.types.is_string(field.type)]
_NUMBERS = [
    *(f"{name}.list.element" for name in ("token_ids", "token_logprob", "token_rank")),
    *(f"{name}.list.element" for name in ("logsumexp", "entropy", "tail_logprob")),
    *(f"{name}.list.element.list.element" for name in ("topk_ids", "topk_logprobs")),
]
# Bytes of ids and of grid values repeat in their high planes; dictionaries of them only cost (docs/cache-format.md).
_ENCODING: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": _TEXT,
    "use_byte_stream_split": _NUMBERS,
    "write_page_checksum": True,
}

_Group = tuple[str, str]
"""Split and engine: what the rows of one part have in common."""


class CacheWriter:
    """Appends targets to a cache. As a context manager it flushes at the end, unless an exception passes through.

    After an exception the caller decides: `flush()` commits what was added so far, doing nothing drops it.
    """

    def __init__(
        self,
        cache: Path,
        *,
        teacher: Mapping[str, str | int | None],
        settings: Mapping[str, Any],
        plan: Mapping[str, Any],
        rows_per_part: int = 256,
    ) -> None:
        """Open or begin a cache; from here on it is a cache of this teacher.

        Raises:
            CacheError: it belongs to another teacher or other settings, is damaged, or cannot be written.
        """
        self.cache = Path(cache)
        self.done: set[str] = set()
        """Target ids that are committed, by whomever, as of the last look."""
        self._identity: dict[str, Mapping[str, Any]] = {"teacher": teacher, "settings": settings, "plan": plan}
        self._rows_per_part = rows_per_part
        self._pending: dict[_Group, dict[str, Target]] = {}
        self._known_parts: set[str] = set()
        for directory in (self.cache / "manifest", *(self.cache / "data").glob("*")):
            sweep_stale(directory)
        self._commit([])

    def add(self, target: Target) -> None:
        """Take one row; its part is committed when full. A row that the cache or this writer has is ignored.

        Raises:
            CacheError: the row contradicts itself, or the commit fails.
        """
        check_target(target)
        if target.target_id in self.done or any(target.target_id in rows for rows in self._pending.values()):
            return
        group = (target.split, target.engine_id)
        rows = self._pending.setdefault(group, {})
        rows[target.target_id] = target
        if len(rows) >= self._rows_per_part:
            self._commit([group])

    def flush(self) -> None:
        """Commit all rows taken so far, one part per split; does nothing if there are none.

        Raises:
            CacheError: the commit fails; the rows are kept and can be flushed again.
        """
        if self._pending:
            self._commit(list(self._pending))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.flush()

    def _commit(self, groups: Sequence[_Group]) -> None:
        written: set[str] = set()

        def add(newest: Manifest | None) -> list[Part]:
            self._learn(newest)
            missing = [
                [row for row in self._pending[group].values() if row.target_id not in self.done] for group in groups
            ]
            parts = [write_part(self.cache, rows) for rows in missing if rows]
            self._withdraw(written - {part.path for part in parts})
            written.clear()
            written.update(part.path for part in parts)
            return parts

        commit(self.cache, **self._identity, add=add)
        self._known_parts |= written
        for group in groups:
            self.done.update(self._pending.pop(group))
        write_card(self.cache)

    def _learn(self, newest: Manifest | None) -> None:
        """Take note of rows that were committed since the last look, by this writer's forerunners or others."""
        for part in newest.parts if newest else ():
            if part.path not in self._known_parts:
                self.done.update(read_part(self.cache, part, columns=["target_id"])["target_id"].to_pylist())
                self._known_parts.add(part.path)

    def _withdraw(self, paths: Iterable[str]) -> None:
        """Remove own parts that lost the race: some of their rows are committed, so nobody can commit them now."""
        for path in paths:
            if path not in self._known_parts:
                (self.cache / path).unlink(missing_ok=True)


def write_part(cache: Path, targets: Iterable[Target]) -> Part:
    """Write rows of one split and engine as a verified part; it counts only once a manifest names it.

    The name is made of the target ids, so the same rows lead to the same name. A file that has it already (left by a
    killed or a concurrent writer) is verified and adopted.

    Raises:
        CacheError: the file that has the name is damaged or holds other rows.
        OSError: the disk refuses.
    """
    rows = sorted(targets, key=lambda row: row.target_id)
    ids = [row.target_id for row in rows]
    directory = cache
    for name in ("data", rows[0].split):
        directory = make_private_directory(directory / name)
    final = directory / f"part-{sha256(chr(10).join(ids).encode()).hexdigest()[:24]}.parquet"
    while True:
        try:
            return _verified(final, final, ids)
        except FileNotFoundError:  # the usual case; or a writer that lost a race withdrew it under our eyes
            with temporary_file(directory, lambda file: _encode(rows, file)) as temporary:
                part = _verified(temporary, final, ids)
                if link_new(temporary, final):
                    return part


def check_target(target: Target) -> None:
    """Refuse a row that could not be read back or would poison training.

    Raises:
        CacheError: lengths disagree, a value is not a number, or the split makes no directory name.
    """
    where = f"target {target.target_id} (example {target.example_id})"
    if not SPLIT_NAME.fullmatch(target.split):
        raise CacheError(
            f"{where}: split {target.split!r} may hold only letters, digits and _ in groups joined by dots"
        )
    arrays = {name: value for name in SCHEMA.names if isinstance(value := getattr(target, name), np.ndarray)}
    lengths = {name: len(value) for name, value in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise CacheError(f"{where}: one entry per response token is needed, but lengths are {lengths}")
    shapes = target.topk_ids.shape, target.topk_logprobs.shape
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        raise CacheError(f"{where}: topk_ids and topk_logprobs have shapes {shapes[0]} and {shapes[1]}")
    broken = [name for name, value in arrays.items() if np.isnan(value).any()]
    if broken:
        raise CacheError(f"{where}: {broken[0]} holds NaN; the teacher's logits were not finite")


def _encode(rows: Sequence[Target], file: BinaryIO) -> None:
    pq.write_table(to_table(rows), file, row_group_size=ROW_GROUP_ROWS, **_ENCODING)


def _verified(file: Path, final: Path, ids: Sequence[str]) -> Part:
    """Read `file` back in full and describe it as the part `final`."""
    data = file.read_bytes()
    table = decode_part(data, final)
    if table["target_id"].to_pylist() != ids:
        raise CacheError(f"{final}: holds other rows than its name says; move it away and rerun")
    split, engine_id = table["split"][0].as_py(), table["engine_id"][0].as_py()
    return Part(
        path=f"data/{split}/{final.name}",
        split=split,
        rows=len(ids),
        tokens=sum(len(row) for row in table["token_ids"]),
        bytes=len(data),
        sha256=sha256(data).hexdigest(),
        engine_id=engine_id,
    )
