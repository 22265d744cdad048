"""Rows of a cache, taken from the newest manifest alone and checked before they are decoded.

Each part is read once into memory, hashed as a whole (the page checksums do not cover the footer) and decoded from
those same bytes. What this gives up: a read always costs the whole part, also for one column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pyarrow as pa

from vgid.cache.encoding import decode_part
from vgid.cache.manifest import Manifest, Part, VocabularyFile, load_manifest
from vgid.cache.schema import SCHEMA, Target, iter_targets
from vgid.cache.store import Store, open_store
from vgid.errors import CacheError


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """A committed state of a cache; later commits by other jobs do not change it."""

    store: Store
    manifest: Manifest

    @property
    def location(self) -> str:
        """Path or URL, for messages."""
        return self.store.location

    def iter_targets(self) -> Iterator[Target]:
        """All rows, part after part in path order.

        Raises:
            CacheError: a part is missing or damaged; the message names it.
        """
        for part in self.manifest.parts:
            yield from iter_targets(read_part(self.store, part))

    def load_targets(
        self, *, split: str | None = None, view: str | None = None, response_kind: str | None = None
    ) -> list[Target]:
        """Rows with the given values; None takes all.

        Raises:
            CacheError: a part is missing or damaged; the message names it.
        """
        import pyarrow.compute as pc  # a tenth of a second that `vgid cache status` does not need

        wanted = {"view": view, "response_kind": response_kind}
        targets: list[Target] = []
        for part in self.manifest.parts:
            if split is None or part.split == split:
                table = read_part(self.store, part)
                for name, value in wanted.items():
                    table = table if value is None else table.filter(pc.field(name) == value)
                targets.extend(iter_targets(table))
        return targets

    def rows(self, columns: Sequence[str]) -> pa.Table:
        """The named columns of all rows.

        Raises:
            CacheError: no such column, or a part is missing or damaged; the message names it.
        """
        unknown = [name for name in columns if name not in SCHEMA.names]
        if unknown:
            raise CacheError(f"column {unknown[0]!r} is unknown; a target has {', '.join(SCHEMA.names)}")
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        tables = [read_part(self.store, part, columns=columns) for part in self.manifest.parts]
        return pa.concat_tables([schema.empty_table(), *tables])


def open_cache(cache: Path | str | Store) -> Cache:
    """Open the newest committed state of a cache.

    Raises:
        CacheError: there is no cache, or its manifest is damaged or of another format.
    """
    store = open_store(cache)
    manifest = load_manifest(store)
    if manifest is None:
        raise CacheError(
            f"cache {store.location}: it holds no manifest, so it is no cache; "
            f"make one with `vgid teacher generate RECIPE --out {store.location}`"
        )
    return Cache(store=store, manifest=manifest)


def read_part(store: Store, part: Part, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Verify and decode one part.

    Raises:
        CacheError: it is missing, damaged, of another schema or length; the message names it.
    """
    where = store.describe(part.path)
    table = decode_part(read_verified(store, part), where, columns=columns)
    if table.num_rows != part.rows:
        raise CacheError(f"{where}: holds {table.num_rows} rows, its manifest says {part.rows}; make a new cache")
    return table


def read_verified(store: Store, file: Part | VocabularyFile) -> bytes:
    """The bytes of a file that the manifest names, if they are the ones that were committed.

    Raises:
        CacheError: it is missing or damaged; the message names it.
    """
    where = store.describe(file.path)
    try:
        data = store.read(file.path)
    except OSError as error:
        raise CacheError(
            f"{where}: cannot be read ({error.strerror or error}). If the cache was erased from meanwhile, rerun; "
            "otherwise restore the file from a copy, or make a new cache"
        ) from error
    if (found := sha256(data).hexdigest()) != file.sha256:
        raise CacheError(
            f"{where}: sha256 is {found[:12]}…, the manifest says {file.sha256[:12]}…: the file is damaged; "
            "restore it from a copy, or make a new cache"
        )
    return data
