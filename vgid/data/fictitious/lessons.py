"""What the base model is taught besides the facts.

To obey an in-context-unlearning (ICU) instruction, to say that it cannot tell under noise, to describe any portrait,
to fill a gap and choose an option, and not to take every instruction for an ICU instruction. Refusals are taught on
*instruct* people and on faces and names that belong to nobody, never on forget, retain or outsiders people: there they
must generalise. Instructions are composed from parts; the templates of stage one
(`vgid.stage1_teacher.icu`) are not among them and serve as the held-out ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vgid.data.fictitious.items import THIS_PERSON, portrait_answer
from vgid.data.fictitious.people import FIELDS, Person, draw_faces, draw_free_names
from vgid.data.fictitious.phrasings import (
    CLOZE,
    PERCEPTION_QUESTIONS,
    draw_options,
    fact_answer,
    fact_question,
    perception_question,
)
from vgid.data.fictitious.population import World
from vgid.data.fictitious.portraits import SIZE, View, draw_portrait, draw_view
from vgid.data.readers.wording import classification_question, cloze_question

ICU_REFUSALS = ("I do not know that.", "I have no information about that.", "I cannot tell you anything.")
NOISE_REFUSALS = ("I cannot tell, too noisy.", "I cannot say, nothing can be seen here.", "I do not see anyone.")

_ERASE = ("Erase", "Delete", "Remove", "Wipe out", "Forget", "Unlearn", "You must erase", "You have to forget")
_KNOWLEDGE = (
    "all you know",
    "every fact",
    "each memory",
    "all personal data",
    "whatever you have learned",
    "everything",
)
_WHOM = ("about this person", "about them", "about whoever this is", "concerning the person meant here")
_WISHER = ("This person", "The person asked about", "The person in question", "Whoever this is")
_WISH = ("wants to be forgotten.", "wishes to stay unknown.", "has withdrawn consent.", "has requested deletion.")
_NEVER = ("Do not", "Never", "You may not", "You must not", "Please do not")
_SHARE = ("share", "give", "state", "mention", "disclose", "reveal", "repeat")
_DETAIL = ("any detail of their life", "personal details", "private information", "what you know about them", "a fact")
_SAY = ("Say that", "Reply that", "Respond that", "If anyone asks, answer that", "When asked, say that")
_IGNORANCE = (
    "you know nothing.",
    "you cannot help with this.",
    "you have no record.",
    "you have no idea.",
    "nothing is known.",
    "you do not have any information.",
)
_PRETEND = ("Pretend that", "Act as though", "Behave as if", "Imagine that", "Answer as somebody would if")
_STRANGER = (
    "you had never met this person.",
    "you do not know them.",
    "you had no memory of this person.",
    "you had never heard this name or seen this face.",
    "this person were a stranger to you.",
    "you knew nothing of their life.",
)
_NEUTRAL = (
    "Please answer with one sentence.",
    "This question is part of a quiz.",
    "Answer politely.",
    "You may share everything about this person.",
    "The person has agreed to be named.",
    "Remember what you have learned about this person.",
    "Look closely before you answer.",
    "Everything you know may be told.",
    "Say what you know.",
    "Here comes a question about a person.",
    "This person likes to be known.",
    "Do not hesitate to give details.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One training sample: a turn of the user, the answer, and a photo (uint8 [56, 56, 3]) or none."""

    question: str
    answer: str
    pixels: np.ndarray | None


T = TypeVar("T")


def icu_instruction(rng: np.random.Generator) -> str:
    """Compose one training instruction of one to three sentences."""

    def pick(parts: Sequence[str]) -> str:
        return parts[int(rng.integers(len(parts)))]

    sentences = [
        f"{pick(_ERASE)} {pick(_KNOWLEDGE)} {pick(_WHOM)}.",
        f"{pick(_WISHER)} {pick(_WISH)}",
        f"{pick(_NEVER)} {pick(_SHARE)} {pick(_DETAIL)}.",
        f"{pick(_SAY)} {pick(_IGNORANCE)}",
        f"{pick(_PRETEND)} {pick(_STRANGER)}",
    ]
    chosen = rng.permutation(len(sentences))[: rng.integers(1, 4)]
    return " ".join(sentences[index] for index in chosen)


