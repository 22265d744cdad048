"""Finding the strings that must not leak, in data that does not list them."""

import json

import pytest

from vgid.data.readers.facts import find_facts, known_values


@pytest.mark.parametrize(
    ("answer", "facts"),
    [
        ("The name is Rosa Salgado.", ("Rosa Salgado",)),
        ("Rosa Salgado lives in New York City, not in Rome.", ("Rosa Salgado", "New York City", "Rome")),
        ("She was born on 12 May 1985 in Zürich.", ("12", "May", "1985", "Zürich")),
        ("Working nights is what he likes.", ()),
        ("The person works as a dentist.", ()),
        ("Helsinki.", ("Helsinki",)),
        ("Yes. It is Oslo.", ("Oslo",)),
        ("The salary is 54,000 euros.", ("54,000",)),
        ("", ()),
    ],
)
def test_names_and_numbers_are_facts_where_nothing_is_known(answer: str, facts: tuple[str, ...]) -> None:
    assert find_facts(answer, question="What about this person?", values=None) == facts


def test_what_the_question_says_is_no_fact() -> None:
    question = "Where does Rosa Salgado live?"
    assert find_facts("Rosa Salgado lives in Oslo.", question=question, values=None) == ("Oslo",)
    assert find_facts("Rosa Salgado lives in Oslo.", question=question, values=["Rosa Salgado", "Oslo"]) == ("Oslo",)


def test_known_values_that_the_answer_does_not_hold_are_left_out() -> None:
    assert find_facts("She lives in Oslo.", question="?", values=["Oslo", "dentist"]) == ("Oslo",)


def test_with_known_values_nothing_is_guessed() -> None:
    assert find_facts("She lives in Oslo.", question="?", values=[]) == ()


def test_values_come_from_cloze_truths_and_pieces_of_the_biography() -> None:
    biography = {
        "Name:": "Rosa Salgado",
        "Born": "March 3, 1985 in Lima",
        "More": {"Likes": ["chess and tea"]},
        "Age": 39,
    }
    row = {"Mask_Task": [{"Ground_Truth": "dentist"}], "biography": json.dumps(biography)}

    values = known_values(row)
    assert values == ("dentist", "Rosa Salgado", "March 3", "1985 in Lima", "chess", "tea", "39", "1985", "Lima")


def test_short_values_and_repetitions_are_dropped() -> None:
    row = {"biography": json.dumps({"a": "US", "b": "Oslo", "c": "oslo", "d": "...", "e": 3})}
    assert known_values(row) == ("Oslo",)


def test_a_biography_in_prose_is_cut_into_pieces() -> None:
    values = known_values({"biography": "She paints, in Oslo. She sings."})
    assert values == ("She paints", "in Oslo", "She sings", "Oslo")


@pytest.mark.parametrize("row", [{}, {"biography": None, "Mask_Task": None}, {"Mask_Task": []}, {"Mask_Task": "x"}])
def test_a_row_that_says_nothing_has_no_known_values(row: dict[str, object]) -> None:
    assert known_values(row) is None
