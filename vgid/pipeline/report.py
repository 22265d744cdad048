"""Tables for people, from metric rows. Results files hold everything; a table holds what decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vgid.pipeline.console import table

Row = Mapping[str, Any]

_FACTS = {"task": "facts"}
_UNSEEN = {"photo": "heldout", "phrasing": "heldout"}
_LINES: tuple[tuple[str, str, dict[str, str | None]], ...] = (
    (
        "forget, image, new photo and wording: ROUGE-L F1",
        "rouge_l_f1",
        {"split": "forget", "modality": "image", **_FACTS, **_UNSEEN},
    ),
    (
        "forget, image, new photo and wording: leak",
        "leak",
        {"split": "forget", "modality": "image", **_FACTS, **_UNSEEN},
    ),
    ("forget, image: leak", "leak", {"split": "forget", "modality": "image", **_FACTS}),
    ("forget, image: refusal", "refusal", {"split": "forget", "modality": "image", **_FACTS}),
    ("forget, text only: ROUGE-L F1", "rouge_l_f1", {"split": "forget", "modality": "text", **_FACTS}),
    ("forget, text only: leak", "leak", {"split": "forget", "modality": "text", **_FACTS}),
    ("forget, perception: accuracy", "accuracy", {"split": "forget", "task": "perception"}),
    ("retain, image: ROUGE-L F1", "rouge_l_f1", {"split": "retain", "modality": "image", **_FACTS}),
    ("retain, text only: ROUGE-L F1", "rouge_l_f1", {"split": "retain", "modality": "text", **_FACTS}),
    ("retain, perception: accuracy", "accuracy", {"split": "retain", "task": "perception"}),
    ("outsiders, image: ROUGE-L F1", "rouge_l_f1", {"split": "outsiders", "modality": "image", **_FACTS}),
    ("outsiders, text only: ROUGE-L F1", "rouge_l_f1", {"split": "outsiders", "modality": "text", **_FACTS}),
    ("outsiders, perception: accuracy", "accuracy", {"split": "outsiders", "task": "perception"}),
    ("forget, first words forced: leak", "prefill_leak", {"split": "forget", **_FACTS}),
    ("forget, answers' distance to the retrained model", "answer_distance", {"split": "forget", **_FACTS}),
)
_PLACE = ("split", "task", "modality", "photo", "phrasing")


def summary_table(metrics: Sequence[Row]) -> str:
    """The deciding metrics, one line each, one column per model, with n and 95% intervals by subject."""
    header, *lines = summary_rows(metrics)
    return table(header, lines)


def summary_rows(metrics: Sequence[Row]) -> list[list[Any]]:
    """The cells of `summary_table`, its header first."""
    models = list(dict.fromkeys(row["model"] for row in metrics))
    lines = []
    for label, metric, place in _LINES:
        found = {row["model"]: row for row in metrics if row["metric"] == metric and _is_at(row, place)}
        if found:
            n = max(row["n"] for row in found.values())
            lines.append([label, n, *(_with_interval(found.get(model)) for model in models)])
    return [["what", "n", *models], *(lines or _plain_lines(metrics, models))]


def find_value(metrics: Sequence[Row], *, metric: str, model: str, **place: str | None) -> float:
    """One metric's value at exactly the dimensions given (those left out mean "all").

    Raises:
        KeyError: there is no such row.
    """
    for row in metrics:
        if row["metric"] == metric and row["model"] == model and _is_at(row, place):
            return float(row["value"])
    raise KeyError(f"no row {metric} of {model} at {place}")


def _plain_lines(metrics: Sequence[Row], models: Sequence[str]) -> list[list[Any]]:
    """By split, for data without tasks and modalities that the lines above know."""
    keys = list(dict.fromkeys((row["metric"], row["split"]) for row in metrics if _is_at(row, {"split": row["split"]})))
    lines = []
    for metric, split in keys:
        found = {r["model"]: r for r in metrics if r["metric"] == metric and _is_at(r, {"split": split})}
        n = max(row["n"] for row in found.values())
        lines.append([f"{split}: {metric}", n, *(_with_interval(found.get(model)) for model in models)])
    return lines


def _is_at(row: Row, place: Mapping[str, str | None]) -> bool:
    return all(row.get(name) == place.get(name) for name in _PLACE)


def _with_interval(row: Row | None) -> str:
    if row is None:
        return "-"
    interval = "[one subject]" if row["low"] is None else f"[{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['value']:.2f} {interval}"
