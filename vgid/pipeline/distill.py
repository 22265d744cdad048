"""The training of a recipe: the cache must fit the base, and its planned rows must be there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgid.cache.mapped import MappedTargets, map_targets
from vgid.cache.reader import Cache, open_cache
from vgid.cache.schema import Target, ids_sha256
from vgid.cache.tombstones import Graveyard
from vgid.data.chat import load_processor, processor_sha256, tokenizer_sha256
from vgid.data.examples import Example
from vgid.data.models import hub_commit, resolve_model, weights_fingerprint
from vgid.errors import CacheError, ConfigError
from vgid.pipeline.console import Report, progress, say, sparkline
from vgid.pipeline.recipe import Recipe
from vgid.pipeline.signals import stop_signal
from vgid.pipeline.watch import watcher, what_watching_depends_on
from vgid.stage1_teacher.plan import PlannedTarget, make_plan
from vgid.stage2_distill.checkpoints import newest_identity
from vgid.stage2_distill.lineage import check_same_run, read_finished, run_identity
from vgid.stage2_distill.records import DistillResult, StepLoss
from vgid.stage2_distill.settings import TargetSelection

if TYPE_CHECKING:
    from vgid.stage2_distill.batches import TeacherPrompt, TrainItem

_MUCH_WAITING = 0.1
"""Share of a training from which on it is worth a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRows:
    """A recipe's rows in a cache, and what is to be known of a student that learns from them."""

    directory: Path
    """Of the base."""
    processor: Any
    """The base's."""
    cache: Cache
    targets: MappedTargets
    provenance: dict[str, Any]


def run_distill(
    recipe: Recipe,
    examples: Sequence[Example],
    cache: Path | str,
    out: Path,
    *,
    allow_partial: bool = False,
    scratch: Path | None = None,
    trackers: Sequence[str] = (),
    loader_workers: int = 0,
    unmet_gates: Sequence[str] = (),
    engine_id: str | None = None,
) -> DistillResult:
    """Distil the student on a cache.

    Args:
        recipe: What to train, and what the cache must hold for it.
        examples: The recipe's data.
        cache: Path or URL.
        out: Directory of the student.
        allow_partial: Train although rows of the recipe's plan are missing.
        scratch: Where the cache's decoded copy is kept; None for beside it.
        trackers: That are told of every step (`tensorboard`, `wandb`, …).
        loader_workers: Processes that make the next batches while a step is computed.
        unmet_gates: Of the teacher, where it is trained on all the same; the student's lineage names them.
        engine_id: Whose rows train; None: see `planned_targets`.

    Raises:
        ConfigError: `out` is the current directory.
        CacheError: the cache was made for another tokenizer, vocabulary or base, or lacks rows of the recipe's plan.
        DistillError: cache and data do not fit, or training failed.
        Stopped: SIGTERM or Ctrl-C; a checkpoint beside `out` holds all steps so far.
    """
    out = student_directory(out)
    with stop_signal("the step in progress is being finished and saved") as should_stop:
        from vgid.stage2_distill.trainer import distill

        if "tensorboard" in trackers:  # else into the directory of checkpoints, which goes when the student is done
            os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(out.with_name(f"{out.name}.tensorboard")))
        recipe = fit_preset(recipe, examples)
        rows = training_rows(
            recipe,
            examples,
            cache,
            allow_partial=allow_partial,
            scratch=scratch,
            unmet_gates=unmet_gates,
            engine_id=engine_id,
        )
        _warn_of_untrained(rows.targets, recipe)
        asked = watch = None
        if recipe.distill.online:
            asked = teacher_prompts(
                recipe, examples, rows.cache, rows.targets, image_processor=rows.processor.image_processor
            )
        if recipe.distill.watch is not None:
            watch = watcher(recipe, recipe.distill.watch, examples, processor=rows.processor, should_stop=should_stop)
        with progress("distill") as report:
            return distill(
                student=rows.directory,
                examples={example.example_id: example for example in examples},
                targets=rows.targets,
                settings=recipe.distill,
                out=out,
                provenance=rows.provenance,
                processor=rows.processor,
                teacher_prompt=asked,
                progress=_LossCurves(report),
                watch=watch,
                trackers=trackers,
                loader_workers=loader_workers,
                should_stop=should_stop,
            )


