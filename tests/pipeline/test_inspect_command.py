"""`vgid teacher inspect` on real teachers of the fictitious benchmark: the good one passes, each bad one is caught.

One cache holds them all, as variants: full noise or next to none, with a template that the base obeys or an idle one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from diagnosed_rows import known_rows, write_known
from doc_pages import run
from sound_targets import TEACHER

from vgid.cache.manifest import update
from vgid.cache.store import LocalStore
from vgid.data.examples import Example
from vgid.errors import CacheError, ConfigError
from vgid.pipeline.inspect_command import quarantine, quarantine_yaml, report_text, run_inspect
from vgid.pipeline.recipe import Recipe, load_examples, load_recipe
from vgid.pipeline.results import METRIC_FIELDS
from vgid.pipeline.teacher import prepare_teacher, run_teacher
from vgid.stage1_teacher.diagnose import inspect_cache
from vgid.stage1_teacher.diagnose.plan import diagnostic_plan, sample_subjects
from vgid.stage1_teacher.icu import IcuSettings, icu_id_of
from vgid.stage1_teacher.settings import PerturbationSettings

IDLE = IcuSettings(text="Please answer.")
GOOD: dict[str, Any] = {"strength": 1.0, "icu_id": "generic-v1"}
PLANS = {
    "reference": (
        "teacher.plan=[{split: forget, modality: image, view: noise+icu, response_kind: reference}, "
        "{split: retain, view: base, response_kind: reference}]",
        "distill.targets=[{split: forget, view: noise+icu, response_kind: reference}, "
        "{split: retain, view: base, response_kind: reference}]",
    ),
    "retain like forget": (
        "teacher.plan=[{split: forget, modality: image, view: noise+icu, response_kind: generated}, "
        "{split: retain, view: noise+icu, response_kind: reference}]",
        "distill.targets=[{split: forget, view: noise+icu, response_kind: generated}, "
        "{split: retain, view: noise+icu, response_kind: reference}]",
    ),
}


def few_questions(recipe: Recipe, folder: Path) -> list[Example]:
    """Up to five facts, with a photo and by name, of three people to forget and three to keep."""
    groups: dict[tuple[str, str, str], list[Example]] = {}
    for example in sample_subjects(load_examples(recipe.data, folder=folder), 3):
        if example.task == "facts" and "heldout" not in (example.photo, example.phrasing):
            groups.setdefault((example.split, example.subject_id, example.modality), []).append(example)
    return [example for group in groups.values() for example in group[:5]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    recipe, folder = load_recipe("fictitious")
    examples = few_questions(recipe, folder)
    plan = diagnostic_plan(recipe.teacher.plan or (), examples)
    out = tmp_path_factory.mktemp("teachers") / "cache"
    for strength, icu in ((1.0, "generic-v1"), (0.1, "generic-v1"), (1.0, IDLE)):
        noise = PerturbationSettings(name="gaussian", strength=strength, draws=2)
        teacher = recipe.teacher.model_copy(update={"perturbation": noise, "icu": icu, "plan": plan})
        job = prepare_teacher(recipe.model_copy(update={"teacher": teacher}), examples, engine="transformers")
        run_teacher(job, out)
    return str(out)


def test_a_good_teacher_passes_every_gate_that_its_cache_can_answer(cache):
    report, _ = run_inspect(cache, recipe="fictitious", **GOOD)
    assert not report.failed and not report.failing_subjects
    gated = {reading.name: reading.verdict for reading in report.readings if reading.gate is not None}
    assert {name for name, verdict in gated.items() if verdict != "pass"} == {"D18.gain"}, "needs another cache"
    (told,) = [row for row in report.rows if (row.measure, row.view, row.modality) == ("told", "base", "image")]
    assert told.check == "D1" and told.value > 0.9, "the base itself tells what is to be forgotten"


@pytest.mark.parametrize(
    ("options", "plan", "failed"),
    [
        ({"strength": 0.1}, None, {"D10.noise"}),
        ({"icu_id": icu_id_of(IDLE)}, None, {"D10.icu", "D15.told", "D15.path_ratio"}),
        (GOOD, "reference", {"D3.trained"}),
        (GOOD, "retain like forget", {"D6.retain", "D11.collateral"}),
    ],
    ids=["noise too weak", "an idle instruction", "reference answers", "refuses everybody"],
)
def test_each_bad_teacher_is_caught_by_the_gates_meant_for_it(options, plan, failed, cache):
    report, _ = run_inspect(cache, recipe="fictitious", overrides=PLANS.get(plan, ()), **options)
    assert {reading.name for reading in report.failed} == failed


def test_weak_noise_without_an_instruction_tells_the_truth_and_names_whom_to_quarantine(cache):
    """The view `noise` of the weak variant, taken to train."""
    overrides = (
        "teacher.plan=[{split: forget, modality: image, view: noise, response_kind: generated}]",
        "distill.targets=[{split: forget, view: noise, response_kind: generated}, "
        "{split: retain, view: base, response_kind: reference}]",
    )
    report, _ = run_inspect(cache, recipe="fictitious", overrides=overrides, strength=0.1)
    assert {"D1.told", "D2.path_ratio", "D4.walked", "D10.effect"} <= {reading.name for reading in report.failed}
    entries = yaml.safe_load(quarantine_yaml(report))["quarantine"]
    assert len(entries) == 3 and entries == quarantine(report)
    assert all(entry["subject"].startswith("forget-") and "D1.told is 1" in entry["reason"] for entry in entries)
    assert "3 of 3 forget subjects fail by themselves" in report_text(report)


def test_the_variants_of_a_cache_stand_side_by_side(cache):
    report, _ = run_inspect(cache, recipe="fictitious")
    assert (report.variant.strength, report.variant.icu_id) == (1.0, "generic-v1"), "the recipe's own"
    doses = {(dose.variant.strength, dose.variant.icu_id): dose for dose in report.doses}
    assert set(doses) == {(1.0, "generic-v1"), (0.1, "generic-v1"), (1.0, icu_id_of(IDLE))}
    noise = {key: next(r for r in dose.readings if r.name == "D10.noise").value_low or 0 for key, dose in doses.items()}
    assert noise[1.0, "generic-v1"] == pytest.approx(noise[1.0, icu_id_of(IDLE)])
    assert noise[1.0, "generic-v1"] > 100 * noise[0.1, "generic-v1"]


def test_without_a_recipe_answers_are_not_judged_and_the_report_says_why(cache):
    report, _ = run_inspect(cache, **GOOD)
    told = next(reading for reading in report.readings if reading.name == "D1.told")
    assert told.verdict == "unknown" and "--recipe" in (told.reason or "") and told.value_low is None
    assert {r.verdict for r in report.readings if r.name in ("D2.path_ratio", "D6.retain", "D10.icu")} == {"pass"}


def test_results_hold_every_reading_as_a_flat_row_and_every_subject_in_samples(cache, tmp_path):
    report, results = run_inspect(cache, recipe="fictitious", out=tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    rows = results["metrics"]
    assert all(row.keys() == {*METRIC_FIELDS, "value", "n", "low", "high"} for row in rows)
    named = {row["metric"] for row in rows if row["protocol"] == "what trains"}
    known = [reading for reading in report.readings if reading.value_low is not None]
    assert all(reading.name in named or f"{reading.name}_lower_bound" in named for reading in known)
    samples = pq.read_table(tmp_path / "samples.parquet").to_pylist()
    (told,) = [row for row in report.rows if (row.measure, row.view, row.modality) == ("told", "noise", "image")]
    ours = [s for s in samples if (s["metric"], s["view"], s["modality"]) == ("D1.told", "noise", "image")]
    assert sum(s["value"] * s["n"] for s in ours) == told.value * told.n and sum(s["n"] for s in ours) == told.n


def test_a_model_that_never_saw_the_forget_set_is_compared_with(tmp_path):
    rows = known_rows(3)
    gold = [replace(known, row=replace(known.row, target_id=known.row.target_id[::-1])) for known in known_rows(3)]
    write_known(tmp_path / "cache", rows)
    write_known(tmp_path / "gold", [known for known in gold if known.row.view == "base"])
    report = inspect_cache(tmp_path / "cache", retain_only=tmp_path / "gold", student=tmp_path / "gold")
    # The other model answers as this base does, so the teacher is further from it by just its own effect.
    found = {reading.name: reading for reading in report.readings}
    gain, effect = found["D18.gain"], found["D10.effect"]
    assert gain.value_high is not None and effect.value_low is not None and gain.value_low is not None
    assert gain.verdict == "fail" and gain.value_low < -effect.value_low <= gain.value_high < 0
    (images,) = [r for r in report.rows if (r.check, r.measure, r.view) == ("D17", "js_low", "noise+icu")]
    assert images.value == pytest.approx(effect.value_low), "a student that has learned nothing answers as the base"


def test_another_tokenizers_cache_and_one_without_the_rows_are_refused(tmp_path):
    write_known(tmp_path / "cache", known_rows(3))
    write_known(tmp_path / "alike", [known for known in known_rows(3) if known.row.view == "icu"])
    with pytest.raises(ConfigError, match="no forget rows of view base"):
        inspect_cache(tmp_path / "cache", retain_only=tmp_path / "alike")
    update(LocalStore(tmp_path / "alike"), lambda known: replace(known, teacher=TEACHER | {"vocab_size": 41}))  # type: ignore[arg-type]
    with pytest.raises(CacheError, match="vocab_size is 41"):
        inspect_cache(tmp_path / "cache", retain_only=tmp_path / "alike")


def test_a_variant_or_a_gate_that_is_not_there_is_one_line(tmp_path):
    write_known(tmp_path / "cache", known_rows(3))
    with pytest.raises(ConfigError, match=r"--strength 0.9.*it has gaussian 0.5, seed 0, icu generic-v1"):
        inspect_cache(tmp_path / "cache", strength=0.9)
    with pytest.raises(ConfigError, match=r"D1.tell.*D1.told"):
        inspect_cache(tmp_path / "cache", gates={"D1.tell": 0.1})


def test_gates_can_be_moved_and_taken_away(tmp_path):
    write_known(tmp_path / "cache", known_rows(3))
    found = {}
    for change in (None, {"D10.effect": 0.69}, {"D10.effect": None}):
        report = inspect_cache(tmp_path / "cache", gates=change)
        found[str(change)] = next(r.verdict for r in report.readings if r.name == "D10.effect")
    assert list(found.values()) == ["pass", "fail", "info"]


def test_strict_exits_with_1_and_names_the_gates(cache, tmp_path):
    arguments = ["teacher", "inspect", cache, "--recipe", "fictitious", "--strict"]
    done = run([*arguments, "--quarantine", str(tmp_path / "q.yaml")], tmp_path)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "q.yaml").read_text()) == {"quarantine": []}
    done = run([*arguments, "--strength", "0.1", "--json"], tmp_path)
    assert done.returncode == 1 and re.search(r"^error: gates: D10\.noise is .*, must be [^;]*$", done.stderr, re.M)
    assert next(check for check in json.loads(done.stdout)["checks"] if check["name"] == "D10")["verdict"] == "fail"


def test_strict_holds_a_teacher_to_the_gates_that_its_recipe_requires(cache, tmp_path):
    arguments = ["teacher", "inspect", cache, "--recipe", "fictitious", "--strict"]
    others = run([*arguments, "--strength", "0.1", "--set", "gates.required=[D7.entropy]"], tmp_path)
    assert others.returncode == 0, "what fails is not required"
    unknown = run([*arguments, "--set", "gates.required=[D18.gain]"], tmp_path)
    assert unknown.returncode == 1 and "error: gates: D18.gain is unknown (" in unknown.stderr


def test_inspecting_needs_no_deep_learning_library():
    code = (
        "import sys, vgid.stage1_teacher.diagnose; sys.exit(bool({'torch', 'transformers', 'vllm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
