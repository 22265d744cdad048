"""Which rows every optimizer step sees: a pure function of (seed, epoch, target), with no state to lose.

Every step holds `forget_batch` forget rows and `retain_batch` retain rows. Each role is an endless sequence of
permutations of its rows; steps run across the seam between two permutations, so all steps have the same size and a row
may, rarely, stand twice in one. Where an example has several rows (draws, samples, response kinds), a permutation holds
all of them, or one of them in turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import sha256

from vgid.errors import DistillError
from vgid.stage2_distill.batches import TrainItem
from vgid.stage2_distill.settings import DistillSettings, Draws


class Stream:
    """Rows of one role, permuted anew for every epoch by the hash of (seed, epoch, target_id)."""

    def __init__(self, items: Sequence[TrainItem], *, seed: int, draws: Draws) -> None:
        groups: dict[str, list[TrainItem]] = {}
        for item in sorted(items, key=lambda item: item.target.target_id):
            groups.setdefault(item.example.example_id if draws == "cycle" else item.target.target_id, []).append(item)
        self._groups, self._seed = groups, seed
        self._orders: dict[int, list[TrainItem]] = {}

    def __len__(self) -> int:
        """Rows of an epoch."""
        return len(self._groups)

    def __getitem__(self, position: int) -> TrainItem:
        epoch, index = divmod(position, len(self))
        if epoch not in self._orders:
            # One step may lie on both sides of a seam, in any order; older permutations are not needed again.
            self._orders = {known: order for known, order in self._orders.items() if abs(known - epoch) == 1}
            chosen = (group[(self._first(name) + epoch) % len(group)] for name, group in self._groups.items())
            self._orders[epoch] = sorted(chosen, key=lambda item: self._hash(f"{epoch}/{item.target.target_id}"))
        return self._orders[epoch][index]

    def _first(self, name: str) -> int:
        """Where a group begins, so that not all of them show their first draw in the first epoch."""
        return int.from_bytes(self._hash(name)[:8])

    def _hash(self, text: str) -> bytes:
        return sha256(f"{self._seed}/{text}".encode()).digest()


def micro_batch(settings: DistillSettings, *, num_processes: int) -> int:
    """Rows that a process computes at a time.

    Raises:
        DistillError: a step does not divide into micro-batches.
    """
    step_size = settings.forget_batch + settings.retain_batch
    num_parts = settings.gradient_accumulation_steps * num_processes
    if step_size % num_parts:
        raise DistillError(
            f"forget_batch + retain_batch = {step_size} does not divide into {num_parts} micro-batches "
            f"({settings.gradient_accumulation_steps} accumulation steps x {num_processes} processes); change one"
        )
    return step_size // num_parts


class Schedule:
    """All rows of a training in order, cut into steps and these into micro-batches: a torch map-style data set."""

    def __init__(self, items: Sequence[TrainItem], *, settings: DistillSettings, num_processes: int = 1) -> None:
        """Lay out the training.

        Raises:
            DistillError: a role has no rows, or a step does not divide into micro-batches.
        """
        forget = [item for item in items if item.role == "forget"]
        retain = [item for item in items if item.role == "retain"]
        self.num_rows = {"forget": len(forget), "retain": len(retain)}
        self._forget_batch, self._retain_batch = settings.forget_batch, settings.retain_batch
        for role, batch in (("forget", self._forget_batch), ("retain", self._retain_batch)):
            if batch and not self.num_rows[role]:
                raise DistillError(
                    f"{role}_batch is {batch} but every selected {role} row is truncated; raise max_new_tokens"
                )
        self._forget, self._retain = (
            Stream(role, seed=settings.seed, draws=settings.draws) for role in (forget, retain)
        )
        passes = (settings.epochs or 0) * len(self._forget)
        self.num_steps = settings.max_steps or math.ceil(passes / settings.forget_batch)
        self.step_size = self._forget_batch + self._retain_batch
        self._num_parts = settings.gradient_accumulation_steps * num_processes
        self.micro_batch = micro_batch(settings, num_processes=num_processes)

    def __len__(self) -> int:
        return self.num_steps * self.step_size

    def __getitem__(self, position: int) -> TrainItem:
        step, slot = divmod(position, self.step_size)
        part, index = divmod(slot, self.micro_batch)
        # Strided, so that every micro-batch (and process) gets its share of both roles.
        row = part + index * self._num_parts
        if row < self._forget_batch:
            return self._forget[step * self._forget_batch + row]
        return self._retain[step * self._retain_batch + row - self._forget_batch]
