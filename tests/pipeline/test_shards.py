"""Shards of a plan in any order, twice, killed, cut anew: the cache ends as one single run would have left it."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import pytest
from rehearsal import Rehearsal, assert_complete, assert_nothing_half_visible
from small_pass import ENVIRONMENT, assert_same_rows, rows_of, write_pass

from vgid.cache.manifest import load_manifest
from vgid.cache.reader import open_cache
from vgid.cache.schema import Target
from vgid.cache.store import LocalStore

RECUT = ["0/3", "1/3", "2/3"]


def orders(seed: int) -> list[str]:
    """Shards 0..7 of 8 in any order, two of them twice."""
    draw = random.Random(seed)
    shards = [f"{index}/8" for index in range(8)]
    order = [*shards, *draw.sample(shards, 2)]
    draw.shuffle(order)
    return order


def kill_after_a_commit(rehearsal: Rehearsal, cache: Path, *, shard: str) -> int:
    """Begin a shard and end it with SIGKILL once it has committed rows of its own; gives its exit code."""
    before = committed(cache)
    run = rehearsal.start(cache, shard=shard, rows_per_part=1)
    while committed(cache) == before:
        time.sleep(0.0005)
    run.send(signal.SIGKILL)
    return run.wait().code


def committed(cache: Path) -> int:
    manifest = load_manifest(LocalStore(cache)) if cache.exists() else None
    return sum(part.rows for part in manifest.parts) if manifest else 0


def largest_shard(rows: Iterable[Target]) -> str:
    """Of eight, the one with most rows."""
    groups = (row.image_sha256 or row.subject_id for row in rows)
    buckets = (int.from_bytes(sha256(group.encode()).digest()[:4], "big") % 256 for group in groups)
    return f"{Counter(bucket % 8 for bucket in buckets).most_common(1)[0][0]}/8"


@pytest.mark.parametrize("seed", range(3))
def test_shards_in_any_order_twice_and_killed_and_then_cut_anew_make_the_rows_of_a_single_run(
    rehearsal, tmp_path, seed
):
    assert rehearsal.run(tmp_path / "single" / "cache").code == 0
    expected = {row.target_id: row for row in open_cache(tmp_path / "single" / "cache").iter_targets()}
    cache, victim, killed = tmp_path / "shards" / "cache", largest_shard(expected.values()), list[int]()
    for shard in orders(seed):
        while shard == victim and len(killed) < 2:
            killed.append(kill_after_a_commit(rehearsal, cache, shard=victim))
            assert_nothing_half_visible(cache, expected)
        assert rehearsal.run(cache, shard=shard).code == 0
        assert_nothing_half_visible(cache, expected)
    assert killed == [-signal.SIGKILL] * 2
    names = LocalStore(cache).names()

    for shard in RECUT:
        assert rehearsal.run(cache, shard=shard).code == 0

    assert LocalStore(cache).names() == names, "a run that had nothing to do wrote something"
    assert_complete(cache, expected.values())


def vgid(recipe: Path, cache: Path, *, engine: str, shard: str = "0/1") -> list[str]:
    """The real command on a real engine."""
    command = [sys.executable, "-m", "vgid", "teacher", "generate", str(recipe), "--out", str(cache)]
    return [*command, "--engine", engine, "--shard", shard, "--rows-per-part", "1"]


def finished(command: list[str]) -> str:
    """Run it to its end; gives what it prints."""
    return subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_shards_of_a_real_engine_make_the_rows_of_a_single_run(tmp_path, engine):
    recipe = write_pass(tmp_path / "data", photos=8, questions=4)
    finished(vgid(recipe, tmp_path / "single", engine=engine))
    expected = rows_of(tmp_path / "single")
    cache, victim, killed = tmp_path / "shards", largest_shard(expected.values()), list[int]()
    for shard in orders(time.time_ns()):
        command = vgid(recipe, cache, engine=engine, shard=shard)
        while shard == victim and len(killed) < 2:
            before, process = committed(cache), subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
            while committed(cache) == before and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            killed.append(process.wait())
        finished(command)
    assert killed == [-signal.SIGKILL] * 2
    for shard in RECUT:
        shown = finished(vgid(recipe, cache, engine=engine, shard=shard))
        assert "generated: 0" in shown and "whole.missing: 0" in shown
    assert_same_rows(rows_of(cache), expected)
