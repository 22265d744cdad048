"""Which rows of a cache a recipe trains on; the rows are made up, their ids are the ones that the recipe plans."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from distill_cases import portrait
from synthetic_targets import make_target

from vgid.cache.erase import Selection, erase
from vgid.cache.mapped import MappedTargets, map_targets
from vgid.cache.reader import open_cache
from vgid.cache.store import LocalStore
from vgid.cache.writer import CacheWriter
from vgid.data.examples import Example
from vgid.errors import CacheError, ConfigError, DistillError
from vgid.pipeline.distill import (
    advice_on_waiting,
    fit_preset,
    planned_targets,
    run_distill,
    student_directory,
    training_rows,
)
from vgid.pipeline.recipe import Recipe, load_examples, load_recipe
from vgid.pipeline.teacher import TeacherJob, prepare_teacher, run_teacher
from vgid.stage1_teacher.identity import engine_identity
from vgid.stage1_teacher.plan import PlannedTarget, cache_settings, make_plan
from vgid.stage2_distill.lineage import FILE
from vgid.stage2_distill.records import DistillResult
from vgid.stage2_distill.settings import WatchSettings

FORGET_ALONE = [
    "teacher.plan=[{split: forget, modality: image, tasks: [facts], view: noise+icu, response_kind: generated},"
    "{split: forget, modality: text, tasks: [facts], view: icu, response_kind: generated}]",
    "distill.targets=[{split: forget, view: noise+icu, response_kind: generated},"
    "{split: forget, view: icu, response_kind: generated}]",
]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """The shipped one, with what it plans for the forget set alone."""
    shipped, _ = load_recipe("fictitious")
    entries = tuple(entry for entry in shipped.teacher.plan or () if entry.split == "forget")
    return shipped.model_copy(update={"teacher": shipped.teacher.model_copy(update={"plan": entries})})


@pytest.fixture(scope="module")
def examples(recipe) -> list[Example]:
    return [each for each in load_examples(recipe.data, folder=Path.cwd()) if each.split == "forget"]


@pytest.fixture(scope="module")
def job(recipe, examples) -> TeacherJob:
    return prepare_teacher(recipe, examples, engine="transformers")


@pytest.fixture
def cache(job, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("VGID_ERASE_KEY", str(tmp_path / "erase.key"))
    add_rows(tmp_path / "cache", job, job.plan, engine_id=engine_identity(job.engine, dtype=job.recipe.teacher.dtype))
    return tmp_path / "cache"


def add_rows(cache: Path, job: TeacherJob, plan: list[PlannedTarget], *, engine_id: str) -> None:
    row, settings = make_target(0, num_tokens=1), cache_settings(job.recipe.teacher)
    with CacheWriter(cache, teacher=job.teacher, settings=settings, plan={}) as writer:
        for planned in plan:
            example = planned.example
            ids = {"target_id": planned.target_id, "example_id": example.example_id, "subject_id": example.subject_id}
            writer.add(replace(row, **ids, engine_id=engine_id))


def chosen(
    cache: Path, recipe: Recipe, examples: list[Example], *, allow_partial: bool = False, engine_id: str | None = None
) -> MappedTargets:
    opened = open_cache(cache)
    stored = map_targets(opened)
    return planned_targets(opened, stored, recipe, examples, allow_partial=allow_partial, engine_id=engine_id)


def test_rows_that_were_erased_are_not_missing(job, cache, recipe, examples):
    gone = job.plan[0].example.subject_id
    assert len(chosen(cache, recipe, examples)) == len(job.plan)

    erase(LocalStore(cache), Selection(subjects=frozenset({gone})))

    left = [planned.target_id for planned in job.plan if planned.example.subject_id != gone]
    assert 0 < len(left) < len(job.plan)
    assert chosen(cache, recipe, examples).column("target_id").to_pylist() == left


def test_without_the_key_they_may_be_missing_and_the_key_is_asked_for(job, cache, recipe, examples, monkeypatch):
    erase(LocalStore(cache), Selection(subjects=frozenset({job.plan[0].example.subject_id})))
    monkeypatch.setenv("VGID_ERASE_KEY", str(cache.parent / "lost.key"))

    with pytest.raises(CacheError, match="set VGID_ERASE_KEY to the file with the key"):
        chosen(cache, recipe, examples)
    assert 0 < len(chosen(cache, recipe, examples, allow_partial=True)) < len(job.plan)


def test_erased_rows_do_not_hide_that_others_are_missing(job, cache, recipe, examples):
    erase(LocalStore(cache), Selection(subjects=frozenset({job.plan[0].example.subject_id})))
    more = [*examples, replace(examples[0], example_id="new/1", question="And where was she born?")]

    with pytest.raises(CacheError, match=r"of the .* rows that the recipe plans"):
        chosen(cache, recipe, more)


def test_of_engines_that_made_the_whole_plan_the_one_asked_for_trains_or_one_is_named(
    job, cache, recipe, examples, capsys
):
    other = "another 0.1 float32"
    plan = make_plan(examples, settings=recipe.teacher, teacher=job.teacher, engine_id=other)
    add_rows(cache, job, plan[1:], engine_id=other)
    whole, part = {row.target_id for row in job.plan}, {row.target_id for row in plan[1:]}

    assert set(chosen(cache, recipe, examples).column("target_id").to_pylist()) == whole
    assert f"taking those of {job.engine_id}: it has most" in " ".join(capsys.readouterr().err.split())
    kept = chosen(cache, recipe, examples, engine_id=other, allow_partial=True)
    assert set(kept.column("target_id").to_pylist()) == part

    add_rows(cache, job, plan[:1], engine_id=other)
    taken = set(chosen(cache, recipe, examples).column("target_id").to_pylist())
    assert taken == {row.target_id for row in plan}
    said = " ".join(capsys.readouterr().err.split())
    assert f"taking those of {other}: no other has more, and it is the first by name" in said
    kept = chosen(cache, recipe, examples, engine_id=job.engine_id)
    assert set(kept.column("target_id").to_pylist()) == whole


def test_a_student_that_is_watched_depends_on_what_it_is_asked_and_no_other_does(cache, recipe, examples, tmp_path):
    def watched(examples: list[Example], *, every_steps: int = 20, **evaluate: Any) -> Any:
        changed = {
            "distill": recipe.distill.model_copy(
                update={"watch": WatchSettings(every_steps=every_steps) if every_steps else None}
            ),
            "evaluate": recipe.evaluate.model_copy(update=evaluate),
        }
        rows = training_rows(recipe.model_copy(update=changed), examples, cache)
        return rows.provenance.get("watched")

    assert watched(examples, every_steps=0, max_new_tokens=8) is None
    seen = watched(examples)
    assert watched(examples, per_cell=3) == seen == watched(examples, every_steps=7)
    assert watched(examples, max_new_tokens=8) != seen
    index = next(i for i, each in enumerate(examples) if each.photo == "heldout")
    held_out = replace(examples[index], image=portrait(0))
    every = [replace(each, image=held_out.image) if each.image == examples[index].image else each for each in examples]
    assert watched(every) != seen


PAPER = {
    "preset": "paper",
    "model": "fictitious:base",
    "data": {"world": "shipped"},
    "teacher": {"dtype": "float32", "num_topk": 8},
}
TEXT_ONLY = {"split": "forget", "view": "icu", "response_kind": "generated"}
PAPER_RETAIN = [{"split": "retain", "view": "base", "response_kind": "reference"}]


def test_a_preset_gives_up_selections_that_the_data_has_no_rows_for(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(PAPER))
    recipe, folder = load_recipe(str(path))
    examples = load_examples(recipe.data, folder=folder)
    assert fit_preset(recipe, examples) is recipe

    photos = [each for each in examples if each.modality == "image"]
    fitted = fit_preset(recipe, photos)
    assert [each.view for each in fitted.distill.targets] == ["noise+icu", "base"]
    assert "preset paper: the plan has no rows for these" in capsys.readouterr().err
    assert fit_preset(fitted, photos) == fitted and not capsys.readouterr().err

    forget = [each for each in photos if each.split == "forget"]
    assert fit_preset(recipe, forget) is recipe, "a term of the loss would be gone"
    own = [{**TEXT_ONLY, "modality": "text"}, *PAPER_RETAIN]
    path.write_text(yaml.safe_dump({**PAPER, "distill": {"targets": own}}))
    recipe, _ = load_recipe(str(path))
    assert fit_preset(recipe, photos) is recipe, "what the recipe selects itself stays"


def test_a_teacher_in_the_loop_is_asked_what_stage_one_asked(tmp_path):
    """The first step's loss, before any update, is that of the cache but for what a cache gives up."""
    few = {"forget_batch": 6, "retain_batch": 0, "max_steps": 1}
    overrides = [f"distill.{name}={value}" for name, value in few.items()]
    recipe, folder = load_recipe("fictitious", overrides=[*overrides, "teacher.num_topk=200", *FORGET_ALONE])
    examples = load_examples(recipe.data, folder=folder)
    subject = min(each.subject_id for each in examples if each.split == "forget")
    examples = [each for each in examples if each.subject_id == subject]
    run_teacher(prepare_teacher(recipe, examples, engine="transformers"), tmp_path / "cache")

    losses = []
    for online in (False, True):
        settings = recipe.distill.model_copy(update={"online": online})
        chosen = recipe.model_copy(update={"distill": settings})
        losses.append(run_distill(chosen, examples, tmp_path / "cache", tmp_path / f"student-{online}").losses[0].loss)
    assert losses[0] > 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_much_waiting_for_batches_is_said_with_what_helps():
    def advice(seconds_waiting: float, loader_workers: int) -> str | None:
        nothing: dict[str, Any] = {"num_steps": 0, "num_rows": {}, "num_tokens": {}, "num_truncated": 0, "losses": []}
        result = DistillResult(**nothing, seconds=100, seconds_waiting=seconds_waiting)
        return advice_on_waiting(result, loader_workers=loader_workers)

    assert advice(9, 0) is None and advice(9, 2) is None
    assert advice(35, 0) == "35% of the training went into making batches; --loader-workers 2 makes them meanwhile"
    assert advice(35, 2) == "35% of the training was waiting for batches; give --loader-workers more than 2"


@pytest.mark.parametrize("out", [".", "../here"])
@pytest.mark.parametrize("trackers", [[], ["tensorboard"]])
def test_a_student_does_not_take_the_place_of_the_current_directory(out, trackers, recipe, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match=f"--out {re.escape(out)} is the current directory.*name a directory"):
        run_distill(recipe, [], tmp_path / "cache", Path(out), trackers=trackers)
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


def test_a_directory_has_its_whole_path_where_a_student_lies_or_may_lie(tmp_path, monkeypatch):
    (tmp_path / "student" / "notes").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "student" / "notes")
    with pytest.raises(DistillError, match="choose another"):
        student_directory(Path(".."))
    assert student_directory(Path("new")) == tmp_path / "student" / "notes" / "new"

    lineage = {"base": "b", "identity": {"student": "aa", "settings": {}, "provenance": {}}, "result": {}}
    (tmp_path / "student" / FILE).write_text(json.dumps(lineage))
    assert student_directory(Path("..")) == tmp_path / "student"
    monkeypatch.chdir(tmp_path / "student")
    assert student_directory(Path(".")) == tmp_path / "student"
