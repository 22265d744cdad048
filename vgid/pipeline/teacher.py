"""The teacher pass of a recipe: resolve the model, make the plan, fill the cache. What the CLI and the demo call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vgid.cache.encoding import Profile
from vgid.cache.reader import open_cache
from vgid.cache.writer import CacheWriter
from vgid.data.chat import check_examples, end_of_turn_id, end_of_turn_ids, load_processor
from vgid.data.examples import Example
from vgid.data.models import resolve_model
from vgid.pipeline.console import progress, say
from vgid.pipeline.recipe import Recipe, load_examples, load_recipe
from vgid.pipeline.signals import stop_signal
from vgid.stage1_teacher.engines import Teacher, build_teacher
from vgid.stage1_teacher.generate import (
    GenerateResult,
    Progress,
    generate,
    pilot_of_plan,
    predicted_bytes_per_token,
    upper_bound_tokens,
)
from vgid.stage1_teacher.identity import engine_identity, identify_teacher
from vgid.stage1_teacher.options import DEFAULT_OPTIONS, EngineName, EngineOptions, default_length
from vgid.stage1_teacher.plan import NUM_BUCKETS, PlannedTarget, cache_settings, make_plan, plan_digest, shard_of_plan
from vgid.stage1_teacher.preflight import check_lengths, check_memory, check_model
from vgid.stage1_teacher.standing import missing_rows, standing
from vgid.stage1_teacher.vocabulary import token_table


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherJob:
    """A recipe's teacher pass, resolved: everything `generate` needs, nothing loaded yet."""

    recipe: Recipe
    directory: Path
    engine: EngineName
    processor: Any
    teacher: dict[str, str | int]
    plan: list[PlannedTarget]

    @property
    def engine_id(self) -> str:
        """Of the rows it makes."""
        settings = self.recipe.teacher
        return engine_identity(self.engine, dtype=settings.dtype, head_dtype=settings.head_dtype)


def prepare(
    recipe: str, *, overrides: Sequence[str], engine: EngineName, options: EngineOptions = DEFAULT_OPTIONS
) -> TeacherJob:
    """`prepare_teacher` from a recipe's name, for whoever is told that alone.

    Raises:
        ConfigError: also if the recipe is wrong.
        DataError: also naming file and row of what cannot be read.
    """
    loaded, folder = load_recipe(recipe, overrides=overrides)
    return prepare_teacher(loaded, load_examples(loaded.data, folder=folder), engine=engine, options=options)


def prepare_teacher(
    recipe: Recipe,
    examples: Sequence[Example],
    *,
    engine: EngineName,
    options: EngineOptions = DEFAULT_OPTIONS,
) -> TeacherJob:
    """Resolve the base model, make the plan, and find what would go wrong with it.

    Raises:
        ConfigError: the model or a plan entry cannot be resolved, or the model cannot answer what is planned.
        DataError: an example cannot be asked.
    """
    directory = resolve_model(recipe.model, revision=recipe.revision)
    settings = recipe.teacher
    teacher = identify_teacher(directory, revision=recipe.revision, dtype=settings.dtype)
    engine_id = engine_identity(engine, dtype=settings.dtype, head_dtype=settings.head_dtype)
    processor = load_processor(directory)
    plan = make_plan(examples, settings=settings, teacher=teacher, engine_id=engine_id)
    if settings.quarantine:
        said = "; ".join(f"{each.subject} ({each.reason})" for each in settings.quarantine)
        say(f"quarantine: {len(settings.quarantine):,} subjects are left out of the forget plan: {said}")
    check_model(directory, processor, num_topk=settings.num_topk, vocab_size=int(teacher["vocab_size"]))
    for forced in (False, True):
        asked = [planned.example for planned in plan if (planned.response_kind == "reference") == forced]
        check_examples(processor.tokenizer, asked, answers=forced)
    check_lengths(plan, settings, processor, limit=default_length(directory, options))
    return TeacherJob(
        recipe=recipe, directory=directory, engine=engine, processor=processor, teacher=teacher, plan=plan
    )


