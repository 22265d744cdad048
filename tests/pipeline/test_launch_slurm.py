"""The array job: its text, and the text run by bash with the world around it (scontrol, sbatch) written down here."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from small_pass import ENVIRONMENT, assert_same_rows, rows_of, write_pass

from vgid.cache.manifest import load_manifest
from vgid.cache.store import LocalStore
from vgid.errors import ConfigError
from vgid.pipeline.launch_slurm import array_script, directives_for

COMMAND = [sys.executable, "-m", "vgid", "teacher", "generate"]


def generate(*arguments: str | Path, folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    environment = ENVIRONMENT | {"PYTHONPATH": str(Path.cwd())} | changes
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


class Cluster:
    """A task's surroundings: its variables, and commands in front of the PATH that note how they are called."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.log = folder / "bin", folder / "calls"
        self.bin.mkdir()
        self.command("scontrol")

    def command(self, name: str, body: str = "") -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/bash\necho {name} "$@" >> {shlex.quote(str(self.log))}\n{body}\n')
        path.chmod(0o755)

    def environment(self, *, task: int, restarts: int = 0) -> dict[str, str]:
        slurm = {"SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": str(4712 + task)}
        if restarts:  # Slurm sets it from the first restart on
            slurm["SLURM_RESTART_COUNT"] = str(restarts)
        return ENVIRONMENT | {"PATH": f"{self.bin}:{os.environ['PATH']}", "PYTHONPATH": str(Path.cwd())} | slurm

    def start(self, script: Path, *, task: int, restarts: int = 0) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["bash", str(script)], env=self.environment(task=task, restarts=restarts))

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def directives(text: str) -> Mapping[str, str | None]:
    lines = [shlex.split(line)[1] for line in text.splitlines() if line.startswith("#SBATCH ")]
    pairs = [line.removeprefix("--").partition("=") for line in lines]
    return {name: value if found else None for name, found, value in pairs}


def test_a_job_has_a_task_for_each_shard_a_gpu_a_warning_before_its_end_and_may_be_requeued(tmp_path):
    text = generate("fictitious", "--out", "cache", "--launcher", "slurm", "--shards", "8", folder=tmp_path).stdout
    assert directives(text) == {
        "array": "0-7",
        "chdir": str(tmp_path),
        "open-mode": "append",
        "requeue": None,
        "signal": "B:TERM@120",
        "job-name": "vgid-teacher",
        "output": "vgid-teacher-%A_%a.log",
        "gres": "gpu:1",
    }


def test_options_of_the_call_are_passed_on_word_for_word_and_those_of_the_launcher_are_not(tmp_path):
    passed = ["--engine", "transformers", "--rows-per-part", "7", "--expire-after", "90d"]
    passed += [
        "--set",
        "teacher.seed=1",
        "--set",
        'teacher.perturbation={name: gaussian, strength: 0.5} # it\'s "$HOME"',
        "--json",
    ]
    launched = ["--launcher", "slurm", "--shards", "4", "--slurm", "partition=a b", "--slurm", "exclusive"]
    done = generate("fictitious", "--out", "my cache", *passed, *launched, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "generate fictitious" in line]
    words = shlex.split(line.removesuffix(" &"))
    assert words[: words.index("fictitious")] == [sys.executable, "-P", "-m", "vgid", "teacher", "generate"]
    asked = words[words.index("fictitious") :]
    assert sorted(asked) == sorted(["fictitious", "--out", "my cache", *passed, "--shard", "$SLURM_ARRAY_TASK_ID/4"])
    assert [asked[n + 1] for n, word in enumerate(asked) if word == "--set"] == [passed[7], passed[9]]
    found = directives(done.stdout)
    assert found["partition"] == "a b" and found["exclusive"] is None and found["gres"] == "gpu:1"


