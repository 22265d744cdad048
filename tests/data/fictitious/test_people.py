"""People: a pure function of the generator, distinct faces and names, facts that cannot be guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pytest

from vgid.data.fictitious.people import (
    DEFAULT_PEOPLE,
    FACE,
    FIELDS,
    STRANGERS,
    Person,
    draw_faces,
    draw_free_names,
    draw_people,
    face_distance,
)
from vgid.data.fictitious.words import FIRST_NAMES, LAST_NAMES, VALUES
from vgid.errors import ConfigError


def _people(counts: Mapping[str, int], *, seed: int) -> tuple[Person, ...]:
    return draw_people(counts, rng=np.random.default_rng([seed, 0]), strangers_rng=np.random.default_rng([seed, 4]))


@pytest.mark.parametrize("seed", range(5))
def test_any_two_faces_differ_in_at_least_three_attributes(seed: int) -> None:
    people = _people(DEFAULT_PEOPLE, seed=seed)
    assert min(face_distance(a.face, b.face) for a, b in combinations(people, 2)) >= 3


def test_first_names_last_names_and_ids_are_unique_in_the_default_world() -> None:
    people = [person for person in _people(DEFAULT_PEOPLE, seed=0) if person.split != STRANGERS]
    for values in zip(*((p.person_id, *p.name.split()) for p in people), strict=True):
        assert len(set(values)) == len(people)


def test_full_names_stay_unique_when_the_lists_run_out() -> None:
    people = _people({"retain": 120}, seed=0)
    assert len({person.name for person in people}) == 120


def test_no_value_is_dealt_again_before_all_others() -> None:
    people = _people({"retain": 50}, seed=0)
    for field in FIELDS[1:]:
        counts = Counter(person.facts[field] for person in people)
        assert set(counts) == set(VALUES[field])
        assert max(counts.values()) <= 2


def test_no_word_stands_in_two_lists_and_every_value_takes_a() -> None:
    words = [*FIRST_NAMES, *LAST_NAMES, *(value for values in VALUES.values() for value in values)]
    assert len(words) == len(set(words))
    assert not [value for field in ("job", "pet") for value in VALUES[field] if value[0] in "aeiou"]
    assert set(VALUES) == set(FIELDS) - {"name"}


def test_free_names_are_different_and_nobodys() -> None:
    taken = frozenset(f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES[1:])
    names = draw_free_names(len(FIRST_NAMES), rng=np.random.default_rng(0), taken=taken)
    assert len(set(names)) == len(FIRST_NAMES)
    assert not taken & set(names)
    with pytest.raises(ConfigError, match="strangers"):
        draw_free_names(len(FIRST_NAMES) + 1, rng=np.random.default_rng(0), taken=taken)


def test_the_number_of_strangers_changes_nothing_about_the_others() -> None:
    few, many = ({**DEFAULT_PEOPLE, STRANGERS: count} for count in (3, 50))
    known = [[p for p in _people(counts, seed=0) if p.split != STRANGERS] for counts in (few, many)]
    assert known[0] == known[1]
    names = [person.name for person in _people(many, seed=0)]
    assert len(names) == len(set(names))


def test_faces_keep_their_distance_from_given_ones() -> None:
    rng = np.random.default_rng(0)
    known = draw_faces(40, rng=rng)
    fresh = draw_faces(40, rng=rng, apart_from=known, distance=2, among_themselves=False)
    assert min(face_distance(a, b) for a in known for b in fresh) >= 2


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"everybody": 3}, "everybody"),
        ({"forget": 0}, "0 people"),
        ({}, "without people"),
        ({"retain": 10_000}, "10000"),
    ],
)
def test_impossible_worlds_are_refused(counts: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _people(counts, seed=0)


def test_a_crowded_world_says_so() -> None:
    every = tuple({key: values[0] for key, values in FACE.items()} for _ in range(1))
    with pytest.raises(ConfigError, match="no room"):
        draw_faces(1, rng=np.random.default_rng(0), apart_from=every, distance=len(FACE) + 1)
