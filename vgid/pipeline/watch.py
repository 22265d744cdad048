"""What a student in training is asked, by the code that evaluates it afterwards, and whether that is enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vgid.data.examples import Example
from vgid.errors import ConfigError, Stopped
from vgid.pipeline.console import say
from vgid.pipeline.evaluate import SCORES, EvaluateSettings, ask, questions_sha256, select_examples, summarise
from vgid.pipeline.metrics import DIMENSIONS, LEVELS, score_answer
from vgid.pipeline.recipe import Recipe
from vgid.pipeline.report import find_value
from vgid.stage2_distill.records import Observation
from vgid.stage2_distill.settings import Condition, WatchSettings

_TOLD = ("rouge_l_f1", "leak", "accuracy", "prefill_leak")


def watcher(
    recipe: Recipe,
    watch: WatchSettings,
    examples: Sequence[Example],
    *,
    processor: Any,
    should_stop: Callable[[], bool] = lambda: False,
) -> Callable[[Any, int], Observation]:
    """A function that asks a model the recipe's questions after a step.

    Args:
        recipe: Its `evaluate` part says how.
        watch: How many, and what is enough.
        examples: The recipe's data.
        processor: The student's.
        should_stop: Asked after every answer; the function then raises `Stopped`.

    Raises:
        ConfigError: see `watched_questions`.
    """
    from vgid.stage1_teacher.engines.transformers import TransformersTeacher

    settings, chosen = watched_questions(recipe, watch, examples)

    def stop_if_asked(done: int, total: int) -> None:
        if should_stop():
            raise Stopped(f"stopped after {done:,} of {total:,} answers")

    def observe(model: Any, step: int) -> Observation:
        # Beside all that a training keeps in memory, a batch of questions has to be small.
        asked = TransformersTeacher.of_loaded(model, processor, num_topk=1, batch_size=8)
        samples = ask(
            asked,
            chosen,
            tokenizer=processor.tokenizer,
            model="student",
            settings=settings,
            on_answer=stop_if_asked,
        )
        metrics = summarise(samples, model="student", seed=recipe.distill.seed)
        values = [(condition, _value(condition, metrics)) for condition in watch.stop_when]
        is_enough = bool(values) and all(condition.is_met(value) for condition, value in values)
        said = [f"{condition.describe()}: {value:.3f}" for condition, value in values] or _by_split(metrics)
        say(f"after step {step:,}: {'; '.join(said)}" + ("; that is enough" if is_enough else ""))
        return Observation(metrics=metrics, is_enough=is_enough)

    return observe


def watched_questions(
    recipe: Recipe, watch: WatchSettings, examples: Sequence[Example]
) -> tuple[EvaluateSettings, list[Example]]:
    """What a student in training is asked, and how.

    Raises:
        ConfigError: nothing is, or a condition is of something that is not asked or not measured.
    """
    settings = recipe.evaluate.model_copy(update={"per_cell": watch.per_cell})
    chosen = select_examples(examples, settings=settings)
    for condition in watch.stop_when:
        _check(condition, chosen, prefill_splits=settings.prefill_splits)
    return settings, chosen


def what_watching_depends_on(recipe: Recipe, watch: WatchSettings, examples: Sequence[Example]) -> dict[str, Any]:
    """What, beside `watch` itself, decides what is seen of a student, and with that when its training ends.

    Raises:
        ConfigError: see `watched_questions`.
    """
    settings, chosen = watched_questions(recipe, watch, examples)
    return {"evaluate": settings.model_dump(mode="json"), "questions_sha256": questions_sha256(chosen)}


def _by_split(metrics: Sequence[dict[str, Any]]) -> list[str]:
    whole = [row for row in metrics if not any(row.get(name) for name in DIMENSIONS[1:])]
    return [f"{row['metric']} of {row['split']} {row['value']:.3f}" for row in whole if row["metric"] in _TOLD]


def _value(condition: Condition, metrics: Sequence[dict[str, Any]]) -> float:
    place = {name: getattr(condition, name) for name in DIMENSIONS}
    return find_value(metrics, metric=condition.metric, model="student", **place)


def _check(condition: Condition, chosen: Sequence[Example], *, prefill_splits: Sequence[str]) -> None:
    """Find out before the training what would stop it at the first look."""
    said = f"distill.watch.stop_when ({condition.describe()})"
    if condition.metric not in (*SCORES, "prefill_leak"):
        raise ConfigError(f"{said}: choose a metric of {', '.join((*SCORES, 'prefill_leak'))}")
    given = tuple(name for name in DIMENSIONS if getattr(condition, name) is not None)
    if given not in LEVELS:
        levels = "; ".join(", ".join(level) for level in LEVELS)
        raise ConfigError(f"{said}: values are known by {levels}; not by {', '.join(given)}")
    inside = [each for each in chosen if all(getattr(each, name) == getattr(condition, name) for name in given)]
    if not inside:
        raise ConfigError(f"{said}: no such question is asked; see data, and evaluate.splits")
    if condition.metric == "prefill_leak":
        is_measured = condition.split in prefill_splits and any(each.task == "facts" and each.facts for each in inside)
    else:
        is_measured = condition.metric == "truncated" or any(
            condition.metric in score_answer(each, "") for each in inside
        )
    if not is_measured:
        raise ConfigError(f"{said}: that metric is not measured on these questions")
