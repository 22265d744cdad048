"""Joins a recipe to the stages: resolve the model, read the data, run, report. What the CLI and the demo call."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vgid.cache.reader import open_cache
from vgid.cache.writer import CacheWriter
from vgid.data.chat import end_of_turn_id, load_processor, processor_sha256, tokenizer_sha256
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
    return TeacherJob(
        recipe=recipe,
        directory=directory,
        engine=engine,
        processor=load_processor(directory),
        teacher=teacher,
        plan=make_plan(examples, settings=settings, teacher=teacher, engine_id=engine_id),
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
    job: TeacherJob, out: Path, *, shard: tuple[int, int] = (0, 1), limit: int | None = None, rows_per_part: int = 256
) -> GenerateResult:
    """Fill the cache at `out` with the plan's missing targets.

    Args:
        job: From `prepare_teacher`.
        out: Cache directory; made if it does not exist.
        shard: (i, n): take the plan's buckets b with b mod n = i.
        limit: Only a pilot of this many rows, spread over all kinds of rows.
        rows_per_part: Most rows computed between two commits, per split.

    Raises:
        CacheError: `out` holds the targets of another teacher.
        Stopped: SIGTERM or Ctrl-C; finished rows are committed.
    """
    recipe = job.recipe
    plan = shard_of_plan(job.plan, index=shard[0], count=shard[1])
    if limit is not None:
        plan = pilot_of_plan(plan, size=limit)
    digest = {"digest": plan_digest(job.plan), "rows": len(job.plan), "buckets": NUM_BUCKETS, "model": recipe.model}
    with (
        CacheWriter(
            out, teacher=job.teacher, settings=cache_settings(recipe.teacher), plan=digest, rows_per_part=rows_per_part
        ) as writer,
        progress("teacher") as report,
        stop_signal() as should_stop,
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
            tokenizer=job.processor.tokenizer,
            end_of_turn_id=end_of_turn_id(job.directory, job.processor.tokenizer),
            on_progress=on_progress,
            should_stop=should_stop,
        )


def run_distill(recipe: Recipe, examples: Sequence[Example], cache: Path, out: Path) -> Any:
    """Distil the student on a cache.

    Raises:
        CacheError: the cache was made for another tokenizer, vocabulary or base.
        DistillError: cache and data do not fit, or training failed.
    """
    from vgid.stage2_distill.trainer import distill

    directory = resolve_model(recipe.model, revision=recipe.revision)
    opened = open_cache(cache)
    check_cache_fits(opened.manifest.teacher, directory, cache=cache)
    provenance = {
        "base": recipe.model,
        "revision": recipe.revision or "",
        "base_weights_fingerprint": opened.manifest.teacher["weights_fingerprint"],
        "cache_manifest": opened.manifest.number,
        "cache_parts_sha256": [part.sha256 for part in opened.manifest.parts],
        "plan": opened.manifest.plan,
        "teacher_settings": recipe.teacher.model_dump(mode="json"),
    }
    with progress("distill") as report:
        return distill(
            student=directory,
            examples={example.example_id: example for example in examples},
            targets=opened.load_targets(),
            settings=recipe.distill,
            out=out,
            provenance=provenance,
            progress=lambda step, num_steps: report(step.step, num_steps, f"steps, loss {step.loss:.4f}"),
        )


def check_cache_fits(teacher: dict[str, Any], directory: Path, *, cache: Path) -> None:
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
    for field, value in student.items():
        if teacher.get(field) != value:
            raise CacheError(
                f"cache {cache}: its teacher's {field} is {str(teacher.get(field))[:12]}…, the recipe's base has "
                f"{value[:12]}…; point the recipe at the base that made the cache, or generate again"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModel:
    """A model to evaluate and its name in the results (`base`, `student`, `retrained`, …)."""

    name: str
    model: str


def run_evaluate(
    models: Sequence[NamedModel],
    examples: Sequence[Example],
    *,
    settings: EvaluateSettings,
    out: Path | None,
    engine: EngineName = "vllm",
    dtype: str = "float32",
    seed: int | None = None,
) -> dict[str, Any]:
    """Ask every model the same questions, score, and write `results.json` and `samples.parquet` to `out`.

    Returns:
        The results record; its `samples` key (not written to the JSON) holds the per-question records.
    """
    if len({model.name for model in models}) != len(models):
        raise ConfigError(f"two models are named alike: {', '.join(model.name for model in models)}")
    chosen = select_examples(examples, settings=settings)
    samples: dict[str, list[dict[str, Any]]] = {}
    timings, lineage = {}, {}
    for named in models:
        started = time.monotonic()
        directory = resolve_model(named.model)
        teacher = build_teacher(engine, directory, num_topk=1, dtype=dtype)
        try:
            with progress(f"ask {named.name}") as report:
                samples[named.name] = ask(
                    teacher,
                    chosen,
                    tokenizer=load_processor(directory).tokenizer,
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
    described = {"evaluate": settings.model_dump(mode="json"), "engine": engine_identity(engine, dtype=dtype)}
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


def predict_whole(job: TeacherJob, pilot: GenerateResult, cache: Path) -> dict[str, Any]:
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
    data: str, *, overrides: Sequence[str], per_cell: int | None
) -> tuple[list[Example], EvaluateSettings]:
    """Examples and evaluation settings of a recipe, a world's folder, or the shipped world."""
    from vgid.pipeline.recipe import DataSettings, load_examples, load_recipe

    folder = Path.cwd()
    settings = EvaluateSettings()
    if data == "shipped" or (Path(data) / "world.json").is_file():
        if overrides:
            raise ConfigError("--set needs a recipe as --data")
        source = DataSettings(world=data)
    else:
        recipe, folder = load_recipe(data, overrides=overrides)
        source, settings = recipe.data, recipe.evaluate
    if per_cell is not None:
        settings = settings.model_copy(update={"per_cell": per_cell})
    return load_examples(source, folder=folder), settings
