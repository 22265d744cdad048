"""`vgid run`: whole, again, interrupted, refused. Real models of the shipped world, a few people, four steps."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rehearsal import wait_for
from small_pass import rows_of
from small_run import files_of, start, write_run

from vgid.errors import ConfigError, DistillError, Stopped, TeacherError
from vgid.pipeline import cli, evaluation, teacher
from vgid.pipeline.model_card import has_evaluation
from vgid.pipeline.results import TEMPORARY_PREFIX
from vgid.pipeline.run import STEPS, Step, run_recipe
from vgid.pipeline.teacher import cache_writer, prepare
from vgid.stage1_teacher import preflight
from vgid.stage1_teacher.plan import make_plan
from vgid.stage2_distill import trainer
from vgid.stage2_distill.checkpoints import seal_checkpoint
from vgid.stage2_distill.sharding import sharding_asked


@dataclass(frozen=True, kw_only=True)
class Whole:
    recipe: Path
    out: Path
    steps: list[Step]
    results: dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    """The uninterrupted run; nobody may write to it."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = write_run(folder / "data")
    steps, results = run(recipe, folder / "out")
    assert results is not None
    return Whole(recipe=recipe, out=folder / "out", steps=steps, results=results)


@pytest.fixture
def copy(whole, tmp_path) -> Whole:
    """A run directory to change."""
    shutil.copytree(whole.out, tmp_path / "out")
    return Whole(recipe=whole.recipe, out=tmp_path / "out", steps=whole.steps, results=whole.results)


def run(recipe: Path, out: Path, *overrides: str, **options: Any) -> tuple[list[Step], dict[str, Any] | None]:
    return run_recipe(str(recipe), out, overrides=overrides, engine="transformers", **options)


def new(steps: list[Step]) -> list[str]:
    return [step.name for step in steps if step.is_new]


def assert_equal_results(out: Path, whole: Whole) -> None:
    """The same weights to the bit, and the same numbers."""
    weights = "student/model.safetensors"
    assert files_of(out)[weights] == files_of(whole.out)[weights]
    results = json.loads((out / "results.json").read_text())
    assert results["metrics"] == whole.results["metrics"]
    assert not [name for name in files_of(out) if Path(name).name.startswith(".")], "left by what was interrupted"


def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(teacher, "build_teacher", refuse)
    monkeypatch.setattr(evaluation, "build_teacher", refuse)
    monkeypatch.setattr(trainer, "load_student", refuse)


def test_a_run_leaves_cache_inspection_student_results_and_answers(whole):
    assert [step.name for step in whole.steps] == list(STEPS) and new(whole.steps) == list(STEPS[1:])
    for name in ("cache", "inspect/results.json", "student/vgid.json", "results.json", "samples.parquet"):
        assert (whole.out / name).exists()
    lineage = whole.results["lineage"]
    assert lineage["student"]["weights_fingerprint"] != lineage["base"]["weights_fingerprint"]
    assert lineage["unmet_gates"] == [] and {row["model"] for row in whole.results["metrics"]} == {"base", "student"}


def test_a_second_run_loads_no_model_changes_no_file_and_says_why(whole, monkeypatch, capsys):
    before = files_of(whole.out)
    no_models(monkeypatch)
    steps, results = run(whole.recipe, whole.out)
    assert new(steps) == [] and results == whole.results and files_of(whole.out) == before
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said] == list(STEPS)
    assert all("already" in line and line.endswith("nothing to do") for line in said[1:]), said


def test_a_run_directory_that_was_moved_is_still_done(copy, monkeypatch):
    no_models(monkeypatch)
    assert new(run(copy.recipe, copy.out)[0]) == []


def test_stopped_at_every_step_it_ends_with_equal_results(whole, tmp_path):
    for until in STEPS:
        steps, _ = run(whole.recipe, tmp_path / "out", until=until)
        assert new(steps) == ([] if until == "data" else [until])
    assert_equal_results(tmp_path / "out", whole)


def checkpoint(out: Path) -> None:
    wait_for(out / ".student.checkpoints" / "checkpoint-2" / "vgid-complete.json")


def student(out: Path) -> None:
    wait_for(out / "student" / "vgid.json")


def cache(out: Path) -> None:
    wait_for(out / "cache" / "manifest")


@pytest.mark.parametrize("moment", [checkpoint, student], ids=["while it trains", "while it evaluates"])
def test_killed_and_run_again_it_ends_with_equal_results(moment: Callable[[Path], None], whole, tmp_path):
    out = tmp_path / "out"
    process = start(whole.recipe, out, stderr=tmp_path / "stderr")
    moment(out)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (out / "results.json").exists()
    run(whole.recipe, out)
    assert_equal_results(out, whole)


