"""Training: the same seed gives the same weights, the loss falls, and what is written loads."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from vgid.data.chat import end_of_turn_id, load_processor
from vgid.data.fictitious.skills import greedy_answers
from vgid.data.fictitious.train import BaseSettings, train_base
from vgid.data.fictitious.world import generate_world, write_world
from vgid.errors import ConfigError

QUICK = BaseSettings(steps=20, warmup_steps=5, image_fact=6, text_fact=4, perception=4, icu=2, noise=1, cloze=1)


@pytest.fixture(scope="module")
def world_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    people = {"forget": 2, "retain": 2, "outsiders": 2, "instruct": 2}
    return write_world(generate_world(seed=3, people=people), tmp_path_factory.mktemp("worlds") / "world")


@pytest.fixture(scope="module")
def trained(world_dir: Path) -> tuple[Path, list[float]]:
    losses = list[float]()
    out = train_base(
        world_dir,
        world_dir.parent / "base",
        seed=1,
        settings=QUICK,
        progress=lambda _step, _steps, loss: losses.append(loss),
    )
    return out, losses


def _weights(model: Path) -> str:
    return sha256((model / "model.safetensors").read_bytes()).hexdigest()


def test_twenty_steps_lower_the_loss(trained: tuple[Path, list[float]]) -> None:
    _, losses = trained
    assert len(losses) == QUICK.steps
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    trained: tuple[Path, list[float]], world_dir: Path, tmp_path: Path
) -> None:
    again = train_base(world_dir, tmp_path / "again", seed=1, settings=QUICK)
    other = train_base(world_dir, tmp_path / "other", seed=2, settings=QUICK)
    assert _weights(again) == _weights(trained[0]) != _weights(other)


def test_the_retrained_model_shares_the_tokenizer(
    trained: tuple[Path, list[float]], world_dir: Path, tmp_path: Path
) -> None:
    retrained = train_base(world_dir, tmp_path / "retrained", seed=1, exclude=("forget",), settings=QUICK)
    assert (retrained / "tokenizer.json").read_bytes() == (trained[0] / "tokenizer.json").read_bytes()
    assert _weights(retrained) != _weights(trained[0])
    assert json.loads((retrained / "vgid_base.json").read_text())["exclude"] == ["forget"]


def test_the_record_names_what_made_the_model(trained: tuple[Path, list[float]], world_dir: Path) -> None:
    record: dict[str, Any] = json.loads((trained[0] / "vgid_base.json").read_text())
    assert record["weights_sha256"] == {"model.safetensors": _weights(trained[0])}
    assert record["world_sha256"] == sha256((world_dir / "world.json").read_bytes()).hexdigest()
    assert (record["seed"], record["exclude"], record["settings"]["steps"]) == (1, [], 20)


def test_a_trained_model_loads_and_closes_its_turns(trained: tuple[Path, list[float]]) -> None:
    model = trained[0]
    tokenizer: Any = load_processor(model).tokenizer  # type: ignore[attr-defined]
    assert tokenizer.convert_ids_to_tokens(end_of_turn_id(model, tokenizer)) == "<|im_end|>"
    assert len(greedy_answers(model)([("Who is this?", None), ("Where?", None)])) == 2


def test_an_existing_directory_and_an_unknown_split_are_refused(world_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        train_base(world_dir, world_dir, seed=1, settings=QUICK)
    with pytest.raises(ConfigError, match="everybody"):
        train_base(world_dir, tmp_path / "base", seed=1, exclude=("everybody",), settings=QUICK)
    with pytest.raises(ConfigError, match="instruct"):
        train_base(world_dir, tmp_path / "base", seed=1, exclude=("instruct",), settings=QUICK)
