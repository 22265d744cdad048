"""Models side by side: the same questions to each, scored, with the record of what was asked of whom."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vgid.cache.schema import ids_sha256
from vgid.data.chat import check_examples, load_processor
from vgid.data.examples import Example
from vgid.data.models import resolve_model, weights_fingerprint
from vgid.errors import ConfigError
from vgid.pipeline.console import progress, say
from vgid.pipeline.evaluate import EvaluateSettings, ask, distance_rows, select_examples, summarise
from vgid.pipeline.recipe import DataSettings, load_examples, load_recipe
from vgid.pipeline.results import build_results, write_results
from vgid.stage1_teacher.engines import build_teacher
from vgid.stage1_teacher.identity import engine_identity
from vgid.stage1_teacher.options import EngineName


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
    preset: str | None = None
    """That the recipe takes, with the settings in which it departs from it."""
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
    if asked.preset is not None:
        described["preset"] = asked.preset
    results = build_results(settings=described, lineage=lineage, timings=timings, metrics=rows)
    if out is not None:
        write_results(results, everything, out)
        say(f"wrote {out / 'results.json'} and {out / 'samples.parquet'}")
    return results | {"samples": everything}


def evaluation_data(
    data: str, *, overrides: Sequence[str], per_cell: int | None, dtype: str | None = None
) -> Questions:
    """The questions of a recipe, a world's folder, or the shipped world; `dtype` overrides the recipe's."""
    folder = Path.cwd()
    settings, usual_dtype, revisions, preset = EvaluateSettings(), "float32", dict[str, str](), None
    if data == "shipped" or (Path(data) / "world.json").is_file():
        if overrides:
            raise ConfigError("--set needs a recipe as --data")
        source = DataSettings(world=data)
    else:
        recipe, folder = load_recipe(data, overrides=overrides)
        source, settings, usual_dtype = recipe.data, recipe.evaluate, recipe.teacher.dtype
        revisions = {recipe.model: recipe.revision} if recipe.revision else revisions
        preset = recipe.preset and " ".join([recipe.preset, *(f"(but {name})" for name in recipe.departures)])
    if per_cell is not None:
        settings = settings.model_copy(update={"per_cell": per_cell})
    examples = load_examples(source, folder=folder)
    return Questions(
        examples=examples,
        settings=settings,
        data_name=data,
        dtype=dtype or usual_dtype,
        preset=preset,
        revisions=revisions,
    )
