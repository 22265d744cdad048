"""The recipes for real models: each runs on small files of the benchmark's form and a random model of its family."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from doc_pages import ROOT, blocks
from pyarrow import parquet
from small_data import evaluation_row, photo, write_parquet
from tiny_models import TINY_MODELS

from benchmarks.recipe_costs import MODELS, estimate
from vgid.cache.reader import open_cache
from vgid.pipeline.recipe import load_recipe, shipped_recipes
from vgid.pipeline.run import run_recipe

ARCHITECTURES = {
    "llava-1.5-7b-mllmu": "llava",
    "qwen2-vl-2b-mllmu": "qwen2_vl",
    "qwen2-vl-7b-mllmu": "qwen2_vl",
    "qwen2.5-vl-3b-mllmu": "qwen2_5_vl",
    "qwen3-vl-4b-mllmu": "qwen3_vl",
}


def write_benchmark(folder: Path) -> None:
    """Two people to forget and two to keep, 56 pixels a side; other photos of all four in the test set."""
    people = {"1": "red", "2": "green", "3": "blue", "4": "orange"}
    rows = {
        number: evaluation_row(number, image=photo(colour, width=56, height=56)) for number, colour in people.items()
    }
    write_parquet(folder / "forget_5", [rows["1"], rows["2"]])
    write_parquet(folder / "retain_95", [rows["3"], rows["4"]])
    others = {number: [photo("white", width=56, height=int(number) * 10 + 40)] for number in people}
    tests = [{key: value for key, value in row.items() if key != "image"} for row in rows.values()]
    write_parquet(folder / "Test_Set", [row | {"images": others[row["ID"]]} for row in tests])


def test_every_other_shipped_recipe_is_for_a_real_model() -> None:
    assert set(shipped_recipes()) == ARCHITECTURES.keys() | {"fictitious"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_recipe_runs_end_to_end_on_a_small_model_of_its_architecture(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped, _ = load_recipe(name)
    TINY_MODELS[ARCHITECTURES[name]](tmp_path / shipped.model)
    write_benchmark(tmp_path / "MLLMU-Bench")
    (prepare_test_set,) = blocks(ROOT / "docs/models.md", "python")
    exec(prepare_test_set, {})
    # A random model seldom ends its answers, so cut ones have to train.
    selected = [target.model_dump(mode="json") | {"truncated": True} for target in shipped.distill.targets]
    overrides = [f"distill.targets={json.dumps(selected)}", "teacher.max_new_tokens=6", "evaluate.max_new_tokens=6"]

    engine = "vllm" if name == "qwen2-vl-2b-mllmu" else "transformers"
    # Whatever a random model says under the intervention, it is no good teacher.
    steps, results = run_recipe(name, tmp_path / "run", overrides=overrides, engine=engine, train_anyway=True)

    assert [step.name for step in steps if step.is_new] == ["teacher", "gates", "distill", "evaluate"]
    student = json.loads((tmp_path / "run" / "student" / "vgid.json").read_text())
    # Of two people to forget and two to keep, one open question about the photo and one by name.
    assert student["result"]["num_rows"] == {"forget": 4, "retain": 4}
    assert open_cache(tmp_path / "run" / "cache").manifest.plan["preset"] == "paper"
    samples = parquet.read_table(tmp_path / "run" / "samples.parquet").to_pylist()
    asked = {(sample["split"], sample["subject_id"]) for sample in samples}
    assert asked == {("forget", "1"), ("forget", "2"), ("retain", "3"), ("retain", "4"), ("test", "1"), ("test", "2")}
    assert results is not None and {row["model"] for row in results["metrics"]} == {"base", "student"}


@pytest.mark.parametrize("name", MODELS)
def test_a_recipes_figures_are_those_of_the_estimate_and_called_one(name: str) -> None:
    recipe, _ = load_recipe(f"{name}-mllmu")
    rows = recipe.distill.forget_batch + recipe.distill.retain_batch
    costs = estimate(name, rows_per_step=rows, micro_batch=rows // recipe.distill.gradient_accumulation_steps)
    header = (ROOT / f"vgid/pipeline/recipes/{name}-mllmu.yaml").read_text().partition("\npreset:")[0]
    assert "ESTIMATED, NOT MEASURED" in header
    assert f"{costs.training_gib:.1f} GiB while training: {costs.parameters / 1e9:.2f} B weights" in header
    minutes = (60 * part for part in (costs.teacher_h, costs.distill_h, costs.evaluate_h))
    assert "teacher {:.1f}, distillation {:.1f}, evaluation of two models {:.1f} minutes".format(*minutes) in header
    (hours,) = re.findall(r"# hours: +([\d.]+) on an H100", header)
    assert 0 <= float(hours) - costs.teacher_h - costs.distill_h - costs.evaluate_h < 0.1