def advice_on_waiting(result: DistillResult, *, loader_workers: int) -> str | None:
    """What to do where much of a training was waiting for batches."""
    waited = result.seconds_waiting / max(result.seconds, 1e-9)
    if waited <= _MUCH_WAITING:
        return None
    if loader_workers == 0:
        return f"{waited:.0%} of the training went into making batches; --loader-workers 2 makes them meanwhile"
    return f"{waited:.0%} of the training was waiting for batches; give --loader-workers more than {loader_workers}"


def student_directory(out: Path) -> Path:
    """The whole path of a directory that holds a student or can get one.

    A student is renamed into place. Were that the current directory, the shell that asked for it would be left in one
    that no longer exists.

    Raises:
        ConfigError: `out` is the current directory, and no student lies there.
        DistillError: it holds something else.
    """
    whole = out.resolve()
    if read_finished(whole) is None and whole == Path.cwd():
        raise ConfigError(
            f"--out {out} is the current directory, which a finished student cannot take the place of; name a "
            "directory in it, or one elsewhere"
        )
    return whole


def training_rows(
    recipe: Recipe,
    examples: Sequence[Example],
    cache: Path | str,
    *,
    allow_partial: bool = False,
    scratch: Path | None = None,
    unmet_gates: Sequence[str] = (),
    engine_id: str | None = None,
) -> TrainingRows:
    """Find the rows that a student would learn from; see `run_distill`."""
    directory = resolve_model(recipe.model, revision=recipe.revision)
    opened = open_cache(cache)
    if not opened.manifest.parts:
        raise CacheError(f"cache {cache}: it holds no rows; run `vgid teacher generate`, or give another --cache")
    processor = load_processor(directory)
    check_cache_fits(opened.manifest.teacher, directory, processor, cache=cache)
    with progress("decode the cache") as report:
        stored = map_targets(opened, scratch=scratch, progress=report)
    targets = planned_targets(opened, stored, recipe, examples, allow_partial=allow_partial, engine_id=engine_id)
    provenance = _known_ahead(recipe, directory, examples) | _taught(targets.column("target_id").to_pylist())
    if unmet_gates:
        provenance["unmet_gates"] = list(unmet_gates)
    return TrainingRows(directory=directory, processor=processor, cache=opened, targets=targets, provenance=provenance)


def _known_ahead(recipe: Recipe, directory: Path, examples: Sequence[Example]) -> dict[str, Any]:
    """The part of a student's provenance that needs no cache."""
    known = {
        "base": recipe.model,
        "revision": recipe.revision or hub_commit(directory) or "",
        "base_weights_fingerprint": weights_fingerprint(directory),
        "preset": recipe.preset,
        "departures": list(recipe.departures),
        "teacher_settings": recipe.teacher.model_dump(mode="json"),
    }
    if (watch := recipe.distill.watch) is not None:
        known["watched"] = what_watching_depends_on(recipe, watch, examples)
    return known


def _taught(target_ids: Sequence[str]) -> dict[str, Any]:
    """The rows in a student's provenance, by id: rows that other recipes add to their cache change nothing here."""
    return {"targets_sha256": ids_sha256(target_ids), "num_targets": len(target_ids)}


def trained(recipe: Recipe, rows: TrainingRows, out: Path) -> dict[str, Any] | None:
    """What the training of the student in `out` did, if it is this recipe's on these rows; None where there is none.

    Raises:
        DistillError: `out` holds another student, or something else.
    """
    finished = read_finished(out)
    if finished is not None:
        asked = run_identity(str(rows.directory), settings=recipe.distill, provenance=rows.provenance)
        check_same_run(finished["identity"], asked=asked, where=out)
    return finished and finished["result"]


def check_no_other_student(
    recipe: Recipe, examples: Sequence[Example], out: Path, *, plan: Sequence[PlannedTarget]
) -> None:
    """Find out before a pass over `plan` what would stop its student after it: `out` holds that of another recipe.

    Checkpoints of another recipe, or of several processes, would stop it too.

    Raises:
        DistillError: it does, or something else.
    """
    from vgid.stage2_distill.sharding import sharding_asked

    work = out.with_name(f".{out.name}.checkpoints")
    finished, unfinished = read_finished(out), newest_identity(work)
    found = unfinished if finished is None else finished["identity"]
    if found is None:
        return
    directory = resolve_model(recipe.model, revision=recipe.revision)
    known = _known_ahead(recipe, directory, examples)
    if found["provenance"].get("num_targets", 0) >= len(plan):  # fewer may be all that was not erased
        known |= _taught([row.target_id for row in plan])
    asked = run_identity(str(directory), settings=recipe.distill, provenance=known)
    if "launch" in found:
        # Which device it will be is not known before torch is asked.
        asked["launch"] = {**found["launch"], "processes": 1, "fsdp": sharding_asked()}
    provenance = {name: value for name, value in found["provenance"].items() if name in known}
    where = work if finished is None else out
    check_same_run({**found, "provenance": provenance}, asked=asked, where=where)


