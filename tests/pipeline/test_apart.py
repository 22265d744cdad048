"""Work in a process of its own: what comes back from it, and that it never outlives the one that asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from rehearsal import ENVIRONMENT

from vgid.data.fictitious import shipped_base
from vgid.errors import ConfigError, Stopped, VgidError
from vgid.pipeline import evaluation
from vgid.pipeline.apart import apart
from vgid.pipeline.evaluate import EvaluateSettings
from vgid.pipeline.recipe import load_recipe


@pytest.fixture
def asked_for(monkeypatch) -> None:
    """As on a machine with a GPU."""
    monkeypatch.setattr("vgid.pipeline.apart.needs_own_process", lambda: True)


def test_without_a_gpu_work_stays_in_this_process(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert apart(os.getpid) == os.getpid()


@pytest.mark.usefixtures("asked_for")
def test_results_and_errors_come_back_from_another_process():
    assert apart(os.getpid) != os.getpid()
    with pytest.raises(ConfigError, match="recipe 'nowhere': no such file"):
        apart(load_recipe, "nowhere")
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        apart(os.listdir, "/nowhere")


@pytest.mark.usefixtures("asked_for")
def test_a_process_that_ends_without_a_result_is_one_line(capfd):
    with pytest.raises(VgidError, match="the process for _exit ended with exit code 3"):
        apart(os._exit, 3)
    with pytest.raises(VgidError, match="the process for raise_signal was ended by signal 9"):
        apart(signal.raise_signal, signal.SIGKILL)
    with pytest.raises(VgidError, match="the process for int ended with exit code 1"):
        apart(int, "a mistake of ours")
    assert "ValueError: invalid literal" in capfd.readouterr().err


@pytest.mark.usefixtures("asked_for")
def test_sigterm_reaches_it_and_comes_back_as_a_stop():
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    started = time.monotonic()
    with pytest.raises(Stopped, match="rerun to continue"):
        apart(time.sleep, 300)
    assert time.monotonic() - started < 100


def test_it_ends_with_the_process_that_asked():
    """The pipe is open as long as one of them lives."""
    script = "import time, vgid.pipeline.apart as it; it.needs_own_process = lambda: True; it.apart(print, 'begun'); "
    script += "it.apart(time.sleep, 300)"
    command = [sys.executable, "-u", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        time.sleep(2)
        started = time.monotonic()
        process.kill()
        assert process.stdout.read() == "" and time.monotonic() - started < 100


@pytest.mark.usefixtures("asked_for")
def test_a_model_asked_in_a_process_of_its_own_gives_the_same_answers(monkeypatch):
    few = EvaluateSettings(max_new_tokens=8, per_cell=1, splits=("outsiders",))
    asked = evaluation.evaluation_data("shipped", overrides=(), per_cell=1)
    chosen = [example for example in asked.examples if example.split == "outsiders"][:5]
    options = {"settings": few, "engine": "transformers", "dtype": "float32"}
    there = apart(evaluation.answers_of, "base", shipped_base(), chosen, **options)
    monkeypatch.setattr("vgid.pipeline.apart.needs_own_process", lambda: False)
    assert there == apart(evaluation.answers_of, "base", shipped_base(), chosen, **options) and len(there) == 5