@pytest.mark.parametrize(("option", "gres"), [("gres=gpu:a100:2", "gpu:a100:2"), ("gpus-per-task=1", None)])
def test_gpus_asked_for_in_another_way_replace_the_usual_one(option, gres):
    assert directives_for([option], shards=2, folder=Path("/"), num_gpus=4).get("gres") == gres


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["array=0-3"], "sets array itself"),
        (["signal=USR1@60"], "sets signal itself"),
        (["-p gpu"], "long name"),
        (["comment=two\nlines"], "long name"),
    ],
)
def test_an_option_of_sbatch_that_cannot_be_honoured_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        directives_for(options, shards=2, folder=Path("/"), num_gpus=1)


def test_more_tasks_than_the_plan_has_buckets_are_refused():
    with pytest.raises(ConfigError, match="256 buckets"):
        directives_for([], shards=257, folder=Path("/"), num_gpus=1)


def script_of(body: str, folder: Path) -> Path:
    """The job with another command: a line of Python that is told the shard."""
    command = [sys.executable, "-c", f"import os, signal, sys, time\n{body}"]
    text = array_script(
        command, shards=8, folder=folder, directives=directives_for([], shards=8, folder=folder, num_gpus=1)
    )
    path = folder / "job"
    path.write_text(text)
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    return path


@pytest.mark.parametrize(
    ("body", "restarts", "code", "requeued"),
    [
        ("sys.exit(0)", 0, 0, False),
        ("sys.exit(0 if sys.argv[-2:] == ['--shard', '3/8'] else 1)", 0, 0, False),
        ("sys.exit('VGID_TEACHER_GENERATE_LAUNCHER' in os.environ)", 0, 0, False),
        ("sys.exit(65)", 0, 65, False),
        ("os.kill(os.getpid(), signal.SIGKILL)", 0, 137, False),
        ("sys.exit(75)", 0, 75, True),
        ("sys.exit(75)", 49, 75, True),
        ("sys.exit(75)", 50, 75, False),
    ],
)
def test_a_task_ends_as_its_command_does_and_is_requeued_if_that_stopped_cleanly(
    cluster, tmp_path, monkeypatch, body, restarts, code, requeued
):
    monkeypatch.setitem(ENVIRONMENT, "VGID_TEACHER_GENERATE_LAUNCHER", "slurm")
    assert cluster.start(script_of(body, tmp_path), task=3, restarts=restarts).wait() == code
    assert cluster.calls == (["scontrol requeue Incomplete 4711_3"] if requeued else [])


@pytest.mark.parametrize(
    ("body", "signals", "code"),
    [
        ("signal.signal(15, lambda *_: (time.sleep(.3), sys.exit(75))); open('up', 'w'); time.sleep(60)", 1, 75),
        ("signal.signal(15, lambda *_: (time.sleep(.5), os._exit(75))); open('up', 'w'); time.sleep(60)", 2, 75),
        ("signal.signal(15, lambda *_: (time.sleep(.3), sys.exit(1))); open('up', 'w'); time.sleep(60)", 1, 1),
        ("open('up', 'w'); time.sleep(60)", 1, 143),
    ],
    ids=["commits and stops", "is signalled twice", "fails while it stops", "has not begun"],
)
def test_a_signal_is_handed_on_and_the_task_is_given_the_time_it_takes_to_stop(cluster, tmp_path, body, signals, code):
    process = cluster.start(script_of(body, tmp_path), task=3)
    while not (tmp_path / "up").exists():
        time.sleep(0.01)
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert process.wait(timeout=20) == code
    assert bool(cluster.calls) == (code in (75, 143))


def test_a_job_whose_folder_is_not_on_the_node_ends_before_it_writes_anywhere(cluster, tmp_path):
    script = script_of("open('written', 'w')", tmp_path)
    script.write_text(script.read_text().replace(f"cd -- {tmp_path}", f"cd -- {tmp_path}/nowhere"))
    assert cluster.start(script, task=0).wait() == 1


