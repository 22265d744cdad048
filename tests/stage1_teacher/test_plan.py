"""The plan: which targets, with which ids, in which buckets."""

import itertools
from dataclasses import replace

import pytest
from PIL import Image as PIL

from vgid.data.examples import Example
from vgid.errors import ConfigError
from vgid.stage1_teacher.generate import pilot_of_plan
from vgid.stage1_teacher.icu import IcuSettings
from vgid.stage1_teacher.perturb import PIXEL_FORM
from vgid.stage1_teacher.plan import cache_settings, make_plan, shard_of_plan
from vgid.stage1_teacher.settings import PerturbationSettings, PlanEntry, Quarantined, SamplingSettings, TeacherSettings

TEACHER = {"weights_fingerprint": "w", "tokenizer_sha256": "t", "vocab_size": 100}


def png(colour: int) -> bytes:
    import io

    buffer = io.BytesIO()
    PIL.new("RGB", (4, 4), (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def example(number: int, *, split: str = "forget", modality: str = "image", **changes: object) -> Example:
    image = png(number // 3) if modality == "image" else None
    values = {
        "example_id": f"{split}/{modality}/{number}",
        "split": split,
        "subject_id": f"{split}{number // 3}",
        "task": "facts",
        "modality": modality,
        "image": image,
        "question": f"Question {number}?",
        "answer": f"Answer {number}.",
    }
    return Example(**(values | changes))  # type: ignore[arg-type]


EXAMPLES = [
    *(example(i) for i in range(12)),
    *(example(i, modality="text") for i in range(6)),
    *(example(i, split="retain") for i in range(40, 52)),
    *(example(i, split="retain", modality="text") for i in range(40, 46)),
    example(90, phrasing="heldout"),
    example(91, photo="heldout"),
    example(92, task="perception"),
]


def settings(**changes: object) -> TeacherSettings:
    values = {
        "dtype": "float32",
        "num_topk": 8,
        "seed": 0,
        "perturbation": PerturbationSettings(name="gaussian", strength=1.0),
        "icu": "generic-v1",
    }
    return TeacherSettings(**(values | changes))  # type: ignore[arg-type]


def plan(examples=None, *, teacher=TEACHER, engine_id="vllm 1", **changes):
    return make_plan(examples or EXAMPLES, settings=settings(**changes), teacher=teacher, engine_id=engine_id)


def test_default_plan_takes_forget_by_both_doors_and_retain_from_the_base():
    kinds = {(row.example.split, row.example.modality, row.view, row.response_kind) for row in plan()}
    assert kinds == {
        ("forget", "image", "noise+icu", "generated"),
        ("forget", "text", "icu", "generated"),
        ("retain", "image", "base", "reference"),
        ("retain", "text", "base", "reference"),
    }
    assert len(plan()) == 12 + 6 + 12 + 6


def test_held_out_photos_and_phrasings_are_never_planned():
    assert not {"heldout"} & {value for row in plan() for value in (row.example.photo, row.example.phrasing)}


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"num_topk": 9},
        {"icu": "privacy-v1"},
        {"max_new_tokens": 32},
        {"perturbation": PerturbationSettings(name="gaussian", strength=0.9)},
        {"perturbation": PerturbationSettings(name="blank", strength=1.0)},
        {"teacher": TEACHER | {"weights_fingerprint": "other"}},
        {"engine_id": "vllm 2"},
    ],
)
def test_what_a_target_depends_on_is_in_its_id(changes):
    before = {row.example.example_id: row.target_id for row in plan() if row.view == "noise+icu"}
    after = {row.example.example_id: row.target_id for row in plan(**changes) if row.view == "noise+icu"}
    assert not set(before.values()) & set(after.values())


def test_what_a_target_does_not_depend_on_is_not_in_its_id():
    retain = {row.target_id for row in plan() if row.view == "base"}
    assert retain == {row.target_id for row in plan(seed=7, icu="privacy-v1") if row.view == "base"}


def test_changed_content_changes_the_id():
    changed = [replace(EXAMPLES[0], answer="Another answer."), *EXAMPLES[1:]]
    assert len({r.target_id for r in plan()} - {r.target_id for r in plan(changed)}) == 1


def test_each_draw_is_a_target_of_its_own():
    noisy = PerturbationSettings(name="gaussian", strength=1.0, draws=3)
    rows = [row for row in plan(perturbation=noisy) if row.is_noised]
    assert len(rows) == 36 and {row.draw for row in rows} == {0, 1, 2}
    assert len({row.target_id for row in rows}) == 36


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shards_cover_the_plan_once_and_keep_a_picture_together(count):
    whole = plan()
    shards = [shard_of_plan(whole, index=i, count=count) for i in range(count)]
    assert sorted(r.target_id for shard in shards for r in shard) == sorted(r.target_id for r in whole)
    pictures = [{row.image_sha256 for row in shard if row.image_sha256} for shard in shards]
    assert sum(map(len, pictures)) == len(set().union(*pictures))


