"""When was what erased, without a word of what it was: numbered files that are made once and never changed.

An erasure makes two entries, one before it begins and one when all is done, so a log that ends with a beginning tells
of one that was interrupted. Whoever has the key can tell whether a person is meant, and nobody else. What this gives
up: the log is only as safe from deletion as the cache that it lies in; keep copies of it elsewhere, it has no secrets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from vgid import __version__
from vgid.cache.store import Store

AUDIT_FOLDER = "audit"

_NAME = re.compile(rf"{AUDIT_FOLDER}/(\d{{6,}})\.json")


def append_entry(store: Store, event: Literal["begun", "finished"], facts: Mapping[str, Any]) -> str:
    """Add an entry with the time and the version of vgid, and return its name.

    Args:
        store: Of the cache.
        event: What it tells of.
        facts: Hashes and counts, nothing else.

    Raises:
        OSError: the disk refuses.
    """
    entry = {"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), "vgid": __version__, **facts}
    data = json.dumps(entry, indent=1).encode() + b"\n"
    number = max(_numbers(store), default=0) + 1
    while not store.create(name := f"{AUDIT_FOLDER}/{number:06d}.json", data):
        number += 1
    return name


def load_entries(store: Store) -> list[dict[str, Any]]:
    """All entries, oldest first.

    Raises:
        OSError: the log cannot be read.
    """
    return [json.loads(store.read(f"{AUDIT_FOLDER}/{number:06d}.json")) for number in _numbers(store)]


def _numbers(store: Store) -> list[int]:
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, store.names(AUDIT_FOLDER)) if match)
