"""Checkpoints of an unfinished training that can be trusted.

transformers writes straight into `checkpoint-N` and takes the highest N for the last, so a kill can leave a torn one.
Here a marker with the hash of every file is written last, and only a directory that agrees with its marker counts. A
flipped bit costs the steps since the checkpoint before.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

from vgid.stage2_distill.lineage import check_same_run

MARKER = "vgid-complete.json"
UNUSED_PICKLE = "training_args.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    history: list[dict[str, Any]]
    """What the run had recorded up to here, as it was given to `seal_checkpoint`."""


def hash_files(directory: Path) -> dict[str, str]:
    """sha256 of every file under a directory, by relative path."""
    hashes = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                hashes[path.relative_to(directory).as_posix()] = file_digest(file, "sha256").hexdigest()
    return hashes


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file so that it is either whole or absent, also after a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def seal_checkpoint(path: Path, *, identity: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
    """Mark a checkpoint that transformers has finished writing."""
    (path / UNUSED_PICKLE).unlink(missing_ok=True)
    write_json(path / MARKER, {"identity": identity, "history": list(history), "files": hash_files(path)})


def newest_checkpoint(directory: Path, *, identity: Mapping[str, Any]) -> Checkpoint | None:
    """The newest complete checkpoint of this run; incomplete ones are passed over, and overwritten in time.

    Args:
        directory: Holds `checkpoint-N` directories, or does not exist.
        identity: From `run_identity`.

    Raises:
        DistillError: the newest complete checkpoint belongs to another run.
    """
    for path in sorted(directory.glob("checkpoint-*"), key=_step, reverse=True):
        content = _read_marker(path)
        if content and content["files"] == _files_of(path):
            check_same_run(content["identity"], asked=identity, where=directory)
            return Checkpoint(path=path, history=content["history"])
    return None


def newest_identity(directory: Path) -> dict[str, Any] | None:
    """Which run the newest checkpoint is of, by its marker alone: its files, which may be large, are not hashed."""
    markers = map(_read_marker, sorted(directory.glob("checkpoint-*"), key=_step, reverse=True))
    return next((marker["identity"] for marker in markers if marker), None)


def discard_torn(directory: Path, *, whole: Checkpoint | None) -> None:
    """Delete what is newer than the newest complete checkpoint.

    transformers would write into such a directory and leave what it does not overwrite, and count it among those that
    make it delete older ones.

    Args:
        directory: Where `newest_checkpoint` looked.
        whole: What it found.
    """
    for path in directory.glob("checkpoint-*"):
        if whole is None or _step(path) > _step(whole.path):
            shutil.rmtree(path)


def _step(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _read_marker(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / MARKER).read_text())
    except (OSError, ValueError):
        return {}


def _files_of(path: Path) -> dict[str, str]:
    return {name: value for name, value in hash_files(path).items() if name != MARKER}
