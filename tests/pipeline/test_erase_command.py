"""`vgid cache erase` as a user meets it: it looks before it erases, asks, and says what is left to do."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from sound_targets import sound_target, write_sound

from vgid.cache.reader import open_cache

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
MARA = "person-3"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_sound(tmp_path / "cache", [sound_target(index) for index in range(21)])
    return tmp_path / "cache"


def erase(cache: Path, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vgid", "cache", "erase", str(cache), *arguments]
    environment = ENVIRONMENT | {"VGID_ERASE_KEY": str(cache.parent / "erase.key")}
    return subprocess.run(command, stdin=stdin, capture_output=True, text=True, env=environment, check=False)


def subjects(cache: Path) -> list[str]:
    return sorted(row.subject_id for row in open_cache(cache).iter_targets())


def test_a_subject_is_erased_and_what_is_left_to_do_is_said(cache):
    looked = erase(cache, "--subject", MARA, "--dry-run")
    assert looked.stdout == "would erase 3 rows (3 of forget)\n"
    assert subjects(cache).count(MARA) == 3

    done = erase(cache, "--subject", MARA, "--yes")

    assert done.returncode == 0, done.stderr
    assert subjects(cache).count(MARA) == 0 and len(subjects(cache)) == 18
    assert (
        f"erased 3 rows from {cache}: 1 parts rewritten, 0 dropped, 1 files and 0 decoded copies removed" in done.stdout
    )
    assert f"key {cache.parent / 'erase.key'}: keep it" in done.stdout
    assert "students distilled from these rows" in done.stdout
    status = subprocess.run(
        [sys.executable, "-m", "vgid", "cache", "status", str(cache)], capture_output=True, text=True, check=True
    )
    assert "1 tombstones" in status.stdout and "missing or erased" in status.stdout


def test_machines_get_json(cache):
    looked = json.loads(erase(cache, "--subject", MARA, "--example", "synthetic/0/0", "--dry-run", "--json").stdout)
    assert looked == {"cache": str(cache), "rows": {"forget": 4}, "absent": []}

    done = json.loads(erase(cache, "--all", "--yes", "--json").stdout)

    assert (done["rows"], done["audit"], subjects(cache)) == (21, "audit/000002.json", [])
    assert all(isinstance(copy, str) for copy in done["copies"])


def test_nothing_is_erased_without_being_asked_for_twice(cache):
    refused = erase(cache, "--subject", MARA)

    assert refused.returncode == 2
    assert refused.stderr == "error: erasing cannot be undone: look with --dry-run, then add --yes\n"
    assert subjects(cache).count(MARA) == 3


@pytest.mark.parametrize(("answer", "left", "code"), [("y", 0, 0), ("n", 3, 1), ("", 3, 1)])
def test_on_a_terminal_it_asks(cache, answer, left, code):
    here, there = pty.openpty()
    try:
        os.write(here, f"{answer}\n".encode())
        done = erase(cache, "--subject", MARA, stdin=there)
    finally:
        os.close(here)
        os.close(there)

    assert f"Erase 3 rows (3 of forget) from cache {cache}? This cannot be undone. [y/N]" in done.stderr
    assert (subjects(cache).count(MARA), done.returncode) == (left, code)


def test_a_misspelt_name_is_an_error_that_knows_better(cache):
    refused = erase(cache, "--subject", "persn-3", "--yes")

    assert refused.returncode == 2
    assert "holds no rows of subject 'persn-3' (did you mean 'person-3'?); nothing was erased" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1

    assert erase(cache, "--subject", "persn-3", "--yes", "--allow-absent").returncode == 0
    assert len(subjects(cache)) == 21


@pytest.mark.parametrize("arguments", [[], ["--all", "--subject", MARA], ["--subject", ""]])
def test_it_must_be_clear_whom_to_erase(cache, arguments):
    refused = erase(cache, *arguments, "--yes")

    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1 and "--subject" in refused.stderr
    assert len(subjects(cache)) == 21


def test_a_folder_that_is_no_cache_is_one_line(tmp_path):
    (tmp_path / "cache").mkdir()

    refused = erase(tmp_path / "cache", "--all", "--yes")

    assert refused.returncode == 1
    assert "it holds no manifest" in refused.stderr and len(refused.stderr.splitlines()) == 1
