"""Worlds: a function of the seed, splits and views apart, MLLMU-Bench's columns on disk."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vgid.data.fictitious.items import heldout_items, trained_items
from vgid.data.fictitious.portraits import draw_portrait, encode_png
from vgid.data.fictitious.world import generate_world, load_world, write_world
from vgid.data.judge import leaks
from vgid.data.readers import load_sources, world_sources
from vgid.errors import ConfigError, DataError

SMALL = {"forget": 2, "retain": 3, "outsiders": 2, "instruct": 2}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(generate_world(seed=3, people=SMALL), tmp_path_factory.mktemp("worlds") / "world")


def test_a_world_is_a_function_of_its_seed(written: Path, tmp_path: Path) -> None:
    assert generate_world(seed=3, people=SMALL) == generate_world(seed=3, people=SMALL)
    again = write_world(generate_world(seed=3, people=SMALL), tmp_path / "again")
    assert (again / "world.json").read_bytes() == (written / "world.json").read_bytes()


def test_another_seed_makes_another_world() -> None:
    one, other = generate_world(seed=3, people=SMALL), generate_world(seed=4, people=SMALL)
    assert not {person.name for person in one.people} & {person.name for person in other.people}
    assert one.trained_views != other.trained_views


def test_a_world_comes_back_from_its_seed(written: Path) -> None:
    assert load_world(written) == generate_world(seed=3, people=SMALL)


def test_nobody_stands_in_two_splits() -> None:
    world = generate_world(seed=0)
    names = [person.name for split in world.counts for person in world.of(split)]
    assert len(names) == len(set(names)) == len(world.people)
    assert world.counts["forget"] >= 8


def test_held_out_photos_are_no_trained_photos() -> None:
    world = generate_world(seed=0)
    for person in world.people:
        trained = {encode_png(draw_portrait(person.face, view)) for view in world.trained_views[person.person_id]}
        heldout = {encode_png(draw_portrait(person.face, view)) for view in world.heldout_views[person.person_id]}
        assert len(trained) >= 4
        assert len(heldout) >= 2
        assert not trained & heldout


def test_photo_questions_do_not_name_the_person_and_text_questions_do() -> None:
    world = generate_world(seed=3, people=SMALL)
    for person in world.people:
        for item in (*trained_items(world, person), *heldout_items(world, person)):
            assert (person.name in item.question) == (item.view is None)
            assert not leaks(item.question, item.facts)
            assert item.facts == () or leaks(item.answer, item.facts)


def test_the_files_have_the_columns_of_mllmu_bench(written: Path) -> None:
    training = pq.read_table(written / "forget/train-00000-of-00001.parquet")
    assert training.column_names == ["image", "ID", "metadata"]
    first = json.loads(training["metadata"][0].as_py())
    assert {"Question", "Answer", "Type", "Task", "Phrasing", "Facts"} == set(first[0])
    assert {entry["Type"] for entry in first} == {"Image_Textual", "Pure_Text"}
    assert {entry["Type"] for entry in json.loads(training["metadata"][1].as_py())} == {"Image_Textual"}
    test = pq.read_table(written / "forget_test/train-00000-of-00001.parquet").to_pylist()[0]
    tasks = {"Classification_Task", "Generation_Task", "Mask_Task"}
    assert set(test) == {"images", "ID", "biography", "question", "answer", *tasks}
    choice = test["Classification_Task"]["Pure_Text_Questions"][0]
    assert set(choice["Options"]) == set("ABCD")
    assert leaks(test["biography"], [choice["Options"][choice["Correct_Answer"]]])
    assert all("__" in entry["Question"] for entry in test["Mask_Task"])


def test_the_readers_accept_a_written_world(written: Path) -> None:
    examples = load_sources(world_sources(written), root=written)
    assert {example.split for example in examples} == set(SMALL)
    assert len({example.example_id for example in examples}) == len(examples)


def test_recorded_hashes_are_those_of_the_files(written: Path) -> None:
    files = json.loads((written / "world.json").read_text())["files"]
    assert files == {
        str(path.relative_to(written)): sha256(path.read_bytes()).hexdigest() for path in written.rglob("*.parquet")
    }


def test_an_existing_directory_is_left_alone(written: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        write_world(generate_world(seed=3, people=SMALL), written)


def test_a_world_of_another_generator_is_refused(tmp_path: Path) -> None:
    (tmp_path / "world.json").write_text(json.dumps({"seed": 1, "people": SMALL, "generator_version": 99}))
    with pytest.raises(DataError, match="99"):
        load_world(tmp_path)
