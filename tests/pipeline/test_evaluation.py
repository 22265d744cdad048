"""What a result says about the questions behind it, and bad input."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from distill_cases import portrait

from vgid.data.examples import Example
from vgid.pipeline import cli
from vgid.pipeline.evaluation import NamedModel, evaluation_data, prepare_evaluation, what_decides


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


def test_another_picture_under_the_same_name_makes_another_evaluation(tmp_path: Path):
    """So do its marks, by which the metrics are told apart; what the data is called does not."""
    questions = replace(evaluation_data("shipped", overrides=[], per_cell=1), data_name="here")
    pictured = next(each for each in questions.examples if each.split == "forget" and each.image is not None)
    photo = tmp_path / "photo.png"

    def decides(example: Example, name: str = "here") -> object:
        asked = replace(questions, examples=[example], data_name=name)
        named = NamedModel(name="base", model="fictitious:base")
        return what_decides(prepare_evaluation([named], asked, engine="transformers"))

    photo.write_bytes(portrait(0))
    example = replace(pictured, image=photo, photo="trained")
    before = decides(example)
    assert decides(example, name="there") == before
    assert decides(replace(example, photo="heldout")) != before
    photo.write_bytes(portrait(1))
    assert decides(example) != before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dtype", "foo"], "--dtype 'foo' is unknown; choose float32, bfloat16 or float16"),
        (["--out", "FILE"], "a file is in the way; name a directory"),
        (["--out", "FILE/below"], "a file is in the way; name a directory"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(arguments, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    here = [argument.replace("FILE", str(tmp_path / "file")) for argument in arguments]
    asked = ["fictitious:base", "--data", "shipped", "--engine", "transformers", "--per-cell", "1"]
    monkeypatch.setattr("sys.argv", ["vgid", "evaluate", *asked, *here])
    monkeypatch.setattr(cli, "quieten_libraries", lambda: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith("error: ") and words in line, line
