"""The demo as a stranger runs it: the real command, real vLLM, the promised files and the promised story."""

import json
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from warm import vgid

from vgid.data.chat import load_processor
from vgid.errors import ConfigError
from vgid.pipeline.demo import run_demo
from vgid.pipeline.results import METRIC_FIELDS
from vgid.pipeline.unlearning import meets_bar
from vgid.stage1_teacher.engines import TeacherRequest, build_teacher


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("demo") / "run"
    done = vgid("demo", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done


def test_the_run_directory_holds_what_the_design_promises(demo):
    out, _ = demo
    for name in ("world", "base", "retrained", "cache", "student", "results.json", "samples.parquet"):
        assert (out / name).exists()


def test_the_story_is_told(demo):
    _, done = demo
    assert "ran on vllm" in done.stdout
    for name in ("truth:", "base:", "teacher:", "student:", "retrained:"):
        assert name in done.stdout
    assert "SELECT view" in done.stdout and "noise+icu" in done.stdout
    assert "forget, image, new photo and wording: ROUGE-L F1" in done.stdout


def test_results_are_flat_rows_with_versions_and_lineage(demo):
    out, _ = demo
    results = json.loads((out / "results.json").read_text())
    assert results["schema_version"] == 1 and "torch" in results["versions"]
    assert results["lineage"]["student"]["weights_fingerprint"] != results["lineage"]["base"]["weights_fingerprint"]
    assert {row["model"] for row in results["metrics"]} == {"base", "student", "retrained"}
    for row in results["metrics"]:
        assert row.keys() == {*METRIC_FIELDS, "value", "n", "low", "high"}
        assert row["low"] <= row["value"] <= row["high"]


def test_every_answer_is_kept(demo):
    out, _ = demo
    samples = pq.read_table(out / "samples.parquet")
    assert {"model", "example_id", "question", "reference", "answer", "attack"} <= set(samples.column_names)
    assert {"rouge_l_f1", "leak", "refusal", "accuracy", "prefix", "prefill_leak"} <= set(samples.column_names)
    assert samples["prefill_leak"].null_count < samples.num_rows
    assert samples.num_rows > 1000


def test_the_student_forgets_and_nobody_else_is_harmed(demo):
    out, _ = demo
    verdict = meets_bar(json.loads((out / "results.json").read_text())["metrics"])
    assert verdict.passed, verdict.as_record()


def test_the_student_answers_alike_in_transformers_and_vllm(demo):
    out, _ = demo
    questions = ["Where does this person live?", "What is the weather?"]
    requests = [TeacherRequest(request_id=q, text=q, image=None, max_new_tokens=20) for q in questions]
    answers = []
    for engine in ("transformers", "vllm"):
        teacher = build_teacher(engine, out / "student", num_topk=1)
        answers.append({r.request_id: r.token_ids.tolist() for r in teacher.run(requests)})
        teacher.close()
    assert answers[0] == answers[1]
    assert load_processor(out / "student").image_processor is not None


@pytest.mark.slow
def test_a_second_run_finds_teacher_and_student_done(demo):
    out, _ = demo
    weights = (out / "student" / "model.safetensors").stat().st_mtime_ns
    again = vgid("demo", "--out", out, "--set", "evaluate.per_cell=1")
    assert again.returncode == 0 and "nothing to do" in again.stdout
    assert (out / "student" / "model.safetensors").stat().st_mtime_ns == weights


def test_another_seed_in_the_same_directory_is_refused(demo):
    out, _ = demo
    other = vgid("demo", "--out", out, "--seed", "5")
    assert other.returncode == 2 and "another --out" in other.stderr


@pytest.mark.parametrize(("text", "words"), [('{"seed": 0, "fr', "torn"), ('{"seed": 1}', "holds a demo with")])
def test_a_demo_is_not_told_in_the_directory_of_another_or_of_nobody_knows_which(text, words, tmp_path):
    (tmp_path / "demo.json").write_text(text)
    with pytest.raises(ConfigError, match=f"{words}.*choose another --out"):
        run_demo(tmp_path, seed=0, from_scratch=False)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]
