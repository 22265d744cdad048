"""How far a whole plan has come, whoever worked on it: what every worker says when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vgid.cache.writer import CacheWriter
from vgid.stage1_teacher.plan import PlannedTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How much of a plan a cache holds."""

    rows: int
    committed: int
    erased: int
    """Rows that were erased from the cache and are not made again."""
    missing: int
    incomplete_shards: str
    """Those with missing rows, as "1/8 3/8"."""


def missing_rows(plan: Sequence[PlannedTarget], writer: CacheWriter) -> list[PlannedTarget]:
    """Rows that are still to be made, as of the writer's last look: neither committed nor erased."""
    return [row for row in plan if row.target_id not in writer.done and not _is_erased(row, writer)]


def standing(plan: Sequence[PlannedTarget], writer: CacheWriter, *, shards: int) -> Standing:
    """Count a plan's rows, as of the writer's last look."""
    committed = sum(row.target_id in writer.done for row in plan)
    missing = missing_rows(plan, writer)
    incomplete = sorted({row.bucket % shards for row in missing})
    return Standing(
        rows=len(plan),
        committed=committed,
        erased=len(plan) - committed - len(missing),
        missing=len(missing),
        incomplete_shards=" ".join(f"{index}/{shards}" for index in incomplete),
    )


def _is_erased(row: PlannedTarget, writer: CacheWriter) -> bool:
    return writer.erased(subject_id=row.example.subject_id, example_id=row.example.example_id)
