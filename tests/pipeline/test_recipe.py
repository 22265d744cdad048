"""Recipes: strict, overridable, and every shipped one valid."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from vgid.errors import ConfigError
from vgid.pipeline.recipe import load_examples, load_preset, load_recipe, shipped_presets, shipped_recipes
from vgid.stage1_teacher.icu import IcuSettings


def written(tmp_path: Path, **changes: object) -> str:
    recipe, _ = load_recipe("fictitious")
    values = recipe.model_dump(mode="json", exclude_none=True) | changes
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid_and_opens_with_its_command(name):
    import vgid.pipeline.recipes

    load_recipe(name)
    text = (Path(vgid.pipeline.recipes.__file__).parent / f"{name}.yaml").read_text()
    assert text.startswith("#") and "command:" in text and "hardware:" in text


def test_what_is_written_is_read_back(tmp_path):
    assert load_recipe(written(tmp_path))[0] == load_recipe("fictitious")[0]


def test_an_unknown_key_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown key 'teacher.topk'"):
        load_recipe("fictitious", overrides=["teacher.topk=3"])


def test_an_override_replaces_one_value():
    recipe, _ = load_recipe("fictitious", overrides=["distill.alpha=2.5", "teacher.perturbation.strength=0.5"])
    assert recipe.teacher.perturbation is not None
    assert (recipe.distill.alpha, recipe.teacher.perturbation.strength) == (2.5, 0.5)
    assert recipe.distill.beta == load_recipe("fictitious")[0].distill.beta


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.alpha", "key=value"),
        ("model.name=x", "not a group"),
        ("teacher.num_topk=zero", "teacher.num_topk"),
        ("teacher.perturbation.strength=3", "outside"),
        ("teacher.perturbation.strength=.nan", "finite"),
        ("teacher.seed=9223372036854775808", "less than 4294967296"),
        ("teacher.icu=shout-v1", "generic-v1"),
    ],
)
def test_a_bad_override_is_an_error_that_says_what_is_wrong(override, words):
    with pytest.raises(ConfigError, match=words):
        load_recipe("fictitious", overrides=[override])


FORGET = "split: forget, response_kind: generated"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "distill.alpha=x",
            "distill.alpha: Input should be a valid number, unable to parse string as a number (got 'x')",
        ),
        (
            f"distill.targets=[{{{FORGET}, view: fog}}]",
            "distill.targets.0.view: Input should be 'base', 'noise', 'icu' or 'noise+icu' (got 'fog')",
        ),
        (f"distill.targets=[{{{FORGET}}}]", "distill.targets.0.view is missing"),
        (f"distill.targets=[{{{FORGET}, view: icu, str: 1}}]", "unknown key 'distill.targets.0.str'"),
        ("distill.targets=[]", "distill.targets: expected 1 or more (got [])"),
        ("distill.targets=all", "distill.targets: expected a list (got 'all')"),
        (
            "teacher.icu={text: '{{ nope }}'}",
            "teacher.icu: icu text uses the unknown variable 'nope'; there are subject_name, question, demonstrations "
            "(got {'text': '{{ nope }}'})",
        ),
        ("teacher.icu={text: [a]}", "teacher.icu.text: expected text (got ['a'])"),
        ("teacher.icu={text: a, demonstrations: [{answer: b}]}", "teacher.icu.demonstrations.0.question is missing"),
        ("teacher.icu=3", "teacher.icu: expected text or a group of settings (got 3)"),
    ],
)
def test_a_problem_is_told_once_and_without_what_follows_from_it(override, told):
    with pytest.raises(ConfigError) as caught:
        load_recipe("fictitious", overrides=[override])
    assert str(caught.value) == f"recipe fictitious: {told}"


def test_every_problem_is_counted_and_the_first_are_told():
    wrong = ["distill.alpha=x", "teacher.num_topk=0", "modle=y", "distill.targets=[{}]"]
    with pytest.raises(
        ConfigError, match=r"teacher\.num_topk.*; distill\.targets\.0\.split is missing; .*\(and 3 more\)"
    ):
        load_recipe("fictitious", overrides=wrong)


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("model: a\nmodel: b\n", "model", "1 again on line 2"),
        ("x:\n- {a: 1}\n- b:\n    c: 1\n    'c': 2\n", "c", "4 again on line 5"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_lines(text, key, lines, tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"twice.yaml: not valid YAML .key '{key}' of line {lines}"):
        load_recipe(str(path))
    with pytest.raises(ConfigError, match=r"--set .*\(key 'r' of line 1 again"):
        load_recipe("fictitious", overrides=["distill.lora={r: 4, r: 8}"])


def test_merge_keys_work_and_what_is_merged_may_be_said_again(tmp_path):
    lines = [
        "preset: paper\nmodel: fictitious:base\ndata: {world: shipped}\nteacher:\n  <<: {num_topk: 5, dtype: float32}",
        "  num_topk: 20\n  plan:",
        "  - &image {split: forget, view: noise+icu, response_kind: generated, modality: image}",
        "  - &text {<<: *image, view: icu, modality: text}",
        "  - {<<: *text, split: retain}",
    ]
    path = tmp_path / "merged.yaml"
    path.write_text("\n".join(lines))
    teacher = load_recipe(str(path))[0].teacher
    assert teacher.num_topk == 20
    assert [(entry.split, entry.view, entry.modality) for entry in teacher.plan or ()] == [
        ("forget", "noise+icu", "image"),
        ("forget", "icu", "text"),
        ("retain", "icu", "text"),
    ]


def test_a_missing_value_is_named(tmp_path):
    with pytest.raises(ConfigError, match="model is missing"):
        path = tmp_path / "empty.yaml"
        path.write_text("data: {world: shipped}\n")
        load_recipe(str(path))


def test_data_is_a_world_or_sources_and_not_both(tmp_path):
    both = {"world": "shipped", "sources": [{"path": "a.csv", "split": "forget"}]}
    for data in (both, {}):
        with pytest.raises(ConfigError, match="not both"):
            load_recipe(written(tmp_path, data=data))


@pytest.mark.parametrize("text", ["- a list", "a: [unclosed", "!!python/object/apply:os.system ['true']"])
def test_anything_but_a_plain_mapping_is_refused(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_recipe(str(path))


def test_an_unknown_recipe_is_an_error_that_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match="fictitious"):
        load_recipe("no-such-recipe")


MINIMAL: dict[str, Any] = {
    "model": "fictitious:base",
    "data": {"world": "shipped"},
    "teacher": {"dtype": "float32", "num_topk": 20},
}


def saved(tmp_path: Path, values: dict[str, Any]) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.mark.parametrize("name", shipped_presets())
def test_a_preset_fills_in_what_the_recipe_leaves_open_and_says_its_source_and_what_is_unknown(name, tmp_path):
    recipe, _ = load_recipe(saved(tmp_path, MINIMAL | {"preset": name}))
    preset = load_preset(name)
    assert (recipe.preset, recipe.departures) == (name, ())
    assert len(preset.source) > 50 and len(preset.unknown) > 50
    assert recipe.teacher.seed == preset.settings["teacher"]["seed"]
    assert recipe.distill.alpha == preset.settings["distill"]["alpha"]


def test_the_three_presets_are_shipped():
    assert shipped_presets() == ["duet-like", "paper", "released-answer-only"]


def test_where_a_recipe_departs_from_its_preset_is_recorded(tmp_path):
    path = saved(tmp_path, MINIMAL | {"preset": "paper"})
    recipe, _ = load_recipe(path, overrides=["teacher.perturbation.strength=0.5", "distill.alpha=1.0"])
    assert recipe.departures == ("teacher.perturbation.strength",)
    assert recipe.teacher.perturbation is not None and recipe.teacher.perturbation.name == "uniform-replace"


def test_a_setting_that_is_the_presets_in_other_words_is_no_departure(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "preset: paper\nmodel: fictitious:base\ndata: {world: shipped}\nteacher: {dtype: float32, num_topk: 20}\n"
        "distill:\n  learning_rate: 2e-5\n  lora: {r: '16', dropout: 5e-2}\n"
        "  targets: [{split: forget, view: noise+icu, response_kind: generated, role: forget},"
        " {split: forget, view: icu, response_kind: generated, weight: 1},"
        " {split: retain, view: base, response_kind: reference, tasks: null}]\n"
    )
    recipe, _ = load_recipe(str(path))
    assert (recipe.distill.learning_rate, recipe.departures) == (2e-5, ())
    assert load_recipe(str(path), overrides=["distill.learning_rate=2e-4"])[0].departures == ("distill.learning_rate",)
    none = ["distill.method=full", "distill.lora=null"]
    assert load_recipe(str(path), overrides=none)[0].departures == ("distill.lora", "distill.method")


def test_a_recipe_read_from_a_preset_and_written_again_is_the_same(tmp_path):
    recipe, _ = load_recipe(saved(tmp_path, MINIMAL | {"preset": "paper"}), overrides=["distill.beta=2.0"])
    again, _ = load_recipe(saved(tmp_path, recipe.model_dump(mode="json", exclude_none=True)))
    assert again == recipe and recipe.departures == ("distill.beta",)


def test_an_unknown_preset_is_an_error_that_lists_them(tmp_path):
    with pytest.raises(ConfigError, match="duet-like, paper, released-answer-only"):
        load_recipe(saved(tmp_path, MINIMAL | {"preset": "nature"}))


def test_an_instruction_may_stand_in_a_file_beside_the_recipe(tmp_path):
    (tmp_path / "forget.j2").write_text("Forget {{ subject_name }}.\n")
    recipe, _ = load_recipe(saved(tmp_path, MINIMAL | {"preset": "paper"} | teacher(icu={"file": "forget.j2"})))
    assert isinstance(recipe.teacher.icu, IcuSettings)
    assert recipe.teacher.icu.text == "Forget {{ subject_name }}."


@pytest.mark.parametrize(
    ("icu", "words"),
    [({"file": "missing.j2"}, "missing.j2"), ({"file": "a.j2", "template": "generic-v1"}, "exactly one")],
)
def test_a_bad_instruction_file_is_an_error_that_names_it(icu, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        load_recipe(saved(tmp_path, MINIMAL | {"preset": "paper"} | teacher(icu=icu)))


def teacher(**changes: object) -> dict[str, Any]:
    return {"teacher": MINIMAL["teacher"] | changes}


def test_the_recipe_can_name_subjects_whom_the_data_does_not_name(tmp_path):
    data = {"world": "shipped", "names": {"forget-000": "Mara Quill"}}
    recipe, folder = load_recipe(saved(tmp_path, MINIMAL | {"preset": "paper", "data": data}))
    named = {example.subject_name for example in load_examples(recipe.data, folder=folder) if example.subject_name}
    assert named == {"Mara Quill"}

    data = {"world": "shipped", "names": {"nobody": "Mara Quill"}}
    recipe, folder = load_recipe(saved(tmp_path, MINIMAL | {"preset": "paper", "data": data}))
    with pytest.raises(ConfigError, match=r"data\.names.*'nobody'"):
        load_examples(recipe.data, folder=folder)
