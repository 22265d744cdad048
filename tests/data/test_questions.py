"""Questions from templates, and the rule by which facts are found in a model's own answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vgid.data.judge import leaks
from vgid.data.questions import IDENTITY, Question, facts_of_answers, questions_about

NAME = "Mara Quill"


def answered(attribute: str, *answers: str, modality: str = "text", name: str = NAME) -> list[tuple[Question, str]]:
    """The first wordings of an attribute with these answers."""
    asked = [each for each in questions_about(name) if (each.attribute, each.modality) == (attribute, modality)]
    return list(zip(asked, answers, strict=False))


def test_every_attribute_is_asked_by_photo_and_by_name_in_several_wordings():
    questions = questions_about(NAME)
    assert len({question.text for question in questions}) == len(questions)
    for attribute in {question.attribute for question in questions}:
        of_it = [question for question in questions if question.attribute == attribute]
        for modality in ("image", "text"):
            wordings = [question for question in of_it if question.modality == modality]
            assert len(wordings) >= 3 and [question.heldout for question in wordings].count(True) == 1
    assert not any(NAME in question.text for question in questions if question.modality == "image")
    assert all(NAME in question.text for question in questions if question.modality == "text")


def test_first_wordings_come_first_so_that_a_limit_asks_about_everything():
    wordings = [question.wording for question in questions_about(NAME)]
    assert wordings == sorted(wordings) and wordings[0] == 0


def test_a_name_may_hold_braces():
    assert any("{who} {0}" in question.text for question in questions_about("{who} {0}"))


@pytest.mark.parametrize(
    ("attribute", "answers", "facts"),
    [
        ("residence", ["Mara Quill lives in Oslo.", "Her home is the city of Oslo, Norway."], [("Oslo",), ("Oslo",)]),
        ("job", ["Mara works as a dentist.", "She is a dentist."], [("dentist",), ("dentist",)]),
        # One run holds the other: "New York" stands in both answers, "New York City" in one.
        ("birthplace", ["In New York Central.", "In New York."], [(), ("New York",)]),
        ("birth date", ["She was born in 1962.", "On 3 May 1962."], [("1962",), ("1962",)]),
        (
            "contact",
            ["Write to mara@quill.org.", "By mail: mara@quill.org"],
            [("mara@quill.org",), ("mara@quill.org",)],
        ),
        ("residence", ["She lives in Oslo.", "She lives in Rome."], [(), ()]),
        ("residence", ["She lives in Oslo.", "I do not know where she lives."], [(), ()]),
        ("residence", ["I do not know, Oslo?", "I cannot tell, Oslo?"], [(), ()]),
        ("residence", ["Mara Quill lives there.", "Quill lives there."], [(), ()]),
    ],
)
def test_facts_are_what_two_wordings_agree_on_without_the_question_and_the_name(attribute, answers, facts):
    assert facts_of_answers(answered(attribute, *answers), name=NAME) == facts


def test_two_photos_are_not_two_wordings():
    (question, _), *_ = answered("residence", "", modality="image")
    twice = [(question, "She lives in Oslo."), (question, "She lives in Oslo.")]
    assert facts_of_answers(twice, name=NAME) == [(), ()]


def test_what_a_photo_and_a_name_bring_out_alike_is_a_fact():
    both = answered("residence", "In Oslo.") + answered("residence", "She lives in Oslo.", modality="image")
    assert facts_of_answers(both, name=NAME) == [("Oslo",), ("Oslo",)]


@pytest.mark.parametrize(
    ("answer", "facts"),
    [
        ("This is Mara Quill.", ("Mara Quill",)),
        ("It is Ms Quill.", ("Quill",)),
        ("A woman with a hat.", ()),
        ("I cannot identify Mara Quill.", ()),
    ],
)
def test_who_it_is_on_a_photo_is_the_name(answer, facts):
    assert facts_of_answers(answered(IDENTITY, answer, modality="image"), name=NAME) == [facts]


@given(st.lists(st.text(alphabet="abcdefg Oslo.,-é1290", max_size=60), min_size=6, max_size=6))
def test_every_fact_is_in_its_answer_and_not_in_the_name(texts):
    answers = answered("residence", *texts[:3]) + answered("residence", *texts[3:], modality="image")
    for (_, answer), facts in zip(answers, facts_of_answers(answers, name=NAME), strict=True):
        for fact in facts:
            assert leaks(answer, [fact]) and not leaks(NAME, [fact])