def dry_run(job: TeacherJob, *, options: EngineOptions = DEFAULT_OPTIONS) -> list[dict[str, Any]]:
    """Rows, most tokens and predicted bytes by split, view and response kind, and in total.

    Raises:
        TeacherError: the model does not fit into the memory there is.
    """
    settings = job.recipe.teacher
    check_memory(job.directory, dtype=settings.dtype, options=options)
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
    options: EngineOptions = DEFAULT_OPTIONS,
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
        options: How the machine is used.

    Raises:
        CacheError: `out` holds the targets of another teacher.
        Stopped: SIGTERM or Ctrl-C; finished rows are committed.
    """
    plan = shard_of_plan(job.plan, index=shard[0], count=shard[1])
    if limit is not None:
        plan = pilot_of_plan(plan, size=limit)
    with (
        stop_signal("finished rows are being committed") as should_stop,
        cache_writer(job, out, rows_per_part=rows_per_part, profile=profile, expires=expires) as writer,
        progress("teacher") as report,
    ):

        def on_progress(now: Progress) -> None:
            report(now.rows, now.total_rows, f"rows, {now.tokens / max(now.seconds, 1e-9):,.0f} tokens/s")

        result = fill(
            job,
            plan,
            writer=writer,
            load_teacher=lambda: load_teacher(job, options=options),
            on_progress=on_progress,
            should_stop=should_stop,
        )
        writer.look()
        return replace(result, whole=standing(job.plan, writer, shards=shard[1]))


def is_complete(job: TeacherJob, out: Path | str) -> bool:
    """Whether the cache at `out` lacks no row of the job's plan.

    Raises:
        CacheError: `out` holds the targets of another teacher.
    """
    with cache_writer(job, out, rows_per_part=1, profile="default", expires=None) as writer:
        return not missing_rows(job.plan, writer)


def cache_writer(
    job: TeacherJob, out: Path | str, *, rows_per_part: int, profile: Profile, expires: str | None
) -> CacheWriter:
    """A writer for the job's rows; see `run_teacher`."""
    recipe, tokenizer = job.recipe, job.processor.tokenizer
    digest = {"digest": plan_digest(job.plan), "rows": len(job.plan), "buckets": NUM_BUCKETS, "model": recipe.model}
    if recipe.preset is not None:
        digest |= {"preset": recipe.preset, "departures": list(recipe.departures)}
    if recipe.teacher.quarantine:
        digest |= {"quarantined": len(recipe.teacher.quarantine)}
    return CacheWriter(
        out,
        teacher=job.teacher,
        settings=cache_settings(recipe.teacher),
        plan=digest,
        rows_per_part=rows_per_part,
        profile=profile,
        vocabulary=lambda: token_table(tokenizer, end_ids=end_of_turn_ids(job.directory, tokenizer)),
        expires=expires,
    )


def load_teacher(job: TeacherJob, *, options: EngineOptions) -> Teacher:
    """The job's base in its engine.

    Raises:
        TeacherError: the model does not fit into the memory there is, or does not load.
    """
    settings = job.recipe.teacher
    check_memory(job.directory, dtype=settings.dtype, options=options)
    return build_teacher(
        job.engine,
        job.directory,
        num_topk=settings.num_topk,
        dtype=settings.dtype,
        head_dtype=settings.head_dtype,
        options=options,
    )


def fill(job: TeacherJob, plan: Sequence[PlannedTarget], *, writer: CacheWriter, **options: Any) -> GenerateResult:
    """`generate` for rows of the job's plan; `options` are its own."""
    return generate(
        plan,
        settings=job.recipe.teacher,
        writer=writer,
        processor=job.processor,
        end_of_turn_id=end_of_turn_id(job.directory, job.processor.tokenizer),
        **options,
    )


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