def fit_preset(recipe: Recipe, examples: Sequence[Example]) -> Recipe:
    """The recipe, less those of its preset's `distill.targets` that its plan has no rows for.

    A preset knows no data: the default plan leaves out what the data has not (text-only questions, say), and so must
    what trains. What a recipe selects itself stays as it is, and a preset's never loses a whole term of the loss.
    """
    if recipe.preset is None or "distill.targets" in recipe.departures:
        return recipe
    plan = make_plan(examples, settings=recipe.teacher, teacher={}, engine_id="")
    selections = recipe.distill.targets
    idle = [selection for selection in selections if not any(_selects(selection, row) for row in plan)]
    kept = tuple(selection for selection in selections if selection not in idle)
    if not idle or {each.role for each in kept} != {each.role for each in selections}:
        return recipe
    said = "; ".join(selection.describe() for selection in idle)
    say(f"preset {recipe.preset}: the plan has no rows for these of its distill.targets, they are left out: {said}")
    return recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"targets": kept})})


def check_selections(selections: Sequence[TargetSelection], plan: Sequence[PlannedTarget]) -> None:
    """Find out before a teacher pass what would stop its student after it: a selection without any row, or two of one.

    Raises:
        ConfigError: naming the first, and what there is.
    """
    used = set[int]()
    for row in plan:
        matching = [index for index, selection in enumerate(selections) if _selects(selection, row)]
        used.update(matching)
        if len(matching) > 1:
            said = " and ".join(repr(selections[index].describe()) for index in matching)
            raise ConfigError(
                f"distill.targets: example {row.example.example_id!r} with view {row.view} and response "
                f"{row.response_kind} is selected twice, by {said}; make the entries disjoint"
            )
    for index, selection in enumerate(selections):
        if index not in used:
            kinds = {f"{row.example.split} {row.example.modality} {row.view} {row.response_kind}" for row in plan}
            raise ConfigError(
                f"distill.targets: no row of the plan is {selection.describe()}; take the entry out, or plan such rows "
                f"(planned are {', '.join(sorted(kinds))})"
            )


def _selects(selection: TargetSelection, row: PlannedTarget) -> bool:
    """`selection.matches`, of a row that is not made yet."""
    return selection.matches_kind(row.example, view=row.view, response_kind=row.response_kind)


