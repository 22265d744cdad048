"""What counts as committed: numbered, exclusively created JSON files, the newest of which names every part.

A part that no manifest names does not exist, however readable it is. No lock is needed: a writer that loses the race
for a number reads what the winner wrote, merges and tries the next one. What this gives up: every commit writes the
whole list again, and the names of old manifests stay taken (a freed one would let a slow writer win a number twice).
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from hashlib import sha256
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from vgid.cache.kinds import Kind
from vgid.cache.store import Store, explained
from vgid.cache.tombstones import Tombstones
from vgid.errors import CacheError

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 has no `vocabulary`, `tombstones` and `expires`, and rows of one width; the next commit makes it a 2."""

CARD_NAME = "README.md"
PURGED = b'{"purged": true}\n'
"""Content of a manifest that an erasure emptied; its number stays taken."""
SPLIT_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
"""A split names a directory and a `datasets` split."""

_PART_PATH = re.compile(rf"data/(?P<split>{SPLIT_NAME.pattern})/part-[0-9a-f]{{24}}\.parquet")
_VOCABULARY_PATH = re.compile(r"vocabulary/[0-9a-f]{24}\.parquet")
_MANIFEST_NAME = re.compile(r"manifest/(\d{6,})\.json")
_ATTEMPTS = 1000
_MAX_WAIT_S = 0.05

