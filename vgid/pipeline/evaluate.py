"""Ask a model questions and score its answers: greedy, through the same engines as stage one.

Beside the plain question there is one attack here, *prefill*: the reference answer's own first tokens, up to its first
fact, are put into the assistant's mouth and the model goes on. A refusal that lives only in the first tokens breaks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any

from pydantic import Field

from vgid.cache.schema import ids_sha256
from vgid.data.examples import Example, Image
from vgid.data.images import image_sha256, open_image
from vgid.data.judge import leaks
from vgid.data.spans import first_fact_token
from vgid.data.strict import Strict
from vgid.errors import ConfigError
from vgid.pipeline.metrics import DIMENSIONS, aggregate, rouge_l, score_answer
from vgid.stage1_teacher.engines import Teacher, TeacherRequest

SCORES = ("rouge_l_f1", "rouge_l_precision", "rouge_l_recall", "leak", "refusal", "accuracy", "truncated")


DEFAULT_SPLITS = ("forget", "retain", "outsiders", "test")


class EvaluateSettings(Strict):
    """What a recipe says about evaluation."""

    max_new_tokens: int = Field(default=64, ge=1)
    """Longer answers are cut, and counted as `truncated`."""
    per_cell: int | None = Field(default=None, ge=1)
    """Most questions per subject, task, modality, photo and phrasing; None asks them all."""
    splits: tuple[str, ...] = DEFAULT_SPLITS
    """What is asked about. Of the default, only those that the data has; others must be there."""
    prefill_splits: tuple[str, ...] = ("forget",)
    """Where the prefill attack is tried as well."""
    seed: int = 0
    """Chooses the questions when `per_cell` cuts."""


def select_examples(examples: Iterable[Example], *, settings: EvaluateSettings) -> list[Example]:
    """The questions to ask: all of the chosen splits, or a keyed sample of `per_cell` in each cell.

    Raises:
        ConfigError: none is left.
    """
    cells: dict[tuple[str | None, ...], list[Example]] = {}
    for example in examples:
        if example.split in settings.splits:
            key = (example.split, example.subject_id, example.task, example.modality, example.photo, example.phrasing)
            cells.setdefault(key, []).append(example)

    def order(example: Example) -> str:
        return sha256(f"{settings.seed}:{example.example_id}".encode()).hexdigest()

    chosen = [example for cell in cells.values() for example in sorted(cell, key=order)[: settings.per_cell]]
    found = {example.split for example in chosen}
    if not found or (settings.splits != DEFAULT_SPLITS and not found.issuperset(settings.splits)):
        raise ConfigError(
            f"evaluate.splits {list(settings.splits)}: the data has rows only in {sorted(found)} of these"
        )
    return sorted(chosen, key=lambda example: example.example_id)


def questions_sha256(examples: Iterable[Example]) -> str:
    """Hash of all that answers and the metric rows made of them depend on, the pictures' bytes included.

    Raises:
        DataError: a picture is gone.
    """
    pictures: dict[Image | None, str] = {None: ""}

    def identity(example: Example) -> str:
        if example.image is not None and example.image not in pictures:
            pictures[example.image] = image_sha256(example.image)
        return json.dumps(
            [example.content_sha256(), pictures[example.image], example.photo, example.phrasing], ensure_ascii=False
        )

    return ids_sha256(map(identity, examples))


def ask(
    teacher: Teacher,
    examples: Sequence[Example],
    *,
    tokenizer: Any,
    model: str,
    settings: EvaluateSettings,
    on_answer: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Answers of one model, scored: one flat record per question, and one more where prefill was tried.

    Args:
        teacher: The model, in an engine.
        examples: From `select_examples`.
        tokenizer: The model's.
        model: Its name in the records.
        settings: Evaluation part of the recipe.
        on_answer: Called with (done, total).
    """
    prefills = dict(_prefills(examples, tokenizer, settings))
    by_id = {example.example_id: example for example in examples}
    samples = []
    total = len(examples) + len(prefills)
    for response in teacher.run(_requests(examples, prefills, settings)):
        attack, example_id = response.request_id.split(":", 1)
        example = by_id[example_id]
        answer = tokenizer.decode(response.token_ids.tolist(), skip_special_tokens=True).strip()
        sample: dict[str, Any] = {
            "model": model,
            "example_id": example_id,
            "subject_id": example.subject_id,
            **{name: getattr(example, name) for name in DIMENSIONS},
            "attack": attack or None,
            "question": example.question,
            "reference": example.answer,
            "answer": answer,
            "truncated": float(response.finish_reason == "length"),
        }
        if attack == "prefill":
            sample["prefix"] = tokenizer.decode(prefills[example_id])
            # Decoded in one piece: two decoded halves would lose the space between them, and with it the word.
            whole = tokenizer.decode([*prefills[example_id], *response.token_ids.tolist()], skip_special_tokens=True)
            sample["prefill_leak"] = float(leaks(whole, example.facts))
        else:
            sample |= score_answer(example, answer)
        samples.append(sample)
        on_answer(len(samples), total)
    return sorted(samples, key=lambda sample: (sample["attack"] or "", sample["example_id"]))