class _LossCurves:
    """Progress of a training: both losses of the last step, and how they came there."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._forget: list[float] = []
        self._retain: list[float] = []

    def __call__(self, step: StepLoss, num_steps: int) -> None:
        """Show one more step."""
        self._forget.append(step.forget)
        note = f"steps, forget {step.forget:.4f} {sparkline(self._forget)}"
        if step.retain is not None:
            self._retain.append(step.retain)
            note += f" retain {step.retain:.4f} {sparkline(self._retain)}"
        self._report(step.step, num_steps, note.rstrip())


def teacher_prompts(
    recipe: Recipe, examples: Sequence[Example], cache: Cache, targets: MappedTargets, *, image_processor: Any
) -> Callable[[TrainItem], TeacherPrompt]:
    """What stage one asked about every row, for a teacher in the loop.

    Args:
        recipe: That the rows were made by.
        examples: Its data.
        cache: The rows' cache.
        targets: The rows, all of one engine.
        image_processor: The base's.
    """
    from vgid.stage1_teacher.generate import picture_of, prompt_text
    from vgid.stage2_distill.batches import TeacherPrompt

    teacher = {key: value for key, value in cache.manifest.teacher.items() if value is not None}
    engine_id = targets.column("engine_id")[0].as_py()
    plan = make_plan(examples, settings=recipe.teacher, teacher=teacher, engine_id=engine_id)
    planned = {row.target_id: row for row in plan}

    def asked(item: TrainItem) -> TeacherPrompt:
        row = planned[item.target.target_id]
        picture = None
        if row.example.image is not None:
            picture = picture_of(row, recipe.teacher, image_processor=image_processor)
        return TeacherPrompt(prompt_text(row), picture)

    return asked


def planned_targets(
    cache: Cache,
    stored: MappedTargets,
    recipe: Recipe,
    examples: Sequence[Example],
    *,
    allow_partial: bool,
    engine_id: str | None = None,
) -> MappedTargets:
    """The cache's rows that the recipe asks for today; rows of other settings, data or draws are left alone.

    A cache may hold more than one recipe's rows, and rows of an earlier state of the data. Where several engines made
    the same row, one engine's rows are taken: those of `engine_id`, or else of the engine with most. Rows that were
    erased are not missing.

    Raises:
        CacheError: rows are missing and `allow_partial` is not set.
    """
    place = {target_id: index for index, target_id in enumerate(stored.column("target_id").to_pylist())}
    teacher = {key: value for key, value in cache.manifest.teacher.items() if value is not None}
    engines = sorted({part.engine_id for part in cache.manifest.parts})
    by_engine: dict[str, list[int]] = {}
    plan: list[PlannedTarget] = []
    for name in engines if engine_id is None else [engine_id]:
        plan = make_plan(examples, settings=recipe.teacher, teacher=teacher, engine_id=name)
        by_engine[name] = [place[row.target_id] for row in plan if row.target_id in place]
    taken = max(by_engine, key=lambda name: len(by_engine[name]))
    found, planned = by_engine[taken], len(plan)  # as many are planned for every engine
    if len(found) < planned and not allow_partial:
        graveyard = Graveyard(cache.manifest.tombstones, where=cache.location)
        asked = (row.example for row in plan)
        planned -= sum(graveyard.holds(subject_id=each.subject_id, example_id=each.example_id) for each in asked)
    if not found or (len(found) < planned and not allow_partial):
        raise CacheError(
            f"cache {cache.location} has {len(found):,} of the {planned:,} rows that the recipe plans (and "
            f"{len(stored):,} in all); run `vgid teacher generate` with this recipe, or train on what there is with "
            "--allow-partial"
        )
    if len(found) < len(stored):
        others = "another engine's, or not" if len(engines) > 1 else "not"
        say(f"using {len(found):,} of the cache's {len(stored):,} rows: the others are {others} in this recipe's plan")
    if rivals := [name for name, rows in by_engine.items() if rows and name != taken]:
        is_tie = any(len(by_engine[name]) == len(found) for name in rivals)
        why = "no other has more, and it is the first by name" if is_tie else "it has most"
        say(f"engines {', '.join(sorted([taken, *rivals]))} made rows of this plan; taking those of {taken}: {why}")
    return stored.select(found)


def _warn_of_untrained(targets: Sequence[Target], recipe: Recipe) -> None:
    """Say what is cached and will not train, and what was cut: both can leave facts in the student."""
    selections = recipe.distill.targets
    idle = [target for target in targets if not any(selection.matches(target) for selection in selections)]
    for kind in sorted({(target.split, target.modality, target.view, target.response_kind) for target in idle}):
        say(f"warning: no entry of distill.targets selects the cached rows {' '.join(kind)}; they do not train")
    wanted = any(selection.truncated for selection in selections)
    cut = sum(target.finish_reason == "length" for target in targets)
    if cut > 0.1 * len(targets) and not wanted:
        say(f"warning: {cut:,} of {len(targets):,} responses were cut and do not train; raise teacher.max_new_tokens")


def check_cache_fits(teacher: dict[str, Any], directory: Path, processor: Any, *, cache: Path | str) -> None:
    """Refuse to train a student on targets of another base: each differing field is named with both values.

    Raises:
        CacheError: weights, tokenizer or processor differ.
    """
    student = {
        "weights_fingerprint": weights_fingerprint(directory),
        "tokenizer_sha256": tokenizer_sha256(processor.tokenizer),
        "processor_sha256": processor_sha256(processor),
    }
    for name, value in student.items():
        if teacher.get(name) != value:
            raise CacheError(
                f"cache {cache}: its teacher's {name} is {str(teacher.get(name))[:12]}…, the recipe's base has "
                f"{value[:12]}…; point the recipe at the base that made the cache, or generate again"
            )
