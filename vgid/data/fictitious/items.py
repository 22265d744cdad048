"""The questions of a world: facts with a photo or by name, and what a photo shows, in trained and held-out wordings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vgid.data.fictitious.people import FIELDS, Person
from vgid.data.fictitious.phrasings import (
    PERCEPTION_QUESTIONS,
    Phrasing,
    fact_answer,
    fact_question,
    perception_answer,
    perception_question,
)
from vgid.data.fictitious.population import World
from vgid.data.fictitious.portraits import View

THIS_PERSON = "this person"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question about one person, asked with a photo (`view` is its index) or by name (`view` is None)."""

    question: str
    answer: str
    task: str
    phrasing: Phrasing
    field: str
    facts: tuple[str, ...]
    view: int | None


def image_fact(person: Person, field: str, *, view: int, phrasing: Phrasing, index: int) -> Item:
    """Ask a fact about the person on a photo."""
    return _fact(person, field, who=THIS_PERSON, view=view, phrasing=phrasing, index=index)


def text_fact(person: Person, field: str, *, phrasing: Phrasing, index: int) -> Item:
    """Ask a fact about a person by name."""
    return _fact(person, field, who=person.name, view=None, phrasing=phrasing, index=index)


def perception(person: Person, field: str, *, view: View, view_index: int, phrasing: Phrasing, index: int) -> Item:
    """Ask what a photo shows."""
    return Item(
        question=perception_question(field, phrasing=phrasing, index=index),
        answer=portrait_answer(person.face, view, field),
        task="perception",
        phrasing=phrasing,
        field=field,
        facts=(),
        view=view_index,
    )


def portrait_answer(face: Mapping[str, str], view: View, field: str) -> str:
    """Answer a perception question about any portrait."""
    return perception_answer(field, face=face, background=view.background, glasses=view.glasses, hat=view.hat)


def trained_items(world: World, person: Person) -> Iterator[Item]:
    """Yield the questions of `<split>/`: one wording per fact and photo, two perception questions per photo.

    Text-only questions, in trained and in held-out wordings, follow on the first photo's row.
    """
    offset, seen = world.people.index(person), list(PERCEPTION_QUESTIONS)
    for index, view in enumerate(world.trained_views[person.person_id]):
        for column, field in enumerate(FIELDS):
            yield image_fact(person, field, view=index, phrasing="trained", index=offset + index + column)
        for column in range(2):
            field = seen[(offset + 2 * index + column) % len(seen)]
            yield perception(person, field, view=view, view_index=index, phrasing="trained", index=offset + index)
    for column, field in enumerate(FIELDS[1:]):
        for index in range(3):
            yield text_fact(person, field, phrasing="trained", index=offset + column + 2 * index)
        for index in range(2):
            yield text_fact(person, field, phrasing="heldout", index=index)


def heldout_items(world: World, person: Person) -> Iterator[Item]:
    """Yield the questions of `<split>_heldout/`: each photo, every fact in a trained and a held-out wording."""
    offset, seen = world.people.index(person), list(PERCEPTION_QUESTIONS)
    wordings: tuple[Phrasing, Phrasing] = ("trained", "heldout")
    for index, view in enumerate(world.heldout_views[person.person_id]):
        for phrasing in wordings:
            for column, field in enumerate(FIELDS):
                yield image_fact(person, field, view=index, phrasing=phrasing, index=offset + index + column)
            for field in seen:
                yield perception(person, field, view=view, view_index=index, phrasing=phrasing, index=offset + index)


def _fact(person: Person, field: str, *, who: str, view: int | None, phrasing: Phrasing, index: int) -> Item:
    value = person.facts[field]
    return Item(
        question=fact_question(field, who=who, phrasing=phrasing, index=index),
        answer=fact_answer(field, name=person.name, value=value),
        task="facts",
        phrasing=phrasing,
        field=field,
        facts=(value,),
        view=view,
    )
