"""`vgid run`: data, teacher, gates, distill, evaluate in one go that can be stopped anywhere and run again.

No file says how far a run has come; what the steps leave behind does. Rows are in the cache or missing; results and the
student name what they were made from, by hash, and are taken as they are if that is what is asked for now. What this
gives up: each rerun reads and hashes data, weights and rows again, which takes seconds and grows with them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vgid.cache.reader import open_cache
from vgid.data.examples import Example
from vgid.errors import ConfigError, Stopped, TeacherError
from vgid.pipeline import ahead, distill, evaluation, inspect_command, teacher
from vgid.pipeline.apart import apart, needs_own_process
from vgid.pipeline.console import human_bytes, say
from vgid.pipeline.model_card import add_evaluation, has_evaluation
from vgid.pipeline.recipe import Recipe, load_examples, load_recipe
from vgid.pipeline.results import (
    TEMPORARY_PREFIX,
    build_results,
    difference,
    make_directory,
    read_results,
    write_results,
)
from vgid.pipeline.signals import stop_signal
from vgid.stage1_teacher.generate import GenerateResult
from vgid.stage1_teacher.options import EngineName
from vgid.stage2_distill.records import DistillResult

STEPS = ("data", "teacher", "gates", "distill", "evaluate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be run, and where."""

    name: str
    """What the recipe was called."""
    recipe: Recipe
    folder: Path
    """That the recipe's relative paths start from."""
    out: Path
    engine: EngineName
    retrained: str | None = None
    train_anyway: bool = False
    until: str = STEPS[-1]
    loader_workers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step that is done."""

    name: str
    is_new: bool
    """Whether there was anything to do."""
    note: str
    """What was made, or what was found and why nothing was to be done."""


def run_recipe(
    recipe: str,
    out: Path,
    *,
    overrides: Sequence[str] = (),
    engine: EngineName = "vllm",
    retrained: str | None = None,
    train_anyway: bool = False,
    until: str = STEPS[-1],
    loader_workers: int = 0,
) -> tuple[list[Step], dict[str, Any] | None]:
    """Run a recipe; see the module docstring.

    Args:
        recipe: Path or name.
        out: Run directory: `cache`, `inspect`, `student`, `results.json`, `samples.parquet`.
        overrides: `a.b=c` settings of the recipe.
        engine: Of teacher and evaluation.
        retrained: A model that never saw the forget set, to evaluate as well.
        train_anyway: Train although gates are not met; the student's lineage and the results name them.
        until: The last step.
        loader_workers: Processes that make batches while the student is trained.

    Returns:
        The steps, and the results if they were asked for.

    Raises:
        ConfigError: the recipe or an option is wrong.
        TeacherError: gates are not met, and a teacher's errors.
        CacheError, DistillError: `out` holds the cache or student of something else, and the errors of training.
        Stopped: SIGTERM or Ctrl-C; a rerun continues.
    """
    if until not in STEPS:
        raise ConfigError(f"--until {until!r} is unknown; choose one of {', '.join(STEPS)}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and `vgid run` is one process; start `vgid distill` on "
            f"{out / 'cache'} with several, and `vgid run` again when its student is done"
        )
    loaded, folder = load_recipe(recipe, overrides=overrides)
    make_directory(out)
    for torn in [*out.glob(f"{TEMPORARY_PREFIX}*"), *out.glob(f"inspect/{TEMPORARY_PREFIX}*")]:
        torn.unlink(
            missing_ok=True
        )  # of a run that was killed while it wrote answers, which are what must be forgotten
    order = Order(
        name=recipe,
        recipe=loaded,
        folder=folder,
        out=out,
        engine=engine,
        retrained=retrained,
        train_anyway=train_anyway,
        until=until,
        loader_workers=loader_workers,
    )
    steps: list[Step] = []
    with stop_signal("the step in progress comes to a good end first") as should_stop:
        for step in _steps(order):
            say(f"{step.name}: {step.note}")
            steps.append(step)
            if step.name == until:
                break
            if should_stop():
                raise Stopped(f"stopped after step {step.name}; rerun to continue")
    return steps, read_results(out) if until == STEPS[-1] else None


def _steps(order: Order) -> Iterator[Step]:
    """Each step when it is asked for, which is when the one before has been told of."""
    cache, student, timings = order.out / "cache", order.out / "student", dict[str, float]()
    with timed(timings, "data"):
        examples = load_examples(order.recipe.data, folder=order.folder)
    subjects = len({example.subject_id for example in examples})
    yield Step(name="data", is_new=False, note=f"{len(examples):,} questions about {subjects:,} subjects")

    with timed(timings, "teacher"):
        order = replace(order, recipe=distill.fit_preset(order.recipe, examples))
        job = teacher.prepare_teacher(order.recipe, examples, engine=order.engine)
        if order.until in ("distill", "evaluate"):
            ahead.check_training(job, examples, student)
        if order.until == "evaluate":
            ahead.check_evaluation(job, examples, retrained=order.retrained)
        taught = teach(job, cache)
    yield Step(name="teacher", is_new=taught.generated > 0, note=teacher_line(job, taught, cache))

    with timed(timings, "gates"):
        unmet, step = _judge(order, examples, cache)
    yield step

    with timed(timings, "distill"):
        step = _train(order, examples, job, student, unmet=[f"{gate.name} {gate.bound}" for gate in unmet])
    yield step

    yield _evaluate(order, examples, job, student, unmet=unmet, timings=timings)


def teach(job: teacher.TeacherJob, cache: Path) -> GenerateResult:
    """The teacher pass, in a process of its own where that gives memory back and anything is left to do."""
    is_here = not needs_own_process() or teacher.is_complete(job, cache)
    return teacher.run_teacher(job, cache) if is_here else apart(teacher.run_teacher, job, cache)


def teacher_line(job: teacher.TeacherJob, taught: GenerateResult, cache: Path) -> str:
    """What a teacher pass did, for people."""
    settings, engine = job.recipe.teacher, job.engine_id
    if not taught.generated:
        erased = f", {taught.erased:,} of them erased since" if taught.erased else ""
        return f"all {taught.planned:,} rows were in the cache already{erased} (engine {engine}); nothing to do"
    size = sum(path.stat().st_size for path in cache.rglob("*.parquet"))
    rate = taught.tokens / taught.seconds
    return (
        f"ran on {engine}; {taught.generated:,} rows, {taught.tokens:,} tokens, {rate:,.0f} tokens/s, "
        f"k = {settings.num_topk}, {human_bytes(size)} of Parquet"
    )


def _judge(order: Order, examples: Sequence[Example], cache: Path) -> tuple[list[inspect_command.UnmetGate], Step]:
    """Inspect the cache, unless that was done, and refuse a teacher whose gates are not met unless told."""
    recipe, out, opened = order.recipe, order.out / "inspect", open_cache(cache)
    settings, lineage = inspect_command.what_readings_depend_on(opened, recipe, examples)
    results, reason = _kept(out, settings=settings, lineage=lineage)
    is_new = results is None
    if results is None:
        with stop_signal("the inspection is given up") as should_stop:
            _, results = inspect_command.inspect_opened(
                opened, recipe=recipe, examples=examples, out=out, should_stop=should_stop
            )
    unmet = inspect_command.unmet_gates(results, required=recipe.gates.required)
    said = "; ".join(gate.describe() for gate in unmet)
    if unmet and not order.train_anyway:
        raise TeacherError(
            f"gates: {said}; not training on this teacher. See {out} and "
            f"`vgid teacher inspect {cache} --recipe {order.name}`, then change the teacher or the recipe's `gates`, "
            "or train all the same with --train-anyway"
        )
    counts = inspect_command.count_verdicts(results)
    note = f"{counts['pass']} passed, {counts['unknown']} unknown, {counts['fail']} failed"
    note += f"; training all the same ({said})" if unmet else ""
    if not is_new:
        note += "; inspected already, cache, data and gates are the same; nothing to do"
    return unmet, Step(name="gates", is_new=is_new, note=_because(reason) + note)


def _train(
    order: Order, examples: Sequence[Example], job: teacher.TeacherJob, student: Path, *, unmet: Sequence[str]
) -> Step:
    recipe, cache = order.recipe, order.out / "cache"
    # A cache may hold the rows of an engine's earlier version too: what was taught in this run is what trains.
    chosen: dict[str, Any] = {"unmet_gates": unmet, "engine_id": job.engine_id}
    if student.exists():  # else there is nothing to compare the rows with
        rows = distill.training_rows(recipe, examples, cache, **chosen)
        if (done := distill.trained(recipe, rows, student)) is not None:
            note = f"{done['num_steps']:,} steps were trained on these {len(rows.targets):,} rows with these settings"
            return Step(name="distill", is_new=False, note=f"{note} already; nothing to do")
    result = apart(distill.run_distill, recipe, examples, cache, student, loader_workers=order.loader_workers, **chosen)
    if advice := distill.advice_on_waiting(result, loader_workers=order.loader_workers):
        say(advice)
    return Step(name="distill", is_new=True, note=student_line(result))


def student_line(result: DistillResult) -> str:
    """What a training did, for people."""
    tokens = sum(result.num_tokens.values())
    waited = result.seconds_waiting / max(result.seconds, 1e-9)
    return (
        f"{result.num_steps:,} steps on {tokens:,} response tokens in {result.seconds:.0f} s"
        f", {waited:.0%} of it waiting for batches"
    )


def _evaluate(
    order: Order,
    examples: Sequence[Example],
    job: teacher.TeacherJob,
    student: Path,
    *,
    unmet: Sequence[inspect_command.UnmetGate],
    timings: dict[str, float],
) -> Step:
    recipe = order.recipe
    models = {"base": recipe.model, "student": str(student)} | (
        {"retrained": order.retrained} if order.retrained else {}
    )
    asked = evaluation.prepare_evaluation(
        [evaluation.NamedModel(name=name, model=model) for name, model in models.items()],
        evaluation.questions_of(recipe, examples, data_name=order.name),
        engine=order.engine,
    )
    results, reason = _kept(order.out, settings=asked.settings, lineage=evaluation.what_decides(asked))
    if results is not None:
        note = f"{len(asked.chosen):,} questions were asked already, of the same models in the same way"
        card = student / "README.md"
        if is_missing := card.is_file() and not has_evaluation(card):  # of a student that was made again, to the bit
            add_evaluation(card, results["metrics"])
        todo = "the student's card lacked their results" if is_missing else "nothing to do"
        return Step(name="evaluate", is_new=is_missing, note=f"{note}; {todo}")
    evaluated = evaluation.ask_models(asked, seed=recipe.distill.seed)
    results = whole_results(
        recipe, evaluated, job, timings=timings, lineage={"unmet_gates": [asdict(gate) for gate in unmet]}
    )
    add_evaluation(student / "README.md", results["metrics"])
    write_results(results, evaluated["samples"], order.out)  # last: these say that the step is done
    note = f"{len(asked.chosen):,} questions to {' and '.join(models)}; every answer is in {order.out}/samples.parquet"
    return Step(name="evaluate", is_new=True, note=_because(reason) + note)


def whole_results(
    recipe: Recipe,
    evaluated: dict[str, Any],
    job: teacher.TeacherJob,
    *,
    timings: dict[str, float],
    lineage: dict[str, Any],
) -> dict[str, Any]:
    """The results record of a whole run, around that of its evaluation."""
    return build_results(
        # Its gates decided whether, not what: `lineage` has those that were not met.
        settings={"recipe": recipe.model_dump(mode="json", exclude={"gates"}), **evaluated["settings"]},
        lineage={**evaluated["lineage"], "teacher": job.teacher, **lineage},
        timings=timings | evaluated["timings"],
        metrics=evaluated["metrics"],
    )


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Note the seconds that something took."""
    started = time.monotonic()
    yield
    timings[name] = time.monotonic() - started


def _kept(out: Path, *, settings: dict[str, Any], lineage: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """Results in `out` that answer what is asked; or None, and why those that are there do not."""
    results = read_results(out)
    if results is None:
        return None, f"{out / 'results.json'} cannot be read" if (out / "results.json").exists() else None
    reason = difference(results, settings=settings, lineage=lineage)
    return (results, None) if reason is None else (None, reason)


def _because(reason: str | None) -> str:
    return "" if reason is None else f"done again, {reason}; "
