"""`--launcher ray`: the same teacher pass in a pool of Ray actors, each with an engine of its own.

Ray hands out numbers of buckets and takes back counts; the rows go from the actors straight into the cache. So whatever
Ray does with its tasks is harmless: an actor that dies is started anew, its buckets are given out again, and what it
had committed is found. What it gives up: recipe, data, model and cache must have the same path on every node.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from vgid import errors
from vgid.errors import ConfigError, Stopped, TeacherError, VgidError
from vgid.pipeline.console import progress
from vgid.pipeline.teacher import TeacherJob, cache_writer, fill, load_teacher
from vgid.stage1_teacher.engines import KeptTeacher, Teacher
from vgid.stage1_teacher.generate import GenerateResult
from vgid.stage1_teacher.options import EngineOptions
from vgid.stage1_teacher.plan import NUM_BUCKETS, PlannedTarget
from vgid.stage1_teacher.standing import missing_rows, standing

_ITEMS_PER_WORKER = 8
"""So that a slow worker holds up a small share of the plan at most."""
_MAX_ATTEMPTS = 5
"""At one item; Ray gives an item out again however often its worker died of it."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What every worker is told."""

    prepare: Callable[[], TeacherJob]
    """Makes the job, the same one everywhere."""
    options: EngineOptions
    out: str
    writing: Mapping[str, Any]
    """Options of `cache_writer`."""
    folder: Path
    """Where relative paths start from."""


class Worker:
    """An actor: fills the buckets that it is given, with an engine that is loaded when rows are first missing."""

    def __init__(self, order: Order, attempts: Any) -> None:
        self._order, self._attempts = order, attempts
        self._job: TeacherJob | None = None
        self._teacher: Teacher | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Fill items of buckets, each committed when it is done; an error of ours is an answer too."""
        return {"answer": [json.dumps(self._answer(str(item))) for item in batch["item"]]}

    def _answer(self, item: str) -> dict[str, Any]:
        import ray

        order, buckets = self._order, json.loads(item)
        try:
            attempt: Any = ray.get(self._attempts.begin.remote(item))
            if attempt > _MAX_ATTEMPTS:
                raise TeacherError(
                    f"{_MAX_ATTEMPTS} workers died over the buckets {buckets} of {NUM_BUCKETS}; see Ray's logs, or run "
                    f"one of them here: --shard {buckets[0]}/{NUM_BUCKETS}"
                )
            if self._job is None:
                os.chdir(order.folder)
                self._job = order.prepare()
            job = self._job
            plan = [planned for planned in job.plan if planned.bucket in buckets]
            with cache_writer(job, order.out, **order.writing) as writer:
                return asdict(fill(job, plan, writer=writer, load_teacher=self._kept_teacher))
        except VgidError as error:
            return {"error": str(error), "kind": type(error).__name__}
        except OSError as error:
            return {"error": str(error), "kind": "VgidError"}

    def _kept_teacher(self) -> Teacher:
        assert self._job is not None
        if self._teacher is None:
            self._teacher = KeptTeacher(load_teacher(self._job, options=self._order.options))
        return self._teacher


class Attempts:
    """An actor: how often each item was begun."""

    def __init__(self) -> None:
        self._begun = Counter[str]()

    def begin(self, item: str) -> int:
        """Count one more; gives the number of it."""
        self._begun[item] += 1
        return self._begun[item]


def items_of(plan: Sequence[PlannedTarget], *, workers: int) -> list[list[int]]:
    """The plan's buckets, dealt out into items: several for each worker, of about as many rows each."""
    rows: dict[int, int] = {}
    for planned in plan:
        rows[planned.bucket] = rows.get(planned.bucket, 0) + 1
    count = min(len(rows), workers * _ITEMS_PER_WORKER)
    largest_first = sorted(rows, key=lambda bucket: (-rows[bucket], bucket))
    return [sorted(largest_first[start::count]) for start in range(count)]