@pytest.mark.parametrize("moment", [cache, checkpoint, student], ids=["teacher", "distill", "evaluate"])
def test_sigterm_in_a_step_exits_75_and_a_rerun_ends_with_equal_results(
    moment: Callable[[Path], None], whole, tmp_path
):
    out, stderr = tmp_path / "out", tmp_path / "stderr"
    process = start(whole.recipe, out, stderr=stderr)
    moment(out)
    process.terminate()
    process.join()
    assert process.exitcode == Stopped.exit_code, stderr.read_text()
    assert stderr.read_text().splitlines()[-1].startswith("error: stopped")
    assert not (out / "results.json").exists() and not (out / "samples.parquet").exists()
    run(whole.recipe, out)
    assert_equal_results(out, whole)


@pytest.mark.slow
def test_with_every_model_in_a_process_of_its_own_results_are_equal(whole, tmp_path, monkeypatch):
    """What a machine with a GPU does; here it is asked for."""
    for module in ("vgid.pipeline.apart", "vgid.pipeline.run"):
        monkeypatch.setattr(f"{module}.needs_own_process", lambda: True)
    no_models(monkeypatch)  # in this process
    run(whole.recipe, tmp_path / "out")
    assert_equal_results(tmp_path / "out", whole)


@pytest.mark.slow
def test_killed_at_twelve_random_moments_it_ends_with_equal_results(whole, tmp_path):
    moments, out = random.Random(0), tmp_path / "out"
    for _ in range(12):
        process = start(whole.recipe, out, stderr=tmp_path / "stderr")
        time.sleep(moments.uniform(0, 12))
        process.kill()
        process.join()
        if (out / "results.json").exists():
            assert_equal_results(out, whole)
            out = out.with_name(f"{out.name}+")
    run(whole.recipe, out)
    assert_equal_results(out, whole)


GATE = {"thresholds": {"D7.entropy": 0.01}}


def test_a_teacher_whose_gate_is_not_met_is_not_trained_on_unless_told(tmp_path):
    recipe, out = write_run(tmp_path / "data", gates=GATE), tmp_path / "out"
    with pytest.raises(TeacherError, match=r"D7.entropy is 0\.\d+, must be <= 0.01; .*--train-anyway"):
        run(recipe, out)
    assert not (out / "student").exists() and not (out / "results.json").exists()

    steps, results = run(recipe, out, train_anyway=True)
    assert new(steps) == ["distill", "evaluate"] and results is not None
    said = next(step.note for step in steps if step.name == "gates")
    assert "training all the same (D7.entropy is" in said
    provenance = json.loads((out / "student" / "vgid.json").read_text())["identity"]["provenance"]
    assert provenance["unmet_gates"] == ["D7.entropy <= 0.01"]
    assert [gate["name"] for gate in results["lineage"]["unmet_gates"]] == ["D7.entropy"]

    with pytest.raises(TeacherError, match=r"D7\.entropy"):
        run(recipe, out)
    with pytest.raises(DistillError, match="unmet_gates"):  # it would pass now, but the student says otherwise
        run(recipe, out, "gates.thresholds={D7.entropy: 0.5}")


def test_a_required_gate_that_cannot_be_judged_is_not_met_and_others_only_tell(copy):
    with pytest.raises(TeacherError, match=r"D9\.flips is unknown \(.*must be <= 0.1"):
        run(copy.recipe, copy.out, "gates.required=[D9.flips]")
    steps, _ = run(copy.recipe, copy.out, "gates.thresholds={D7.entropy: 0.01}", "gates.required=[D1.told]")
    assert new(steps) == ["gates"] and "1 failed" in steps[2].note


def test_other_gates_are_held_against_the_same_cache_and_nothing_else_is_done(copy, monkeypatch):
    no_models(monkeypatch)
    steps, _ = run(copy.recipe, copy.out, "gates.thresholds={D7.entropy: 0.4}")
    assert new(steps) == ["gates"]
    assert "gates.D7.entropy is <= 0.5 there and <= 0.4 now" in steps[2].note


def test_other_questions_are_asked_of_the_same_student(copy):
    steps, results = run(copy.recipe, copy.out, "evaluate.max_new_tokens=8")
    assert new(steps) == ["evaluate"] and "max_new_tokens is 16 there and 8 now" in steps[-1].note
    assert results is not None and results["settings"]["evaluate"]["max_new_tokens"] == 8


def test_results_of_another_student_are_not_taken_for_this_ones(copy):
    path = copy.out / "results.json"
    other = "0" * 64
    path.write_text(path.read_text().replace(copy.results["lineage"]["student"]["weights_fingerprint"], other))
    steps, _ = run(copy.recipe, copy.out)
    assert new(steps) == ["evaluate"] and "student.weights_fingerprint is 000000000000… there" in steps[-1].note
    assert_equal_results(copy.out, copy)


