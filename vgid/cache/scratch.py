"""Where decoded copies of a cache lie: a training must find its own again, and `erase` every one.

A copy of a cache on a local disk lies in the cache, in `scratch/`. One that lies elsewhere (the cache has a URL, or
`--scratch` was given) is noted in the cache, in `scratch/<hash>.place`: the machine's name and the folder. What this
gives up: a cache that cannot be written cannot note it; the user is told.
"""

from __future__ import annotations

import logging
import os
import platform
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from vgid.cache.store import TEMPORARY_PREFIX, Store, is_remote, open_store

SCRATCH_FOLDER = "scratch"
SUFFIX = ".arrow"
_NOTE_SUFFIX = ".place"

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchPlace:
    """A folder in which decoded copies of one cache are kept, and nothing else."""

    host: str
    """Name of the machine that made them; another machine need not see the same folder."""
    folder: Path
    note: str | None
    """Name of the file in the cache that says so; the usual place needs none."""

    @property
    def is_here(self) -> bool:
        """Whether this machine made them, so that an absent folder means that there are none left."""
        return self.host == platform.node()

    def files(self) -> list[Path]:
        """Copies that can be seen from here, unfinished ones included."""
        return sorted([*self.folder.glob(f"*{SUFFIX}"), *self.folder.glob(f"{TEMPORARY_PREFIX}*")])


def scratch_folder(store: Store, scratch: Path | None = None) -> Path:
    """Where decoded copies of a cache go.

    Args:
        store: Of the cache.
        scratch: What the user asked for; caches get a folder each below it. None: `scratch/` in a cache on a local
            disk, or below the user's cache directory if the cache has a URL.
    """
    if scratch is None and not is_remote(store):
        return Path(store.location) / SCRATCH_FOLDER
    if scratch is None:
        scratch = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vgid" / SCRATCH_FOLDER
    return scratch.absolute() / _short_hash(store.location if is_remote(store) else os.path.realpath(store.location))


def make_folder(folder: Path, *, store: Store) -> None:
    """Make a folder for decoded copies, readable by its owner only, and note in the cache where it is.

    Raises:
        OSError: the folder cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder == scratch_folder(store) and not is_remote(store):
        return
    note = f"{platform.node()}\n{folder}"
    try:
        store.create(f"{SCRATCH_FOLDER}/{_short_hash(note)}{_NOTE_SUFFIX}", os.fsencode(note))
    except OSError as error:
        _LOG.warning(
            "cache %s: cannot note that a decoded copy of it lies in %s (%s); delete that yourself when the cache is "
            "erased",
            store.location,
            folder,
            error.strerror or error,
        )


def scratch_places(cache: Path | str | Store) -> list[ScratchPlace]:
    """All places that may hold decoded copies of a cache: the usual one, and those that the cache has noted.

    Raises:
        OSError: the cache cannot be read.
    """
    store = open_store(cache)
    places = [ScratchPlace(host=platform.node(), folder=scratch_folder(store), note=None)]
    for name in store.names(SCRATCH_FOLDER):
        if name.endswith(_NOTE_SUFFIX):
            host, _, folder = os.fsdecode(store.read(name)).partition("\n")
            places.append(ScratchPlace(host=host, folder=Path(folder), note=name))
    return places


def scratch_files(cache: Path | str | Store) -> list[Path]:
    """Decoded copies of a cache that can be seen from here, of any of its states, unfinished ones included.

    Raises:
        OSError: the cache cannot be read.
    """
    return sorted({path for place in scratch_places(cache) for path in place.files()})


def remove_scratch(cache: Path | str | Store) -> int:
    """Delete all decoded copies that can be seen from here, and the notes of this machine; says how many copies.

    `scratch_places` then names, beside the usual place, those of other machines, where copies may be left.

    Raises:
        OSError: the disk refuses.
    """
    store = open_store(cache)
    removed = scratch_files(store)
    for path in removed:
        path.unlink(missing_ok=True)
    for place in scratch_places(store):
        if place.note and place.is_here:
            store.delete(place.note)
    return len(removed)


def _short_hash(text: str) -> str:
    return sha256(os.fsencode(text)).hexdigest()[:24]
