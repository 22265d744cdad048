"""What a cache holds and how far it has come, from the manifest and the names of its files; no part is opened.

So it answers at once, whatever the size. What this gives up: it believes the manifest (`vgid cache verify` does not),
and it cannot tell which rows belong to which plan, since the manifest has the digest of the latest plan alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from vgid.cache.manifest import Manifest, Part
from vgid.cache.reader import Cache
from vgid.cache.store import TEMPORARY_PREFIX, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Committed rows of one kind; None where the manifest does not say (parts of format 1)."""

    split: str
    view: str | None = None
    modality: str | None = None
    response_kind: str | None = None
    rows: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Some files of the directory."""

    files: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A committed state in numbers. `rows`, `tokens` and `bytes` are those of the parts that the manifest names."""

    location: str
    manifest: int
    format_version: int
    parts: int
    rows: int
    tokens: int
    bytes: int
    bytes_per_token: float | None
    counts: tuple[Count, ...]
    plan: dict[str, Any]
    """The latest one asked for."""
    missing_rows: int | None
    """Rows of the latest plan that are missing *at least*: rows of earlier plans may stand in for more."""
    teacher: dict[str, str | int | None]
    engines: tuple[str, ...]
    settings: dict[str, Any]
    vocabulary: int | None
    """Rows of the token table; None without one."""
    tombstones: int
    expires: str | None
    expired: bool
    missing_files: tuple[str, ...]
    """Named by the manifest, not in the directory."""
    unnamed: Files
    """Parts and token tables that the manifest does not name."""
    temporary: Files
    """Half-written files, of killed writers or of living ones."""
    scratch: Files
    """Decoded copies for training."""


def cache_status(cache: Cache, *, now: datetime | None = None) -> Status:
    """Count; `now` decides whether the cache has expired.

    Raises:
        OSError: the directory cannot be listed.
    """
    manifest = cache.manifest
    rows, tokens, size = (sum(getattr(part, name) for part in manifest.parts) for name in ("rows", "tokens", "bytes"))
    planned = manifest.plan.get("rows")
    files = cache.store.names()
    named = _named(manifest)
    temporary = {name for name in files if name.rpartition("/")[2].startswith(TEMPORARY_PREFIX)}
    scratch = {name for name in files if name.startswith("scratch/")} - temporary
    unnamed = {name for name in files if name.startswith(("data/", "vocabulary/"))} - named - temporary
    return Status(
        location=cache.location,
        manifest=manifest.number,
        format_version=manifest.format_version,
        parts=len(manifest.parts),
        rows=rows,
        tokens=tokens,
        bytes=size,
        bytes_per_token=size / tokens if tokens else None,
        counts=_counts(manifest.parts),
        plan=manifest.plan,
        missing_rows=max(0, planned - rows) if isinstance(planned, int) else None,
        teacher=manifest.teacher,
        engines=tuple(sorted({part.engine_id for part in manifest.parts})),
        settings=manifest.settings,
        vocabulary=manifest.vocabulary.rows if manifest.vocabulary else None,
        tombstones=len(manifest.tombstones.entries) if manifest.tombstones else 0,
        expires=manifest.expires,
        expired=manifest.expires is not None and datetime.fromisoformat(manifest.expires) <= (now or datetime.now(UTC)),
        missing_files=tuple(sorted(named.difference(files))),
        unnamed=_files(cache.store, unnamed),
        temporary=_files(cache.store, temporary),
        scratch=_files(cache.store, scratch),
    )


def _counts(parts: Iterable[Part]) -> tuple[Count, ...]:
    counts: dict[tuple[str, ...], Count] = {}
    for part in parts:
        for count in _counts_of(part):
            key = (count.split, count.view or "", count.modality or "", count.response_kind or "")
            before = counts.get(key)
            if before is not None:
                count = replace(count, rows=count.rows + before.rows, tokens=count.tokens + before.tokens)
            counts[key] = count
    return tuple(counts[key] for key in sorted(counts))


def _counts_of(part: Part) -> Iterator[Count]:
    if part.kinds is None:
        yield Count(split=part.split, rows=part.rows, tokens=part.tokens)
    for kind in part.kinds or ():
        yield Count(split=part.split, **asdict(kind))


def _named(manifest: Manifest) -> set[str]:
    vocabulary = [manifest.vocabulary.path] if manifest.vocabulary else []
    return {*(part.path for part in manifest.parts), *vocabulary}


def _files(store: Store, names: Iterable[str]) -> Files:
    sizes: list[int] = []
    for name in names:
        try:
            sizes.append(store.size(name))
        except FileNotFoundError:  # a writer's temporary file, finished meanwhile
            continue
    return Files(files=len(sizes), bytes=sum(sizes))
