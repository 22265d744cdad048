"""Joins a recipe to the stages: resolve the model, read the data, run, report. What the CLI and the demo call."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgid.cache.encoding import Profile
from vgid.cache.mapped import MappedTargets, map_targets
from vgid.cache.reader import Cache, open_cache
from vgid.cache.schema import Target, ids_sha256
from vgid.cache.tombstones import Graveyard
from vgid.cache.writer import CacheWriter
from vgid.data.chat import (
    check_examples,
    end_of_turn_id,
    end_of_turn_ids,
    load_processor,
    processor_sha256,
    tokenizer_sha256,
)
from vgid.data.examples import Example
from vgid.data.models import resolve_model, weights_fingerprint
from vgid.errors import CacheError, ConfigError
from vgid.pipeline.console import progress, say
from vgid.pipeline.evaluate import EvaluateSettings, ask, distance_rows, select_examples, summarise
from vgid.pipeline.recipe import Recipe
from vgid.pipeline.results import build_results, write_results
from vgid.stage1_teacher.engines import build_teacher
from vgid.stage1_teacher.engines.protocol import EngineName
from vgid.stage1_teacher.generate import (
    GenerateResult,
    Progress,
    generate,
    pilot_of_plan,
    predicted_bytes_per_token,
    upper_bound_tokens,
)
from vgid.stage1_teacher.identity import engine_identity, identify_teacher
from vgid.stage1_teacher.plan import NUM_BUCKETS, PlannedTarget, cache_settings, make_plan, plan_digest, shard_of_plan
from vgid.stage1_teacher.vocabulary import token_table

if TYPE_CHECKING:
    from vgid.stage2_distill.trainer import DistillResult


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherJob:
    """A recipe's teacher pass, resolved: everything `generate` needs, nothing loaded yet."""

    recipe: Recipe
    directory: Path
    engine: EngineName
    processor: Any
    teacher: dict[str, str | int]
    plan: list[PlannedTarget]


def prepare_teacher(recipe: Recipe, examples: Sequence[Example], *, engine: EngineName) -> TeacherJob:
    """Resolve the base model and make the plan.

    Raises:
        ConfigError: the model or a plan entry cannot be resolved.
    """
    directory = resolve_model(recipe.model, revision=recipe.revision)
    settings = recipe.teacher
    teacher = identify_teacher(directory, revision=recipe.revision, dtype=settings.dtype)
    engine_id = engine_identity(engine, dtype=settings.dtype)
    processor = load_processor(directory)
    plan = make_plan(examples, settings=settings, teacher=teacher, engine_id=engine_id)
    for forced in (False, True):
        asked = [planned.example for planned in plan if (planned.response_kind == "reference") == forced]
        check_examples(processor.tokenizer, asked, answers=forced)
    return TeacherJob(
        recipe=recipe, directory=directory, engine=engine, processor=processor, teacher=teacher, plan=plan
    )


def dry_run(job: TeacherJob) -> list[dict[str, Any]]:
    """Rows, most tokens and predicted bytes by split, view and response kind, and in total."""
    settings = job.recipe.teacher
    per_token = predicted_bytes_per_token(settings.num_topk)
    bounds = upper_bound_tokens(job.plan, settings=settings, tokenizer=job.processor.tokenizer)
    kinds = [(*key, rows, tokens) for key, (rows, tokens) in sorted(bounds.items())]
    kinds.append(("all", "all", "all", sum(row[3] for row in kinds), sum(row[4] for row in kinds)))
    names = ("split", "view", "response_kind", "rows", "max_tokens")
    return [dict(zip(names, row, strict=True)) | {"predicted_bytes": round(row[4] * per_token)} for row in kinds]


