"""The training of a recipe: the cache must fit the base, and its planned rows must be there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgid.cache.mapped import MappedTargets, map_targets
from vgid.cache.reader import Cache, open_cache
from vgid.cache.schema import Target, ids_sha256
from vgid.cache.tombstones import Graveyard
from vgid.data.chat import load_processor, processor_sha256, tokenizer_sha256
from vgid.data.examples import Example
from vgid.data.models import resolve_model, weights_fingerprint
from vgid.errors import CacheError
from vgid.pipeline.console import progress, say
from vgid.pipeline.recipe import Recipe
from vgid.pipeline.signals import stop_signal
from vgid.stage1_teacher.plan import PlannedTarget, make_plan

if TYPE_CHECKING:
    from vgid.stage2_distill.batches import TeacherPrompt, TrainItem
    from vgid.stage2_distill.trainer import DistillResult


def run_distill(
    recipe: Recipe,
    examples: Sequence[Example],
    cache: Path | str,
    out: Path,
    *,
    allow_partial: bool = False,
    scratch: Path | None = None,
) -> DistillResult:
    """Distil the student on a cache.

    Args:
        recipe: What to train, and what the cache must hold for it.
        examples: The recipe's data.
        cache: Path or URL.
        out: Directory of the student.
        allow_partial: Train although rows of the recipe's plan are missing.
        scratch: Where the cache's decoded copy is kept; None for beside it.

    Raises:
        CacheError: the cache was made for another tokenizer, vocabulary or base, or lacks rows of the recipe's plan.
        DistillError: cache and data do not fit, or training failed.
        Stopped: SIGTERM or Ctrl-C; a checkpoint beside `out` holds all steps so far.
    """
    with stop_signal("the step in progress is being finished and saved") as should_stop:
        from vgid.stage2_distill.trainer import distill

        directory = resolve_model(recipe.model, revision=recipe.revision)
        opened = open_cache(cache)
        if not opened.manifest.parts:
            raise CacheError(f"cache {cache}: it holds no rows; run `vgid teacher generate`, or give another --cache")
        check_cache_fits(opened.manifest.teacher, directory, cache=cache)
        with progress("decode the cache") as report:
            stored = map_targets(opened, scratch=scratch, progress=report)
        targets = planned_targets(opened, stored, recipe, examples, allow_partial=allow_partial)
        _warn_of_untrained(targets, recipe)
        asked = None
        if recipe.distill.online:
            engine_id = targets.column("engine_id")[0].as_py()
            asked = _teacher_prompts(
                recipe, examples, opened, engine_id, image_processor=load_processor(directory).image_processor
            )
        with progress("distill") as report:
            return distill(
                student=directory,
                examples={example.example_id: example for example in examples},
                targets=targets,
                settings=recipe.distill,
                out=out,
                provenance=_provenance(recipe, opened, targets),
                teacher_prompt=asked,
                progress=lambda step, num_steps: report(step.step, num_steps, f"steps, loss {step.loss:.4f}"),
                should_stop=should_stop,
            )


def _provenance(recipe: Recipe, cache: Cache, targets: MappedTargets) -> dict[str, Any]:
    return {
        "base": recipe.model,
        "revision": recipe.revision or "",
        "base_weights_fingerprint": cache.manifest.teacher["weights_fingerprint"],
        # Not the manifest's number: rows that other recipes add to the cache change nothing here.
        "targets_sha256": ids_sha256(targets.column("target_id").to_pylist()),
        "num_targets": len(targets),
        "preset": recipe.preset,
        "departures": list(recipe.departures),
        "teacher_settings": recipe.teacher.model_dump(mode="json"),
    }


def _teacher_prompts(
    recipe: Recipe, examples: Sequence[Example], cache: Cache, engine_id: str, *, image_processor: Any
) -> Callable[[TrainItem], TeacherPrompt]:
    """What stage one asked about every row, for a teacher in the loop."""
    from vgid.stage1_teacher.generate import picture_of, prompt_text
    from vgid.stage2_distill.batches import TeacherPrompt

    teacher = {key: value for key, value in cache.manifest.teacher.items() if value is not None}
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
    cache: Cache, stored: MappedTargets, recipe: Recipe, examples: Sequence[Example], *, allow_partial: bool
) -> MappedTargets:
    """The cache's rows that the recipe asks for today; rows of other settings, data or draws are left alone.

    A cache may hold more than one recipe's rows, and rows of an earlier state of the data. Where several engines made
    the same row, one engine's rows are taken: those of the engine with most. Rows that were erased are not missing.

    Raises:
        CacheError: rows are missing and `allow_partial` is not set.
    """
    place = {target_id: index for index, target_id in enumerate(stored.column("target_id").to_pylist())}
    teacher = {key: value for key, value in cache.manifest.teacher.items() if value is not None}
    found: list[int] = []
    plan: list[PlannedTarget] = []
    for engine_id in sorted({part.engine_id for part in cache.manifest.parts}):
        plan = make_plan(examples, settings=recipe.teacher, teacher=teacher, engine_id=engine_id)
        found = max(found, [place[row.target_id] for row in plan if row.target_id in place], key=len)
    planned = len(plan)  # the same for every engine
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
        say(f"using {len(found):,} of the cache's {len(stored):,} rows: the others are not in this recipe's plan")
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


def check_cache_fits(teacher: dict[str, Any], directory: Path, *, cache: Path | str) -> None:
    """Refuse to train a student on targets of another base: each differing field is named with both values.

    Raises:
        CacheError: weights, tokenizer or processor differ.
    """
    processor = load_processor(directory)
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
