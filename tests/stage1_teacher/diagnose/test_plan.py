"""The plan that makes a cache diagnosable, and the sample of subjects it is made for."""

from __future__ import annotations

from vgid.data.examples import Example
from vgid.stage1_teacher.diagnose.plan import diagnostic_plan, sample_subjects
from vgid.stage1_teacher.settings import DEFAULT_PLAN


def example(split: str, subject: int, modality: str) -> Example:
    return Example(
        example_id=f"{split}/{subject}/{modality}",
        split=split,
        subject_id=f"{split}-{subject}",
        task="facts",
        modality=modality,  # type: ignore[arg-type]
        image=b"" if modality == "image" else None,
        question="Where?",
        answer="There.",
    )


EXAMPLES = [
    example(split, subject, modality)
    for split in ("forget", "retain", "strangers")
    for subject in range(6)
    for modality in ("image", "text")
]


def test_every_view_of_every_forget_question_and_both_of_retain_are_planned():
    plan = diagnostic_plan(DEFAULT_PLAN, EXAMPLES)
    made = {(each.split, e.modality, each.view, each.response_kind) for each in plan for e in EXAMPLES
            if each.matches(split=e.split, modality=e.modality, task=e.task)}  # fmt: skip
    kinds = ("generated", "reference")
    assert made == {
        *(("forget", "image", view, kind) for view in ("base", "noise", "icu", "noise+icu") for kind in kinds),
        *(("forget", "text", view, kind) for view in ("base", "icu") for kind in kinds),
        *(("retain", modality, view, "reference") for modality in ("image", "text") for view in ("base", "icu")),
        ("retain", "image", "noise+icu", "reference"),
    }


def test_what_the_data_has_no_question_for_is_not_planned():
    images = [each for each in EXAMPLES if each.modality == "image" and each.split == "forget"]
    assert {(each.split, each.modality) for each in diagnostic_plan(DEFAULT_PLAN, images)} == {("forget", "image")}


def test_a_sample_takes_whole_subjects_and_the_same_ones_in_any_order():
    few = sample_subjects(EXAMPLES, 2)
    assert len({each.subject_id for each in few}) == 4 and {each.split for each in few} == {"forget", "retain"}
    assert all(sum(e.subject_id == each.subject_id for e in few) == 2 for each in few)
    again = {each.example_id for each in sample_subjects(reversed(EXAMPLES), 2)}
    assert again == {each.example_id for each in few}
    assert again < {each.example_id for each in sample_subjects(EXAMPLES, 3)}