def run_teacher(
    job: TeacherJob,
    out: Path | str,
    *,
    shard: tuple[int, int] = (0, 1),
    limit: int | None = None,
    rows_per_part: int = 256,
    profile: Profile = "default",
    expires: str | None = None,
) -> GenerateResult:
    """Fill the cache at `out` with the plan's missing targets.

    Args:
        job: From `prepare_teacher`.
        out: Path or URL of the cache; made if it does not exist.
        shard: (i, n): take the plan's buckets b with b mod n = i.
        limit: Only a pilot of this many rows, spread over all kinds of rows.
        rows_per_part: Most rows computed between two commits, per split.
        profile: Encoding of the new parts.
        expires: When the cache should be erased, ISO 8601 in UTC; None keeps what it says.

    Raises:
        CacheError: `out` holds the targets of another teacher.
        Stopped: SIGTERM or Ctrl-C; finished rows are committed.
    """
    recipe = job.recipe
    plan = shard_of_plan(job.plan, index=shard[0], count=shard[1])
    if limit is not None:
        plan = pilot_of_plan(plan, size=limit)
    digest = {"digest": plan_digest(job.plan), "rows": len(job.plan), "buckets": NUM_BUCKETS, "model": recipe.model}
    tokenizer = job.processor.tokenizer
    with (
        stop_signal() as should_stop,
        CacheWriter(
            out,
            teacher=job.teacher,
            settings=cache_settings(recipe.teacher),
            plan=digest,
            rows_per_part=rows_per_part,
            profile=profile,
            vocabulary=lambda: token_table(tokenizer, end_ids=end_of_turn_ids(job.directory, tokenizer)),
            expires=expires,
        ) as writer,
        progress("teacher") as report,
    ):

        def on_progress(now: Progress) -> None:
            report(now.rows, now.total_rows, f"rows, {now.tokens / max(now.seconds, 1e-9):,.0f} tokens/s")

        return generate(
            plan,
            settings=recipe.teacher,
            writer=writer,
            load_teacher=lambda: build_teacher(
                job.engine, job.directory, num_topk=recipe.teacher.num_topk, dtype=recipe.teacher.dtype
            ),
            tokenizer=tokenizer,
            end_of_turn_id=end_of_turn_id(job.directory, tokenizer),
            on_progress=on_progress,
            should_stop=should_stop,
        )


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
    """
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
    provenance = {
        "base": recipe.model,
        "revision": recipe.revision or "",
        "base_weights_fingerprint": opened.manifest.teacher["weights_fingerprint"],
        # Not the manifest's number: rows that other recipes add to the cache change nothing here.
        "targets_sha256": ids_sha256(targets.column("target_id").to_pylist()),
        "num_targets": len(targets),
        "teacher_settings": recipe.teacher.model_dump(mode="json"),
    }
    with progress("distill") as report:
        return distill(
            student=directory,
            examples={example.example_id: example for example in examples},
            targets=targets,
            settings=recipe.distill,
            out=out,
            provenance=provenance,
            progress=lambda step, num_steps: report(step.step, num_steps, f"steps, loss {step.loss:.4f}"),
        )


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
    cut = sum(target.finish_reason == "length" for target in targets)
    if cut > 0.1 * len(targets):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModel:
    """A model to evaluate and its name in the results (`base`, `student`, `retrained`, …)."""

    name: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What `vgid evaluate` asks, and how the data's recipe says models are run."""

    examples: Sequence[Example]
    settings: EvaluateSettings
    data_name: str
    """What the results call the data."""
    dtype: str = "float32"
    revisions: Mapping[str, str] = field(default_factory=dict)
    """Pinned commit by Hugging Face id."""


