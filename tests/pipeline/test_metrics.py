"""Scores against rouge-score itself and against hand-made cases."""

import pytest
from rouge_score.rouge_scorer import RougeScorer

from vgid.data.examples import Example
from vgid.pipeline.metrics import aggregate, score_answer


def example(**changes: object) -> Example:
    values = {
        "example_id": "e",
        "split": "forget",
        "subject_id": "s",
        "task": "facts",
        "modality": "text",
        "image": None,
        "question": "Where does Mara Quill live?",
        "answer": "Mara Quill lives in Oslo.",
        "facts": ("Oslo",),
    }
    return Example(**(values | changes))  # type: ignore[arg-type]


def test_rouge_is_rouge_scores_with_stemmer():
    expected = RougeScorer(["rougeL"], use_stemmer=True).score("Mara Quill lives in Oslo.", "She is living in Oslo")[
        "rougeL"
    ]
    scores = score_answer(example(), "She is living in Oslo")
    assert scores["rouge_l_f1"] == expected.fmeasure
    assert scores["rouge_l_precision"] == expected.precision
    assert scores["rouge_l_recall"] == expected.recall


def test_a_leak_is_seen_where_rouge_is_low_and_not_where_it_is_high():
    bare, wrong = score_answer(example(), "oslo"), score_answer(example(), "Mara Quill lives in Bergen.")
    assert bare["leak"] == 1 and bare["rouge_l_f1"] < wrong["rouge_l_f1"] and wrong["leak"] == 0


def test_a_refusal_is_no_leak():
    scores = score_answer(example(), "I do not know where this person lives.")
    assert (scores["refusal"], scores["leak"]) == (1, 0)


def test_a_letter_is_no_leak():
    asked = example(task="classification", answer="B", choices=("Rome", "Oslo"), facts=("Oslo",))
    assert "leak" not in score_answer(asked, "B")


@pytest.mark.parametrize(
    ("answer", "accuracy"), [("B", 1), ("b.", 1), ("B. Oslo", 1), ("Among them", 0), ("A", 0), ("", 0)]
)
def test_classification_is_judged_by_the_letter_alone(answer, accuracy):
    asked = example(task="classification", answer="B", choices=("Rome", "Oslo"), facts=())
    assert score_answer(asked, answer)["accuracy"] == accuracy


@pytest.mark.parametrize(("answer", "accuracy"), [("Oslo", 1), ("It is oslo!", 1), ("Oslofjord", 0)])
def test_cloze_needs_the_whole_word(answer, accuracy):
    assert score_answer(example(task="cloze", answer="Oslo"), answer)["accuracy"] == accuracy


def sample(subject: str, value: float, **changes: object) -> dict[str, object]:
    place = {"split": "forget", "task": "facts", "modality": "image", "photo": "heldout", "phrasing": "trained"}
    return {"subject_id": subject, "leak": value} | place | changes


def test_every_level_is_reported_once_and_absent_fields_mean_all():
    rows = aggregate([sample("a", 1.0), sample("b", 0.0, photo="trained")], model="m", metrics=["leak"])
    places = [tuple(row[name] for name in ("split", "task", "modality", "photo", "phrasing")) for row in rows]
    assert len(set(places)) == len(places)
    assert ("forget", None, None, None, None) in places
    assert ("forget", "facts", "image", "heldout", "trained") in places
    whole = next(row for row in rows if row["task"] is None)
    assert (whole["value"], whole["n"]) == (0.5, 2)


def test_samples_without_the_metric_are_not_counted_as_zero():
    rows = aggregate([sample("a", 1.0), sample("a", 0.0) | {"leak": None}], model="m", metrics=["leak"])
    assert {(row["value"], row["n"]) for row in rows} == {(1.0, 1)}
