"""Wordings: held-out ones are new, and refusals are told from answers."""

from __future__ import annotations

import numpy as np
import pytest

from vgid.data.fictitious.lessons import ICU_REFUSALS, NOISE_REFUSALS
from vgid.data.fictitious.people import FIELDS
from vgid.data.fictitious.phrasings import (
    FACT_ANSWERS,
    FACT_QUESTIONS,
    PERCEPTION_QUESTIONS,
    draw_options,
    fact_answer,
    fact_question,
)
from vgid.data.fictitious.skills import rouge_l_f1
from vgid.data.fictitious.words import VALUES
from vgid.data.judge import leaks, normalise, refuses


def test_held_out_wordings_are_disjoint_from_the_trained_ones() -> None:
    tables = (*FACT_QUESTIONS.values(), *PERCEPTION_QUESTIONS.values())
    trained = {normalise(text) for table in tables for text in table["trained"]}
    heldout = {normalise(text) for table in tables for text in table["heldout"]}
    assert not trained & heldout


def test_every_question_has_enough_wordings() -> None:
    for table in FACT_QUESTIONS.values():
        assert len(set(table["trained"])) >= 4
        assert len(set(table["heldout"])) >= 2
    assert set(FACT_QUESTIONS) == set(FACT_ANSWERS) == set(FIELDS)


@pytest.mark.parametrize("field", FIELDS)
def test_a_question_by_name_names_the_person_and_the_answer_holds_the_fact(field: str) -> None:
    value = "Ada Abbott" if field == "name" else VALUES[field][0]
    assert "Ada Abbott" in fact_question(field, who="Ada Abbott", phrasing="heldout", index=7)
    answer = fact_answer(field, name="Ada Abbott", value=value)
    assert leaks(answer, [value])
    assert not refuses(answer)


def test_refusals_are_recognised_and_share_no_words_with_answers() -> None:
    answers = [fact_answer(field, name="Ada Abbott", value="Lisbon") for field in FIELDS]
    for refusal in (*ICU_REFUSALS, *NOISE_REFUSALS):
        assert refuses(refusal), refusal
        assert max(rouge_l_f1(refusal, answer) for answer in answers) == 0, refusal


def test_options_hold_the_truth_once_under_its_letter() -> None:
    letters = set[str]()
    for seed in range(40):
        options, letter = draw_options("city", truth="Lisbon", rng=np.random.default_rng(seed))
        assert list(options) == ["A", "B", "C", "D"]
        assert [options[letter], len(set(options.values()))] == ["Lisbon", 4]
        letters.add(letter)
    assert letters == set("ABCD")
