"""Fact tokens are found by character offsets."""

import pytest
from tiny_models import build_tiny_qwen2_vl

from vgid.data.chat import load_processor
from vgid.data.spans import fact_mask, first_fact_token


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_processor(build_tiny_qwen2_vl(tmp_path_factory.mktemp("model"))).tokenizer


def marked(tokenizer, answer, facts):
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    mask = fact_mask(tokenizer, answer, facts, length=len(ids) + 1)
    assert len(mask) == len(ids) + 1 and not mask[-1]
    return tokenizer.decode([token for token, is_fact in zip(ids, mask[:-1], strict=True) if is_fact])


def test_exactly_the_tokens_over_a_fact_are_marked(tokenizer):
    assert marked(tokenizer, "She works as a dentist in Oslo.", ["Oslo"]).strip() == "Oslo"


def test_case_does_not_matter_and_every_occurrence_counts(tokenizer):
    assert marked(tokenizer, "Oslo, the city of oslo.", ["OSLO"]).replace(" ", "") == "Oslooslo"


def test_a_fact_that_does_not_occur_marks_nothing(tokenizer):
    assert marked(tokenizer, "She works as a dentist.", ["Rome", ""]) == ""


def test_prefix_ends_before_the_first_fact(tokenizer):
    ids, first = first_fact_token(tokenizer, "She works as a dentist in Oslo.", ["Oslo"])
    assert tokenizer.decode(ids[:first]) == "She works as a dentist in"
