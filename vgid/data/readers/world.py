"""The sources of a fictitious world, after its files were found to be the ones that were written.

A world is data that results are claimed on, so a file that changed, is missing or was added is an error, not a note.
"""

from __future__ import annotations

import json
from hashlib import file_digest
from pathlib import Path
from typing import Any

from vgid.data.examples import Exposure
from vgid.data.readers.source import PATTERNS, Source
from vgid.errors import DataError

SCHEMA_VERSION = 1
_EXPOSURE_BY_SUFFIX: dict[str, Exposure] = {"": "trained", "_heldout": "heldout", "_test": "heldout"}


def world_sources(world_dir: Path) -> list[Source]:
    """The data sets of a fictitious world: for each split its trained views, held-out views and evaluation tasks.

    Args:
        world_dir: Folder with world.json.

    Raises:
        DataError: no world there, one of another version, or files that do not match the recorded hashes.
    """
    head = _read_head(world_dir)
    _verify_files(world_dir, head["files"])
    sources = [
        Source(world_dir / f"{split}{suffix}", split=split, photo=photo)
        for split in head["people"]
        for suffix, photo in _EXPOSURE_BY_SUFFIX.items()
        if any((world_dir / f"{split}{suffix}").glob(PATTERNS[0]))
    ]
    if not sources:
        raise DataError(f"{world_dir / 'world.json'}: none of its splits has files; write the world anew")
    return sources


def _read_head(world_dir: Path) -> dict[str, Any]:
    path = world_dir / "world.json"
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); point at a folder that `vgid data` wrote") from error
    if not isinstance(head, dict) or head.get("schema_version") != SCHEMA_VERSION:
        found = head.get("schema_version") if isinstance(head, dict) else None
        raise DataError(f"{path}: schema_version {found!r}, this vgid reads {SCHEMA_VERSION}; write the world anew")
    for key in ("files", "people"):
        if not isinstance(head.get(key), dict):
            raise DataError(f"{path}: {key} is missing or no object; write the world anew")
    return head


def _verify_files(world_dir: Path, files: dict[str, Any]) -> None:
    root = world_dir.resolve()
    listed = set()
    for name, recorded in files.items():
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise DataError(f"{world_dir / 'world.json'}: file {name!r} leads outside the world; write the world anew")
        if not path.is_file():
            raise DataError(f"{world_dir / name}: listed in world.json and missing; write the world anew")
        if _sha256(path) != recorded:
            raise DataError(f"{world_dir / name}: differs from the sha256 in world.json; write the world anew")
        listed.add(path)
    for path in sorted(root.glob("*/*.parquet")):
        if path.resolve() not in listed:
            raise DataError(f"{path}: is not listed in world.json; take it out of the world")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