def test_a_real_task_is_stopped_requeued_and_finished_and_its_second_run_is_a_no_op(cluster, tmp_path):
    recipe = write_pass(tmp_path / "data", photos=6, questions=3)
    options = [recipe, "--engine", "transformers", "--rows-per-part", "1"]
    assert generate(*options, "--out", "single", folder=tmp_path).returncode == 0
    launched = ["--launcher", "slurm", "--shards", "1", "--script", "job", "--json"]
    written = generate(*options, "--out", "cache", *launched, folder=tmp_path)
    assert written.stdout == "job\n", written.stderr
    assert stat.S_IMODE((tmp_path / "job").stat().st_mode) == 0o700

    process = cluster.start(tmp_path / "job", task=0)
    while not (manifest := load_manifest(LocalStore(tmp_path / "cache"))) or not manifest.parts:
        time.sleep(0.002)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    assert cluster.calls == ["scontrol requeue Incomplete 4711_0"]
    expected, stopped_at = rows_of(tmp_path / "single"), rows_of(tmp_path / "cache")
    assert 0 < len(stopped_at) < len(expected)

    again = subprocess.run(
        ["bash", "job"],
        cwd=tmp_path,
        env=cluster.environment(task=0, restarts=1),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told = json.loads(again.stdout)
    assert told["generated"] == len(expected) - len(stopped_at) and told["whole"]["incomplete_shards"] == ""
    assert_same_rows(rows_of(tmp_path / "cache"), expected)
    assert len(cluster.calls) == 1


def test_a_script_that_exists_is_not_overwritten(tmp_path):
    (tmp_path / "job").write_text("mine")
    arguments = ["fictitious", "--out", "cache", "--launcher", "slurm", "--shards", "2", "--script", "job"]
    done = generate(*arguments, folder=tmp_path)
    assert done.returncode == 2 and "job" in done.stderr and len(done.stderr.splitlines()) == 1
    assert (tmp_path / "job").read_text() == "mine"


def test_submit_gives_sbatch_the_script_and_prints_the_job(cluster, tmp_path):
    arguments = ["fictitious", "--out", "cache", "--launcher", "slurm", "--shards", "2"]
    cluster.command("sbatch", 'cat > received; echo "4711;east"')
    path = {"PATH": f"{cluster.bin}:{os.environ['PATH']}"}
    done = generate(*arguments, "--submit", folder=tmp_path, **path)
    assert done.stdout == "4711\n", done.stderr
    assert cluster.calls == ["sbatch --parsable"]
    assert (tmp_path / "received").read_text() == generate(*arguments, folder=tmp_path).stdout.removesuffix("\n")


def test_submit_says_in_one_line_what_sbatch_refuses_and_that_there_is_none(cluster, tmp_path):
    arguments = ["fictitious", "--out", "cache", "--launcher", "slurm", "--shards", "2", "--submit"]
    cluster.command("sbatch", "cat > /dev/null; echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    refused = generate(*arguments, folder=tmp_path, PATH=f"{cluster.bin}:{os.environ['PATH']}")
    assert refused.returncode == 1 and "invalid partition" in refused.stderr
    missing = generate(*arguments, folder=tmp_path, PATH=str(tmp_path))
    assert missing.returncode == 2 and "no sbatch on the PATH" in missing.stderr and "--script" in missing.stderr
    for done in (refused, missing):
        assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--launcher", "pbs"], "here, slurm or ray"),
        (["--launcher", "slurm"], "--shards 8"),
        (["--shards", "8"], "--shards needs --launcher slurm"),
        (["--launcher", "slurm", "--shards", "8", "--workers", "2"], "--workers needs --launcher ray"),
        (["--launcher", "slurm", "--shards", "8", "--shard", "1/8"], "leave --shard out"),
        (["--launcher", "ray", "--limit", "8"], "leave --launcher ray out"),
        (["--launcher", "slurm", "--shards", "8", "--set", "teacher.sed=1"], "teacher.sed"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_line(tmp_path, arguments, words):
    done = generate("fictitious", "--out", "cache", *arguments, folder=tmp_path)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "cache").exists()