def run_evaluate(
    models: Sequence[NamedModel],
    asked: Questions,
    *,
    out: Path | None,
    engine: EngineName = "vllm",
    seed: int | None = None,
) -> dict[str, Any]:
    """Ask every model the same questions, score, and write `results.json` and `samples.parquet` to `out`.

    Everything that can be found wrong before the first model is loaded is.

    Returns:
        The results record; its `samples` key (not written to the JSON) holds the per-question records.
    """
    if len({model.name for model in models}) != len(models):
        raise ConfigError(f"two models are named alike: {', '.join(model.name for model in models)}")
    settings = asked.settings
    chosen = select_examples(asked.examples, settings=settings)
    directories = {
        named.name: resolve_model(named.model, revision=asked.revisions.get(named.model)) for named in models
    }
    processors = {name: load_processor(directory) for name, directory in directories.items()}
    for processor in processors.values():
        check_examples(processor.tokenizer, chosen, answers=False)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    samples: dict[str, list[dict[str, Any]]] = {}
    timings: dict[str, float] = {}
    content = ids_sha256(example.content_sha256() for example in chosen)
    lineage: dict[str, Any] = {"data": {"name": asked.data_name, "sha256": content}}
    for named in models:
        started, directory = time.monotonic(), directories[named.name]
        teacher = build_teacher(engine, directory, num_topk=1, dtype=asked.dtype)
        try:
            with progress(f"ask {named.name}") as report:
                samples[named.name] = ask(
                    teacher,
                    chosen,
                    tokenizer=processors[named.name].tokenizer,
                    model=named.name,
                    settings=settings,
                    on_answer=lambda done, total: report(done, total, "answers"),
                )
        finally:
            teacher.close()
        timings[f"evaluate_{named.name}"] = time.monotonic() - started
        lineage[named.name] = {"model": named.model, "weights_fingerprint": weights_fingerprint(directory)}
    rows = [row for name, answers in samples.items() for row in summarise(answers, model=name, seed=seed)]
    if "retrained" in samples:
        for name in samples:
            rows += distance_rows(samples[name], samples["retrained"], model=name, seed=seed)
    everything = [sample for answers in samples.values() for sample in answers]
    described = {"evaluate": settings.model_dump(mode="json"), "engine": engine_identity(engine, dtype=asked.dtype)}
    results = build_results(settings=described, lineage=lineage, timings=timings, metrics=rows)
    if out is not None:
        write_results(results, everything, out)
        say(f"wrote {out / 'results.json'} and {out / 'samples.parquet'}")
    return results | {"samples": everything}


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and the first Ctrl-C into a flag; a second Ctrl-C interrupts at once."""
    asked = False

    def ask_to_stop(number: int, frame: Any) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        say("stopping: finished rows are being committed")

    previous = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def as_record(result: Any) -> dict[str, Any]:
    """A frozen result as a plain dictionary, for `--json`."""
    return asdict(result)


def predict_whole(job: TeacherJob, pilot: GenerateResult, cache: Path | str) -> dict[str, Any]:
    """What the whole plan will take, scaled row for row from a pilot (kinds are sampled in proportion)."""
    factor = len(job.plan) / pilot.generated
    parts = open_cache(cache).manifest.parts
    bytes_per_token = sum(part.bytes for part in parts) / max(1, sum(part.tokens for part in parts))
    return {
        "rows": len(job.plan),
        "tokens": round(pilot.tokens * factor),
        "bytes": round(pilot.tokens * factor * bytes_per_token),
        "seconds": round(pilot.seconds * factor, 1),
    }


def evaluation_data(
    data: str, *, overrides: Sequence[str], per_cell: int | None, dtype: str | None = None
) -> Questions:
    """The questions of a recipe, a world's folder, or the shipped world; `dtype` overrides the recipe's."""
    from vgid.pipeline.recipe import DataSettings, load_examples, load_recipe

    folder = Path.cwd()
    settings, usual_dtype, revisions = EvaluateSettings(), "float32", dict[str, str]()
    if data == "shipped" or (Path(data) / "world.json").is_file():
        if overrides:
            raise ConfigError("--set needs a recipe as --data")
        source = DataSettings(world=data)
    else:
        recipe, folder = load_recipe(data, overrides=overrides)
        source, settings, usual_dtype = recipe.data, recipe.evaluate, recipe.teacher.dtype
        revisions = {recipe.model: recipe.revision} if recipe.revision else revisions
    if per_cell is not None:
        settings = settings.model_copy(update={"per_cell": per_cell})
    examples = load_examples(source, folder=folder)
    return Questions(
        examples=examples, settings=settings, data_name=data, dtype=dtype or usual_dtype, revisions=revisions
    )
