"""From `Target`s to committed parts: write, verify, link, commit; rows that the cache has are left out.

Any number of writers may work on one cache without a lock. A writer killed at any moment loses the rows it had not
committed (at most `rows_per_part` a split) and harms nothing. What this gives up: a killed writer can leave a part that
no manifest names; it is never read, and adopted only if the same rows come again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from vgid.cache.card import write_card
from vgid.cache.encoding import Profile, decode_part, encode_part
from vgid.cache.kinds import kinds_of
from vgid.cache.manifest import SPLIT_NAME, Manifest, Part, VocabularyFile, commit, load_manifest
from vgid.cache.reader import read_part
from vgid.cache.schema import NO_CANDIDATE, SCHEMA, Target, ids_sha256, to_table
from vgid.cache.store import Store, explained, open_store
from vgid.cache.tombstones import Graveyard
from vgid.cache.vocabulary import Token, write_vocabulary
from vgid.errors import CacheError

STALE_S = 24 * 3600.0

_Group = tuple[str, str]
"""Split and engine: what the rows of one part have in common."""


class CacheWriter:
    """Appends targets to a cache. As a context manager it flushes at the end, unless an exception passes through.

    After an exception the caller decides: `flush()` commits what was added so far, doing nothing drops it.
    """

    def __init__(
        self,
        cache: Path | str | Store,
        *,
        teacher: Mapping[str, str | int | None],
        settings: Mapping[str, Any],
        plan: Mapping[str, Any],
        rows_per_part: int = 256,
        profile: Profile = "default",
        vocabulary: Callable[[], Iterable[Token]] | None = None,
        expires: str | None = None,
    ) -> None:
        """Open or begin a cache; from here on it is a cache of this teacher.

        Args:
            cache: Path or URL, made if missing.
            teacher: Identity of the teacher, field by field.
            settings: How values are stored, field by field.
            plan: What is asked for.
            rows_per_part: Rows of a split that are committed together.
            profile: Encoding of the parts; a cache may hold both.
            vocabulary: Gives the token table; called if the cache has none.
            expires: When the cache should be erased, ISO 8601 in UTC; None keeps what it says.

        Raises:
            CacheError: it belongs to another teacher or other settings, is damaged, or cannot be written, or rows were
                erased from it and the key of its tombstones is not at hand.
        """
        self.store = open_store(cache)
        self.done: set[str] = set()
        """Target ids that are committed, by whomever, as of the last look."""
        self._fields: dict[str, Any] = {"teacher": teacher, "settings": settings, "plan": plan, "expires": expires}
        self._vocabulary = vocabulary
        self._profile: Profile = profile
        self._rows_per_part = rows_per_part
        self._graveyard = Graveyard(None, where="")
        self._pending: dict[_Group, dict[str, Target]] = {}
        self._known_parts: set[str] = set()
        with explained(self.store):
            self.store.sweep(older_than_s=STALE_S)
        self._commit([])

    def erased(self, *, subject_id: str, example_id: str) -> bool:
        """Whether rows of this example were erased, so that they are not to be made again (as of the last look)."""
        return self._graveyard.holds(subject_id=subject_id, example_id=example_id)

    def add(self, target: Target) -> None:
        """Take one row; its part is committed when full. A row that the cache or this writer has is ignored.

        So is a row that was erased.

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

    def look(self) -> None:
        """Learn what others committed or erased since this writer's last commit; reads only their new parts.

        Raises:
            CacheError: the newest manifest or one of those parts is damaged.
        """
        self._learn(load_manifest(self.store))

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
            missing = [[row for row in self._pending[group].values() if self._is_wanted(row)] for group in groups]
            parts = [write_part(self.store, rows, self._profile) for rows in missing if rows]
            self._withdraw(written - {part.path for part in parts})
            written.clear()
            written.update(part.path for part in parts)
            return parts

        commit(self.store, **self._fields, add=add, write_vocabulary=self._write_vocabulary)
        self._known_parts |= written
        for group in groups:
            self.done.update(self._pending.pop(group))
        with explained(self.store):
            write_card(self.store)

    def _learn(self, newest: Manifest | None) -> None:
        """Take note of what was committed or erased since the last look, by this writer's forerunners or others."""
        self._graveyard = Graveyard(newest.tombstones if newest else None, where=self.store.location)
        for part in newest.parts if newest else ():
            if part.path not in self._known_parts:
                self.done.update(read_part(self.store, part, columns=["target_id"])["target_id"].to_pylist())
                self._known_parts.add(part.path)

    def _is_wanted(self, row: Target) -> bool:
        return row.target_id not in self.done and not self.erased(subject_id=row.subject_id, example_id=row.example_id)

    def _withdraw(self, paths: Iterable[str]) -> None:
        """Remove own parts that lost the race: some of their rows are committed, so nobody can commit them now."""
        for path in paths:
            if path not in self._known_parts:
                self.store.delete(path)

    @property
    def _write_vocabulary(self) -> Callable[[], VocabularyFile] | None:
        tokens = self._vocabulary
        return None if tokens is None else lambda: write_vocabulary(self.store, tokens())


def write_part(store: Store, targets: Iterable[Target], profile: Profile = "default") -> Part:
    """Write rows of one split and engine as a part; see `write_table`."""
    return write_table(store, to_table(sorted(targets, key=lambda row: row.target_id)), profile)


def write_table(store: Store, table: pa.Table, profile: Profile = "default") -> Part:
    """Write rows of one split and engine, sorted by id, as a verified part; it counts only once a manifest names it.

    The name is made of the target ids, so the same rows lead to the same name. A file that has it already (left by a
    killed or a concurrent writer) is verified and adopted.

    Raises:
        CacheError: the file that has the name is damaged or holds other rows.
        OSError: the disk refuses.
    """
    ids = table["target_id"].to_pylist()
    name = f"data/{table['split'][0].as_py()}/part-{ids_sha256(ids)[:24]}.parquet"
    where = store.describe(name)
    while True:
        try:
            data, is_found = store.read(name), True
        except FileNotFoundError:  # the usual case; or a writer that lost a race withdrew it under our eyes
            data, is_found = encode_part(table, profile), False
        part = _verified(data, name, ids, where=where)
        # A found one is asked for as well: then it is there to stay, which its writer may not have lived to see to.
        if store.create(name, data) or is_found:
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
    if target.topk_ids.min(initial=0) < 0:
        stored = target.topk_ids != NO_CANDIDATE
        if (stored[:, 1:] > stored[:, :-1]).any() or np.isfinite(target.topk_logprobs[~stored]).any():
            raise CacheError(f"{where}: an absent candidate (id {NO_CANDIDATE}) may only end a position and has -inf")
    broken = [name for name, value in arrays.items() if value.dtype.kind == "f" and np.isnan(value).any()]
    if broken:
        raise CacheError(f"{where}: {broken[0]} holds NaN; the teacher's logits were not finite")


def _verified(data: bytes, name: str, ids: Sequence[str], *, where: str) -> Part:
    """Decode the bytes of a part in full and describe them as the part `name`."""
    table = decode_part(data, where)
    if table["target_id"].to_pylist() != ids:
        raise CacheError(f"{where}: holds other rows than its name says; move it away and rerun")
    return Part(
        path=name,
        split=table["split"][0].as_py(),
        rows=len(ids),
        tokens=len(table["token_ids"].combine_chunks().flatten()),
        bytes=len(data),
        sha256=sha256(data).hexdigest(),
        engine_id=table["engine_id"][0].as_py(),
        kinds=kinds_of(table),
    )
