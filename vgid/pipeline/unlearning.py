"""The project's own bar for a student on the fictitious benchmark: forgotten by both doors, and nobody else harmed.

One place for it, so that the benchmark, the tests and the docs mean the same. The paper's headline (-0.371 forget
ROUGE-L for -0.055 of retain) is its floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vgid.errors import DataError
from vgid.pipeline.report import find_value

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was measured; `passed` compares it with the bar."""

    forget_drop: float
    """Fall of ROUGE-L F1 on forget image questions, held-out photos and phrasings; at least 0.70."""
    forget_image_leak: float
    """Leak rate of the same questions; at most 0.05."""
    forget_text_leak: float
    """Leak rate of forget text-only questions; at most 0.10."""
    collateral_drop: float
    """Mean fall of ROUGE-L F1 on facts over (retain, outsiders) x (image, text-only); at most 0.03."""
    perception_drop: float
    """Largest fall of perception accuracy over forget, retain and outsiders; at most 0.05."""

    @property
    def passed(self) -> bool:
        """Whether every part of the bar holds."""
        return (
            self.forget_drop >= 0.70
            and self.forget_image_leak <= 0.05
            and self.forget_text_leak <= 0.10
            and self.collateral_drop <= 0.03
            and self.perception_drop <= 0.05
        )

    def as_record(self) -> dict[str, float | bool]:
        """Flat, for JSON."""
        return asdict(self) | {"passed": self.passed}


def meets_bar(metrics: Sequence[Row], *, base: str = "base", student: str = "student") -> Verdict:
    """Compare a student with its base.

    Args:
        metrics: Metric rows of both models, from `summarise`.
        base: Name of the base in the rows.
        student: Name of the student in the rows.

    Raises:
        DataError: a metric the bar needs is not among the rows.
    """

    def value(model: str, metric: str, **place: str) -> float:
        try:
            return find_value(metrics, metric=metric, model=model, **place)
        except KeyError as error:
            raise DataError(f"the bar needs {error.args[0].removeprefix('no row ')}; evaluate with it") from error

    def drop(metric: str, **place: str) -> float:
        return value(base, metric, **place) - value(student, metric, **place)

    unseen = {"split": "forget", "task": "facts", "modality": "image", "photo": "heldout", "phrasing": "heldout"}
    kept = [(split, modality) for split in ("retain", "outsiders") for modality in ("image", "text")]
    falls = [drop("rouge_l_f1", split=split, task="facts", modality=modality) for split, modality in kept]
    return Verdict(
        forget_drop=drop("rouge_l_f1", **unseen),
        forget_image_leak=value(student, "leak", **unseen),
        forget_text_leak=value(student, "leak", split="forget", task="facts", modality="text"),
        collateral_drop=sum(falls) / len(falls),
        perception_drop=max(
            drop("accuracy", split=split, task="perception") for split in ("forget", "retain", "outsiders")
        ),
    )
