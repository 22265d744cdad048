"""Copies of erased rows that an erasure does not remove: some can be found, of the others one has to think."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from vgid.cache.scratch import scratch_places
from vgid.cache.store import Store, is_remote
from vgid.cache.tombstones import Graveyard


def copies_out_of_reach(store: Store, graveyard: Graveyard) -> tuple[str, ...]:
    """One line for each copy, or kind of copy, that is left to the user; call it after `remove_scratch`.

    Raises:
        OSError: the cache cannot be read.
    """
    return (*_decoded_elsewhere(store), *_made_by_datasets(graveyard), *_general(store))


def holds_erased(rows: pa.Table | pa.RecordBatch, graveyard: Graveyard) -> bool:
    """Whether a row was erased; `rows` has `subject_id` and `example_id`."""
    ids = zip(rows["subject_id"].to_pylist(), rows["example_id"].to_pylist(), strict=True)
    return any(graveyard.holds(subject_id=subject, example_id=example) for subject, example in set(ids))


def _decoded_elsewhere(store: Store) -> Iterator[str]:
    for place in scratch_places(store):
        if not place.is_here:
            yield f"decoded copies for training on machine {place.host} in {place.folder}: delete that folder there"


def _made_by_datasets(graveyard: Graveyard) -> Iterator[str]:
    """Folders in which `datasets.load_dataset` keeps a copy with erased rows, on this machine and for this user."""
    for note in sorted(_datasets_folder().glob("**/dataset_info.json")):
        is_a_cache = '"topk_logprobs"' in note.read_text(errors="replace")
        if is_a_cache and any(_may_hold_erased(file, graveyard) for file in sorted(note.parent.glob("*.arrow"))):
            yield f"a copy that `datasets` made, in {note.parent}: delete that folder"


def _may_hold_erased(file: Path, graveyard: Graveyard) -> bool:
    try:
        with pa.memory_map(str(file)) as source:
            return any(holds_erased(batch, graveyard) for batch in pa.ipc.open_stream(source))
    except (pa.ArrowException, OSError, KeyError):  # not to be read: somebody should have a look
        return True


def _datasets_folder() -> Path:
    """Where `datasets` keeps its copies, by its own rules."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or caches / "huggingface")
    return Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets")


def _general(store: Store) -> Iterator[str]:
    if is_remote(store):
        yield "old versions, replicas and backups of the bucket: delete them with the service's own tools"
    else:
        yield "backups and snapshots of the disk, and the blocks themselves: files were unlinked, not overwritten"
    yield "answers to queries that were kept (`vgid sql --output`), copies and downloads that somebody made"
    yield "students distilled from these rows, their checkpoints, and evaluations of them (samples.parquet)"
    yield "the data itself, from which the rows were made"
