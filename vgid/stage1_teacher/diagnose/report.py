"""What an inspection found: plain records, no logic but counting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from vgid.stage1_teacher.diagnose.gates import Gate
from vgid.stage1_teacher.diagnose.variants import Taught, Variant

Verdict = Literal["pass", "fail", "unknown", "info"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The mean of one measure in one place, over all its observations."""

    check: str
    measure: str
    split: str
    modality: str
    view: str
    response_kind: str | None
    """None: at the first position, where the response makes no difference."""
    value: float
    n: int
    low: float | None
    """95% bootstrap interval by subject; None for a single subject."""
    high: float | None
    p10: float
    median: float
    p90: float
    by_subject: Mapping[str, tuple[float, int]]
    """Mean and observations of each subject."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One number that decides or informs."""

    name: str
    definition: str
    value_low: float | None
    """The value, or the least that it can be; None where it is not known."""
    value_high: float | None
    """The value, or the most that it can be."""
    low: float | None
    """95% bootstrap interval by subject, of the value or of its bounds together."""
    high: float | None
    n: int
    """Observations behind it, the fewest of its parts."""
    split: str
    modality: str | None
    gate: Gate | None
    verdict: Verdict
    reason: str | None
    """Why the verdict is `unknown`, or passes without a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One of D1 to D18."""

    name: str
    title: str
    definition: str
    readings: tuple[Reading, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of its readings: fail, unknown, pass, info."""
        found = {reading.verdict for reading in self.readings if reading.gate is not None} or {
            reading.verdict for reading in self.readings if reading.verdict == "unknown"
        }
        order: tuple[Verdict, ...] = ("fail", "unknown", "pass")
        for verdict in order:
            if verdict in found:
                return verdict
        return "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectReading:
    """One subject's value of a reading that has a gate, where it is past the gate."""

    subject_id: str
    reading: str
    value: float
    gate: Gate


@dataclass(frozen=True, slots=True, kw_only=True)
class Dose:
    """One variant of the cache in the few numbers that tell a dose (D16)."""

    variant: Variant
    forget_rows: int
    readings: tuple[Reading, ...]
    rows: tuple[Row, ...]
    """Every measure of their checks, by view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectReport:
    """All that `inspect_cache` found."""

    cache: str
    manifest: int
    variant: Variant
    taught: tuple[Taught, ...]
    rows_used: int
    notes: tuple[str, ...]
    checks: tuple[Check, ...]
    rows: tuple[Row, ...]
    doses: tuple[Dose, ...]
    failing_subjects: tuple[SubjectReading, ...]
    """Worst first."""
    num_subjects: int

    @property
    def readings(self) -> Iterator[Reading]:
        """Those of all checks."""
        return (reading for check in self.checks for reading in check.readings)

    @property
    def failed(self) -> list[Reading]:
        """Readings past their gate."""
        return [reading for reading in self.readings if reading.verdict == "fail"]
