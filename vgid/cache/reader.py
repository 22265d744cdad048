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
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vgid.cache.manifest import Manifest, Part, load_manifest
from vgid.cache.schema import FORMAT_VERSION, SCHEMA, Target, iter_targets
from vgid.errors import CacheError


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """A committed state of a cache directory; later commits by other jobs do not change it."""

    path: Path
    manifest: Manifest

    def iter_targets(self) -> Iterator[Target]:
        """All rows, part after part in path order.

        Raises:
            CacheError: a part is missing or damaged; the message names it.
        """
        for part in self.manifest.parts:
            yield from iter_targets(read_part(self.path, part))

    def load_targets(
        self, *, split: str | None = None, view: str | None = None, response_kind: str | None = None
    ) -> list[Target]:
        """Rows with the given values; None takes all.

        Raises:
            CacheError: a part is missing or damaged; the message names it.
        """
        wanted = {"view": view, "response_kind": response_kind}
        targets: list[Target] = []
        for part in self.manifest.parts:
            if split is None or part.split == split:
                table = read_part(self.path, part)
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
        tables = [read_part(self.path, part, columns=columns) for part in self.manifest.parts]
        return pa.concat_tables([schema.empty_table(), *tables])


def open_cache(path: Path) -> Cache:
    """Open the newest committed state of a cache.

    Raises:
        CacheError: there is no cache, or its manifest is damaged or of another format.
    """
    path = Path(path)
    manifest = load_manifest(path)
    if manifest is None:
        found = "no such directory" if not path.exists() else "it holds no manifest, so it is no cache"
        raise CacheError(f"cache {path}: {found}; make one with `vgid teacher generate RECIPE --out {path}`")
    return Cache(path=path, manifest=manifest)


def read_part(cache: Path, part: Part, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Verify and decode one part.

    Raises:
        CacheError: it is missing, damaged, of another schema or length; the message names it.
    """
    file = cache / part.path
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CacheError(
            f"{file}: cannot be read ({error.strerror or error}); restore it from a copy, or make a new cache"
        ) from error
    if (found := sha256(data).hexdigest()) != part.sha256:
        raise CacheError(damage(file, expected=part.sha256, found=found))
    table = decode_part(data, file, columns=columns)
    if table.num_rows != part.rows:
        raise CacheError(f"{file}: holds {table.num_rows} rows, its manifest says {part.rows}; make a new cache")
    return table


def damage(file: Path, *, expected: str, found: str) -> str:
    """The message for a file whose hash is not the one its manifest names."""
    return (
        f"{file}: sha256 is {found[:12]}…, the manifest says {expected[:12]}…: the file is damaged; "
        "restore it from a copy, or make a new cache"
    )


def decode_part(data: bytes, file: Path, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Decode the bytes of one part, page checksums verified.

    Args:
        data: The whole file.
        file: What to call it in an error.
        columns: Which columns to decode; None for all.

    Raises:
        CacheError: damaged, or of another schema.
    """
    try:
        parquet = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        if not parquet.schema_arrow.equals(SCHEMA):
            raise CacheError(f"{file}: its columns are not those of cache format {FORMAT_VERSION}; make a new cache")
        return parquet.read(columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise CacheError(f"{file}: damaged ({reason}); restore it from a copy, or make a new cache") from error
