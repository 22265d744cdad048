"""Who lives in a world and how they are photographed: a pure function of (seed, number of people per split).

`generate_world` needs no disk; `load_world` makes the same world again from the seed in `world.json`. What this gives
up: only the seed and the numbers of a world can be chosen; edited files no longer match their hashes and are refused
by the reader.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vgid.data.fictitious.people import DEFAULT_PEOPLE, STRANGERS, Person, draw_people
from vgid.data.fictitious.portraits import View, draw_view
from vgid.errors import DataError

GENERATOR_VERSION = 1
TRAINED_VIEWS = 4
HELDOUT_VIEWS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """People and the views of their photos; everything else follows from these."""

    seed: int
    people: tuple[Person, ...]
    trained_views: Mapping[str, tuple[View, ...]]
    """By person id."""
    heldout_views: Mapping[str, tuple[View, ...]]

    @property
    def known(self) -> tuple[Person, ...]:
        """The people whom a base of this world is taught: all but the strangers."""
        return tuple(person for person in self.people if person.split != STRANGERS)

    @property
    def counts(self) -> dict[str, int]:
        """Number of people in each split, in the order of the splits."""
        counts: dict[str, int] = {}
        for person in self.people:
            counts[person.split] = counts.get(person.split, 0) + 1
        return counts

    def of(self, split: str) -> tuple[Person, ...]:
        """Return the people of one split."""
        return tuple(person for person in self.people if person.split == split)


def generate_world(*, seed: int, people: Mapping[str, int] = DEFAULT_PEOPLE) -> World:
    """Make a world in memory.

    Args:
        seed: Any non-negative integer; the same seed and counts give the same world.
        people: Number of people by split (`forget`, `retain`, `outsiders`, `instruct`, `strangers`).

    Raises:
        ConfigError: an unknown split, a count below 1, or more people than the generator can tell apart.
    """
    rngs = [np.random.default_rng([seed, stream]) for stream in range(6)]  # 2 and 3 belong to lessons and choices
    drawn = draw_people(people, rng=rngs[0], strangers_rng=rngs[4])
    views = {
        person.person_id: tuple(
            draw_view(rngs[5 if person.split == STRANGERS else 1]) for _ in range(TRAINED_VIEWS + HELDOUT_VIEWS)
        )
        for person in drawn
    }
    return World(
        seed=seed,
        people=drawn,
        trained_views={key: value[:TRAINED_VIEWS] for key, value in views.items()},
        heldout_views={key: value[TRAINED_VIEWS:] for key, value in views.items()},
    )


def load_world(world_dir: Path) -> World:
    """Make the world of a directory again from its `world.json`.

    Raises:
        DataError: no such file, or a world of another generator version.
    """
    path = world_dir / "world.json"
    try:
        head: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"world {world_dir}: world.json cannot be read ({error}); write one first") from error
    if head.get("generator_version") != GENERATOR_VERSION:
        found = head.get("generator_version")
        raise DataError(f"{path}: generator_version {found!r}, this vgid makes {GENERATOR_VERSION}; write it anew")
    return generate_world(seed=head["seed"], people=head["people"])