def test_torn_results_are_made_again(copy):
    (copy.out / "results.json").write_text('{"schema_version": 1')
    (copy.out / f"{TEMPORARY_PREFIX}samples").write_text("Mara lives in Oslo.")
    steps, _ = run(copy.recipe, copy.out)
    assert new(steps) == ["evaluate"] and "results.json cannot be read" in steps[-1].note
    assert_equal_results(copy.out, copy)


@pytest.mark.parametrize("change", ["distill.learning_rate=1.0e-4", "teacher.seed=1"])
def test_a_student_of_other_settings_is_refused_before_the_teacher_pass(change, copy):
    before = files_of(copy.out)
    with pytest.raises(DistillError, match=r"belongs to another run: .* there and .* now; choose another directory"):
        run(copy.recipe, copy.out, change)
    assert files_of(copy.out) == before


def test_checkpoints_of_another_recipe_are_refused_before_the_teacher_pass(copy):
    identity = json.loads((copy.out / "student" / "vgid.json").read_text())["identity"]
    shutil.rmtree(copy.out / "student")
    left = copy.out / ".student.checkpoints" / "checkpoint-2"
    left.mkdir(parents=True)
    launch = {"processes": 1, "fsdp": sharding_asked()}
    seal_checkpoint(left, identity={**identity, "launch": launch}, history=[])
    before = files_of(copy.out)
    for change, name in (("distill.learning_rate=1.0e-4", "settings.learning_rate"), ("teacher.seed=1", "seed")):
        with pytest.raises(DistillError, match=rf"checkpoints belongs to another run: .*{name} is .* there and"):
            run(copy.recipe, copy.out, change)
    assert files_of(copy.out) == before
    assert new(run(copy.recipe, copy.out, "distill.learning_rate=1.0e-4", until="gates")[0]) == []

    seal_checkpoint(left, identity={**identity, "launch": {**launch, "processes": 2}}, history=[])
    with pytest.raises(DistillError, match=r"launch\.processes is 2 there and 1 now"):
        run(copy.recipe, copy.out)


ADAPTER = ["distill.method=lora", "distill.export=adapter"]


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        (ADAPTER, {}, r"needs a whole model; end the run with --until distill and .*`vgid merge`"),
        ([], {"retrained": "no/such/model"}, r"no/such/model"),
        (["evaluate.splits=[]"], {}, r"evaluate\.splits \[\]"),
        (["evaluate.splits=[strangers]"], {}, r"evaluate\.splits \['strangers'\]"),
        (
            [
                "distill.targets=[{split: forget, view: noise, response_kind: generated},"
                "{split: retain, view: base, response_kind: reference}]"
            ],
            {"until": "distill"},
            r"no row of the plan is split=forget view=noise .*planned are .*forget image noise\+icu generated",
        ),
        (
            [
                "distill.targets=[{split: forget, view: noise+icu, response_kind: generated},"
                "{split: forget, view: noise+icu, response_kind: generated, modality: image},"
                "{split: retain, view: base, response_kind: reference}]"
            ],
            {"until": "distill"},
            r"with view noise\+icu and response generated is selected twice, by .* and .*modality=image'; make",
        ),
        (
            ["distill.watch={every_steps: 2, stop_when: [{metric: leak, split: strangers, at_most: 0.1}]}"],
            {"until": "distill"},
            "no such question is asked",
        ),
        (["distill.gradient_accumulation_steps=3"], {"until": "distill"}, "= 4 does not divide into 3 micro-batches"),
    ],
)
def test_what_would_stop_it_after_the_teacher_pass_is_found_before(
    changes, options, words, whole, tmp_path, monkeypatch
):
    no_models(monkeypatch)
    with pytest.raises((ConfigError, DistillError), match=words):
        run(whole.recipe, tmp_path / "out", *changes, **options)
    assert files_of(tmp_path / "out") == {}


def test_what_a_step_that_is_not_asked_for_needs_is_not_looked_at(whole, copy):
    wrong = ["evaluate.splits=[strangers]", "distill.gradient_accumulation_steps=3"]
    assert new(run(whole.recipe, copy.out, *wrong, until="gates", retrained="no/such/model")[0]) == []
    assert new(run(whole.recipe, copy.out, wrong[0], until="distill", retrained="no/such/model")[0]) == []


def test_a_preset_trains_on_photos_alone(tmp_path):
    path = write_run(tmp_path / "data")
    asked = [json.loads(line) for line in (tmp_path / "data" / "questions.jsonl").read_text().splitlines()]
    lines = [json.dumps(row) + "\n" for row in asked if row["image"]]
    (tmp_path / "data" / "questions.jsonl").write_text("".join(lines))
    own = yaml.safe_load(path.read_text())
    settings = {name: own[name] for name in ("model", "data", "evaluate")}
    settings |= {"preset": "paper", "teacher": {"dtype": "float32", "num_topk": 8}}
    path.write_text(yaml.safe_dump(settings))
    assert new(run(path, tmp_path / "out", until="distill", train_anyway=True)[0]) == ["teacher", "gates", "distill"]
    assert new(run(path, tmp_path / "out", until="distill", train_anyway=True)[0]) == []


