"""Which settings a cache holds, and which of its rows are taken to train."""

from __future__ import annotations

from dataclasses import replace

import pytest
from diagnosed_rows import Known, known_rows, write_known

from vgid.errors import ConfigError
from vgid.stage1_teacher.diagnose import Interventions, Taught, inspect_cache
from vgid.stage1_teacher.diagnose.variants import choose, find_variants, taught_by_default

NOTHING = {"perturbation": None, "strength": None, "noise_seed": None, "icu_id": None, "engine_id": "e"}


def held(forget_rows: int = 1, **changes: object) -> dict[str, object]:
    return {**NOTHING, **changes, "forget_rows": forget_rows}


def noise(strength: float) -> dict[str, object]:
    return {"perturbation": "gaussian", "strength": strength, "noise_seed": 0}


def test_noise_and_instruction_that_stand_together_are_one_variant_and_the_rest_belongs_to_it():
    rows = [held(7), held(5, **noise(1)), held(3, icu_id="a"), held(2, **noise(1), icu_id="a")]
    ((variant, count),) = find_variants(rows)
    assert (variant.strength, variant.icu_id, variant.view, count) == (1, "a", "noise+icu", 17)


def test_noise_or_an_instruction_that_never_stands_with_the_other_is_a_variant_of_its_own():
    rows = [held(), held(1, **noise(1), icu_id="a"), held(9, **noise(0.5)), held(4, icu_id="b")]
    found = {(each.strength, each.icu_id): each.view for each, _ in find_variants(rows)}
    assert found == {(1, "a"): "noise+icu", (0.5, None): "noise", (None, "b"): "icu"}


def test_a_cache_of_the_base_alone_has_one_variant_that_does_nothing():
    ((variant, _),) = find_variants([held(3)])
    assert variant.view == "base" and variant.describe() == "no noise, no instruction"


def test_the_variant_with_most_forget_rows_is_taken_unless_something_else_is_asked_for():
    variants = find_variants([held(1, **noise(1), icu_id="a"), held(2, **noise(0.5), icu_id="a")])

    def chosen(strength: float | None = None, prefer: Interventions | None = None) -> float | None:
        return choose(variants, perturbation=None, strength=strength, icu_id=None, prefer=prefer).strength

    recipe = Interventions("gaussian", 1, 0, "a")
    assert (chosen(), chosen(1), chosen(prefer=recipe), chosen(0.5, recipe)) == (0.5, 1, 1, 0.5)
    assert chosen(prefer=recipe._replace(noise_seed=9)) == 0.5, "the recipe's own was not generated"
    with pytest.raises(ConfigError, match=r"--strength 3: the cache has no such rows; it has gaussian 0.5"):
        chosen(3)


@pytest.mark.parametrize(
    ("kinds", "taught"),
    [
        ([("forget", "image", "noise+icu", "generated"), ("forget", "image", "noise+icu", "reference")], "generated"),
        ([("forget", "image", "noise+icu", "reference"), ("forget", "image", "base", "generated")], "reference"),
    ],
)
def test_generated_answers_train_on_forget_where_there_are_any(kinds, taught):
    variant, _ = find_variants([held(1, **noise(1), icu_id="a")])[0]
    (found,) = taught_by_default(variant, kinds)
    assert found == Taught(split="forget", modality="image", view="noise+icu", response_kind=taught)


def test_text_is_taught_by_the_instruction_and_retain_by_the_base():
    variant, _ = find_variants([held(1, **noise(1), icu_id="a")])[0]
    kinds = [("forget", "text", view, "generated") for view in ("base", "icu")]
    kinds += [("retain", "image", view, "reference") for view in ("base", "noise+icu")]
    assert [(each.split, each.view) for each in taught_by_default(variant, kinds)] == [
        ("forget", "icu"),
        ("retain", "base"),
    ]


def other(rows: list[Known], **changes: object) -> list[Known]:
    """The same rows under another setting."""
    return [replace(each, row=replace(each.row, target_id=each.row.target_id[::-1], **changes)) for each in rows]


def test_a_variant_is_measured_on_its_own_rows_and_those_of_view_base(tmp_path):
    here, there = known_rows(1), [each for each in known_rows(2) if "noise" in each.row.view]
    alone = inspect_cache(write_known(tmp_path / "alone", here))
    both = inspect_cache(write_known(tmp_path / "both", here + other(there, strength=0.9)), strength=0.5)
    # D6 aside: what begins a refusal is learned from the whole cache.
    found, expected = ({r.name: r.value_low for r in each.readings if "D6" not in r.name} for each in (both, alone))
    assert found == pytest.approx(expected)
    assert len(both.doses) == 2 and len(alone.doses) == 1 and both.rows_used == alone.rows_used == len(here)


def test_of_two_rows_of_one_question_one_is_taken_and_the_report_says_so(tmp_path):
    rows = known_rows(1)
    report = inspect_cache(write_known(tmp_path / "cache", rows + other(rows)))
    assert report.rows_used == len(rows)
    assert report.notes == (f"{len(rows)} rows stand for the same question, view and draw as another; left out",)


def test_a_template_that_stands_in_for_another_is_part_of_the_recipes_variant(tmp_path):
    rows = [
        replace(each, row=replace(each.row, icu_id="named-v1"))
        if each.row.icu_id and each.row.example_id.endswith("/0")
        else each
        for each in known_rows(1)
    ]
    cache = write_known(tmp_path / "cache", rows)
    both = Interventions("gaussian", 0.5, 0, "named-v1", "generic-v1")
    assert inspect_cache(cache, prefer=both).rows_used == len(rows)
    assert inspect_cache(cache, prefer=both._replace(otherwise=None)).rows_used < len(rows)


def test_without_draws_or_with_a_noise_that_is_always_the_same_stability_is_not_asked(tmp_path):
    rows = known_rows(1, draws=1)
    reasons = {}
    for name, perturbation in (("noise", "gaussian"), ("blank", "blank@processor")):
        changed = [
            replace(each, row=replace(each.row, perturbation=perturbation)) if each.row.perturbation else each
            for each in rows
        ]
        report = inspect_cache(write_known(tmp_path / name, changed))
        reasons[name] = next((r.verdict, r.reason or "") for r in report.readings if r.name == "D9.flips")
    assert reasons["noise"][0] == "unknown" and "perturbation.draws" in reasons["noise"][1]
    assert reasons["blank"] == ("info", "the perturbation is the same in every draw")