_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One committed Parquet file."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    path: str
    """`data/<split>/part-<first 24 hex digits of the sha256 of its sorted target ids>.parquet`, under the cache."""
    split: str
    rows: int
    tokens: int
    """Response tokens, summed over the rows."""
    bytes: int
    sha256: str
    """Of the whole file, in hex."""
    engine_id: str
    kinds: tuple[Kind, ...] | None = None
    """Its rows counted by kind, sorted; None if the writer did not say (format 1)."""

    def __post_init__(self) -> None:
        match = _PART_PATH.fullmatch(self.path)
        if match is None or match["split"] != self.split:
            raise ValueError(
                f"part {self.path!r} of split {self.split!r} is not named data/<split>/part-<hash>.parquet"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabularyFile:
    """The committed token table; see `vgid.cache.vocabulary`."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    path: str
    """`vocabulary/<first 24 hex digits of the file's sha256>.parquet`, under the cache."""
    rows: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not _VOCABULARY_PATH.fullmatch(self.path):
            raise ValueError(f"token table {self.path!r} is not named vocabulary/<hash>.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One committed state of a cache. `teacher` and `settings` never change within a cache; `plan` is the latest."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    number: int
    format_version: int
    teacher: dict[str, str | int | None]
    """Whose distributions these are: weights fingerprint, revision, tokenizer, vocabulary size, dtype, …"""
    settings: dict[str, Any]
    """How they are stored: num_topk, rounding, pixel form, …"""
    plan: dict[str, Any]
    """What was asked for: digest, rows, buckets."""
    parts: tuple[Part, ...]
    """Sorted by path."""
    vocabulary: VocabularyFile | None = None
    """What the token ids stand for."""
    tombstones: Tombstones | None = None
    """Who was erased and is not to come back."""
    expires: str | None = None
    """When the cache should be erased, as ISO 8601 in UTC."""

    def __post_init__(self) -> None:
        if self.expires is not None and datetime.fromisoformat(self.expires).tzinfo is None:
            raise ValueError(f"expires {self.expires!r} has no offset from UTC")

    @property
    def sha256(self) -> str:
        """Hash of the content; names what is derived from it."""
        return _digest(_plain(asdict(self)))


_MANIFEST = TypeAdapter(Manifest)


def manifest_name(number: int) -> str:
    """Where manifest `number` of a cache stands."""
    return f"manifest/{number:06d}.json"


def manifest_numbers(store: Store) -> list[int]:
    """Numbers of all manifests, in order."""
    return sorted(int(match[1]) for match in map(_MANIFEST_NAME.fullmatch, store.names("manifest")) if match)


def load_manifest(store: Store) -> Manifest | None:
    """Read the newest manifest; None if there is none yet.

    A damaged newest manifest is an error: going back to the one before would silently lose rows.

    Raises:
        CacheError: it is damaged, of another format, or unreadable; the message names it.
    """
    try:
        while numbers := manifest_numbers(store):
            name = manifest_name(numbers[-1])
            data = store.read(name)
            if data != PURGED:
                return decode_manifest(data, where=store.describe(name), number=numbers[-1])
            if manifest_numbers(store) == numbers:  # otherwise it was superseded and purged since we looked
                raise CacheError(
                    f"{store.describe(name)}: was purged, and no newer manifest is there; make a new cache"
                )
    except OSError as error:
        raise CacheError(f"cache {store.location}: manifest cannot be read ({error.strerror or error})") from error
    return None


def update(store: Store, change: Callable[[Manifest | None], Manifest]) -> Manifest:
    """Publish what `change` makes of the newest manifest; writes nothing if it returns that very manifest.

    Args:
        store: Of the cache, made if missing.
        change: Given the manifest about to be replaced (None for a new cache), does what must be on disk before the
            next one counts, and returns the next one. It is called again when another writer was faster, also where
            it met files that this writer had erased.

    Raises:
        CacheError: the newest manifest is damaged, or the disk refuses.
    """
    with explained(store):
        for _ in range(_ATTEMPTS):
            newest = load_manifest(store)
            try:
                changed = change(newest)
            except CacheError:
                # Whoever published a newer one may have erased files that this one names, or have made the cache whose
                # first files were met here.
                if manifest_numbers(store)[-1:] == ([newest.number] if newest else []):
                    raise
                continue
            if changed is newest:
                return changed
            following = replace(changed, number=newest.number + 1 if newest else 1, format_version=FORMAT_VERSION)
            if store.create(manifest_name(following.number), _encode(following)):
                return following
            time.sleep(random.uniform(0, _MAX_WAIT_S))
    raise CacheError(f"cache {store.location}: lost {_ATTEMPTS} races for a manifest number; are its listings current?")


def commit(
    store: Store,
    *,
    teacher: Mapping[str, str | int | None],
    settings: Mapping[str, Any],
    plan: Mapping[str, Any],
    add: Callable[[Manifest | None], Iterable[Part]],
    write_vocabulary: Callable[[], VocabularyFile] | None = None,
    expires: str | None = None,
) -> Manifest:
    """Publish the newest manifest plus the parts that `add` returns; writes nothing where nothing would change.

    Args:
        store: Of the cache, made if missing.
        teacher: Identity of the teacher, field by field.
        settings: How values are stored, field by field.
        plan: What was asked for.
        add: Given the manifest about to be replaced (None for a new cache), writes and returns the parts to add. It is
            called again when another writer was faster, and must leave out rows that the manifest already holds.
        write_vocabulary: Writes the token table; called if the cache has none.
        expires: See `Manifest`; None keeps what is there.

    Raises:
        CacheError: the cache was made by another teacher or with other settings (nothing is written then), or the
            disk refuses.
    """
    wanted = {"teacher": _plain(teacher), "settings": _plain(settings)}

    def change(newest: Manifest | None) -> Manifest:
        if newest is None and _exists(store, CARD_NAME):
            raise CacheError(f"{store.location} holds a {CARD_NAME} but no cache; give an empty or new directory")
        if newest is not None:
            _check_same(newest, wanted, store.describe(manifest_name(newest.number)))
        base = newest or Manifest(
            number=0,
            format_version=FORMAT_VERSION,
            teacher=wanted["teacher"],
            settings=wanted["settings"],
            plan={},
            parts=(),
        )
        merged = replace(
            base,
            plan=_plain(plan),
            parts=_join(base.parts, add(newest)),
            vocabulary=base.vocabulary or (write_vocabulary and write_vocabulary()),
            expires=expires or base.expires,
        )
        return newest if newest is not None and newest == merged else merged

    return update(store, change)


def purge_before(store: Store, number: int) -> None:
    """Empty all manifests before `number`, so that they name nothing; their names stay taken.

    Raises:
        OSError: the disk refuses.
    """
    for old in manifest_numbers(store):
        name = manifest_name(old)
        if old < number and store.read(name) != PURGED:
            store.replace(name, PURGED)


def _exists(store: Store, name: str) -> bool:
    try:
        store.read(name)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _join(known: Iterable[Part], added: Iterable[Part]) -> tuple[Part, ...]:
    parts = {part.path: part for part in known}
    for part in added:
        there = parts.setdefault(part.path, part)
        if there != part:
            raise CacheError(f"{part.path}: its content changed since it was committed ({there} became {part})")
    return tuple(parts[path] for path in sorted(parts))


def _check_same(newest: Manifest, wanted: Mapping[str, Mapping[str, Any]], where: str) -> None:
    for kind, here in wanted.items():
        there: Mapping[str, Any] = getattr(newest, kind)
        pairs = {name: (_shown(there, name), _shown(here, name)) for name in sorted(there.keys() | here.keys())}
        differing = [
            f"{kind} {name!r} is {old} in the cache, {new} in this run"
            for name, (old, new) in pairs.items()
            if old != new
        ]
        if differing:
            raise CacheError(f"{where}: {'; '.join(differing)}. Give another output directory, or undo the change")


def _shown(fields: Mapping[str, Any], name: str) -> str:
    return repr(fields[name]) if name in fields else "absent"


def _encode(manifest: Manifest) -> bytes:
    body = _plain(asdict(manifest))
    return json.dumps({"sha256": _digest(body), **body}, indent=1, ensure_ascii=False).encode() + b"\n"


def decode_manifest(data: bytes, *, where: str, number: int) -> Manifest:
    """Check and read a manifest's bytes.

    Raises:
        CacheError: damaged, of another format, or not number `number`; the message names `where`.
    """
    try:
        body = json.loads(data)
        claimed = body.pop("sha256")
        version = body["format_version"]
        digest = _digest(body)
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        raise CacheError(f"{where}: not a cache manifest ({error!r}); restore it from a copy") from error
    if version not in READABLE_VERSIONS:
        known = " and ".join(map(str, READABLE_VERSIONS))
        raise CacheError(f"{where}: format {version!r}, this vgid reads {known}; change vgid or make a new cache")
    if claimed != digest:
        raise CacheError(f"{where}: content does not match its sha256, the file is damaged; restore it from a copy")
    try:
        manifest = _MANIFEST.validate_json(_canonical(body))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise CacheError(f"{where}: field {field}: {first['msg']}; see docs/cache-format.md") from error
    if manifest.number != number:
        raise CacheError(f"{where}: says that it is number {manifest.number}; was it renamed? Restore its name")
    return manifest


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back (tuples become lists), so that what is compared is what is stored."""
    return json.loads(_canonical(value))


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _digest(body: Mapping[str, Any]) -> str:
    return sha256(_canonical(body)).hexdigest()
