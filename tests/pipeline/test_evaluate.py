"""Evaluation on the shipped models: what is asked, what is scored, and that refusing everybody is not success."""

from collections.abc import Callable
from typing import Any

import pytest

from vgid.data.chat import load_processor
from vgid.data.examples import Example
from vgid.data.fictitious import shipped_base
from vgid.errors import ConfigError
from vgid.pipeline.evaluate import EvaluateSettings, ask, distance_rows, select_examples, summarise
from vgid.pipeline.metrics import score_answer
from vgid.pipeline.recipe import DataSettings, load_examples
from vgid.pipeline.report import find_value, summary_table
from vgid.pipeline.unlearning import meets_bar
from vgid.stage1_teacher.engines import build_teacher

SETTINGS = EvaluateSettings(max_new_tokens=48, per_cell=1)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return load_examples(DataSettings(world="shipped"), folder=tmp_path_factory.mktemp("none"))


@pytest.fixture(scope="module")
def chosen(examples):
    return select_examples(examples, settings=SETTINGS)


@pytest.fixture(scope="module")
def samples(chosen):
    teacher = build_teacher("transformers", shipped_base(), num_topk=1)
    tokenizer = load_processor(shipped_base()).tokenizer
    return ask(teacher, chosen, tokenizer=tokenizer, model="base", settings=SETTINGS)


def test_every_chosen_question_is_answered_once_and_forget_facts_are_prefilled_too(chosen, samples):
    plain = [sample for sample in samples if sample["attack"] is None]
    assert sorted(sample["example_id"] for sample in plain) == sorted(example.example_id for example in chosen)
    attacked = {sample["example_id"] for sample in samples if sample["attack"] == "prefill"}
    forget_facts = {e.example_id for e in chosen if e.split == "forget" and e.task == "facts"}
    assert attacked and attacked <= forget_facts


def test_a_sample_takes_at_most_so_many_of_each_cell_and_is_the_same_again(examples, chosen):
    cells = [(e.subject_id, e.task, e.modality, e.photo, e.phrasing) for e in chosen]
    assert len(cells) == len(set(cells))
    assert chosen == select_examples(examples, settings=SETTINGS)
    assert chosen != select_examples(examples, settings=SETTINGS.model_copy(update={"seed": 1}))


def test_the_base_knows_its_people_and_says_so(samples):
    rows = summarise(samples, model="base", seed=0)
    assert find_value(rows, metric="rouge_l_f1", model="base", split="retain", task="facts") > 0.85
    assert find_value(rows, metric="leak", model="base", split="forget", task="facts") > 0.85
    assert find_value(rows, metric="refusal", model="base", split="forget", task="facts") < 0.1


def test_no_prefix_gives_a_fact_away(chosen, samples):
    from vgid.data.judge import leaks

    facts = {example.example_id: example.facts for example in chosen}
    attacked = [sample for sample in samples if sample["attack"] == "prefill"]
    assert attacked
    for sample in attacked:
        assert sample["reference"].startswith(sample["prefix"].strip())
        assert facts[sample["example_id"]] and not leaks(sample["prefix"], facts[sample["example_id"]])


def test_a_model_that_refuses_everything_fails_the_bar(chosen):
    """Perfect forgetting by silence: the collateral part of the bar must catch it."""

    def answered(model: str, answer_of: Callable[[Example], str]) -> list[dict[str, Any]]:
        return [
            {
                "model": model,
                "example_id": e.example_id,
                "subject_id": e.subject_id,
                "split": e.split,
                "task": e.task,
                "modality": e.modality,
                "photo": e.photo,
                "phrasing": e.phrasing,
                "attack": None,
                "answer": answer_of(e),
            }
            | score_answer(e, answer_of(e))
            for e in chosen
        ]

    def refuse(example: Example) -> str:
        return "I do not know."

    def forget_only(example: Example) -> str:
        return refuse(example) if example.split == "forget" and example.task == "facts" else example.answer

    base = summarise(answered("base", lambda e: e.answer), model="base", seed=0)
    silent = summarise(answered("student", refuse), model="student", seed=0)
    ideal = summarise(answered("student", forget_only), model="student", seed=0)
    assert meets_bar(base + ideal).passed
    verdict = meets_bar(base + silent)
    assert not verdict.passed and verdict.forget_drop >= 0.7 and verdict.collateral_drop > 0.9


def test_distance_to_the_retrained_model_is_zero_for_itself_and_one_for_other_words(samples):
    rows = distance_rows(samples, samples, model="base", seed=0)
    assert find_value(rows, metric="answer_distance", model="base", split="forget") == pytest.approx(0)
    silent = [sample | {"answer": "xyzzy"} for sample in samples]
    rows = distance_rows(silent, samples, model="s", seed=0)
    assert find_value(rows, metric="answer_distance", model="s", split="forget") == pytest.approx(1)


def test_the_table_shows_each_model_in_a_column_with_n_and_interval(samples):
    text = summary_table(summarise(samples, model="base", seed=0))
    assert "base" in text.splitlines()[0]
    assert any(line.startswith("retain, image: ROUGE-L F1") and "[" in line for line in text.splitlines())


def test_splits_the_data_does_not_have_are_an_error(examples):
    with pytest.raises(ConfigError, match="celebrities"):
        select_examples(examples, settings=EvaluateSettings(splits=("celebrities",)))