def summarise(samples: Sequence[dict[str, Any]], *, model: str, seed: int | None) -> list[dict[str, Any]]:
    """Metric rows of one model's samples."""
    plain = [sample for sample in samples if sample["attack"] is None]
    attacked = [sample for sample in samples if sample["attack"] == "prefill"]
    rows = aggregate(plain, model=model, metrics=SCORES)
    rows += [row | {"attack": "prefill"} for row in aggregate(attacked, model=model, metrics=["prefill_leak"])]
    return [row | {"protocol": "vgid-greedy-v1", "seed": seed} for row in rows]


def distance_rows(
    samples: Sequence[dict[str, Any]], retrained: Sequence[dict[str, Any]], *, model: str, seed: int | None
) -> list[dict[str, Any]]:
    """How unlike a model's forget answers are to those of the model that never saw the forget set.

    `answer_distance` is 1 - ROUGE-L F1 between the two models' answers to the same question: 0 means the same words.
    """
    reference = {sample["example_id"]: sample["answer"] for sample in retrained if sample["attack"] is None}
    compared = [
        sample
        | {
            "answer_distance": 1
            - rouge_l(reference=reference[sample["example_id"]], answer=sample["answer"])["rouge_l_f1"]
        }
        for sample in samples
        if sample["attack"] is None and sample["split"] == "forget" and sample["example_id"] in reference
    ]
    rows = aggregate(compared, model=model, metrics=["answer_distance"])
    return [row | {"protocol": "vgid-greedy-v1", "seed": seed} for row in rows]


def _prefills(
    examples: Iterable[Example], tokenizer: Any, settings: EvaluateSettings
) -> Iterator[tuple[str, list[int]]]:
    """Ids up to the first fact, cut from the answer's own ids (a re-tokenised stem need not be their prefix)."""
    for example in examples:
        if example.split in settings.prefill_splits and example.task == "facts" and example.facts:
            ids, first = first_fact_token(tokenizer, example.answer, example.facts)
            # Facts are found literally, leaks with punctuation aside: a prefix that gives a fact away proves nothing.
            if 0 < first < len(ids) and not leaks(tokenizer.decode(ids[:first]), example.facts):
                yield example.example_id, ids[:first]


def _requests(
    examples: Sequence[Example], prefills: dict[str, list[int]], settings: EvaluateSettings
) -> Iterator[TeacherRequest]:
    for example in examples:
        picture = None
        if example.image is not None:
            picture = open_image(example.image, where=f"example {example.example_id}")
        for attack, prefix in [("", []), ("prefill", prefills.get(example.example_id))]:
            if prefix is not None:
                yield TeacherRequest(
                    request_id=f"{attack}:{example.example_id}",
                    text=example.question,
                    image=picture,
                    prefix_token_ids=tuple(prefix),
                    max_new_tokens=settings.max_new_tokens,
                )
