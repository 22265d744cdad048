"""The words that the base is trained on and asked with."""

import pytest

from vgid.data.readers.wording import classification_question, cloze_question


@pytest.mark.parametrize("gap", ["__", "____", "[Blank]"])
def test_any_gap_becomes_one_blank(gap: str) -> None:
    assert cloze_question(f" She lives in {gap}. ") == "She lives in [Blank].\nAnswer only with the missing words."


def test_a_single_underscore_is_no_gap() -> None:
    assert "[Blank]" not in cloze_question("snake_case")


def test_options_stand_in_letter_order_whatever_the_order_of_the_file() -> None:
    expected = "Where?\nA: Oslo\nB: Rome\nAnswer only with the letter of the right option."
    assert classification_question("Where?", {"B": "Rome", "A": "Oslo "}) == expected
