"""`vgid` as a user starts it, less the time its libraries take to import; see warm_process.py."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from rehearsal import ENVIRONMENT, Forks

_SET = {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="vgid-warm-")


@cache
def warm_forks() -> Forks:
    """The process that commands are forked from: one of each test process, which it ends with."""
    return Forks("warm_process.py", folder=Path(_folder().name), environment=ENVIRONMENT | _SET)


def vgid(*arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What `vgid ARGUMENTS` in a folder prints and ends with."""
    words = [str(argument) for argument in arguments]
    run = warm_forks().begin(words, environment=os.environ | _SET, folder=folder)
    try:
        ended = run.wait()
    except BaseException:  # a time limit: whatever it still says must not be taken for the next one's answer
        run.send(signal.SIGKILL)
        warm_forks.cache_clear()
        raise
    return subprocess.CompletedProcess(["vgid", *words], ended.code, ended.stdout, ended.stderr)
