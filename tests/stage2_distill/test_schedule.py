"""Every optimizer step mixes both roles, in an order that depends on nothing but (seed, epoch, target)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from distill_cases import SELECTIONS, make_settings
from hypothesis import given
from hypothesis import strategies as st
from synthetic_targets import IDENTITY

from vgid.cache.mapped import map_targets
from vgid.cache.reader import open_cache
from vgid.cache.schema import SCHEMA, RowReader, Target
from vgid.cache.writer import CacheWriter
from vgid.data.examples import Example
from vgid.errors import DistillError
from vgid.stage2_distill.batches import TrainItem, build_items
from vgid.stage2_distill.schedule import Schedule
from vgid.stage2_distill.settings import TargetSelection


@pytest.fixture(scope="session")
def items(examples: dict[str, Example], targets: list[Target]) -> tuple[TrainItem, ...]:
    return build_items(examples, targets, [TargetSelection.model_validate(said) for said in SELECTIONS]).items


def steps_of(schedule: Schedule) -> list[list[TrainItem]]:
    rows = [schedule[position] for position in range(len(schedule))]
    return [rows[start : start + schedule.step_size] for start in range(0, len(rows), schedule.step_size)]


def ids_of(schedule: Schedule) -> list[str]:
    return [schedule[position].target.target_id for position in range(len(schedule))]


@given(
    forget_batch=st.integers(1, 9),
    retain_batch=st.integers(1, 9),
    max_steps=st.integers(1, 12),
    parts=st.integers(1, 4),
)
def test_every_step_holds_the_asked_rows_of_both_roles(
    items: tuple[TrainItem, ...], forget_batch: int, retain_batch: int, max_steps: int, parts: int
) -> None:
    settings = make_settings(
        forget_batch=forget_batch * parts,
        retain_batch=retain_batch * parts,
        max_steps=max_steps,
        gradient_accumulation_steps=parts,
    )
    steps = steps_of(Schedule(items, settings=settings))
    assert len(steps) == max_steps
    for step in steps:
        assert Counter(item.role for item in step) == {"forget": settings.forget_batch, "retain": settings.retain_batch}


def test_an_epoch_is_one_pass_over_the_forget_rows(items: tuple[TrainItem, ...]) -> None:
    settings = make_settings(epochs=3, max_steps=None, forget_batch=4, retain_batch=2)
    schedule = Schedule(items, settings=settings)
    assert schedule.num_steps == 5  # ceil(3 * 6 / 4)
    rows = [row for step in steps_of(schedule) for row in step]
    forget = Counter(row.target.target_id for row in rows if row.role == "forget")
    assert sorted(forget.values()) == [3, 3, 3, 3, 4, 4]  # 20 draws of 6 rows
    retain = Counter(row.target.target_id for row in rows if row.role == "retain")
    assert sorted(retain.values()) == [1, 1, 1, 1, 2, 2, 2]


def with_draws(items: tuple[TrainItem, ...], number: int) -> list[TrainItem]:
    """Every row as if it had been made from that many noise seeds."""
    return [
        replace(item, target=replace(item.target, target_id=f"{item.target.target_id}/{draw}", draw=draw))
        for item in items
        for draw in range(number)
    ]


@pytest.mark.parametrize(("draws", "rows_an_epoch"), [("all", 18), ("cycle", 6)])
def test_an_epoch_holds_every_draw_or_one_of_each_example(
    draws: str, rows_an_epoch: int, items: tuple[TrainItem, ...]
) -> None:
    settings = make_settings(epochs=3, max_steps=None, forget_batch=6, retain_batch=1, draws=draws)
    schedule = Schedule(with_draws(items, 3), settings=settings)
    rows = [row for step in steps_of(schedule) for row in step if row.role == "forget"]
    assert len(rows) == 3 * rows_an_epoch
    epochs = [rows[start : start + rows_an_epoch] for start in range(0, len(rows), rows_an_epoch)]
    for epoch in epochs:
        counts = Counter(row.example.example_id for row in epoch)
        assert set(counts.values()) == {rows_an_epoch // 6} and len(counts) == 6
    assert set(Counter(row.target.target_id for row in rows).values()) == {3 if draws == "all" else 1}
    assert len({row.target.draw for row in epochs[0]}) > 1


def test_order_depends_on_the_seed_and_changes_between_epochs_but_not_with_the_cache(
    items: tuple[TrainItem, ...],
) -> None:
    settings = make_settings(max_steps=6, forget_batch=6, retain_batch=7)
    order = ids_of(Schedule(items, settings=settings))
    assert order == ids_of(Schedule(items[::-1], settings=settings))
    assert order != ids_of(Schedule(items, settings=make_settings(max_steps=6, forget_batch=6, retain_batch=7, seed=1)))
    size = len(items)
    assert order[:size] != order[size : 2 * size]


@pytest.mark.parametrize(("accumulation", "processes"), [(2, 1), (4, 1), (1, 4), (2, 2)])
def test_accumulation_and_processes_split_a_step_but_do_not_change_it(
    items: tuple[TrainItem, ...], accumulation: int, processes: int
) -> None:
    whole = steps_of(Schedule(items, settings=make_settings(max_steps=4)))
    settings = make_settings(max_steps=4, gradient_accumulation_steps=accumulation)
    split = Schedule(items, settings=settings, num_processes=processes)
    assert split.micro_batch == 8 // (accumulation * processes)
    for one, other in zip(whole, steps_of(split), strict=True):
        assert Counter(item.target.target_id for item in one) == Counter(item.target.target_id for item in other)
        for start in range(0, 8, split.micro_batch):
            roles = Counter(item.role for item in other[start : start + split.micro_batch])
            assert roles["forget"] == roles["retain"]


def test_access_in_any_order_gives_the_same_rows(items: tuple[TrainItem, ...]) -> None:
    schedule = Schedule(items, settings=make_settings(max_steps=9))
    forwards = ids_of(schedule)
    assert [schedule[position].target.target_id for position in reversed(range(len(schedule)))] == forwards[::-1]


def test_a_training_is_laid_out_without_reading_a_distribution(
    examples: dict[str, Example], targets: list[Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CacheWriter(tmp_path, **IDENTITY) as writer:
        for row in targets:
            writer.add(row)
    mapped = map_targets(open_cache(tmp_path))
    read: set[str] = set()
    value = RowReader.value

    def noting(self: RowReader, index: int, name: str) -> Any:
        read.add(name)
        return value(self, index, name)

    monkeypatch.setattr(RowReader, "value", noting)
    rows = build_items(examples, mapped, [TargetSelection.model_validate(said) for said in SELECTIONS]).items
    schedule = Schedule(rows, settings=make_settings(max_steps=9))

    assert len({row.target.target_id for row in (schedule[i] for i in range(len(schedule)))}) == len(targets)
    assert read and not any(pa.types.is_list(SCHEMA.field(name).type) for name in read)


def test_a_step_that_does_not_divide_is_refused(items: tuple[TrainItem, ...]) -> None:
    with pytest.raises(DistillError, match="= 7 does not divide into 2 micro-batches"):
        Schedule(items, settings=make_settings(forget_batch=3, gradient_accumulation_steps=2))


def test_a_role_without_rows_is_refused(items: tuple[TrainItem, ...]) -> None:
    only_forget = [replace(item) for item in items if item.role == "forget"]
    with pytest.raises(DistillError, match="every selected retain row is truncated"):
        Schedule(only_forget, settings=make_settings())
