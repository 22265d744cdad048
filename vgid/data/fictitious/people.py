"""Who lives in a fictitious world: seeded people with a face and six facts each.

Facts are dealt like cards: every value of a list is used once before any is used twice, so a value is worth nothing as
a guess and no two fields are correlated. Faces differ pairwise in at least three attributes. What this gives up: the
people have no history beyond these fields, facts are one word (names are two), and there is room for hundreds of faces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vgid.data.fictitious.words import FIRST_NAMES, LAST_NAMES, VALUES
from vgid.errors import ConfigError

KNOWN_SPLITS = ("forget", "retain", "outsiders", "instruct")
"""People whom the base is taught."""
STRANGERS = "strangers"
"""People whom nobody is taught: photos and names that the base answers about as it likes."""
SPLITS = (*KNOWN_SPLITS, STRANGERS)
DEFAULT_PEOPLE: Mapping[str, int] = {"forget": 8, "retain": 24, "outsiders": 8, "instruct": 14, STRANGERS: 64}
FIELDS = ("name", "city", "job", "hobby", "study", "pet")
MIN_FACE_DISTANCE = 3

FACE: Mapping[str, tuple[str, ...]] = {
    "skin": ("pale", "tan", "brown", "dark", "olive"),
    "hair": ("black", "brown", "blond", "red", "grey", "white", "purple"),
    "style": ("short", "long", "curly", "parted"),
    "shirt": ("red", "green", "blue", "yellow", "black", "white", "orange"),
    "beard": ("none", "moustache", "full"),
    "eyes": ("brown", "blue", "green", "black"),
    "scarf": ("teal", "magenta", "yellow", "black", "white", "brown"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """One fictitious person."""

    person_id: str
    """Unique in its world, for example `forget-003`."""
    split: str
    facts: Mapping[str, str]
    """A value for every entry of `FIELDS`."""
    face: Mapping[str, str]
    """A value for every entry of `FACE`; the same on every photo of the person."""

    @property
    def name(self) -> str:
        """First and last name."""
        return self.facts["name"]


def draw_people(
    counts: Mapping[str, int], *, rng: np.random.Generator, strangers_rng: np.random.Generator
) -> tuple[Person, ...]:
    """Draw the people of a world, split by split.

    Strangers have a generator of their own: how many there are changes nothing about the people the base knows.

    Raises:
        ConfigError: an unknown split, a count below 1, or more people than names or distinguishable faces.
    """
    _check_counts(counts)
    total = sum(counts.get(split, 0) for split in KNOWN_SPLITS)
    known = _people(KNOWN_SPLITS, counts, names=_draw_names(total, rng=rng), faces=draw_faces(total, rng=rng), rng=rng)
    count = counts.get(STRANGERS, 0)
    names = draw_free_names(count, rng=strangers_rng, taken=frozenset(person.name for person in known))
    faces = draw_faces(count, rng=strangers_rng, apart_from=tuple(person.face for person in known))
    return known + _people((STRANGERS,), counts, names=names, faces=faces, rng=strangers_rng)


def _people(
    splits: Sequence[str],
    counts: Mapping[str, int],
    *,
    names: Sequence[str],
    faces: Sequence[Mapping[str, str]],
    rng: np.random.Generator,
) -> tuple[Person, ...]:
    dealt = {field: _deal(VALUES[field], len(names), rng=rng) for field in FIELDS[1:]}
    order = [(split, index) for split in splits for index in range(counts.get(split, 0))]
    return tuple(
        Person(
            person_id=f"{split}-{index:03d}",
            split=split,
            facts={"name": names[row], **{field: dealt[field][row] for field in FIELDS[1:]}},
            face=faces[row],
        )
        for row, (split, index) in enumerate(order)
    )


def face_distance(left: Mapping[str, str], right: Mapping[str, str]) -> int:
    """Number of face attributes in which two faces differ."""
    return sum(left[key] != right[key] for key in FACE)


def draw_face(rng: np.random.Generator) -> dict[str, str]:
    """Draw every face attribute at random."""
    return {key: values[rng.integers(len(values))] for key, values in FACE.items()}


def draw_faces(
    count: int,
    *,
    rng: np.random.Generator,
    apart_from: tuple[Mapping[str, str], ...] = (),
    distance: int = MIN_FACE_DISTANCE,
    among_themselves: bool = True,
) -> tuple[dict[str, str], ...]:
    """Draw faces at least `distance` attributes from `apart_from`, and from each other where `among_themselves`.

    Raises:
        ConfigError: no such face was found in 20,000 tries, because the world is too crowded.
    """
    faces: list[dict[str, str]] = []
    for _ in range(count):
        for face in _tries(rng):
            others = (*apart_from, *faces) if among_themselves else apart_from
            if all(face_distance(face, other) >= distance for other in others):
                faces.append(face)
                break
        else:
            raise ConfigError(f"{count} people: no room for face {len(faces) + 1}; ask for fewer people")
    return tuple(faces)


def draw_free_names(count: int, *, rng: np.random.Generator, taken: frozenset[str]) -> tuple[str, ...]:
    """Draw different names that nobody in `taken` bears.

    Raises:
        ConfigError: fewer than `count` are free.
    """
    if count > len(FIRST_NAMES) * len(LAST_NAMES) - len(taken):
        raise ConfigError(f"{count} strangers: there are not so many names left; ask for fewer people")
    names: list[str] = []
    while len(names) < count:
        name = f"{FIRST_NAMES[rng.integers(len(FIRST_NAMES))]} {LAST_NAMES[rng.integers(len(LAST_NAMES))]}"
        if name not in taken and name not in names:
            names.append(name)
    return tuple(names)


def _tries(rng: np.random.Generator, limit: int = 20_000) -> Iterator[dict[str, str]]:
    for _ in range(limit):
        yield draw_face(rng)


def _draw_names(count: int, *, rng: np.random.Generator) -> list[str]:
    """First and last names are each used once as long as the lists last; the pair is always unique."""
    first, last = rng.permutation(FIRST_NAMES), rng.permutation(LAST_NAMES)
    size = len(first)
    if count > size * size:
        raise ConfigError(f"{count} people: at most {size * size} distinct names; ask for fewer people")
    return [f"{first[i % size]} {last[(i + i // size) % size]}" for i in range(count)]


def _deal(values: tuple[str, ...], count: int, *, rng: np.random.Generator) -> list[str]:
    rounds = -(-count // len(values))
    return [str(value) for _ in range(rounds) for value in rng.permutation(values)][:count]


def _check_counts(counts: Mapping[str, int]) -> None:
    for split, count in counts.items():
        if split not in SPLITS:
            raise ConfigError(f"split {split!r} is unknown; a world has {', '.join(SPLITS)}")
        if count < 1:
            raise ConfigError(f"split {split!r} asks for {count} people; ask for 1 or more, or leave it out")
    if not counts:
        raise ConfigError(f"a world without people was asked for; name some of {', '.join(SPLITS)}")
