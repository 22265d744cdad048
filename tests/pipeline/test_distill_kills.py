"""A training stopped or killed at any moment: a rerun comes to the very same student, to the bit."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from rehearsal import ENVIRONMENT, Ended, Forks, Run, wait_for
from small_pass import write_pass
from warm import warm_forks

from vgid.stage2_distill.checkpoints import MARKER
from vgid.stage2_distill.lineage import read_finished

NUM_STEPS = 6
SETTINGS = {
    "targets": [
        {"split": "forget", "view": "noise+icu", "response_kind": "generated"},
        {"split": "forget", "view": "icu", "response_kind": "generated"},
        {"split": "retain", "view": "base", "response_kind": "reference"},
    ],
    "max_steps": NUM_STEPS,
    "forget_batch": 2,
    "retain_batch": 2,
    "gradient_accumulation_steps": 2,
}


@dataclass(frozen=True)
class Training:
    """`vgid distill` on six rows, in forks, with some settings."""

    folder: Path
    forks: Forks
    recipe: str

    def arguments(self, out: Path) -> list[str]:
        return [
            "distill",
            str(self.folder / f"{self.recipe}.yaml"),
            "--cache",
            str(self.folder / "cache"),
            "--out",
            str(out),
        ]

    def start(self, out: Path, *more: str) -> Run:
        out.parent.mkdir(exist_ok=True)
        return self.forks.begin([*self.arguments(out), *more], environment={})

    def run(self, out: Path) -> Ended:
        return self.start(out).wait()


@pytest.fixture(scope="module")
def forks() -> Forks:
    return warm_forks()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """Data, two recipes, and a cache filled by a real teacher."""
    folder = tmp_path_factory.mktemp("job")
    path = write_pass(folder, photos=2, questions=1)
    plain = yaml.safe_load(path.read_text())
    plain["distill"] |= SETTINGS
    kinds: dict[str, dict[str, Any]] = {
        "full": {"method": "full", "save_steps": 1},
        # Dropout, so that random state counts; no checkpoints unless it is stopped.
        "lora": {"method": "lora", "lora": {"dropout": 0.1}, "save_steps": 0},
    }
    for name, changes in kinds.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**plain, "distill": plain["distill"] | changes}))
    command = ["teacher", "generate", str(folder / "full.yaml"), "--engine", "transformers"]
    taught = forks.begin([*command, "--out", str(folder / "cache")], environment={}).wait()
    assert taught.code == 0, taught.stderr
    return folder


@dataclass(frozen=True)
class Uninterrupted:
    training: Training
    weights: bytes
    losses: list[dict[str, Any]]
    seconds: float
    """From the first file of the training to its end."""


def uninterrupted(training: Training) -> Uninterrupted:
    out = training.folder / training.recipe / "student"
    run = training.start(out)
    wait_for(checkpoints(out))
    started = time.monotonic()
    ended = run.wait()
    seconds = time.monotonic() - started
    assert ended.code == 0, ended.stderr
    return Uninterrupted(training=training, weights=weights(out), losses=losses(out), seconds=seconds)


@pytest.fixture(scope="module")
def full(folder: Path, forks: Forks) -> Uninterrupted:
    return uninterrupted(Training(folder, forks, "full"))


@pytest.fixture(scope="module")
def lora(folder: Path, forks: Forks) -> Uninterrupted:
    return uninterrupted(Training(folder, forks, "lora"))


def checkpoints(out: Path) -> Path:
    return out.with_name(f".{out.name}.checkpoints")


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def losses(out: Path) -> list[dict[str, Any]]:
    finished = read_finished(out)
    assert finished is not None
    return finished["result"]["losses"]


def assert_the_same_student(out: Path, expected: Uninterrupted) -> None:
    assert weights(out) == expected.weights
    assert losses(out) == expected.losses
    assert [path.name for path in out.parent.iterdir()] == [out.name], "something was left beside the student"


def wait_for_a_moment_of(step: int, out: Path, *, longest_s: float) -> None:
    """Wait until a random moment within a step, counted from 0 and told from the checkpoints of the steps before.

    A clock alone says little: on a busy machine one training takes three times as long as another.
    """
    wait_for(checkpoints(out))
    started = time.monotonic()
    if step:
        wait_for(checkpoints(out) / f"checkpoint-{step}")
        longest_s = min(longest_s, (time.monotonic() - started) / step)
    time.sleep(random.random() * longest_s)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_training_killed_at_a_random_moment_continues_to_the_very_same_weights(
    full: Uninterrupted, tmp_path: Path, kills: int
) -> None:
    killed = torn = continued = 0
    for number in range(kills):
        out = tmp_path / str(number) / "student"
        run = full.training.start(out)
        wait_for_a_moment_of(number * NUM_STEPS // kills, out, longest_s=full.seconds / NUM_STEPS)
        run.send(signal.SIGKILL)
        killed += run.wait().code == -signal.SIGKILL
        found = list(checkpoints(out).glob("checkpoint-*"))
        torn += any(not (path / MARKER).exists() for path in found)
        continued += any((path / MARKER).exists() for path in found)

        ended = full.training.run(out)

        assert ended.code == 0, ended.stderr
        assert_the_same_student(out, full)
    print(f"{kills} kills: {killed} before the end, {continued} left a checkpoint, {torn} a torn one")
    assert killed >= 0.7 * kills, "most trainings ended before they were killed"
    assert continued >= 0.5 * kills, "most trainings began anew"


def test_a_training_asked_to_stop_at_a_random_moment_saves_all_its_steps_exits_with_75_and_continues(
    lora: Uninterrupted, tmp_path: Path
) -> None:
    codes = []
    for number in range(3):
        out = tmp_path / str(number) / "student"
        run = lora.training.start(out)
        wait_for_a_moment_of(0, out, longest_s=lora.seconds / 2)
        run.send(signal.SIGTERM)
        ended = run.wait()
        codes.append(ended.code)
        if ended.code == 75:
            assert_stopped_whole(out, ended.stderr)
            ended = lora.training.run(out)
        assert ended.code == 0, ended.stderr
        assert_the_same_student(out, lora)
    assert 75 in codes, codes


def assert_stopped_whole(out: Path, stderr: str) -> None:
    """One line says how far it came, and a sealed checkpoint holds that."""
    said = re.findall(rf"^error: stopped after (\d+) of {NUM_STEPS} steps; rerun to continue$", stderr, re.M)
    assert len(said) == 1 and "Traceback" not in stderr, stderr
    assert not out.exists()
    if said == ["0"]:
        assert not checkpoints(out).exists()
    else:
        assert (checkpoints(out) / f"checkpoint-{said[0]}" / MARKER).exists()


def test_a_stop_while_the_model_loads_is_heeded_before_the_first_step(lora: Uninterrupted, tmp_path: Path) -> None:
    out, scratch = tmp_path / "student", tmp_path / "scratch"
    run = lora.training.start(out, "--scratch", str(scratch))
    wait_for(scratch)  # the cache is being decoded, which comes before everything of stage two
    run.send(signal.SIGTERM)
    ended = run.wait()
    assert ended.code == 75, ended.stderr
    assert f"stopped after 0 of {NUM_STEPS} steps; rerun to continue" in ended.stderr
    assert list(tmp_path.iterdir()) == [scratch]
    shutil.rmtree(scratch)

    assert lora.training.run(out).code == 0

    assert_the_same_student(out, lora)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_command_in_processes_of_its_own_stops_and_continues_as_well(
    lora: Uninterrupted, tmp_path: Path, workers: str
) -> None:
    """All of them are told to stop, as a batch system does it."""
    out = tmp_path / "student"
    command = [sys.executable, "-m", "vgid", *lora.training.arguments(out), "--loader-workers", workers]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(checkpoints(out))
    time.sleep(lora.seconds / 3)
    os.killpg(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75, stderr
    assert_stopped_whole(out, stderr)

    assert lora.training.run(out).code == 0

    assert_the_same_student(out, lora)


@pytest.mark.slow
def test_in_two_processes_of_a_launcher_it_says_everything_once(lora: Uninterrupted, tmp_path: Path) -> None:
    out = tmp_path / "student"
    launcher = [str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", "2", "-m", "vgid"]
    done = subprocess.run(
        [*launcher, *lora.training.arguments(out), "--json"],
        env=ENVIRONMENT | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_steps"] == NUM_STEPS
    assert done.stderr.count(f"distill: {NUM_STEPS}/{NUM_STEPS} steps") == 1
    assert (out / "model.safetensors").exists()
