"""The sources of a fictitious world: only the files that were written."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from small_data import TRAIN_FILE, evaluation_row, training_row, write_parquet

from vgid.data.readers import Source, load_sources, world_sources
from vgid.errors import DataError


def write_head(folder: Path, **changes: Any) -> None:
    files = {str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.parquet"))}
    head = {
        "schema_version": 1,
        "seed": 0,
        "generator_version": 1,
        "people": {"forget": 1, "retain": 1},
        "files": files,
    }
    (folder / "world.json").write_text(json.dumps(head | changes))


@pytest.fixture
def world(tmp_path: Path) -> Path:
    for split in ("forget", "retain"):
        write_parquet(tmp_path / split, [training_row(f"{split}-0")])
        write_parquet(tmp_path / f"{split}_heldout", [training_row(f"{split}-0")])
        write_parquet(tmp_path / f"{split}_test", [evaluation_row(f"{split}-0")])
    write_head(tmp_path)
    return tmp_path


def test_each_split_has_trained_and_heldout_photos_and_its_tasks(world: Path) -> None:
    assert world_sources(world)[:3] == [
        Source(world / "forget", split="forget", photo="trained"),
        Source(world / "forget_heldout", split="forget", photo="heldout"),
        Source(world / "forget_test", split="forget", photo="heldout"),
    ]


def test_a_world_loads_as_a_whole(world: Path) -> None:
    examples = load_sources(world_sources(world), root=world)
    assert {e.split for e in examples} == {"forget", "retain"}
    assert len({e.example_id for e in examples}) == len(examples) == 20


def test_a_file_that_changed_is_refused(world: Path) -> None:
    path = world / "retain" / TRAIN_FILE
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match=rf"retain/{TRAIN_FILE}: differs from the sha256"):
        world_sources(world)


def test_a_file_that_is_missing_is_refused(world: Path) -> None:
    (world / "retain_test" / TRAIN_FILE).unlink()
    with pytest.raises(DataError, match=rf"retain_test/{TRAIN_FILE}: listed in world\.json and missing"):
        world_sources(world)


def test_a_file_that_was_added_is_refused(world: Path) -> None:
    write_parquet(world / "forget" / "train-00001-of-00002.parquet", [training_row("forget-1")])
    with pytest.raises(DataError, match="is not listed in world"):
        world_sources(world)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schema_version": 2}, "schema_version 2, this vgid reads 1"),
        ({"files": None}, "files is missing or no object"),
        ({"people": ["forget"]}, "people is missing or no object"),
        ({"people": {"strangers": 3}}, "none of its splits has files"),
        ({"files": {"../outside.parquet": "0"}}, "leads outside the world"),
    ],
)
def test_a_head_that_makes_no_sense_is_refused(world: Path, changes: dict[str, Any], problem: str) -> None:
    write_head(world, **changes)
    with pytest.raises(DataError, match=problem):
        world_sources(world)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_folder_without_a_readable_head_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "world.json").write_text(text)
    with pytest.raises(DataError, match=r"world\.json"):
        world_sources(tmp_path)
