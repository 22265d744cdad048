"""Recipes: strict, overridable, and every shipped one valid."""

from pathlib import Path

import pytest
import yaml

from vgid.errors import ConfigError
from vgid.pipeline.recipe import load_recipe, shipped_recipes


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
    assert (recipe.distill.alpha, recipe.teacher.perturbation.strength) == (2.5, 0.5)
    assert recipe.distill.beta == load_recipe("fictitious")[0].distill.beta


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.alpha", "key=value"),
        ("model.name=x", "not a group"),
        ("teacher.num_topk=zero", "teacher.num_topk"),
        ("teacher.perturbation.strength=3", "outside"),
        ("teacher.icu=shout-v1", "generic-v1"),
    ],
)
def test_a_bad_override_is_an_error_that_says_what_is_wrong(override, words):
    with pytest.raises(ConfigError, match=words):
        load_recipe("fictitious", overrides=[override])


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
