"""Who was erased from a cache, so that a resumed run does not bring them back; unreadable without a key kept elsewhere.

A tombstone is an HMAC of a subject's or an example's id. Plain hashes would not do: ids are guessable, and whoever held
the cache could test names. What this gives up: without the key nothing can be generated into such a cache any more.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict

from vgid.errors import CacheError

KEY_VARIABLE = "VGID_ERASE_KEY"
Kind = Literal["all", "example", "subject"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstones:
    """What the manifest says about erased rows."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    key_id: str
    """Names the key without giving it away."""
    entries: tuple[str, ...]
    """HMAC-SHA256 in hex, sorted."""


def tombstone(key: bytes, kind: Kind, name: str = "") -> str:
    """The tombstone of a subject, of an example, or of everything."""
    return hmac.new(key, f"{kind}\0{name}".encode(), sha256).hexdigest()


def key_id(key: bytes) -> str:
    """16 hex digits that say which key it is."""
    return hmac.new(key, b"key id", sha256).hexdigest()[:16]


def key_path() -> Path:
    """Where the key is kept: the file that `VGID_ERASE_KEY` names, or `vgid/erase.key` in the user's configuration."""
    if named := os.environ.get(KEY_VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "vgid" / "erase.key"


def make_key(path: Path | None = None) -> bytes:
    """The key of this user, made (32 random bytes in hex, mode 0600) if there is none.

    Raises:
        CacheError: the file holds something else.
    """
    path = path or key_path()
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            pass
    return _read_key(path)


class Graveyard:
    """Answers whether a row was erased; reads the key only if there is a tombstone to compare with."""

    def __init__(self, tombstones: Tombstones | None, *, where: str) -> None:
        """Take the tombstones of one manifest.

        Raises:
            CacheError: there are some and the key that made them is not at hand; the message says how to give it.
        """
        self._entries = frozenset(tombstones.entries if tombstones else ())
        self._key = b""
        if tombstones and tombstones.entries:
            self._key = load_key(tombstones, where=where)

    def holds(self, *, subject_id: str, example_id: str) -> bool:
        """Whether rows of this example are not to come back."""
        return bool(self._entries) and any(mark in self._entries for mark in self._marks(subject_id, example_id))

    def has(self, kind: Kind, name: str) -> bool:
        """Whether there is a tombstone of exactly this."""
        return bool(self._entries) and tombstone(self._key, kind, name) in self._entries

    def _marks(self, subject_id: str, example_id: str) -> Iterable[str]:
        yield tombstone(self._key, "subject", subject_id)
        yield tombstone(self._key, "example", example_id)
        yield tombstone(self._key, "all")


def load_key(tombstones: Tombstones, *, where: str) -> bytes:
    """The key that made these tombstones.

    Raises:
        CacheError: it is missing, or another key is there.
    """
    path = key_path()
    help_ = f"set {KEY_VARIABLE} to the file with the key that erased from this cache, or use a new cache"
    if not path.exists():
        raise CacheError(f"cache {where}: holds tombstones of key {tombstones.key_id}, but {path} is missing; {help_}")
    key = _read_key(path)
    if key_id(key) != tombstones.key_id:
        raise CacheError(
            f"cache {where}: holds tombstones of key {tombstones.key_id}, but {path} holds key {key_id(key)}; {help_}"
        )
    return key


def _read_key(path: Path) -> bytes:
    try:
        key = bytes.fromhex(path.read_text().strip())
    except ValueError:
        key = b""
    if len(key) < 32:
        raise CacheError(f"{path}: is no erase key (64 hex digits); restore it, or name another with {KEY_VARIABLE}")
    return key
