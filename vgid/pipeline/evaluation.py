"""Models side by side: the same questions to each, scored, with the record of what was asked of whom."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vgid.data.chat import check_examples, load_processor
from vgid.data.examples import Example
from vgid.data.models import resolve_model, weights_fingerprint
from vgid.errors import ConfigError, Stopped
from vgid.pipeline.apart import apart
from vgid.pipeline.console import progress, say
from vgid.pipeline.evaluate import EvaluateSettings, ask, distance_rows, questions_sha256, select_examples, summarise
from vgid.pipeline.recipe import DataSettings, Recipe, load_examples, load_recipe
from vgid.pipeline.results import build_results, make_directory, write_results
from vgid.pipeline.signals import stop_signal
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Models and questions, resolved: everything that asking needs, nothing loaded yet."""

    asked: Questions
    engine: EngineName
    chosen: Sequence[Example]
    directories: Mapping[str, Path]
    """By the models' names in the results."""
    settings: dict[str, Any]
    """With `lineage`, what the numbers depend on, as `results.json` says it."""
    lineage: dict[str, Any]


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

    Raises:
        ConfigError: a model or the questions cannot be resolved, or `out` is a file.
        DataError: a question cannot be asked.
        Stopped: SIGTERM or Ctrl-C; nothing was written.
    """
    evaluation = prepare_evaluation(models, asked, engine=engine)
    if out is not None:
        make_directory(out)
    results = ask_models(evaluation, seed=seed)
    if out is not None:
        write_results({key: value for key, value in results.items() if key != "samples"}, results["samples"], out)
        say(f"wrote {out / 'results.json'} and {out / 'samples.parquet'}")
    return results


def prepare_evaluation(models: Sequence[NamedModel], asked: Questions, *, engine: EngineName) -> Evaluation:
    """Resolve the models, choose the questions, and find what would go wrong with them.

    Raises:
        ConfigError: two models are named alike, or one cannot be resolved, or no question is left.
        DataError: a question cannot be asked.
    """
    if len({model.name for model in models}) != len(models):
        raise ConfigError(f"two models are named alike: {', '.join(model.name for model in models)}")
    chosen = select_examples(asked.examples, settings=asked.settings)
    directories = {
        named.name: resolve_model(named.model, revision=asked.revisions.get(named.model)) for named in models
    }
    for directory in directories.values():
        check_examples(load_processor(directory).tokenizer, chosen, answers=False)
    settings = {
        "evaluate": asked.settings.model_dump(mode="json"),
        "engine": engine_identity(engine, dtype=asked.dtype),
    }
    lineage: dict[str, Any] = {"data": {"name": asked.data_name, "sha256": questions_sha256(chosen)}}
    for named in models:
        fingerprint = weights_fingerprint(directories[named.name])
        lineage[named.name] = {"model": named.model, "weights_fingerprint": fingerprint}
    return Evaluation(
        asked=asked,
        engine=engine,
        chosen=chosen,
        directories=directories,
        settings=settings if asked.preset is None else settings | {"preset": asked.preset},
        lineage=lineage,
    )


def what_decides(evaluation: Evaluation) -> dict[str, Any]:
    """The part of an evaluation's lineage that decides its numbers: what models and data are called does not."""
    return {
        name: {key: value for key, value in of.items() if key in ("sha256", "weights_fingerprint")}
        for name, of in evaluation.lineage.items()
    }


def ask_models(evaluation: Evaluation, *, seed: int | None) -> dict[str, Any]:
    """The results record of an evaluation, with every answer under `samples`; one model is loaded after the other.

    Raises:
        Stopped: SIGTERM or Ctrl-C, heeded between two answers.
    """
    samples: dict[str, list[dict[str, Any]]] = {}
    timings: dict[str, float] = {}
    with stop_signal("the answers so far are dropped") as should_stop:
        for name, directory in evaluation.directories.items():
            if should_stop():
                raise Stopped(f"stopped before {name} was asked; nothing was written, rerun to ask again")
            started = time.monotonic()
            samples[name] = apart(
                answers_of,
                name,
                directory,
                evaluation.chosen,
                settings=evaluation.asked.settings,
                engine=evaluation.engine,
                dtype=evaluation.asked.dtype,
            )
            timings[f"evaluate_{name}"] = time.monotonic() - started
    rows = [row for name, answers in samples.items() for row in summarise(answers, model=name, seed=seed)]
    if "retrained" in samples:
        for name in samples:
            rows += distance_rows(samples[name], samples["retrained"], model=name, seed=seed)
    results = build_results(settings=evaluation.settings, lineage=evaluation.lineage, timings=timings, metrics=rows)
    return results | {"samples": [sample for answers in samples.values() for sample in answers]}


def answers_of(
    name: str, directory: Path, chosen: Sequence[Example], *, settings: EvaluateSettings, engine: EngineName, dtype: str
) -> list[dict[str, Any]]:
    """Load one model and ask it; see `ask`.

    Raises:
        TeacherError: the model does not load or answers short.
        Stopped: SIGTERM or Ctrl-C, heeded between two answers.
    """
    with stop_signal("the answers so far are dropped") as should_stop, progress(f"ask {name}") as report:

        def on_answer(done: int, total: int) -> None:
            report(done, total, "answers")
            if should_stop():
                raise Stopped(
                    f"stopped after {done:,} of {total:,} answers of {name}; nothing was written, rerun to ask again"
                )

        teacher = build_teacher(engine, directory, num_topk=1, dtype=dtype)
        try:
            tokenizer = load_processor(directory).tokenizer
            return ask(teacher, chosen, tokenizer=tokenizer, model=name, settings=settings, on_answer=on_answer)
        finally:
            teacher.close()


def evaluation_data(
    data: str, *, overrides: Sequence[str], per_cell: int | None, dtype: str | None = None
) -> Questions:
    """The questions of a recipe, a world's folder, or the shipped world; `dtype` overrides the recipe's."""
    if data == "shipped" or (Path(data) / "world.json").is_file():
        if overrides:
            raise ConfigError("--set needs a recipe as --data")
        examples = load_examples(DataSettings(world=data), folder=Path.cwd())
        asked = Questions(examples=examples, settings=EvaluateSettings(), data_name=data)
    else:
        recipe, folder = load_recipe(data, overrides=overrides)
        asked = questions_of(recipe, load_examples(recipe.data, folder=folder), data_name=data)
    settings = asked.settings if per_cell is None else asked.settings.model_copy(update={"per_cell": per_cell})
    return replace(asked, settings=settings, dtype=dtype or asked.dtype)


def questions_of(recipe: Recipe, examples: Sequence[Example], *, data_name: str) -> Questions:
    """The questions of a recipe with its data at hand."""
    return Questions(
        examples=examples,
        settings=recipe.evaluate,
        data_name=data_name,
        dtype=recipe.teacher.dtype,
        preset=recipe.preset and " ".join([recipe.preset, *(f"(but {name})" for name in recipe.departures)]),
        revisions={recipe.model: recipe.revision} if recipe.revision else {},
    )
