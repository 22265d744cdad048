"""Everything that is wrong with a cache: files, hashes, names, counts and, row by row, the rules of the format.

Nothing is believed that can be computed again, and all findings are collected, not only the first. What this gives up:
the whole cache is read, and rows are not asked for again from the teacher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from vgid.cache.encoding import decode_part
from vgid.cache.invariants import Breach, Terms, is_term, iter_breaches, said_terms
from vgid.cache.kinds import kinds_of
from vgid.cache.manifest import PURGED, Part, decode_manifest, manifest_name, manifest_numbers
from vgid.cache.reader import Cache, read_verified
from vgid.cache.schema import ids_sha256
from vgid.cache.status import cache_status
from vgid.cache.vocabulary import VOCABULARY_SCHEMA, read_vocabulary
from vgid.errors import CacheError

MOST_LISTED = 20
"""Rows listed of those that are wrong in the same way; the others are only counted. Files are all listed."""

_BLOCK_ROWS = 128
"""Rows looked at together; bounds the memory."""

_NOTES = ("leftover", "token", "unchecked")
"""Rules that are no error: nothing reads what they are about, or nothing can be said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, or worth knowing."""

    severity: Literal["error", "note"]
    rule: str
    file: str
    """Relative to the cache; empty for the cache as a whole."""
    row: int | None = None
    """From 0, in the file."""
    target_id: str | None = None
    position: int | None = None
    """Response token, from 0."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `verify_cache` found."""

    location: str
    manifest: int
    parts: int
    rows: int
    """That could be read."""
    tokens: int
    findings: tuple[Finding, ...]
    """Every file, and at most `MOST_LISTED` rows that are wrong in the same way."""
    counts: dict[str, int]
    """Places by rule, listed or not."""

    @property
    def num_errors(self) -> int:
        """Places where something is wrong."""
        return sum(count for rule, count in self.counts.items() if rule not in _NOTES)


