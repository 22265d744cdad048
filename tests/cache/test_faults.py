"""A disk that refuses, and a process that dies, at each single call: one clear line, nothing half-visible, all safe."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from rehearsal import (
    ENVIRONMENT,
    KILL,
    Call,
    Fault,
    Rehearsal,
    assert_complete,
    assert_nothing_half_visible,
    calls,
    fault_environment,
    preloaded,
    temporaries,
)
from synthetic_targets import IDENTITY, assert_same_targets, mixed_targets

from vgid.cache.mapped import map_targets
from vgid.cache.reader import open_cache
from vgid.cache.schema import Target
from vgid.cache.writer import CacheWriter

SMALL = {"rows": 6, "rows_per_part": 2}
CASES = [
    ("open", errno.EACCES, False),
    ("write", errno.ENOSPC, False),
    ("write", errno.ENOSPC, True),
    ("write", errno.EIO, False),
    ("fsync", errno.EIO, False),
    ("link", errno.EXDEV, False),
    ("rename", errno.EXDEV, False),
    ("mkdir", errno.ENOSPC, False),
    ("unlink", errno.EIO, False),
]
EVERY_NINTH_AND_EVERY_ONE = pytest.mark.parametrize(
    "every", [9, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)


@pytest.fixture(scope="module")
def faulty(rehearsal: Rehearsal) -> Rehearsal:
    if rehearsal.library is None:
        pytest.skip("needs a C compiler (cc) to build faulty_calls.c")
    return rehearsal


@pytest.fixture(scope="module")
def expected(faulty: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    cache = tmp_path_factory.mktemp("whole") / "cache"
    ended = faulty.run(cache, **SMALL)
    assert (ended.code, len(open_cache(cache).manifest.parts)) == (0, 3)
    assert_durable(ended.calls, cache)
    return {row.target_id: row for row in open_cache(cache).iter_targets()}


@EVERY_NINTH_AND_EVERY_ONE
@pytest.mark.parametrize(("call", "error", "lasting"), CASES)
def test_whichever_call_fails_it_is_one_line_and_the_next_run_completes(
    faulty, expected, tmp_path, call, error, lasting, every
):
    number, is_refused = 1, True
    while is_refused:
        cache = tmp_path / str(number) / "cache"
        ended = faulty.run(cache, **SMALL, fault=Fault(call=call, number=number, error=error, lasting=lasting))
        is_refused = any((made.kind, made.error) == (call, error) for made in ended.calls)
        assert ended.code == int(is_refused), ended.stderr
        if is_refused:
            assert_one_clear_line(ended.stderr, cache, error)
        assert_nothing_half_visible(cache, expected)
        assert call == "unlink" or not temporaries(cache)

        again = faulty.run(cache, **SMALL)

        assert again.code == 0, again.stderr
        assert_durable([*ended.calls, *again.calls], cache)
        assert_complete(cache, expected.values())
        number += every
    assert number > 1 + every


@EVERY_NINTH_AND_EVERY_ONE
def test_a_pass_killed_at_any_call_is_continued_to_the_very_same_rows_all_safe_on_disk(
    faulty, expected, tmp_path, every
):
    number, is_killed = 1, True
    while is_killed:
        cache = tmp_path / str(number) / "cache"
        ended = faulty.run(cache, **SMALL, fault=Fault(call="any", number=number, error=KILL))
        is_killed = ended.code == -signal.SIGKILL
        assert is_killed or ended.code == 0, ended.stderr
        assert_nothing_half_visible(cache, expected)

        again = faulty.run(cache, **SMALL)

        assert again.code == 0, again.stderr
        assert_durable([*ended.calls, *again.calls], cache)
        assert_complete(cache, expected.values())
        number += every
    assert number > 50


@pytest.mark.slow
def test_the_real_command_on_a_full_disk_ends_with_one_line_and_exit_code_1(faulty, tmp_path):
    cache = tmp_path / "place" / "cache"
    cache.parent.mkdir()
    fault = Fault(call="write", number=5, error=errno.ENOSPC)
    environment = fault_environment(cache.parent, log=tmp_path / "calls", fault=fault)
    command = [sys.executable, "-m", "vgid", "teacher", "generate", "fictitious", "--engine", "transformers"]
    command += ["--limit", "6", "--rows-per-part", "2", "--out", str(cache)]

    ended = subprocess.run(
        command, env=ENVIRONMENT | environment | preloaded(faulty.library), text=True, capture_output=True
    )

    assert ended.returncode == 1
    assert errno.ENOSPC in {call.error for call in calls(tmp_path / "calls")}
    assert_one_clear_line(ended.stderr, cache, errno.ENOSPC)
    assert not temporaries(cache)
    assert faulty.run(cache, **SMALL).code == 0


MAP = (
    "import sys; from vgid.cache.mapped import map_targets; from vgid.cache.reader import open_cache\n"
    "from vgid.errors import CacheError\n"
    "try: map_targets(open_cache(sys.argv[1]))\n"
    "except CacheError as error: sys.exit(f'error: {error}')"
)


@pytest.mark.parametrize(
    ("call", "error"), [("open", errno.EACCES), ("write", errno.ENOSPC), ("rename", errno.EIO), ("mkdir", errno.ENOSPC)]
)
def test_a_decoded_copy_that_the_disk_refuses_is_one_line_and_leaves_none(faulty, tmp_path, call, error):
    cache, rows = tmp_path / "place" / "cache", mixed_targets(0, 6)
    with CacheWriter(cache, **IDENTITY, rows_per_part=4) as writer:
        for row in rows:
            writer.add(row)
    number, is_refused = 0, True
    while is_refused:
        number += 1
        log, fault = tmp_path / f"calls-{number}", Fault(call=call, number=number, error=error)
        environment = fault_environment(cache, log=log, fault=fault) | ENVIRONMENT | preloaded(faulty.library)
        ended = subprocess.run([sys.executable, "-c", MAP, str(cache)], env=environment, text=True, capture_output=True)
        is_refused = any(made.error == error for made in calls(log))
        assert ended.returncode == int(is_refused), ended.stderr
        if is_refused:
            (line,) = ended.stderr.splitlines()
            assert os.strerror(error) in line and str(cache) in line and "--scratch DIR" in line
            assert not any((cache / "scratch").glob("*"))
    assert number > 1
    assert_same_targets(list(map_targets(open_cache(cache))), rows)


def assert_one_clear_line(stderr: str, cache: Path, error: int) -> None:
    """Which cache, what the disk said, and what to do; nothing for developers."""
    (line,) = (line for line in stderr.splitlines() if line.startswith("error:"))
    assert str(cache) in line and os.strerror(error) in line and "rerun" in line and "  " not in line, line
    assert "Traceback" not in stderr


def assert_durable(made: Iterable[Call], cache: Path) -> None:
    """Whatever a manifest names was on the disk to stay before the manifest got its name; so is the newest manifest.

    To stay: its content was synced after the last write, and its folder, and theirs, after the last new name in it.
    """
    root, synced, unsynced = cache.parent, set[Path](), dict[Path, set[Path]]()

    def settled(path: Path) -> bool:
        chain = [path, *(folder for folder in path.parents if folder.is_relative_to(root) and folder != root)]
        return path in synced and not any(name in unsynced.get(name.parent, ()) for name in chain)

    for call in (call for call in made if not call.error):
        path, target = Path(call.path), Path(call.target)
        if call.kind in ("open", "write"):
            synced.discard(path)
        elif call.kind == "fsync":
            unsynced.pop(path, None)
            synced.add(path)
        elif call.kind == "mkdir":
            unsynced.setdefault(path.parent, set()).add(path)
        elif call.kind in ("link", "rename"):
            assert path in synced, f"{target} got its name before its content was synced"
            synced.add(target)
            unsynced.setdefault(target.parent, set()).add(target)
            for named in _named_by(target):
                assert settled(cache / named), f"{target.name} names {named}, which a power cut could take back"
    there = {path for path in cache.rglob("*") if path.is_file() and path.name[0] != "."}
    assert there <= synced, "a file came about by calls that faulty_calls.c does not know"
    assert all(settled(path) for path in there)


def _named_by(path: Path) -> list[str]:
    if path.parent.name != "manifest":
        return []
    manifest = json.loads(path.read_bytes())
    return [part["path"] for part in [*manifest["parts"], manifest["vocabulary"]] if part]
