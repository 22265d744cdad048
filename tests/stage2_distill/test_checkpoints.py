"""Only a checkpoint that agrees with its marker counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vgid.errors import DistillError
from vgid.stage2_distill.checkpoints import MARKER, hash_files, newest_checkpoint, seal_checkpoint, write_json

IDENTITY = {"settings": {"seed": 0}, "student": "abc"}


def make_checkpoint(directory: Path, step: int, *, sealed: bool = True) -> Path:
    path = directory / f"checkpoint-{step}"
    (path / "inner").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(bytes(range(100)))
    (path / "inner" / "state.json").write_text(f"{step}")
    (path / "training_args.bin").write_bytes(b"pickle")
    if sealed:
        seal_checkpoint(path, identity=IDENTITY, history=[{"step": step}])
    return path


def test_the_newest_is_found_by_number(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        make_checkpoint(tmp_path, step)
    found = newest_checkpoint(tmp_path, identity=IDENTITY)
    assert found is not None and found.path.name == "checkpoint-10" and found.history == [{"step": 10}]


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent", identity=IDENTITY) is None


def flip_a_bit(path: Path) -> None:
    data = bytearray((path / "model.safetensors").read_bytes())
    data[50] ^= 1
    (path / "model.safetensors").write_bytes(data)


def cut_the_marker(path: Path) -> None:
    (path / MARKER).write_text((path / MARKER).read_text()[:30])


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        cut_the_marker,
        lambda path: (path / MARKER).unlink(),
        lambda path: (path / "inner" / "state.json").unlink(),
        lambda path: (path / "extra").write_text("x"),
    ],
    ids=["flipped bit", "cut marker", "no marker", "missing file", "extra file"],
)
def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    whole, torn = make_checkpoint(tmp_path, 2), make_checkpoint(tmp_path, 4)
    damage(torn)
    found = newest_checkpoint(tmp_path, identity=IDENTITY)
    assert found is not None and found.path == whole


def test_a_checkpoint_of_another_run_is_an_error_naming_the_difference(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 2)
    with pytest.raises(DistillError, match=r"settings\.seed is 0 there and 1 now"):
        newest_checkpoint(tmp_path, identity={**IDENTITY, "settings": {"seed": 1}})
    assert path.exists()


def test_a_sealed_checkpoint_holds_no_pickled_arguments(tmp_path: Path) -> None:
    assert not (make_checkpoint(tmp_path, 2) / "training_args.bin").exists()


def test_hashes_name_every_file(tmp_path: Path) -> None:
    assert set(hash_files(make_checkpoint(tmp_path, 2, sealed=False))) == {
        "model.safetensors",
        "inner/state.json",
        "training_args.bin",
    }


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"é": 1})
    write_json(tmp_path / "a.json", {"é": 2})
    assert (tmp_path / "a.json").read_text() == '{\n  "é": 2\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