def run_ray(job: TeacherJob, order: Order, *, workers: int | None, address: str | None) -> GenerateResult:
    """Fill a cache with a pool of workers.

    Args:
        job: What `order.prepare` makes, for this process.
        order: What the workers are told.
        workers: Actors, each with an engine; None for as many as the cluster has GPUs for, or one where it has none.
        address: Of a running cluster; None starts one on this machine, unless RAY_ADDRESS names one.

    Returns:
        Counts as the workers gave them: rows that a worker committed before it died count for nobody.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
        VgidError: the first error that a worker met; what was committed stays.
        Stopped: SIGTERM or Ctrl-C; what was committed stays.
    """
    started = monotonic()
    with cache_writer(job, order.out, **order.writing) as writer:  # what is wrong with the cache is found here
        before, missing = standing(job.plan, writer, shards=1), missing_rows(job.plan, writer)
        made = {"generated": 0, "tokens": 0, "truncated": 0, "waited": 0}
        if missing:
            with _cluster(address, workers) as resources, _stoppable(), progress("teacher") as report:
                size, num_gpus = pool_of(resources, workers=workers, gpus_per_worker=order.options.tensor_parallel)
                items = items_of(missing, workers=size)
                report(0, len(items))
                for done, answer in enumerate(_answers(order, items, size=size, num_gpus=num_gpus), start=1):
                    made = {name: count + answer[name] for name, count in made.items()}
                    report(done, len(items), f"items, {made['tokens'] / (monotonic() - started):,.0f} tokens/s")
            writer.look()
        return GenerateResult(
            planned=len(job.plan),
            already_cached=before.committed,
            erased=before.erased,
            **made,
            seconds=monotonic() - started,
            whole=standing(job.plan, writer, shards=1),
        )


def pool_of(resources: Mapping[str, float], *, workers: int | None, gpus_per_worker: int) -> tuple[int, int]:
    """How many actors a cluster gets, and how many GPUs each of them; 0 in a cluster without any, where it has a CPU.

    Raises:
        ConfigError: the cluster is too small.
    """
    kind, each = ("GPU", gpus_per_worker) if resources.get("GPU") else ("CPU", 1)
    most = int(resources.get(kind, 0)) // each
    size = workers or (most if kind == "GPU" else 1)
    if not 1 <= size <= most:
        raise ConfigError(
            f"--workers {size}, each with {each} {kind}: the Ray cluster has {resources.get(kind, 0):g} {kind}, enough "
            f"for {most}"
        )
    return size, each if kind == "GPU" else 0


def _answers(order: Order, items: Sequence[Sequence[int]], *, size: int, num_gpus: int) -> Iterator[dict[str, Any]]:
    import ray
    from ray.exceptions import RayError

    work = ray.data.from_items([{"item": json.dumps(item)} for item in items], override_num_blocks=len(items))
    answered = work.map_batches(
        Worker,
        fn_constructor_args=(order, ray.remote(num_cpus=0)(Attempts).remote()),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1),
        num_cpus=None if num_gpus else 1,
        num_gpus=num_gpus or None,
    )
    try:
        for row in answered.iter_rows():
            answer = json.loads(row["answer"])
            if "error" in answer:
                raise getattr(errors, answer["kind"])(answer["error"])
            yield answer
    except RayError as error:
        raise TeacherError(f"Ray gave up: {_last_line(error)}; rerun to continue") from error


@contextmanager
def _cluster(address: str | None, workers: int | None) -> Iterator[Mapping[str, float]]:
    """Join or start a cluster, without its reports to its makers and its own lines on this terminal."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(f"--launcher ray: Ray is not installed ({error}); pip install 'vgid[ray]'") from error
    own: dict[str, Any] = (
        {} if address or os.environ.get("RAY_ADDRESS") else {"num_cpus": max(workers or 1, os.cpu_count() or 1)}
    )
    try:
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {name: value for name, value in os.environ.items() if name.startswith("VGID_")}},
            **own,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"--ray-address {address}: no Ray cluster answers there ({_last_line(error)})") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # what it has to say is in its file
            handler.setLevel(logging.CRITICAL + 1)
    try:
        with redirect_stdout(sys.stderr):  # there Ray tells of workers that died
            yield ray.cluster_resources()
    finally:
        ray.shutdown()


@contextmanager
def _stoppable() -> Iterator[None]:
    """End at once on SIGTERM or Ctrl-C: nothing here has rows to commit, the workers have.

    To be entered when Ray is up: it puts handlers of its own in place, which would end this process with a core dump.
    """

    def stop(number: int, frame: Any) -> None:
        raise Stopped("stopped; what the workers committed stays, rerun to continue")

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