def test_a_plan_entry_that_matches_nothing_says_what_there_is():
    with pytest.raises(ConfigError, match="retain/image/facts"):
        plan(plan=(PlanEntry(split="celebrity", view="base", response_kind="reference"),))


def test_the_default_plan_leaves_out_what_the_data_does_not_have():
    images_only = [row for row in EXAMPLES if row.modality == "image"]
    assert {row.view for row in plan(images_only)} == {"noise+icu", "base"}


def test_data_without_any_row_for_the_default_plan_is_an_error():
    with pytest.raises(ConfigError, match="outsiders/image/facts"):
        plan([example(1, split="outsiders")])


def test_two_entries_may_not_ask_for_the_same_target():
    entry = PlanEntry(split="retain", view="base", response_kind="reference")
    with pytest.raises(ConfigError, match="again"):
        plan(plan=(entry, entry))


def test_noise_on_text_questions_is_refused():
    with pytest.raises(ValueError, match="text-only"):
        PlanEntry(split="forget", modality="text", view="noise", response_kind="generated")


def test_a_pilot_samples_every_kind_of_row_in_proportion():
    pilot = pilot_of_plan(plan(), size=12)
    kinds = [(row.example.split, row.example.modality) for row in pilot]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        ("forget", "image"): 4,
        ("forget", "text"): 2,
        ("retain", "image"): 4,
        ("retain", "text"): 2,
    }


def test_a_pilot_asks_the_same_questions_in_every_view():
    views = ("base", "icu", "noise+icu")
    entries = (PlanEntry(split="forget", modality="image", view=v, response_kind="generated") for v in views)
    asked = {view: set[str]() for view in views}
    for planned in pilot_of_plan(plan(plan=tuple(entries)), size=15):
        asked[planned.view].add(planned.example.example_id)
    assert len(asked["base"]) == 5
    assert asked["base"] == asked["icu"] == asked["noise+icu"]


def test_adaptive_width_is_part_of_a_targets_identity_and_fixed_width_is_as_before():
    fixed = make_plan(EXAMPLES, settings=settings(), teacher=TEACHER, engine_id="e")
    again = make_plan(EXAMPLES, settings=settings(min_k=3), teacher=TEACHER, engine_id="e")
    adaptive = make_plan(EXAMPLES, settings=settings(top_p=0.99), teacher=TEACHER, engine_id="e")
    wider = make_plan(EXAMPLES, settings=settings(top_p=0.99, min_k=3), teacher=TEACHER, engine_id="e")

    ids = [{planned.target_id for planned in plan} for plan in (fixed, again, adaptive, wider)]
    assert ids[0] == ids[1]
    assert not ids[0] & ids[2] and not ids[2] & ids[3]
    assert cache_settings(settings()) == {"num_topk": 8, "rounding": "fp16-grid", "pixel_form": PIXEL_FORM}
    assert cache_settings(settings(top_p=0.99)).items() >= {"num_topk": 8, "top_p": 0.99, "min_k": 8}.items()


def test_a_floor_above_the_ceiling_is_refused():
    with pytest.raises(ValueError, match="min_k 9 is above num_topk 8"):
        settings(top_p=0.9, min_k=9)


def ids(**changes) -> set[str]:
    return {row.target_id for row in plan(**changes)}


FORGET = (PlanEntry(split="forget", modality="image", view="noise+icu", response_kind="generated"),)


def test_both_makes_a_target_of_either_kind():
    both = (PlanEntry(split="forget", modality="image", view="noise+icu", response_kind="both"),)
    apart = (*FORGET, PlanEntry(split="forget", modality="image", view="noise+icu", response_kind="reference"))
    assert ids(plan=both) == ids(plan=apart) and len(ids(plan=both)) == 2 * len(ids(plan=FORGET))


def test_samples_are_targets_of_their_own_and_reference_answers_are_not_sampled():
    rows = plan(sampling=SamplingSettings(temperature=1.0, samples=3))
    generated = [row for row in rows if row.response_kind == "generated"]
    assert len(rows) == 3 * 18 + 18 and {row.sample for row in generated} == {0, 1, 2}
    greedy = ids()
    assert not {row.target_id for row in generated} & greedy
    assert {row.target_id for row in rows} - {row.target_id for row in generated} <= greedy


