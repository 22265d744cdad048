"""The gates: which readings decide, at which threshold, and where each threshold comes from.

A recipe or a caller may set others (`gates`: reading to threshold, None for no gate); a threshold that is not stated
here decides nothing. What a gate looks at is what the teacher does unforced: forced words before a fact give it away to
any teacher, so the readings at forced positions are reported and have no gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from vgid.errors import ConfigError

Direction = Literal["<=", ">="]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A threshold that a reading must keep."""

    direction: Direction
    threshold: float
    source: str
    """Where the threshold comes from."""

    def verdict(self, low: float, high: float) -> Literal["pass", "fail", "unknown"]:
        """Judge a value of which only `low <= value <= high` is known."""
        if self.direction == "<=":
            return "pass" if high <= self.threshold else "fail" if low > self.threshold else "unknown"
        return "pass" if low >= self.threshold else "fail" if high < self.threshold else "unknown"

    def describe(self) -> str:
        """The gate in a word or two."""
        return f"{self.direction} {self.threshold:g}"


_STUDENT_BAR = "the bar for a student's leaks (docs/benchmarks.md); a student is no better than its teacher"
_METHOD = "proposed with the checks; not tuned"
_OURS = "ours: far from every good and every bad teacher of the fictitious benchmark (docs/teacher-quality.md)"

GATES: Mapping[str, Gate] = {
    "D1.told": Gate(direction="<=", threshold=0.05, source=_STUDENT_BAR),
    "D2.path_ratio": Gate(direction="<=", threshold=0.1, source=_METHOD),
    "D3.trained": Gate(direction="<=", threshold=0.1, source="as D2"),
    "D4.walked": Gate(direction="<=", threshold=0.05, source="as D1"),
    "D6.retain": Gate(direction="<=", threshold=0.2, source=_OURS),
    "D7.entropy": Gate(direction="<=", threshold=0.5, source=_OURS),
    "D8.forget": Gate(direction="<=", threshold=0.05, source=_METHOD),
    "D8.retain": Gate(direction="<=", threshold=0.05, source=_METHOD),
    "D9.flips": Gate(direction="<=", threshold=0.1, source=_METHOD),
    "D9.js": Gate(direction="<=", threshold=0.05, source=_METHOD),
    "D10.effect": Gate(direction=">=", threshold=0.1, source=_OURS),
    "D10.noise": Gate(direction=">=", threshold=0.1, source=_OURS),
    "D10.icu": Gate(direction=">=", threshold=0.1, source=_OURS),
    "D11.collateral": Gate(direction="<=", threshold=1 / 3, source="proposed with the checks as a ratio of at least 3"),
    "D12.told_other": Gate(direction="<=", threshold=0.05, source="as D1"),
    "D13.degenerate": Gate(direction="<=", threshold=0.05, source=_OURS),
    "D15.told": Gate(direction="<=", threshold=0.05, source=_STUDENT_BAR),
    "D15.path_ratio": Gate(direction="<=", threshold=0.1, source="as D2"),
    "D18.gain": Gate(direction=">=", threshold=0.0, source=_METHOD),
}
"""Reading to gate; readings that are not here decide nothing."""


def chosen_gates(changes: Mapping[str, float | None]) -> dict[str, Gate]:
    """The gates with other thresholds; None takes a gate away.

    Raises:
        ConfigError: a name is no gate.
    """
    if unknown := sorted(set(changes) - set(GATES)):
        raise ConfigError(f"gate {unknown[0]!r} is unknown; choose of {', '.join(GATES)}")
    gates = dict(GATES)
    for name, threshold in changes.items():
        if threshold is None:
            del gates[name]
        else:
            gates[name] = replace(GATES[name], threshold=threshold, source="set by the caller")
    return gates
