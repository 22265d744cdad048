"""What a training tells while it runs, and what it leaves behind; in a checkpoint and in `vgid.json` as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What an evaluation during the training found."""

    metrics: list[dict[str, Any]]
    """Rows of a results file."""
    is_enough: bool
    """Whether the training may end here."""


Watch = Callable[[Any, int], Observation]
"""Looks at a student after a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoss:
    """Losses of one optimizer step, before its update."""

    step: int
    """1-based."""
    loss: float
    """What was minimised: alpha * forget + beta * retain."""
    forget: float
    """Weighted KL per response token of the step's forget rows, nats."""
    retain: float | None
    """The same for the retain rows; None where the step has none."""
    forget_tokens: int
    retain_tokens: int
    observed: Observation | None = None
    """What was found when the student was looked at after the update."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> StepLoss:
        """Read back what `dataclasses.asdict` gave."""
        plain = {name: value for name, value in content.items() if name != "observed"}
        observed = content.get("observed")
        return cls(**plain, observed=Observation(**observed) if observed else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillResult:
    """What a training did."""

    num_steps: int
    """That were made; fewer than planned where `watch` ended the training."""
    num_rows: dict[str, int]
    """Distinct cached rows by role that could train."""
    num_tokens: dict[str, int]
    """Response tokens by role that were trained on, repetitions counted."""
    num_truncated: int
    """Selected rows left out because their answer was cut at the token limit."""
    losses: list[StepLoss]
    seconds: float
    """Wall time of the training loop, since the last resume."""
    seconds_waiting: float = 0.0
    """The part of it in which steps waited for pictures, prompts and targets to be made into tensors."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> DistillResult:
        """Read back what `dataclasses.asdict` gave."""
        losses = [StepLoss.from_json(loss) for loss in content["losses"]]
        return cls(**{name: value for name, value in content.items() if name != "losses"}, losses=losses)


Progress = Callable[[StepLoss, int], None]
"""Called after every optimizer step, on every process, with its losses and the number of steps there will be."""
