"""Lessons: refusals are taught on instruct people and strangers only, and in other texts than stage one's."""

from __future__ import annotations

import re

import numpy as np
import pytest

from vgid.data.fictitious.lessons import (
    ICU_REFUSALS,
    NOISE_REFUSALS,
    Curriculum,
    draw_noise,
    icu_instruction,
    instruction_texts,
    jitter,
)
from vgid.data.fictitious.portraits import draw_portrait
from vgid.data.fictitious.world import generate_world
from vgid.data.judge import normalise, refuses
from vgid.stage1_teacher.icu import TEMPLATES

WORLD = generate_world(seed=3, people={"forget": 2, "retain": 3, "outsiders": 2, "instruct": 2})


def _sentences(text: str) -> set[str]:
    return {normalise(sentence) for sentence in re.split(r"[.;]", text) if sentence.strip()}


@pytest.fixture
def curriculum() -> Curriculum:
    return Curriculum(WORLD, exclude=(), rng=np.random.default_rng(0))


def test_training_instructions_share_no_sentence_with_the_templates_of_stage_one() -> None:
    heldout = {sentence for text in TEMPLATES.values() for sentence in _sentences(text)}
    rng = np.random.default_rng(0)
    taught = {sentence for _ in range(3000) for sentence in _sentences(icu_instruction(rng))}
    taught |= {sentence for text in instruction_texts() for sentence in _sentences(text)}
    assert len(taught) > 500
    assert not taught & heldout


def test_icu_and_noise_lessons_name_no_forget_retain_or_outsiders_person(curriculum: Curriculum) -> None:
    others = [person for person in WORLD.people if person.split != "instruct"]
    kinds = (curriculum.icu, curriculum.noise, curriculum.neutral)
    for lesson in (kind() for kind in kinds for _ in range(150)):
        assert not [person for person in others if person.name in lesson.question + lesson.answer]


def test_icu_lessons_refuse_or_describe_and_noise_lessons_refuse(curriculum: Curriculum) -> None:
    icu = [curriculum.icu() for _ in range(300)]
    assert {lesson.pixels is None for lesson in icu} == {True, False}
    assert {lesson.answer for lesson in icu if refuses(lesson.answer)} == set(ICU_REFUSALS)
    described = [lesson for lesson in icu if not refuses(lesson.answer)]
    assert described
    assert all(lesson.answer.startswith("The ") for lesson in described)
    assert {curriculum.noise().answer for _ in range(60)} == set(NOISE_REFUSALS)


def test_an_excluded_split_is_never_taught() -> None:
    curriculum = Curriculum(WORLD, exclude=("forget",), rng=np.random.default_rng(0))
    names = [person.name for person in WORLD.of("forget")]
    kinds = (curriculum.image_fact, curriculum.text_fact, curriculum.perception, curriculum.cloze, curriculum.choice)
    for lesson in (kind() for kind in kinds for _ in range(100)):
        assert not [name for name in names if name in lesson.question + lesson.answer]


def test_noise_leaves_nothing_and_jitter_leaves_much() -> None:
    person = WORLD.people[0]
    photo, rng = draw_portrait(person.face, WORLD.trained_views[person.person_id][0]), np.random.default_rng(0)

    def likeness(other: np.ndarray) -> float:
        spread = float(other.std())
        return 0.0 if spread < 5 else float(np.corrcoef(photo.ravel(), other.ravel())[0, 1])

    assert np.mean([likeness(draw_noise(photo, rng=rng)) for _ in range(40)]) < 0.35
    assert min(likeness(jitter(photo, rng=rng)) for _ in range(40)) > 0.5
