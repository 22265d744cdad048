"""Take people or questions out of a cache for good: rows, files, superseded manifests and every decoded copy.

First the newest manifest stops naming the rows and marks them as erased, in one commit; from then on no reader sees
them and no writer can bring them back. Only then are files removed. A run that is killed or refused by the disk is
finished by running it again. What this gives up: a writer that was running meanwhile may leave a file that nobody
reads; so run it again when the writers are done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vgid.cache.audit import append_entry
from vgid.cache.card import write_card
from vgid.cache.copies import copies_out_of_reach, holds_erased
from vgid.cache.encoding import decode_part, profile_of
from vgid.cache.manifest import Manifest, Part, purge_before, update
from vgid.cache.reader import Cache, open_cache, read_part, read_verified
from vgid.cache.scratch import remove_scratch
from vgid.cache.store import Store, explained, is_remote
from vgid.cache.tombstones import (
    KEY_VARIABLE,
    Graveyard,
    Kind,
    Tombstones,
    key_id,
    key_path,
    load_key,
    make_key,
    tombstone,
)
from vgid.cache.writer import write_table
from vgid.errors import CacheError


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Whom to erase; `everything` makes the other two superfluous."""

    subjects: frozenset[str] = frozenset()
    examples: frozenset[str] = frozenset()
    everything: bool = False

    def names(self) -> list[tuple[Kind, str]]:
        """What becomes a tombstone each."""
        if self.everything:
            return [("all", "")]
        subjects: list[tuple[Kind, str]] = [("subject", name) for name in sorted(self.subjects)]
        return [*subjects, *(("example", name) for name in sorted(self.examples))]

    def rows(self, table: pa.Table) -> np.ndarray:
        """bool, by row of a table that has `subject_id` and `example_id`: whether it is to be erased."""
        if self.everything:
            return np.ones(len(table), np.bool_)
        return _among(table["subject_id"], self.subjects) | _among(table["example_id"], self.examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a selection would take out of a cache."""

    rows: dict[str, int]
    """By split."""
    absent: tuple[str, ...]
    """Selected names without a row and without a tombstone, such as `subject mara`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What an erasure did."""

    cache: str
    manifest: int
    """Number of the one that no longer names the rows."""
    rows: int
    """Taken out by this run; 0 if an earlier one had done so."""
    parts_rewritten: int
    parts_dropped: int
    """Of which nothing was left."""
    files_removed: int
    """Parts of the manifests before, and parts that no manifest named and that held erased rows."""
    scratch_removed: int
    """Decoded copies for training."""
    tombstones: int
    """All that the cache has now."""
    audit: str
    """The log's last entry, in the cache."""
    key: str
    """File with the key of tombstones and log; without it nothing can be generated into this cache any more."""
    copies: tuple[str, ...]
    """Copies, and kinds of copies, that are left to the user."""


def find(cache: Cache, selection: Selection) -> Found:
    """Count what a selection would take out; nothing is changed.

    Raises:
        CacheError: a part is missing or damaged (not asked for where everything is to go), or the key of the tombstones
            is not at hand.
    """
    if selection.everything:
        return Found(rows=_sums((part.split, part.rows) for part in cache.manifest.parts), absent=())
    table = cache.rows(["split", "subject_id", "example_id"])
    subjects, examples = (frozenset(table[name].unique().to_pylist()) for name in ("subject_id", "example_id"))
    graveyard = Graveyard(cache.manifest.tombstones, where=cache.location)
    absent = [f"subject {name}" for name in selection.subjects - subjects if not graveyard.has("subject", name)]
    absent += [f"example {name}" for name in selection.examples - examples if not graveyard.has("example", name)]
    splits = table["split"].filter(pa.array(selection.rows(table)))
    return Found(rows=_sums((split, 1) for split in splits.to_pylist()), absent=tuple(sorted(absent)))


def erase(
    store: Store, selection: Selection, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Erasure:
    """Erase a selection from a cache, whether or not it has rows now: it cannot come back.

    Args:
        store: Of the cache.
        selection: Whom; not empty.
        progress: Told how many parts of how many are looked through.

    Raises:
        CacheError: no cache there, a part is missing or damaged (not asked for where everything is to go), the key is
            not at hand, or the disk refuses; run again to continue.
    """
    newest = open_cache(store).manifest
    key = _key(store, newest, selection)
    marks = {tombstone(key, kind, name): kind for kind, name in selection.names()}
    told: dict[str, Any] = {
        "key_id": key_id(key),
        "erased": [{"kind": kind, "mark": mark} for mark, kind in marks.items()],
    }
    work = _Rewriting(store, selection, progress)

    def change(newest: Manifest | None) -> Manifest:
        if newest is None:
            raise CacheError(f"cache {store.location}: its manifests vanished; restore it from a copy")
        if newest.tombstones and newest.tombstones.entries and not selection.everything:
            load_key(newest.tombstones, where=store.location)  # someone else may have begun with another key
        parts = work.parts_without(newest)
        tombstones = _merged(None if selection.everything else newest.tombstones, marks, key)
        changed = replace(newest, parts=parts, tombstones=tombstones)
        return newest if changed == newest else changed

    with explained(store):
        append_entry(store, "begun", {**told, "manifest": _named(newest)})
        manifest = update(store, change)
        purge_before(store, manifest.number)
        store.sweep(older_than_s=0)  # a writer that misses its temporary file makes it again
        # Rows of others may have been erased meanwhile, so this looks at the newest tombstones.
        latest = open_cache(store).manifest
        graveyard = Graveyard(latest.tombstones, where=store.location)
        counts = {
            "rows": work.rows,
            "parts_rewritten": work.rewritten,
            "parts_dropped": work.dropped,
            "files_removed": _remove_erased_files(store, latest, graveyard),
            "scratch_removed": remove_scratch(store),
        }
        write_card(store)
        audit = append_entry(store, "finished", {**told, "manifest": _named(manifest), **counts})
        copies = copies_out_of_reach(store, graveyard)
    return Erasure(
        cache=store.location,
        manifest=manifest.number,
        tombstones=len(manifest.tombstones.entries) if manifest.tombstones else 0,
        audit=audit,
        key=str(key_path()),
        copies=copies,
        **counts,
    )


@dataclass(slots=True)
class _Rewriting:
    """Makes the parts of a manifest anew without the selected rows, and counts; the last call counts."""

    store: Store
    selection: Selection
    progress: Callable[[int, int], None]
    rows: int = field(init=False, default=0)
    rewritten: int = field(init=False, default=0)
    dropped: int = field(init=False, default=0)

    def parts_without(self, manifest: Manifest) -> tuple[Part, ...]:
        """Parts whose rows are none of the selected ones; a part that loses none is the same."""
        self.rows = self.rewritten = self.dropped = 0
        kept: list[Part] = []
        for done, part in enumerate(manifest.parts, 1):
            left = None if self.selection.everything else self._without(part)
            kept += [left] if left else []
            self.rows += part.rows - (left.rows if left else 0)
            self.rewritten += left is not None and left != part
            self.dropped += left is None
            self.progress(done, len(manifest.parts))
        return tuple(sorted(kept, key=lambda part: part.path))

    def _without(self, part: Part) -> Part | None:
        erased = self.selection.rows(read_part(self.store, part, columns=["subject_id", "example_id"]))
        if not erased.any():
            return part
        if erased.all():
            return None
        data = read_verified(self.store, part)
        left = decode_part(data, self.store.describe(part.path)).filter(pa.array(~erased))
        return write_table(self.store, left, profile_of(data))


def _key(store: Store, manifest: Manifest, selection: Selection) -> bytes:
    path = key_path()
    if not is_remote(store) and path.resolve().is_relative_to(Path(store.location).resolve()):
        raise CacheError(f"the erase key must not lie in the cache: name another file than {path} with {KEY_VARIABLE}")
    if manifest.tombstones and manifest.tombstones.entries and not selection.everything:
        return load_key(manifest.tombstones, where=store.location)
    try:
        return make_key(path)
    except OSError as error:
        raise CacheError(
            f"{path}: the erase key cannot be made ({error.strerror or error}); name another file with {KEY_VARIABLE}"
        ) from error


def _merged(old: Tombstones | None, marks: Iterable[str], key: bytes) -> Tombstones:
    entries = {*(old.entries if old else ()), *marks}
    return Tombstones(key_id=key_id(key), entries=tuple(sorted(entries)))


def _named(manifest: Manifest) -> Mapping[str, Any]:
    return {"number": manifest.number, "sha256": manifest.sha256}


def _remove_erased_files(store: Store, manifest: Manifest, graveyard: Graveyard) -> int:
    """Remove parts that the manifest, a new one, does not name and that hold erased rows, or cannot be read.

    Nobody can commit such a part any more: writers leave erased rows out, and adopt no damaged file. Other parts are
    left alone, for a living writer may be about to commit them.
    """
    named = {part.path for part in manifest.parts}
    removed = 0
    for name in store.names("data"):
        if name not in named and _is_erased(store, name, graveyard):
            store.delete(name)
            removed += 1
    return removed


def _is_erased(store: Store, name: str, graveyard: Graveyard) -> bool:
    try:
        table = decode_part(store.read(name), name, columns=["subject_id", "example_id"])
    except FileNotFoundError:  # withdrawn by its writer meanwhile
        return False
    except CacheError:
        return True
    return holds_erased(table, graveyard)


def _among(column: pa.ChunkedArray, names: frozenset[str]) -> np.ndarray:
    return np.array([value in names for value in column.to_pylist()], np.bool_)


def _sums(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for name, count in counts:
        total[name] += count
    return dict(sorted(total.items()))
