"""What counts as committed: numbered, exclusively created JSON files, the newest of which names every part.

A part that no manifest names does not exist, however readable it is. No lock is needed: a writer that loses the race
for a number reads what the winner wrote, merges and tries the next one. What this gives up: every commit writes the
whole list again, and old manifests stay (deleting one would let a slow writer win a number twice).
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from vgid.cache.files import link_new, make_private_directory, temporary_file
from vgid.cache.schema import FORMAT_VERSION
from vgid.errors import CacheError

CARD_NAME = "README.md"
SPLIT_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
"""A split names a directory and a `datasets` split."""

_PART_PATH = re.compile(rf"data/(?P<split>{SPLIT_NAME.pattern})/part-[0-9a-f]{{24}}\.parquet")
_MANIFEST_NAME = re.compile(r"(\d{6,})\.json")
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

    def __post_init__(self) -> None:
        match = _PART_PATH.fullmatch(self.path)
        if match is None or match["split"] != self.split:
            raise ValueError(
                f"part {self.path!r} of split {self.split!r} is not named data/<split>/part-<hash>.parquet"
            )


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


_MANIFEST = TypeAdapter(Manifest)


def manifest_path(cache: Path, number: int) -> Path:
    """Where manifest `number` of a cache stands."""
    return cache / "manifest" / f"{number:06d}.json"


def load_manifest(cache: Path) -> Manifest | None:
    """Read the newest manifest; None if there is none yet.

    A damaged newest manifest is an error: going back to the one before would silently lose rows.

    Raises:
        CacheError: it is damaged, of another format, or unreadable; the message names the file.
    """
    try:
        numbers = _manifest_numbers(cache)
        path = manifest_path(cache, max(numbers, default=0))
        return _decode(path.read_bytes(), path) if numbers else None
    except OSError as error:
        raise CacheError(f"cache {cache}: manifest cannot be read ({error.strerror or error})") from error


def commit(
    cache: Path,
    *,
    teacher: Mapping[str, str | int | None],
    settings: Mapping[str, Any],
    plan: Mapping[str, Any],
    add: Callable[[Manifest | None], Iterable[Part]],
) -> Manifest:
    """Publish the newest manifest plus the parts that `add` returns; writes nothing where nothing would change.

    Args:
        cache: The cache directory, made if missing.
        teacher: Identity of the teacher, field by field.
        settings: How values are stored, field by field.
        plan: What was asked for.
        add: Given the manifest about to be replaced (None for a new cache), writes and returns the parts to add. It is
            called again when another writer was faster, and must leave out rows that the manifest already holds.

    Raises:
        CacheError: the cache was made by another teacher or with other settings (nothing is written then), or the
            disk refuses.
    """
    wanted = {"teacher": _plain(teacher), "settings": _plain(settings)}
    try:
        for _ in range(_ATTEMPTS):
            foreign_card = (cache / CARD_NAME).exists()
            newest = load_manifest(cache)
            if newest is None and foreign_card:
                raise CacheError(f"{cache} holds a {CARD_NAME} but no cache; give an empty or new directory")
            if newest is not None:
                _check_same(newest, wanted, manifest_path(cache, newest.number))
            merged = _merge(newest, add(newest), plan=_plain(plan), **wanted)
            if merged is newest or _publish(cache, merged):
                return merged
            time.sleep(random.uniform(0, _MAX_WAIT_S))
    except OSError as error:
        raise CacheError(
            f"cache {cache}: cannot write {error.filename or ''} ({error.strerror or error}); it needs free space, "
            "write permission and a file system with hard links. What was committed is safe: rerun to continue"
        ) from error
    raise CacheError(f"cache {cache}: lost {_ATTEMPTS} races for a manifest number; are its listings up to date?")


def _manifest_numbers(cache: Path) -> list[int]:
    try:
        names = os.listdir(cache / "manifest")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [int(match[1]) for match in map(_MANIFEST_NAME.fullmatch, names) if match]


def _merge(newest: Manifest | None, added: Iterable[Part], **fields: Any) -> Manifest:
    """The manifest that follows `newest`; equal to it if nothing changes."""
    parts = {part.path: part for part in (newest.parts if newest else ())}
    for part in added:
        known = parts.setdefault(part.path, part)
        if known != part:
            raise CacheError(f"{part.path}: its content changed since it was committed ({known} became {part})")
    ordered = tuple(parts[path] for path in sorted(parts))
    if newest and newest.parts == ordered and newest.plan == fields["plan"]:
        return newest
    number = newest.number + 1 if newest else 1
    return Manifest(number=number, format_version=FORMAT_VERSION, parts=ordered, **fields)


def _check_same(newest: Manifest, wanted: Mapping[str, Mapping[str, Any]], where: Path) -> None:
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


def _publish(cache: Path, manifest: Manifest) -> bool:
    """Create the manifest's file; False if another writer took the number."""
    path = manifest_path(cache, manifest.number)
    make_private_directory(cache)
    make_private_directory(path.parent)
    with temporary_file(path.parent, lambda file: file.write(_encode(manifest))) as temporary:
        return link_new(temporary, path)


def _encode(manifest: Manifest) -> bytes:
    body = _plain(asdict(manifest))
    return json.dumps({"sha256": _digest(body), **body}, indent=1, ensure_ascii=False).encode() + b"\n"


def _decode(data: bytes, path: Path) -> Manifest:
    try:
        body = json.loads(data)
        claimed = body.pop("sha256")
        version = body["format_version"]
        digest = _digest(body)
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        raise CacheError(f"{path}: not a cache manifest ({error!r}); restore it from a copy") from error
    if version != FORMAT_VERSION:
        raise CacheError(
            f"{path}: format {version!r}, this vgid reads {FORMAT_VERSION}; change vgid or make a new cache"
        )
    if claimed != digest:
        raise CacheError(f"{path}: content does not match its sha256, the file is damaged; restore it from a copy")
    try:
        manifest = _MANIFEST.validate_json(_canonical(body))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise CacheError(f"{path}: field {field}: {first['msg']}; see docs/cache-format.md") from error
    if manifest.number != int(path.stem):
        raise CacheError(f"{path}: says that it is number {manifest.number}; was it renamed? Restore its name")
    return manifest


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back (tuples become lists), so that what is compared is what is stored."""
    return json.loads(_canonical(value))


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _digest(body: Mapping[str, Any]) -> str:
    return sha256(_canonical(body)).hexdigest()
