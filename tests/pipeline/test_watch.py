"""A student asked while it learns: by the evaluation's own code, on the recipe's questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText

from vgid.data.chat import load_processor
from vgid.data.examples import Example
from vgid.data.fictitious import shipped_base
from vgid.errors import ConfigError
from vgid.pipeline.evaluation import NamedModel, Questions, run_evaluate
from vgid.pipeline.recipe import Recipe, load_examples, load_recipe
from vgid.pipeline.watch import watcher
from vgid.stage2_distill.settings import WatchSettings

HELD_OUT = {"split": "forget", "task": "facts", "modality": "image", "photo": "heldout", "phrasing": "heldout"}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("fictitious")[0]


@pytest.fixture(scope="module")
def examples(recipe: Recipe) -> list[Example]:
    """Of one subject of each split."""
    every = load_examples(recipe.data, folder=Path.cwd())
    first = {split: min(each.subject_id for each in every if each.split == split) for split in ("forget", "retain")}
    return [each for each in every if each.subject_id == first.get(each.split)]


def watching(*conditions: dict[str, Any]) -> WatchSettings:
    return WatchSettings.model_validate({"every_steps": 1, "stop_when": conditions})


def test_what_is_seen_is_what_an_evaluation_finds(recipe, examples, capsys):
    """The base knows the person, so a leak of at least one half is met and one of at most a tenth is not."""
    processor = load_processor(shipped_base())
    model: Any = AutoModelForImageTextToText.from_pretrained(shipped_base(), dtype="float32").eval()
    leak = {"metric": "leak", **HELD_OUT}
    met = watcher(recipe, watching({**leak, "at_least": 0.5}), examples, processor=processor)(model, 20)
    unmet = watcher(
        recipe, watching({**leak, "at_least": 0.5}, {**leak, "at_most": 0.1}), examples, processor=processor
    )(model, 20)
    assert met.is_enough and not unmet.is_enough
    assert "after step 20: leak of forget facts image heldout heldout at least 0.5: 1.000; that is enough" in " ".join(
        capsys.readouterr().err.split()
    )

    settings = recipe.evaluate.model_copy(update={"per_cell": 1})
    evaluated = run_evaluate(
        [NamedModel(name="student", model="fictitious:base")],
        Questions(examples=examples, settings=settings, data_name="shipped"),
        out=None,
        engine="transformers",
        seed=recipe.distill.seed,
    )
    assert [{"attack": None, **row} for row in met.metrics] == evaluated["metrics"]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"metric": "leek", "split": "forget"}, "choose a metric of"),
        ({"metric": "leak", "split": "forgotten"}, "no such question is asked"),
        ({"metric": "leak", "split": "forget", "phrasing": "heldout"}, "values are known by"),
        ({"metric": "accuracy", "split": "forget", "task": "facts"}, "not measured on these questions"),
        ({"metric": "prefill_leak", "split": "retain"}, "not measured on these questions"),
    ],
)
def test_a_condition_that_can_never_be_looked_at_is_refused_before_training(condition, message, recipe, examples):
    with pytest.raises(ConfigError, match=message):
        watcher(recipe, watching({**condition, "at_most": 0.1}), examples, processor=None)
