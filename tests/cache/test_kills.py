"""A teacher pass killed at any moment: what is visible is right, and a rerun comes to the same rows, to the bit."""

from __future__ import annotations

import random
import re
import signal
import time
from pathlib import Path

import pytest
from rehearsal import Rehearsal, assert_complete, assert_nothing_half_visible, strays, temporaries, wait_for

from vgid.cache.reader import open_cache
from vgid.cache.schema import Target

Uninterrupted = tuple[dict[str, Target], float]


@pytest.fixture(scope="module")
def uninterrupted(rehearsal: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """The rows by id, and how many seconds writing them takes."""
    cache, seconds = Path(), list[float]()
    for number in range(3):
        cache = tmp_path_factory.mktemp(str(number)) / "cache"
        run = rehearsal.start(cache)
        wait_for(cache)
        started = time.monotonic()
        assert run.wait().code == 0
        seconds.append(time.monotonic() - started)
    rows = {row.target_id: row for row in open_cache(cache).iter_targets()}
    assert len(rows) == 40 and len(open_cache(cache).manifest.parts) > 12
    return rows, min(seconds)


def moments(count: int, seconds: float) -> list[float]:
    """One random moment in each of `count` equal stretches of the writing."""
    return [seconds * (number + random.random()) / count for number in range(count)]


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_pass_killed_at_a_random_moment_is_continued_to_the_very_same_rows(rehearsal, uninterrupted, tmp_path, kills):
    expected, seconds = uninterrupted
    interrupted = left_strays = 0
    for number, moment in enumerate(moments(kills, seconds)):
        cache = tmp_path / str(number) / "cache"
        run = rehearsal.start(cache)
        wait_for(cache)
        time.sleep(moment)
        run.send(signal.SIGKILL)
        interrupted += run.wait().code == -signal.SIGKILL
        left_strays += bool(strays(cache))
        assert_nothing_half_visible(cache, expected)

        assert rehearsal.run(cache).code == 0

        assert_complete(cache, expected.values())
    print(f"{kills} kills: {interrupted} before the end, {left_strays} left a file that no manifest names")
    assert interrupted >= 0.6 * kills, "most passes ended before they were killed"
    assert left_strays >= kills // 10 - 1, "the kills seldom hit a commit"


def test_a_pass_asked_to_stop_at_a_random_moment_commits_all_it_finished_and_exits_with_75(
    rehearsal, uninterrupted, tmp_path
):
    expected, seconds = uninterrupted
    codes = list[int]()
    for number, moment in enumerate(moments(8, seconds)):
        cache = tmp_path / str(number) / "cache"
        run = rehearsal.start(cache)
        wait_for(cache)
        time.sleep(moment)
        run.send(signal.SIGTERM)
        ended = run.wait()
        codes.append(ended.code)
        if ended.code == 0:  # it was flushing its last rows
            assert_complete(cache, expected.values())
            continue
        assert ended.code == 75, ended.stderr
        (said,) = re.findall(r"^error: stopped after (\d+) of 40 rows, all committed; rerun", ended.stderr, re.M)
        assert assert_nothing_half_visible(cache, expected) == int(said)
        assert not strays(cache) | temporaries(cache)
    assert codes.count(75) >= 6, codes
