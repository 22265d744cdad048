"""One batch in one piece, in two micro-batches, or in two processes: the same training."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_cases import SELECTIONS, Oracle, make_examples, make_settings, optimizer_of_trainer
from safetensors.torch import load_file

from vgid.errors import DistillError
from vgid.stage2_distill.records import DistillResult
from vgid.stage2_distill.trainer import distill

PROVENANCE = {"manifest_sha256": "0123"}
NUM_STEPS = 20


@dataclass(frozen=True)
class Case:
    """Images only: see `image_bench` in test_trainer.py."""

    directory: Path
    arguments: dict[str, Any]

    def run(self, name: str, *, optimizer: str = "adamw_torch", **changes: Any) -> DistillResult:
        with optimizer_of_trainer(optimizer):
            return distill(settings=make_settings(**changes), out=self.directory / name, **self.arguments)

    def run_in_two_processes(
        self,
        name: str,
        *,
        optimizer: str = "adamw_torch",
        stop_after: int = 0,
        environment: Mapping[str, str] | None = None,
        sharded: bool = False,
        **changes: Any,
    ) -> subprocess.CompletedProcess[str]:
        job = {**self.arguments, "out": self.directory / name, "changes": changes}
        job |= {"optimizer": optimizer, "stop_after": stop_after, "processor": None, "sharded": sharded}
        job |= {"environment": dict(environment or {})}
        (self.directory / "job.pickle").write_bytes(pickle.dumps(job))
        command = [sys.executable, Path(__file__).with_name("two_processes.py"), self.directory / "job.pickle"]
        return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.directory / name / "model.safetensors")


@pytest.fixture
def case(qwen: Oracle, teacher: Oracle, tmp_path: Path) -> Case:
    examples = {name: row for name, row in make_examples(forget=8, retain=9).items() if row.modality == "image"}
    arguments = {"student": qwen.path, "examples": examples, "targets": teacher.targets(examples)}
    return Case(tmp_path, {**arguments, "provenance": PROVENANCE, "processor": qwen.processor})


def largest_difference(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "optimizer", "learning_rate", "tolerance"),
    [("float64", "adamw_torch", 3e-3, 1e-9), ("float32", "sgd", 5e-2, 1e-6)],
)
def test_a_batch_of_eight_is_two_accumulated_fours_and_two_processes_with_four(
    case: Case, dtype: str, optimizer: str, learning_rate: float, tolerance: float
) -> None:
    """Responses have 1 to 8 tokens, so that means of micro-batches or of processes would differ."""
    changes: dict[str, Any] = {"targets": [SELECTIONS[0], SELECTIONS[2]], "max_steps": NUM_STEPS}
    changes |= {"dtype": dtype, "learning_rate": learning_rate, "optimizer": optimizer}
    whole = case.run("whole", **changes)
    case.run("accumulated", gradient_accumulation_steps=2, **changes)
    ended = case.run_in_two_processes("two", **changes)
    assert ended.returncode == 0, ended.stderr

    accumulated, two = (
        largest_difference(case.weights("whole"), case.weights(name)) for name in ("accumulated", "two")
    )
    moved = largest_difference(case.weights("whole"), load_file(case.arguments["student"] / "model.safetensors"))
    print(f"{dtype} {optimizer}: accumulated {accumulated:.1e}, two processes {two:.1e}; weights moved by {moved:.1e}")
    assert accumulated <= tolerance and two <= tolerance
    assert moved > 1e4 * tolerance and whole.losses[-1].loss < 0.9 * whole.losses[0].loss, "it hardly trained"
    told = case.run("two", **changes)  # finished, so this reads its result
    assert told.num_tokens == whole.num_tokens
    assert [loss.loss for loss in told.losses] == pytest.approx([loss.loss for loss in whole.losses], rel=1e-5)


@pytest.mark.slow
def test_one_of_two_processes_asked_to_stop_stops_both_and_they_continue_to_the_same_weights(case: Case) -> None:
    changes: dict[str, Any] = {
        "targets": [SELECTIONS[0], SELECTIONS[2]],
        "max_steps": 5,
        "method": "lora",
        "lora": {"dropout": 0.1},
    }
    assert case.run_in_two_processes("whole", **changes).returncode == 0

    stopped = case.run_in_two_processes("stopped", stop_after=2, **changes)

    assert stopped.returncode != 0
    assert "exit code 75" in stopped.stderr
    assert "process 1: stopped after 2 of 5 steps; rerun to continue" in stopped.stdout
    assert not (case.directory / "stopped").exists()
    resumed = case.run_in_two_processes("stopped", **changes)
    assert resumed.returncode == 0, resumed.stderr
    assert largest_difference(case.weights("whole"), case.weights("stopped")) == 0
    assert case.run("stopped", **changes).losses == case.run("whole", **changes).losses


@pytest.mark.slow
def test_two_processes_end_where_the_first_has_seen_enough(case: Case) -> None:
    """With the fused head, which works on the model inside of what accelerate wraps around it."""
    changes: dict[str, Any] = {"targets": [SELECTIONS[0], SELECTIONS[2]], "dtype": "float64", "fused_head": True}
    changes |= {"lr_scheduler": "constant"}
    short = case.run("short", max_steps=2, **changes)

    ended = case.run_in_two_processes("early", max_steps=5, watch={"every_steps": 2}, **changes)

    assert ended.returncode == 0, ended.stderr
    early = case.run("early", max_steps=5, watch={"every_steps": 2}, **changes)  # finished, so this reads its result
    assert early.num_steps == 2
    assert [loss.loss for loss in early.losses] == pytest.approx([loss.loss for loss in short.losses], rel=1e-9)
    assert largest_difference(case.weights("short"), case.weights("early")) <= 1e-9


FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
"""What `accelerate launch` makes of `--use_fsdp --fsdp_version 2`."""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_weights_sharded_over_two_processes_train_as_in_one(case: Case, method: str) -> None:
    changes: dict[str, Any] = {
        "targets": [SELECTIONS[0], SELECTIONS[2]],
        "max_steps": 5,
        "dtype": "float64",
        "method": method,
    }
    changes |= {"learning_rate": 3e-3, "gradient_accumulation_steps": 2}
    whole = case.run("whole", **changes)

    stopped = case.run_in_two_processes("sharded", environment=FSDP2, sharded=True, stop_after=2, **changes)
    assert "process 0: stopped after 2 of 5 steps" in stopped.stdout, stopped.stderr
    with pytest.raises(
        DistillError, match=r"launch.fsdp is True there and False now; launch.processes is 2 there and 1"
    ):
        case.run("sharded", **changes)
    ended = case.run_in_two_processes("sharded", environment=FSDP2, sharded=True, **changes)
    assert ended.returncode == 0, ended.stderr

    difference = largest_difference(case.weights("whole"), case.weights("sharded"))
    print(f"FSDP2, two processes, {method}: {difference:.1e}")
    assert difference <= 1e-9
    assert [loss.loss for loss in case.run("sharded", **changes).losses] == pytest.approx(
        [loss.loss for loss in whole.losses], rel=1e-9
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_processes_share_weights_though_one_has_no_pictures(
    method: str, qwen: Oracle, teacher: Oracle, tmp_path: Path
) -> None:
    """As the launcher asks for it. accelerate's own groups would have the processes answer each other wrongly."""
    examples = make_examples(forget=8, retain=9)
    arguments = {"student": qwen.path, "examples": examples, "targets": teacher.targets(examples)}
    case = Case(tmp_path, {**arguments, "provenance": PROVENANCE, "processor": qwen.processor})
    changes: dict[str, Any] = {"max_steps": 4, "dtype": "bfloat16" if method == "lora" else "float32", "method": method}
    changes |= {"forget_batch": 1, "retain_batch": 1}  # one row in each process
    whole = case.run("whole", **changes)
    asked = {**FSDP2, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "FSDP_RESHARD_AFTER_FORWARD": "true"}

    ended = case.run_in_two_processes("sharded", environment=asked, sharded=True, **changes)

    assert ended.returncode == 0, ended.stderr
    told = case.run("sharded", **changes)  # finished, so this reads its result
    assert [loss.loss for loss in told.losses] == pytest.approx([loss.loss for loss in whole.losses], rel=0.02)


@pytest.mark.slow
def test_sharding_that_does_not_happen_is_an_error_naming_what_runs(case: Case) -> None:
    """As accelerate itself has it on a CPU."""
    ended = case.run_in_two_processes("out", environment=FSDP2, targets=[SELECTIONS[0], SELECTIONS[2]])
    assert "FSDP2 was asked for, but accelerate's distributed type is MULTI_CPU; give it GPUs" in ended.stdout
    assert not (case.directory / "out").exists()
