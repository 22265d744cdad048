"""Make `.venv`, or find that it is the right one: what `make env` runs, with any Python 3.11 to 3.13 and nothing else.

On Linux with an NVIDIA GPU it installs the CUDA build of vLLM, elsewhere the CPU build beside `torch==2.13.0+cpu`.

The environment is whole or made anew. The marker `.venv/.vgid-env` says which: it is written first as "unfinished" and
last as the key of what was installed, so a killed install, an edited pyproject.toml, another Python or a moved checkout
all lead to a fresh one. What this gives up: a changed dependency costs a whole install (pip's cache makes it cheaper),
and packages added by hand are lost with it. A `.venv` without the marker is somebody else's and is left alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
CPU_TORCH = "torch==2.13.0+cpu"
# `===` keeps out 2.13.0+cpu, which satisfies vLLM's own `==2.13.0` and which a mirror for CPU machines may offer.
CUDA_TORCH = "torch===2.13.0"
CPU_INDEX = os.environ.get("VGID_TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
# Not the Python of an activated .venv, which a new one replaces.
BASE_PYTHON: str = getattr(sys, "_base_executable", sys.executable)
UNFINISHED = "unfinished"
LOG_TAIL = 15

State = Literal["missing", "ready", "unfinished", "outdated", "foreign"]


class InstallError(Exception):
    """A step failed; the message says which and ends with the last lines of its output."""


def environment_key(project: bytes, *, hardware: str, root: Path = ROOT) -> str:
    """Hash of everything the environment depends on.

    Only the tables of pyproject.toml that pip reads count: a changed lint rule needs no new environment. The path
    counts since neither scripts nor an editable install survive a move.
    """
    tables = tomllib.loads(project.decode())
    scripts = [(root / "scripts" / name).read_text() for name in ("environment.py", "repair_torchvision.py")]
    python = [sys.version, sys.base_prefix, platform.machine()]
    parts = [tables["build-system"], tables["project"], tables["tool"]["hatch"], scripts, python, str(root), hardware]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_state(venv: Path, *, key: str) -> State:
    """What the folder holds, judged by its marker."""
    if not venv.exists():
        return "missing"
    marker = venv / ".vgid-env"
    if not marker.exists():
        return "foreign"
    text = marker.read_text().strip()
    if text == key:
        return "ready"
    return "unfinished" if text in ("", UNFINISHED) else "outdated"


def find_gpu() -> str | None:
    """Name of the first NVIDIA GPU, or None."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next((line for line in listed.splitlines() if line.startswith("GPU ")), None)


def say(text: str) -> None:
    """One line of progress, on stderr: stdout belongs to what make runs next."""
    print(f"environment: {text}", file=sys.stderr, flush=True)


@contextmanager
def exclusive(path: Path) -> Generator[int]:
    """Hold an advisory lock. Child processes inherit it, so an orphan of a killed install is waited for too."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another `make env` is at work here; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def run_step(title: str, command: list[str], *, lock: int) -> None:
    """Run one step with its output in .venv/install.log; say what it is and how long it took.

    Raises:
        InstallError: it failed.
    """
    start = time.monotonic()
    # A user-wide PIP_USER would make pip refuse to install into an environment.
    variables = {**os.environ, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_PROGRESS_BAR": "off"}
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=variables,
        pass_fds=[lock],
        check=False,
    )
    with (VENV / "install.log").open("a") as log:
        log.write(f"$ {' '.join(command)}\n{done.stdout}\n")
    if done.returncode:
        tail = "\n".join(f"    {line}" for line in done.stdout.splitlines()[-LOG_TAIL:])
        raise InstallError(f"{title} failed (all of it: {VENV / 'install.log'}):\n{tail}")
    say(f"{title} ({time.monotonic() - start:.0f} s)")


def build(*, gpu: str | None, lock: int) -> None:
    """Make the environment in a folder that does not exist yet.

    Raises:
        InstallError: a step failed.
    """
    VENV.mkdir()
    (VENV / ".vgid-env").write_text(UNFINISHED)
    python = str(VENV / "bin" / "python")
    # A copied or missing ensurepip is the commonest fault of a fresh Debian or Ubuntu.
    try:
        run_step("virtual environment", [BASE_PYTHON, "-m", "venv", str(VENV)], lock=lock)
    except InstallError as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise InstallError(f"{error}\n    On Debian or Ubuntu: apt install python{version}-venv") from None
    pip = [python, "-m", "pip", "install", "--no-compile"]
    # An older one may take minutes to agree on versions of the S3 libraries, of which there is one a day.
    try:
        run_step("current pip", [*pip, "--upgrade", "pip"], lock=lock)
    except InstallError:
        say("no newer pip to be had; going on with the one that this Python brings")
    if gpu:
        run_step("vLLM for CUDA and the project", [*pip, CUDA_TORCH, "-e", f"{ROOT}[vllm,dev]"], lock=lock)
        return
    install_cpu_torch(pip, lock=lock)
    run_step("vLLM for CPU and the project", [*pip, CPU_TORCH, "-e", f"{ROOT}[cpu,dev]"], lock=lock)
    run_step("torchvision beside a CPU torch", [python, str(ROOT / "scripts" / "repair_torchvision.py")], lock=lock)


def install_cpu_torch(pip: list[str], *, lock: int) -> None:
    """Take the CPU torch from the configured index, which PyPI is not enough for, or from PyTorch's own.

    Raises:
        InstallError: neither has it.
    """
    try:
        run_step(f"{CPU_TORCH} from the configured index", [*pip, CPU_TORCH], lock=lock)
    except InstallError:
        say(f"the configured index did not give {CPU_TORCH}; asking {CPU_INDEX}")
        # Its dependencies come with the next step, from the configured index.
        run_step(f"{CPU_TORCH} from {CPU_INDEX}", [*pip, "--no-deps", "--index-url", CPU_INDEX, CPU_TORCH], lock=lock)


def make_environment(*, lock: int) -> None:
    """Bring `.venv` to the state that pyproject.toml asks for; a no-op where it is.

    Raises:
        InstallError: a step failed, or the folder is not ours.
    """
    start = time.monotonic()
    gpu = find_gpu()
    key = environment_key((ROOT / "pyproject.toml").read_bytes(), hardware="cuda" if gpu else "cpu")
    state = read_state(VENV, key=key)
    if state == "ready":
        say(".venv is ready (unchanged)")
        return
    if state == "foreign":
        raise InstallError(f"{VENV} was not made by `make env`; move it away and try again")
    reasons = {
        "missing": "there is none yet",
        "unfinished": "the last install did not end",
        "outdated": "its recipe changed",
    }
    say(f"making {VENV} ({reasons[state]}); about 2 minutes and 4 GB, log in .venv/install.log")
    say(f"found {gpu}: CUDA build of vLLM" if gpu else "found no NVIDIA GPU: CPU build of vLLM")
    if state != "missing":
        shutil.rmtree(VENV)
    build(gpu=gpu, lock=lock)
    (VENV / ".vgid-env").write_text(key)
    say(f"ready after {time.monotonic() - start:.0f} s")


def main() -> int:
    """Entry point; one line per step on stderr."""
    try:
        with exclusive(Path(__file__)) as lock:
            make_environment(lock=lock)
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: stopped; the next `make env` starts again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
