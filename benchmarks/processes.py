"""Commands run in processes of their own, with the time and the memory each took.

Linux counts three kinds of resident memory. *Anonymous* is what a process allocated: nobody can take it back. Pages of
a mapped file count as resident too once they were touched, but the kernel drops them whenever memory is short. So
anonymous memory is what must not grow with a cache, and the total is given beside it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_EVERY_S = 0.002
_BYTECODE = Path("runs/bench/bytecode")
_KIB_LINE = re.compile(r"^(RssAnon|VmHWM):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one process took."""

    wall_s: float
    """From its start to its end, the interpreter's own start included."""
    cpu_s: float
    """User and system time of all threads."""
    anonymous_bytes: int
    """Most anonymous memory at any sample, every 2 ms."""
    resident_bytes: int
    """Most resident memory of all kinds, as the kernel kept it."""


def run_module(module: str, *arguments: str | int | Path) -> Usage:
    """Run `python -m module arguments` to its end; what it prints on stdout is dropped.

    Raises:
        subprocess.CalledProcessError: its exit code is not 0.
    """
    return _run([sys.executable, "-m", module, *map(str, arguments)])


def _run(command: Sequence[str]) -> Usage:
    started = time.perf_counter()
    # Where Python may not keep bytecode, every start compiles every library, which is not what a command costs.
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(_BYTECODE.resolve())}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | bytecode)
    most = {"RssAnon": 0, "VmHWM": 0}
    while True:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        for name, kib in _KIB_LINE.findall(Path(f"/proc/{process.pid}/status").read_text()):
            most[name] = max(most[name], int(kib) * 1024)
        time.sleep(_SAMPLE_EVERY_S)
    wall_s = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for here
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Usage(
        wall_s=wall_s,
        cpu_s=used.ru_utime + used.ru_stime,
        anonymous_bytes=most["RssAnon"],
        # Not rusage's figure, which begins with that of the process that started it.
        resident_bytes=most["VmHWM"],
    )
