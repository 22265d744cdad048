"""What a result says about the questions behind it."""

from pathlib import Path

import yaml

from vgid.pipeline.evaluation import evaluation_data


def test_questions_of_a_recipe_name_its_preset_and_where_it_departs_from_it(tmp_path: Path):
    values = {
        "preset": "duet-like",
        "model": "fictitious:base",
        "data": {"world": "shipped"},
        "teacher": {"dtype": "float32", "num_topk": 20, "icu": "privacy-v1"},
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    assert evaluation_data(str(recipe), overrides=[], per_cell=1).preset == "duet-like (but teacher.icu)"
    assert evaluation_data("fictitious", overrides=[], per_cell=1).preset is None