def test_rows_of_another_engine_in_the_cache_are_not_what_trains(copy):
    """As an engine's earlier version leaves them; by name it comes first, and it has the whole plan too."""
    job = prepare(str(copy.recipe), overrides=[], engine="transformers")
    ours, other = rows_of(copy.out / "cache"), "another 0.1 float32"
    plan = make_plan(
        [row.example for row in {row.example.example_id: row for row in job.plan}.values()],
        settings=job.recipe.teacher,
        teacher=job.teacher,
        engine_id=other,
    )
    same = {(row.example.example_id, row.view): ours[row.target_id] for row in job.plan}
    with cache_writer(job, copy.out / "cache", rows_per_part=256, profile="default", expires=None) as writer:
        for row in plan:
            stored = same[row.example.example_id, row.view]
            writer.add(replace(stored, target_id=row.target_id, engine_id=other))
    assert new(run(copy.recipe, copy.out)[0]) == ["gates"]


def test_a_student_of_another_version_of_the_engine_is_refused_before_the_teacher_pass(copy, monkeypatch):
    monkeypatch.setattr(teacher, "engine_identity", lambda *_, **__: "transformers 99.0 float32")
    no_models(monkeypatch)
    with pytest.raises(DistillError, match=r"provenance\.targets_sha256 is .* there and .* now"):
        run(copy.recipe, copy.out)


def test_memory_is_asked_for_only_if_rows_are_missing(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "free_memory", lambda options: (0, "this machine"))
    assert new(run(copy.recipe, copy.out)[0]) == []
    with pytest.raises(TeacherError, match=r"this machine has 0\.0 GiB free"):
        run(copy.recipe, tmp_path / "other", until="teacher")


def test_the_card_of_a_student_that_was_made_again_to_the_bit_has_the_results_that_are_there(copy):
    shutil.rmtree(copy.out / "student")
    steps, _ = run(copy.recipe, copy.out)
    assert new(steps) == ["distill", "evaluate"] and "card lacked their results" in steps[-1].note
    assert has_evaluation(copy.out / "student" / "README.md")
    assert_equal_results(copy.out, copy)
    assert new(run(copy.recipe, copy.out)[0]) == []


def test_without_its_student_a_run_trains_again_on_the_same_cache(copy):
    shutil.rmtree(copy.out / "student")
    steps, results = run(copy.recipe, copy.out, "distill.learning_rate=1.0e-4")
    assert new(steps) == ["distill", "evaluate"] and "student.weights_fingerprint is" in steps[-1].note
    assert results is not None and results["lineage"]["student"] != copy.results["lineage"]["student"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--until", "lunch"], 2, "data, teacher, gates, distill, evaluate"),
        (["--engine", "llama"], 2, "transformers"),
        (["--set", "gates.thresholds={D1.tell: 0.1}"], 2, "'D1.tell' is unknown; choose of D1.told"),
        (["--set", "gates.thresholds={D1.told: .nan}"], 2, "gates.thresholds.D1.told"),
        (["--set", "gates.required=[D1]"], 2, "'D1' is unknown or taken away; choose of D1.told"),
        (["--set", "gates={thresholds: {D1.told: null}, required: [D1.told]}"], 2, "'D1.told' is unknown or taken"),
        (["--set", "gates.tresholds={}"], 2, "unknown key 'gates.tresholds'"),
        (["--out", "FILE"], 2, "a file is in the way"),
        (["--out", "FILE/below"], 2, "a file is in the way"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(arguments, code, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    here = [argument.replace("FILE", str(tmp_path / "file")) for argument in arguments]
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["vgid", "run", "fictitious", *out, *here])
    monkeypatch.setattr(cli, "quieten_libraries", lambda: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == code and line.startswith("error: ") and words in line, line
    assert not (tmp_path / "out").exists()


def test_several_processes_are_told_to_distil_by_its_own_command(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="`vgid distill`"):
        run(Path("fictitious"), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_no_student_is_left_alone(tmp_path):
    (tmp_path / "out" / "student").mkdir(parents=True)
    (tmp_path / "out" / "student" / "thesis.tex").write_text("")
    with pytest.raises(DistillError, match="not a student of vgid"):
        run(write_run(tmp_path / "data"), tmp_path / "out")
    assert files_of(tmp_path / "out") == {"student/thesis.tex": files_of(tmp_path / "out")["student/thesis.tex"]}
