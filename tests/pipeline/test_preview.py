"""The preview shows what generation does: the same pixels, the same prompts."""

import json
import stat
from hashlib import sha256

import pytest
from PIL import Image
from typer.testing import CliRunner

from vgid.cache.reader import open_cache
from vgid.data.chat import encode_prompt, load_processor
from vgid.data.fictitious import shipped_base
from vgid.errors import ConfigError
from vgid.pipeline.cli import app
from vgid.pipeline.preview import preview
from vgid.pipeline.recipe import load_examples, load_recipe
from vgid.pipeline.teacher import prepare_teacher, run_teacher


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("fictitious")[0]


@pytest.fixture(scope="module")
def examples(recipe):
    people: dict[str, set[str]] = {}
    for example in (everything := load_examples(recipe.data, folder=load_recipe("fictitious")[1])):
        people.setdefault(example.split, set()).add(example.subject_id)
    few = {subject for subjects in people.values() for subject in sorted(subjects)[:2]}
    return [example for example in everything if example.subject_id in few]


def test_pixels_and_prompts_are_those_of_the_cached_targets(recipe, examples, tmp_path):
    job = prepare_teacher(recipe, examples, engine="transformers")
    run_teacher(job, tmp_path / "cache", limit=24)
    targets = open_cache(tmp_path / "cache").load_targets(split="forget")
    rows = preview(recipe, examples, out=tmp_path / "a.png", count=10**6, split="forget", strengths=(1,))
    shown = {row.example_id: row for row in rows}
    processor = load_processor(shipped_base())
    for target in targets:
        row = shown[target.example_id]
        assert (row.view, row.pixel_sha256.get("1")) == (target.view, target.pixel_sha256)
        image = None if target.pixel_sha256 is None else Image.new("RGB", (56, 56))  # the portraits' size
        ids = encode_prompt(processor, row.prompt, image)["input_ids"][0].tolist()
        assert sha256(f"{row.text}\n{ids}".encode()).hexdigest() == target.prompt_sha256
    assert {target.view for target in targets} == {"noise+icu", "icu"}


def test_the_sheet_has_a_row_for_each_kind_and_the_default_strengths(recipe, examples, tmp_path):
    rows = preview(recipe, examples, out=tmp_path / "a.png", count=4, split="forget")
    assert {row.view for row in rows} == {"noise+icu", "icu"} and len(rows) == 4
    originals = [row.pixel_sha256["0"] for row in rows if row.pixel_sha256]
    assert len(set(originals)) == len(originals) > 1  # other pictures before other questions on the same
    for row in rows:
        if row.view == "icu":
            assert row.pictures == () and row.pixel_sha256 == {}
        else:
            assert list(row.pixel_sha256) == ["0", "0.25", "0.5", "0.75", "1"]
            assert len(set(row.pixel_sha256.values())) == 5
            captions = [caption for caption, _ in row.pictures]
            assert captions == ["original, 56x56", *(f"strength {key}" for key in row.pixel_sha256)]
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.format == "PNG" and sheet.height > 2 * 200


@pytest.mark.parametrize("name", ["diffusion", "blank", "blur", "patch-shuffle", "other-subject"])
def test_another_perturbation_than_the_recipes_can_be_looked_at(recipe, examples, tmp_path, name):
    rows = preview(recipe, examples, out=tmp_path / "a.png", count=3, split="forget", perturbation=name)
    hashes = [list(row.pixel_sha256.values()) for row in rows if row.pixel_sha256]
    assert hashes and all(len(set(of_row)) == 5 for of_row in hashes)


def test_a_split_that_is_taught_on_clean_pictures_is_shown_with_these(recipe, examples, tmp_path):
    rows = preview(recipe, examples, out=tmp_path / "a.png", count=6, split="retain")
    assert {row.view for row in rows} == {"base"}
    assert {len(row.pictures) for row in rows} == {0, 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "--split test: the recipe's plan has no such rows; it has forget, retain, strangers"),
        ({"perturbation": "sepia"}, "'sepia' is unknown"),
        ({"strengths": (0.5, 2)}, r"strength 2 of gaussian is outside \[0, 1\]"),
    ],
)
def test_wrong_options_are_refused_and_leave_no_file(recipe, examples, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        preview(recipe, examples, **({"out": tmp_path / "a.png", "count": 2, "split": "forget"} | options))
    assert not list(tmp_path.iterdir())


def test_the_command_prints_prompts_and_writes_a_private_file_once(tmp_path):
    command = ["teacher", "preview", "fictitious", "--out", str(tmp_path / "a.png"), "--examples", "2"]
    done = CliRunner().invoke(app, [*command, "--strengths", "0,1"])
    assert done.exit_code == 0, done.output
    assert done.stdout.count("You must forget everything") == 2 and "<|im_start|>" in done.stdout
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o600
    before = (tmp_path / "a.png").read_bytes()

    again = CliRunner().invoke(app, command)
    assert isinstance(again.exception, ConfigError) and "--overwrite" in str(again.exception)
    assert (tmp_path / "a.png").read_bytes() == before

    done = CliRunner().invoke(app, [*command, "--overwrite", "--json", "--strengths", "1"])
    records = json.loads(done.stdout)
    assert [sorted(record) for record in records] == [["example_id", "pixel_sha256", "prompt", "text", "view"]] * 2
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o600
    assert (tmp_path / "a.png").read_bytes() != before


def test_strengths_that_are_no_numbers_are_refused(tmp_path):
    done = CliRunner().invoke(
        app, ["teacher", "preview", "fictitious", "--out", str(tmp_path / "a"), "--strengths", "a"]
    )
    assert isinstance(done.exception, ConfigError) and "expected numbers with commas" in str(done.exception)