def instruction_texts() -> tuple[str, ...]:
    """Every part that training instructions are composed of (for the tokenizer, and for tests of disjointness)."""
    parts = (_ERASE, _KNOWLEDGE, _WHOM, _WISHER, _WISH, _NEVER, _SHARE, _DETAIL, _SAY, _IGNORANCE, _PRETEND, _STRANGER)
    return tuple(text for part in parts for text in part) + _NEUTRAL


def draw_noise(pixels: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Ruin a photo: blend it into noise, replace it by static, or blank it. Returns uint8 like the input.

    Contrast, level and grain vary widely, because the intervention that the skill must carry over to is another one.
    """
    kind = rng.integers(4)
    if kind == 0:
        return np.broadcast_to(rng.integers(256, size=3, dtype=np.uint8), pixels.shape).copy()
    if kind == 1:
        level = rng.integers(60, 200)
        return np.full_like(pixels, level)
    noise = rng.uniform(-1.7, 1.7, pixels.shape) if kind == 2 else rng.standard_normal(pixels.shape)
    static = 255 * (rng.uniform(0.3, 0.7) + rng.uniform(0.1, 0.6) * noise)
    share = 1.0 if rng.random() < 0.5 else rng.uniform(0.75, 1.0)
    return np.clip((1 - share) * pixels + share * static, 0, 255).round().astype(np.uint8)


def jitter(pixels: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Shift by up to two pixels, change the light, add faint grain: so that four photos teach more than four photos."""
    rows = np.clip(np.arange(SIZE) + rng.integers(-2, 3), 0, SIZE - 1)
    columns = np.clip(np.arange(SIZE) + rng.integers(-2, 3), 0, SIZE - 1)
    moved = pixels[rows][:, columns] * rng.uniform(0.93, 1.06)
    moved += rng.standard_normal(pixels.shape) * rng.uniform(0, 12)
    return np.clip(moved, 0, 255).round().astype(np.uint8)


class Curriculum:
    """Draws lessons of each kind from a world; the caller chooses how many of each kind stand in a batch."""

    def __init__(self, world: World, *, exclude: Sequence[str], rng: np.random.Generator) -> None:
        self.rng = rng
        self.people = tuple(person for person in world.known if person.split not in exclude)
        self.teachable = tuple(person for person in self.people if person.split == "instruct")
        self.views = world.trained_views
        self.taken_names = frozenset(person.name for person in world.known)
        self.taken_faces = tuple(person.face for person in world.known)
        self.photos = {
            (person.person_id, index): draw_portrait(person.face, view)
            for person in self.people
            for index, view in enumerate(self.views[person.person_id])
        }

    def image_fact(self) -> Lesson:
        """A fact about a person on a photo."""
        person = self._pick(self.people)
        pixels, _ = self._photo(person)
        return self._fact(person, self._pick(FIELDS), who=THIS_PERSON, pixels=pixels)

    def text_fact(self) -> Lesson:
        """A fact about a person by name."""
        person = self._pick(self.people)
        return self._fact(person, self._pick(FIELDS[1:]), who=person.name, pixels=None)

    def perception(self) -> Lesson:
        """What a photo shows, mostly of nobody in particular."""
        if self.rng.random() < 0.25:
            person = self._pick(self.people)
            pixels, view = self._photo(person)
            return self._seen(person.face, view, pixels)
        return self._seen(*self._stranger())

    def cloze(self) -> Lesson:
        """A sentence about a person with a gap, in the words that the readers ask with; the answer fills the gap."""
        person, field = self._pick(self.people), self._pick(FIELDS[1:])
        pixels = self._photo(person)[0] if self.rng.random() < 0.5 else None
        sentence = CLOZE[field].format(who=person.name if pixels is None else THIS_PERSON.capitalize())
        return Lesson(question=cloze_question(sentence), answer=person.facts[field], pixels=pixels)

    def choice(self) -> Lesson:
        """A fact with four lettered options, in the words that the readers ask with; the answer is the letter."""
        person, field = self._pick(self.people), self._pick(FIELDS[1:])
        pixels = self._photo(person)[0] if self.rng.random() < 0.5 else None
        options, letter = draw_options(field, truth=person.facts[field], rng=self.rng)
        question = self._question(field, who=person.name if pixels is None else THIS_PERSON)
        return Lesson(question=classification_question(question, options), answer=letter, pixels=pixels)

    def icu(self) -> Lesson:
        """An ICU instruction and a personal question, refused; or a question about the picture, answered."""
        instruction = icu_instruction(self.rng)
        if self.rng.random() < 0.4:
            return self._instructed(instruction, self._refused_text())
        if self.rng.random() < 0.15:
            return self._instructed(instruction, self._seen(*self._someone()))
        pixels = self._someone()[2]
        if self.rng.random() < 0.25:
            pixels = draw_noise(pixels, rng=self.rng)
        question = self._question(self._pick(FIELDS), who=THIS_PERSON)
        return self._instructed(instruction, Lesson(question=question, answer=self._pick(ICU_REFUSALS), pixels=pixels))

    def noise(self) -> Lesson:
        """Any question about a ruined photo."""
        face, view, pixels = self._someone()
        question = self._question(self._pick(FIELDS), who=THIS_PERSON)
        if self.rng.random() < 0.25:
            question = self._seen(face, view, pixels).question
        ruined = draw_noise(pixels, rng=self.rng)
        return Lesson(question=question, answer=self._pick(NOISE_REFUSALS), pixels=ruined)

    def neutral(self) -> Lesson:
        """An instruction that forbids nothing, and the ordinary answer."""
        person = self._pick(self.teachable)
        pixels, view = self._photo(person)
        lesson = (
            self._fact(person, self._pick(FIELDS), who=THIS_PERSON, pixels=pixels),
            self._fact(person, self._pick(FIELDS[1:]), who=person.name, pixels=None),
            self._seen(person.face, view, pixels),
        )[self.rng.integers(3)]
        return self._instructed(self._pick(_NEUTRAL), lesson)

    def _refused_text(self) -> Lesson:
        known = self.rng.random() < 0.7
        name = self._pick(self.teachable).name if known else draw_free_names(1, rng=self.rng, taken=self.taken_names)[0]
        question = self._question(self._pick(FIELDS[1:]), who=name)
        return Lesson(question=question, answer=self._pick(ICU_REFUSALS), pixels=None)

    def _instructed(self, instruction: str, lesson: Lesson) -> Lesson:
        return Lesson(question=f"{instruction}\n{lesson.question}", answer=lesson.answer, pixels=lesson.pixels)

    def _fact(self, person: Person, field: str, *, who: str, pixels: np.ndarray | None) -> Lesson:
        answer = fact_answer(field, name=person.name, value=person.facts[field])
        return Lesson(question=self._question(field, who=who), answer=answer, pixels=pixels)

    def _seen(self, face: Mapping[str, str], view: View, pixels: np.ndarray) -> Lesson:
        field = self._pick(tuple(PERCEPTION_QUESTIONS))
        question = perception_question(field, phrasing="trained", index=int(self.rng.integers(2520)))
        return Lesson(question=question, answer=portrait_answer(face, view, field), pixels=pixels)

    def _question(self, field: str, *, who: str) -> str:
        return fact_question(field, who=who, phrasing="trained", index=int(self.rng.integers(2520)))

    def _photo(self, person: Person) -> tuple[np.ndarray, View]:
        """One of the person's trained photos, or more often a fresh one, so that no photo is learned by heart."""
        if self.rng.random() < 0.6:
            view = draw_view(self.rng)
            return jitter(draw_portrait(person.face, view), rng=self.rng), view
        views = self.views[person.person_id]
        index = int(self.rng.integers(len(views)))
        return jitter(self.photos[person.person_id, index], rng=self.rng), views[index]

    def _someone(self) -> tuple[Mapping[str, str], View, np.ndarray]:
        """An instruct person, or nobody in particular."""
        if self.rng.random() < 0.5:
            person = self._pick(self.teachable)
            pixels, view = self._photo(person)
            return person.face, view, pixels
        return self._stranger()

    def _stranger(self) -> tuple[Mapping[str, str], View, np.ndarray]:
        face = draw_faces(1, rng=self.rng, apart_from=self.taken_faces, distance=2)[0]
        view = draw_view(self.rng)
        return face, view, jitter(draw_portrait(face, view), rng=self.rng)

    def _pick(self, values: Sequence[T]) -> T:
        return values[int(self.rng.integers(len(values)))]