def verify_cache(cache: Cache, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Report:
    """Read and check all that the manifest names.

    Args:
        cache: An open one; its newest manifest has been checked by opening it.
        progress: Called after each part with parts done and in all.
    """
    return _Verification(cache).run(progress)


class _Verification:
    def __init__(self, cache: Cache) -> None:
        self._cache, self._manifest = cache, cache.manifest
        self._findings: list[Finding] = []
        self._counts: Counter[str] = Counter()
        self._listed: Counter[str] = Counter()
        self._ids: dict[str, pa.ChunkedArray] = {}
        self._tokens = 0

    def run(self, progress: Callable[[int, int], None]) -> Report:
        self._check_manifests()
        self._check_terms()
        terms = Terms.of(self._manifest, self._checked_vocabulary())
        for done, part in enumerate(self._manifest.parts, 1):
            self._check_part(part, terms)
            progress(done, len(self._manifest.parts))
        self._check_unique()
        self._note_the_rest()
        return Report(
            location=self._cache.location,
            manifest=self._manifest.number,
            parts=len(self._manifest.parts),
            rows=sum(map(len, self._ids.values())),
            tokens=self._tokens,
            findings=tuple(self._findings),
            counts=dict(self._counts),
        )

    def _find(self, rule: str, file: str, message: str, **place: Any) -> None:
        """Take one finding; `place` is a row with its target id, and a position."""
        self._counts[rule] += 1
        severity = "note" if rule in _NOTES else "error"
        self._findings.append(Finding(severity=severity, rule=rule, file=file, message=message, **place))

    def _find_rows(self, file: str, breach: Breach, ids: pa.ChunkedArray, *, first: int = 0) -> None:
        """Take the places of a breach in a table with these target ids, whose row 0 is row `first` of the file."""
        self._counts[breach.rule] += len(breach.rows)
        places = range(min(len(breach.rows), MOST_LISTED - self._listed[breach.text]))
        self._listed[breach.text] += len(places)
        for place in places:
            row = int(breach.rows[place])
            position = None if breach.positions is None else int(breach.positions[place])
            severity = "note" if breach.rule in _NOTES else "error"
            self._findings.append(
                Finding(
                    severity=severity,
                    rule=breach.rule,
                    file=file,
                    row=first + row,
                    target_id=ids[row].as_py(),
                    position=position,
                    message=breach.describe(place),
                )
            )

    def _check_manifests(self) -> None:
        """The superseded ones too, although nothing reads them: what damaged those may damage the rest."""
        store = self._cache.store
        for number in manifest_numbers(store):
            name = manifest_name(number)
            where = store.describe(name)
            try:
                if number <= self._manifest.number and (data := store.read(name)) != PURGED:
                    decode_manifest(data, where=where, number=number)
            except (OSError, CacheError) as error:
                self._find("manifest", name, _reason(error, where))

    def _check_terms(self) -> None:
        """Numbers that rows are held against, and that nobody else reads."""
        for name, value in said_terms(self._manifest).items():
            if value is not None and not is_term(name, value):
                wanted = "a number between 0 and 1" if name == "top_p" else "a whole number from 1"
                self._find("value", manifest_name(self._manifest.number), f"{name} is {value!r}, not {wanted}")

    def _checked_vocabulary(self) -> pa.Table | None:
        file = self._manifest.vocabulary
        if file is None:
            return None
        try:
            table = read_vocabulary(self._cache)
        except (CacheError, OSError, pa.ArrowException) as error:
            self._find("file", file.path, _reason(error, self._cache.store.describe(file.path)))
            return None
        if not table.schema.equals(VOCABULARY_SCHEMA):
            self._find("file", file.path, f"its columns are {table.schema.names}, not those of a token table")
            return None
        ids = table["token_id"].to_numpy()
        if (ids[1:] <= ids[:-1]).any() or ids.min(initial=0) < 0:
            self._find("order", file.path, "its token ids are not in rising order from 0 or more")
            return None
        if f"vocabulary/{file.sha256[:24]}.parquet" != file.path:
            self._find("name", file.path, f"its name is not made of its sha256, {file.sha256[:24]}…")
        if len(table) != file.rows:
            self._find("count", file.path, f"it has {len(table):,} rows, the manifest says {file.rows:,}")
        return table

    def _check_part(self, part: Part, terms: Terms) -> None:
        where = self._cache.store.describe(part.path)
        try:
            data = read_verified(self._cache.store, part)
            table = decode_part(data, where)
            table.validate(full=True)
        except (CacheError, pa.ArrowException) as error:
            self._find("file", part.path, _reason(error, where))
            return
        kinds = kinds_of(table)
        tokens = sum(kind.tokens for kind in kinds)
        found = {"rows": len(table), "tokens": tokens, "bytes": len(data), "kinds": kinds}
        for name, value in found.items():
            said = getattr(part, name)
            if said is not None and value != said:
                self._find("count", part.path, f"{name} is {value}, the manifest says {said}")
        ids = table["target_id"]
        for breach in (*_of_ids(ids.to_pylist()), *_of_groups(table, part)):
            self._find_rows(part.path, breach, ids)
        if not part.path.endswith(f"/part-{(name := ids_sha256(ids.to_pylist())[:24])}.parquet"):
            self._find("name", part.path, f"its rows make the name part-{name}.parquet")
        if not len(table):
            self._find("count", part.path, "it has no rows")
        for first in range(0, len(table), _BLOCK_ROWS):
            block = table.slice(first, _BLOCK_ROWS)
            for breach in iter_breaches(block, terms):
                self._find_rows(part.path, breach, block["target_id"], first=first)
        self._tokens += tokens
        self._ids[part.path] = ids

    def _check_unique(self) -> None:
        """Over all parts; within one, equal ids are out of order too."""
        import pyarrow.compute as pc  # a tenth of a second; `vgid cache status` imports this module too

        read = pa.chunked_array([chunk for ids in self._ids.values() for chunk in ids.chunks], pa.string())
        times = pa.table({"id": read}).group_by("id").aggregate([([], "count_all")])
        several = times.filter(pc.field("count_all") > 1)["id"].to_pylist()
        for file, ids in self._ids.items() if several else ():
            table = pa.table({"id": ids, "row": np.arange(len(ids))})
            rows = table.filter(pc.field("id").isin(several))["row"].to_numpy()
            text = "its target_id stands more than once in the cache"
            self._find_rows(file, Breach(rule="twice", rows=rows, positions=None, text=text, values=()), ids)

    def _note_the_rest(self) -> None:
        status = cache_status(self._cache)
        if status.unnamed.files:
            text = f"{status.unnamed.files:,} files ({status.unnamed.bytes:,} bytes) that the manifest does not name"
            self._find("leftover", "data", f"{text}: left by killed writers, read by nothing")
        if status.temporary.files:
            text = f"{status.temporary.files:,} temporary files ({status.temporary.bytes:,} bytes)"
            self._find("leftover", "", f"{text}: of running writers, or left by killed ones")
        if self._manifest.vocabulary is None:
            self._find("unchecked", "", "there is no token table, so the last tokens of responses are not checked")
        for name in ("vocab_size", "num_topk"):
            if said_terms(self._manifest)[name] is None:
                self._find("unchecked", "", f"the manifest has no {name}, so nothing is held against it")


def _of_ids(ids: list[str]) -> Iterator[Breach]:
    rows = [row for row, (before, here) in enumerate(pairwise(ids), 1) if here <= before]
    if rows:
        text = "its target_id is not above that of the row before"
        yield Breach(rule="order", rows=np.array(rows), positions=None, text=text, values=())


def _of_groups(table: pa.Table, part: Part) -> Iterator[Breach]:
    for name, said in (("split", part.split), ("engine_id", part.engine_id)):
        values = np.array(table[name].to_pylist(), dtype=object)
        rows = np.flatnonzero(values != said)
        if len(rows):
            text = f"{name} is {{!r}}, the manifest says {{!r}} of the part"
            yield Breach(rule="group", rows=rows, positions=None, text=text, values=(values[rows], [said] * len(rows)))


def _reason(error: Exception, where: str) -> str:
    """The message without the file, which the finding names."""
    return str(error).splitlines()[0].removeprefix(f"{where}: ")
