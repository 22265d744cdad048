"""`vgid merge` on what a training left: the student that the same training saves merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from distill_cases import Oracle, make_examples, make_settings
from safetensors.torch import load_file
from tiny_models import build_tiny_qwen2_vl
from typer.testing import CliRunner

from vgid.errors import ConfigError
from vgid.pipeline.cli import app
from vgid.stage2_distill.lineage import FILE
from vgid.stage2_distill.trainer import distill


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_trained_adapter_merged_by_the_command_is_the_student_that_training_saves_merged(
    tmp_path: Path, dtype: str
) -> None:
    base, examples = build_tiny_qwen2_vl(tmp_path / "base"), make_examples(forget=4, retain=4)
    targets = Oracle(build_tiny_qwen2_vl(tmp_path / "teacher", seed=1)).targets(examples)
    for name in ("adapter", "merged"):
        distill(
            student=base,
            examples=examples,
            targets=targets,
            settings=make_settings(method="lora", export=name, dtype=dtype),
            out=tmp_path / name,
            provenance={"base": str(base), "revision": ""},
        )
    done = CliRunner().invoke(app, ["merge", str(tmp_path / "adapter"), "--out", str(tmp_path / "later")])
    assert done.exit_code == 0 and done.stdout == f"merged: {tmp_path / 'later'}\n"
    later, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("later", "merged"))
    assert later.keys() == merged.keys() and all(torch.equal(later[name], merged[name]) for name in merged)
    identities = [json.loads((tmp_path / name / FILE).read_text())["identity"] for name in ("later", "merged")]
    assert identities[0] == identities[1]


def test_a_merged_model_does_not_take_the_place_of_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    done = CliRunner().invoke(app, ["merge", str(tmp_path / "adapter"), "--out", "."])
    assert isinstance(done.exception, ConfigError) and "--out . is the current directory" in str(done.exception)
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]
