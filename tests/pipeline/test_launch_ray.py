"""The pool of Ray actors on a real local cluster: two workers, a worker killed, a pass stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
from small_pass import ENVIRONMENT, assert_same_rows, rows_of, write_pass
from warm import vgid

from vgid.cache.manifest import load_manifest
from vgid.cache.schema import Target
from vgid.cache.store import LocalStore
from vgid.errors import ConfigError
from vgid.pipeline.launch_ray import items_of, pool_of
from vgid.pipeline.teacher import prepare

TWO = ["--launcher", "ray", "--workers", "2"]


def start(recipe: Path, cache: Path, *options: str, **changes: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vgid", "teacher", "generate", str(recipe), "--out", str(cache), "--json"]
    environment = ENVIRONMENT | changes
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *options], env=environment, stdout=pipe, stderr=pipe, text=True)


def generate(recipe: Path, cache: Path, *options: str, **changes: str) -> tuple[int, str, str]:
    process = start(recipe, cache, *options, **changes)
    shown, errors = process.communicate()
    return process.returncode, shown, errors


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return write_pass(tmp_path_factory.mktemp("data"), photos=8, questions=2)


@pytest.fixture(scope="module")
def single(recipe, tmp_path_factory) -> Path:
    cache = tmp_path_factory.mktemp("single") / "cache"
    done = vgid("teacher", "generate", recipe, "--out", cache, "--engine", "transformers")
    assert done.returncode == 0, done.stderr
    return cache


@pytest.fixture(scope="module")
def expected(single) -> Mapping[str, Target]:
    return rows_of(single)


def committed(cache: Path) -> int:
    manifest = load_manifest(LocalStore(cache)) if cache.exists() else None
    return sum(part.rows for part in manifest.parts) if manifest else 0


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The actors with an engine."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [each for each in found if "MapWorker" in "".join(each.cmdline())]


def test_items_hold_every_bucket_once_are_several_a_worker_and_of_about_one_size(recipe):
    plan = prepare(str(recipe), overrides=[], engine="transformers").plan
    rows = Counter(planned.bucket for planned in plan)
    items = items_of(plan, workers=2)
    assert sorted(bucket for item in items for bucket in item) == sorted(rows)
    sizes = [sum(rows[bucket] for bucket in item) for item in items]
    assert len(items) == 16 and max(sizes) <= min(sizes) + max(rows.values())
    assert len(items_of(plan, workers=100)) == len(rows)


@pytest.mark.parametrize(
    ("resources", "workers", "gpus", "pool"),
    [
        ({"CPU": 2.0}, 2, 1, (2, 0)),
        ({"CPU": 64.0}, None, 1, (1, 0)),
        ({"CPU": 64.0, "GPU": 8.0}, None, 1, (8, 1)),
        ({"CPU": 64.0, "GPU": 8.0}, None, 4, (2, 4)),
        ({"CPU": 64.0, "GPU": 8.0}, 1, 4, (1, 4)),
    ],
)
def test_a_pool_has_a_worker_for_each_group_of_gpus(resources, workers, gpus, pool):
    assert pool_of(resources, workers=workers, gpus_per_worker=gpus) == pool


@pytest.mark.parametrize(("workers", "gpus"), [(9, 1), (3, 4), (None, 16)])
def test_a_cluster_that_is_too_small_is_refused(workers, gpus):
    with pytest.raises(ConfigError, match="the Ray cluster has 8 GPU"):
        pool_of({"CPU": 64.0, "GPU": 8.0}, workers=workers, gpus_per_worker=gpus)


def test_a_pass_that_is_complete_does_not_start_ray_and_says_so(recipe, single, tmp_path):
    (tmp_path / "ray.py").write_text("raise SystemExit('ray was imported')")
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    code, shown, errors = generate(recipe, single, "--engine", "transformers", *TWO, **path)
    assert code == 0, errors
    told = json.loads(shown)
    assert (told["generated"], told["already_cached"], told["whole"]["missing"]) == (0, 40, 0)


def test_without_ray_there_is_one_line_that_says_how_to_get_it(recipe, tmp_path):
    (tmp_path / "ray.py").write_text("raise ImportError('No module named ray')")
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    code, _, errors = generate(recipe, tmp_path / "cache", "--engine", "transformers", *TWO, **path)
    assert code == 2 and "pip install 'vgid[ray]'" in errors and len(errors.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_two_workers_make_the_rows_of_a_single_run(recipe, expected, tmp_path, engine):
    code, shown, errors = generate(recipe, tmp_path / "cache", "--engine", engine, *TWO)
    assert code == 0, errors
    assert "Traceback" not in errors and "16/16 items" in errors
    told = json.loads(shown)
    assert (told["planned"], told["generated"], told["whole"]["missing"]) == (40, 40, 0)
    rows = rows_of(tmp_path / "cache")
    if engine == "transformers":
        assert_same_rows(rows, expected)
    else:  # another engine is another teacher: other ids, the same words
        words = [
            Counter((row.example_id, row.view, row.response_text) for row in each.values()) for each in (rows, expected)
        ]
        assert words[0] == words[1]


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_only_delays(recipe, expected, tmp_path):
    process = start(recipe, tmp_path / "cache", "--engine", "transformers", "--rows-per-part", "1", *TWO)
    while not committed(tmp_path / "cache"):
        time.sleep(0.01)
        assert process.poll() is None, process.communicate()
    victims = workers_of(process)
    assert len(victims) == 2
    victims[0].send_signal(signal.SIGKILL)
    at_most = committed(tmp_path / "cache")
    shown, errors = process.communicate()
    assert process.returncode == 0, errors
    assert at_most < len(expected), "it was done when the worker was killed"
    assert json.loads(shown)["whole"]["missing"] == 0
    assert_same_rows(rows_of(tmp_path / "cache"), expected)


@pytest.mark.slow
def test_a_pass_asked_to_stop_ends_with_75_leaves_no_process_and_is_continued(recipe, expected, tmp_path):
    process = start(recipe, tmp_path / "cache", "--engine", "transformers", "--rows-per-part", "1", *TWO)
    while not committed(tmp_path / "cache"):
        time.sleep(0.01)
        assert process.poll() is None, process.communicate()
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 75 and errors.splitlines()[-1].endswith("rerun to continue"), errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    stopped_at = rows_of(tmp_path / "cache")
    assert 0 < len(stopped_at) < len(expected)
    code, shown, errors = generate(recipe, tmp_path / "cache", "--engine", "transformers")
    assert code == 0 and json.loads(shown)["already_cached"] == len(stopped_at), errors
    assert_same_rows(rows_of(tmp_path / "cache"), expected)
