"""The teacher's command with recorded answers, to be killed and starved of its disk hundreds of times."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
from synthetic_targets import assert_same_targets

from vgid.cache.manifest import Manifest, load_manifest, manifest_name
from vgid.cache.reader import open_cache
from vgid.cache.schema import Target
from vgid.cache.store import TEMPORARY_PREFIX, LocalStore
from vgid.cache.verify import verify_cache
from vgid.errors import CacheError

HERE = Path(__file__).parent
KILL = 0
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
"""For processes that find what this one finds."""


class Call(NamedTuple):
    """A call that changes files; see faulty_calls.c."""

    kind: str
    error: int
    path: str
    target: str


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What fails below a folder, from the `number`-th call of a kind on or there alone; see faulty_calls.c."""

    call: str
    number: int
    error: int
    lasting: bool = False

    def environment(self) -> dict[str, str]:
        chosen = {"FAULT_CALL": self.call, "FAULT_NUMBER": str(self.number), "FAULT_ERRNO": str(self.error)}
        return chosen | ({"FAULT_LASTING": "1"} if self.lasting else {})


@dataclass(frozen=True, kw_only=True)
class Ended:
    code: int
    stdout: str
    stderr: str
    calls: list[Call]


class Forks:
    """The command in forks of a process that has loaded the libraries; see `serve` in rehearsing_process.py.

    Started by being made. One run at a time.
    """

    def __init__(self, script: str, *arguments: str, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        command, pipe = [sys.executable, str(HERE / script), *arguments], subprocess.PIPE
        self._process = subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe)
        assert self._answer() == "ready"

    def begin(self, arguments: Sequence[str], *, environment: Mapping[str, str], folder: Path | None = None) -> Run:
        """Start it, with these changes to the environment and in this folder (else where this process is)."""
        asked = {"arguments": arguments, "environment": environment, "folder": str(folder or Path.cwd())}
        asked |= {name: str(self._folder / name) for name in ("stdout", "stderr")}
        assert self._process.stdin is not None
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        return Run(self, pid=int(self._answer()))

    def wait(self) -> Ended:
        code = int(self._answer())
        said = {name: (self._folder / name).read_text() for name in ("stdout", "stderr")}
        return Ended(code=code, calls=calls(self._folder / "calls"), **said)

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class Rehearsal(Forks):
    """Runs of rehearsing_process.py."""

    def __init__(self, folder: Path, *, rows: int) -> None:
        self._rows = rows
        self.library = build_faulty_calls(folder)
        environment = ENVIRONMENT | preloaded(self.library)
        super().__init__("rehearsing_process.py", str(rows), str(folder), folder=folder, environment=environment)

    def start(
        self, cache: Path, *, rows: int = 0, shard: str = "0/1", rows_per_part: int = 3, fault: Fault | None = None
    ) -> Run:
        """Begin a run that fills `cache`, which lies in a folder of its own; by default with all that is recorded."""
        arguments = ["teacher", "generate", "fictitious", "--engine", "transformers", "--out", str(cache)]
        arguments += ["--limit", str(rows or self._rows), "--shard", shard, "--rows-per-part", str(rows_per_part)]
        log = self._folder / "calls"
        log.unlink(missing_ok=True)
        cache.parent.mkdir(exist_ok=True)
        return self.begin(arguments, environment=fault_environment(cache.parent, log=log, fault=fault))

    def run(self, cache: Path, **options: int | str | Fault | None) -> Ended:
        return self.start(cache, **options).wait()  # type: ignore[arg-type]


@dataclass(frozen=True)
class Run:
    forks: Forks
    pid: int

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def is_running(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def wait(self) -> Ended:
        return self.forks.wait()


def build_faulty_calls(folder: Path) -> Path | None:
    """The library that has calls fail, or None where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "faulty_calls.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, HERE / "faulty_calls.c", "-ldl"], check=True)
    return library


def preloaded(library: Path | None) -> dict[str, str]:
    return {} if library is None else {"LD_PRELOAD": str(library)}


def fault_environment(folder: Path, *, log: Path, fault: Fault | None) -> dict[str, str]:
    return {"FAULT_FOLDER": str(folder), "FAULT_LOG": str(log)} | (fault.environment() if fault else {})


def calls(log: Path) -> list[Call]:
    """What a log holds, in order."""
    lines = log.read_text().splitlines() if log.exists() else []
    fields = (line.split("\t") for line in lines)
    return [Call(kind, int(error), path, target) for kind, error, path, target in fields]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.0005)


def strays(cache: Path) -> set[str]:
    """Files that a writer was still working on: temporary, or named by no manifest."""
    manifest = load_manifest(LocalStore(cache))
    there = set(LocalStore(cache).names())
    made = {name for name in there if name.startswith(("data/", "vocabulary/"))}
    return temporaries(cache) | (made - (_named(manifest) if manifest else set()))


def temporaries(cache: Path) -> set[str]:
    return {name for name in LocalStore(cache).names() if Path(name).name.startswith(TEMPORARY_PREFIX)}


def assert_nothing_half_visible(cache: Path, expected: Mapping[str, Target]) -> int:
    """What a reader finds is whole and right; says how many rows that is."""
    manifest = load_manifest(LocalStore(cache))
    card = cache / "README.md"
    if manifest is None:
        with pytest.raises(CacheError, match="holds no manifest"):
            open_cache(cache)
        assert not card.exists()
        return 0
    rows = list(open_cache(cache).iter_targets())
    assert_same_targets(rows, [expected[target_id] for target_id in {row.target_id for row in rows}])
    if card.exists():
        listed = {line.removeprefix("    - ") for line in card.read_text().splitlines() if line.startswith("    - ")}
        assert listed <= {part.path for part in manifest.parts}
    return len(rows)


def assert_complete(cache: Path, expected: Iterable[Target]) -> None:
    """Every row once, to the bit, and from nothing but what the manifest names."""
    opened = open_cache(cache)
    assert_same_targets(list(opened.iter_targets()), list(expected))
    assert verify_cache(opened).num_errors == 0
    for name in set(opened.store.names()) - _named(opened.manifest):
        opened.store.delete(name)
    assert_same_targets(list(open_cache(cache).iter_targets()), list(expected))


def _named(manifest: Manifest) -> set[str]:
    files = [*manifest.parts, *([manifest.vocabulary] if manifest.vocabulary else [])]
    return {manifest_name(manifest.number), *(file.path for file in files)}
