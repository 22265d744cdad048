"""`vgid teacher generate fictitious`, run again and again in a fraction of a second; started and asked by rehearsal.py.

What costs seconds is done once: libraries and data are read, the plan is made and cut down to a pilot of ROWS rows, and
the real engine answers them. Each run is then a fork of this process that goes through the command's own `main` with a
teacher that gives the recorded answers: what it writes, says and ends with is the command's own doing.

usage: rehearsing_process.py ROWS FOLDER
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from vgid.pipeline import cli, teacher
from vgid.stage1_teacher import generate
from vgid.stage1_teacher.engines import Teacher, TeacherRequest, TeacherResponse
from vgid.stage1_teacher.generate import pilot_of_plan


class Recorder:
    """A teacher that keeps what another one answers."""

    def __init__(self, teacher: Teacher) -> None:
        self.engine_id, self.vocab_size, self.close = teacher.engine_id, teacher.vocab_size, teacher.close
        self.answers: dict[str, TeacherResponse] = {}
        self._teacher = teacher

    def run(self, requests: Iterable[TeacherRequest]) -> Iterator[TeacherResponse]:
        for response in self._teacher.run(requests):
            self.answers[response.request_id] = response
            yield response


class Recording:
    """A teacher that gives the answers of another one."""

    def __init__(self, recorder: Recorder) -> None:
        self.engine_id, self.vocab_size, self._answers = recorder.engine_id, recorder.vocab_size, recorder.answers

    def run(self, requests: Iterable[TeacherRequest]) -> Iterator[TeacherResponse]:
        for request in requests:
            yield self._answers[request.request_id]

    def close(self) -> None:
        pass


def record(rows: int, folder: Path) -> None:
    """Run the command's parts for real, and keep its job and the engine's answers."""
    job = teacher.prepare("fictitious", overrides=[], engine="transformers")
    job = replace(job, plan=pilot_of_plan(job.plan, size=rows))
    build, recorders = teacher.build_teacher, list[Recorder]()

    def load(*arguments: Any, **options: Any) -> Teacher:
        recorders.append(Recorder(build(*arguments, **options)))
        return recorders[0]

    teacher.build_teacher = load
    teacher.run_teacher(job, folder / "recorded")
    (folder / "recording").write_bytes(pickle.dumps((job, Recording(recorders[0]))))


def run(arguments: list[str], environment: dict[str, str], folder: str, stdout: str, stderr: str) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    for path, descriptor in ((os.devnull, 0), (stdout, 1), (stderr, 2)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    sys.argv = ["vgid", *arguments]
    cli.main()


def fork(work: Callable[..., None], *arguments: Any) -> int:
    """Do something in a child, which then ends as a Python process would; gives its process id."""
    if pid := os.fork():
        return pid
    code: Any = 0
    try:
        work(*arguments)
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def serve() -> None:
    """Run the command in forks of this process, one after the other, until stdin ends; then end.

    stdin gets one run a line, as JSON: `arguments`, changes to the `environment`, its `folder`, and files for its
    `stdout` and `stderr`. stdout gives its process id when it starts, and when it has ended its exit code, or minus
    the signal that ended it.
    """
    gc.freeze()  # a collection in a fork would touch, and so copy, all that is shared
    print("ready", flush=True)
    for line in sys.stdin:
        pid = fork(run, *json.loads(line).values())
        print(pid, flush=True)
        print(ended(pid), flush=True)
    os._exit(0)  # taking all of it down in good order takes seconds


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    for heavy in ("vgid.stage1_teacher.engines.transformers", "pandas"):  # pyarrow asks for pandas at its first array
        import_module(heavy)
    # A process that has run a model or read Parquet has threads, which the forks would lack.
    assert ended(fork(record, int(sys.argv[1]), folder)) == 0
    job, recording = pickle.loads((folder / "recording").read_bytes())
    teacher.prepare = lambda *_, **__: job
    teacher.build_teacher = lambda *_, **__: recording
    generate._MAX_UNCOMMITTED = 1  # recorded answers come at once; so a stop still finds rows that are not committed
    serve()