def test_what_is_left_at_its_default_changes_no_id():
    spelt_out = PerturbationSettings(name="gaussian", strength=1.0, space="pixel")
    assert ids(perturbation=spelt_out, icu=IcuSettings(template="generic-v1"), sampling=SamplingSettings()) == ids()


@pytest.mark.parametrize(
    "changes",
    [
        {"perturbation": PerturbationSettings(name="gaussian", strength=1.0, space="processor")},
        {"perturbation": PerturbationSettings(name="blur", strength=1.0)},
        {"perturbation": PerturbationSettings(name="other-subject", strength=1.0)},
        {"icu": IcuSettings(text="Forget.")},
        {"icu": IcuSettings(template="demonstrated-v1")},
        {"sampling": SamplingSettings(temperature=0.5)},
        {"sampling": SamplingSettings(temperature=0.5, top_p=0.5)},
    ],
    ids=str,
)
def test_whatever_the_teacher_is_shown_or_how_it_answers_is_part_of_the_id(changes):
    assert not ids(plan=FORGET, **changes) & ids(plan=FORGET)


def test_the_name_of_a_subject_counts_only_where_the_instruction_says_it():
    named = [replace(each, subject_name="Mara Quill") for each in EXAMPLES]
    renamed = [replace(each, subject_name="Tess Vane") for each in EXAMPLES]
    assert ids(examples=named) == ids(examples=renamed) == ids()
    assert not ids(examples=named, icu="named-v1", plan=FORGET) & ids(examples=renamed, icu="named-v1", plan=FORGET)


def test_another_subjects_picture_stands_in_the_same_for_all_its_questions():
    rows = plan(plan=FORGET, perturbation=PerturbationSettings(name="other-subject", strength=1.0, draws=2))
    for row in rows:
        assert row.donor is not None and row.donor.subject_id.startswith("retain")
    donors = {(row.image_sha256, row.draw): row.donor.image_sha256 for row in rows if row.donor}
    assert all(row.donor.image_sha256 == donors[row.image_sha256, row.draw] for row in rows if row.donor)
    assert len(set(donors.values())) > 1


def test_no_other_subject_to_take_a_picture_from_is_an_error():
    noise = PerturbationSettings(name="other-subject", strength=1.0, donors="nobody")
    with pytest.raises(ConfigError, match="pictures of others than subject"):
        plan(plan=FORGET, perturbation=noise)


def test_questions_on_the_same_pixels_stand_side_by_side():
    entries = [
        PlanEntry(split="forget", modality="image", view=view, response_kind="generated")
        for view in ("base", "noise", "icu", "noise+icu")
    ]
    rows = plan(plan=tuple(entries), perturbation=PerturbationSettings(name="gaussian", strength=1.0, draws=3))
    pixels = [(row.image_sha256, row.is_noised, row.draw) for row in rows]
    changes = sum(left != right for left, right in itertools.pairwise(pixels))
    assert changes == len(set(pixels)) - 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"perturbation": None}, "needs teacher.perturbation"),
        ({"icu": None}, "needs teacher.icu"),
    ],
)
def test_a_view_without_its_setting_is_an_error_and_other_views_do_not_need_it(values, words):
    with pytest.raises(ValueError, match=words):
        settings(**values)
    base = (PlanEntry(split="retain", view="base", response_kind="reference"),)
    assert len(plan(plan=base, perturbation=None, icu=None)) == 18


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: PerturbationSettings(name="blank", strength=1.0, draws=2), "same in every draw"),
        (lambda: PerturbationSettings(name="gaussian", strength=1.0, donors="retain"), "takes no donors"),
        (lambda: SamplingSettings(samples=2), "temperature 0"),
        (lambda: SamplingSettings(top_p=0.5), "temperature 0"),
    ],
)
def test_settings_that_would_make_one_target_twice_or_mean_nothing_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_subjects_in_quarantine_are_left_out_of_the_forget_plan_and_nothing_else_changes():
    quarantine = (Quarantined(subject="forget1", reason="it still tells the truth"),)
    left = plan(quarantine=quarantine)
    assert {row.target_id for row in plan()} - {row.target_id for row in left} == {
        row.target_id for row in plan() if row.example.subject_id == "forget1"
    }
    assert len(left) < len(plan()) and {row.example.split for row in left} == {row.example.split for row in plan()}


@pytest.mark.parametrize("subject", ["nobody", "retain14"])
def test_a_quarantined_subject_that_is_not_to_be_forgotten_is_an_error(subject):
    with pytest.raises(ConfigError, match=f"teacher.quarantine: subject '{subject}' is not among those to forget"):
        plan(quarantine=(Quarantined(subject=subject, reason="a slip"),))
