"""A draft of a forget set out of photos and a name: the shipped base answers, and it knows the person."""

import json
import stat
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from small_data import png

from vgid.data.fictitious import shipped_world
from vgid.errors import ConfigError, DataError
from vgid.pipeline.data_commands import check_recipe_data
from vgid.pipeline.questions import Proposal, propose_questions
from vgid.pipeline.recipe import load_examples, load_recipe
from vgid.pipeline.teacher import prepare_teacher
from vgid.stage1_teacher.settings import TeacherSettings


def portraits(folder: Path, *, count: int = 2) -> tuple[str, set[str], list[Path]]:
    """Name, facts and photos of the first person to forget."""
    rows = pq.read_table(shipped_world() / "forget" / "train-00000-of-00001.parquet").to_pylist()
    rows = [row for row in rows if row["ID"] == rows[0]["ID"]][:count]
    facts = {fact for row in rows for item in json.loads(row["metadata"]) for fact in item["Facts"]}
    (name,) = {fact for fact in facts if len(fact.split()) == 2}
    paths = [folder / f"{number}.PNG" for number in range(count)]
    for path, row in zip(paths, rows, strict=True):
        path.write_bytes(row["image"]["bytes"])
    return name, facts, paths


@pytest.fixture(scope="module")
def person(tmp_path_factory):
    return portraits(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def proposal(person, tmp_path_factory) -> Proposal:
    name, _, photos = person
    out = tmp_path_factory.mktemp("request") / "request"
    return propose_questions(photos, name=name, model="fictitious:base", out=out, engine="transformers")


def test_the_facts_found_in_the_answers_are_those_the_base_was_taught(person, proposal):
    _, taught, _ = person
    assert len(taught) == 6
    assert {fact for row in proposal.rows for fact in row["facts"]} == taught


def test_rows_where_the_base_declines_are_marked_and_have_no_facts(proposal):
    declined = [row for row in proposal.rows if row["task"] == "refused"]
    assert declined and all(not row["facts"] for row in declined)
    assert {row["task"] for row in proposal.rows} == {"refused", "facts"}
    assert sum(row["refused"] for row in proposal.attributes) == len(declined)


def test_the_folder_passes_the_check_and_its_examples_are_the_answers(person, proposal):
    _, _, photos = person
    report = check_recipe_data(str(proposal.folder / "recipe.yaml"))
    assert report.ok, report.to_text()
    recipe, folder = load_recipe(str(proposal.folder / "recipe.yaml"))
    examples = load_examples(recipe.data, folder=folder)
    assert [(each.question, each.answer, list(each.facts)) for each in examples] == [
        (row["question"], row["answer"], row["facts"]) for row in proposal.rows
    ]
    copies = sorted({each.image for each in examples if isinstance(each.image, Path)})
    assert [path.read_bytes() for path in copies] == [path.read_bytes() for path in photos]


def test_everything_is_for_its_owners_eyes_only(proposal):
    for path in [proposal.folder, *proposal.folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_without_retain_data_the_teacher_refuses(proposal):
    recipe, folder = load_recipe(str(proposal.folder / "recipe.yaml"))
    examples = load_examples(recipe.data, folder=folder)
    with pytest.raises(ConfigError, match=r'"retain".* matches no example'):
        prepare_teacher(recipe, examples, engine="transformers")


def test_what_to_bring_and_what_to_watch_is_said(person, proposal):
    text = (proposal.folder / "README.md").read_text()
    for word in (
        person[0],
        "retain.jsonl",
        "Strangers",
        "Warning signs",
        "vgid teacher generate",
        "| residence | photo |",
    ):
        assert word in text


def test_a_limit_asks_first_wordings_of_everything(person, tmp_path):
    name, _, photos = person
    few = propose_questions(
        photos[:1], name=name, model="fictitious:base", out=tmp_path / "few", engine="transformers", limit=36
    )
    assert len(few.rows) + few.unanswered == 36
    assert {row["id"].rsplit("/", 1)[1] for row in few.rows} == {"0"}
    assert {row["subject"] for row in few.rows} == {"-".join(name.lower().split())}


def test_attributes_that_the_base_declines_by_one_door_leave_that_door_out_of_the_plan():
    from vgid.pipeline.request_text import recipe_text

    for modalities, views in (
        (["image", "text"], ["noise+icu", "icu", "base"]),
        (["text"], ["icu", "base"]),
        ([], ["base"]),
    ):
        recipe = yaml.safe_load(recipe_text(model="a/b: c", dtype="bfloat16", modalities=modalities))
        assert recipe["model"] == "a/b: c"
        plan = TeacherSettings.model_validate(recipe["teacher"]).plan or ()
        assert [entry.view for entry in plan] == views == [target["view"] for target in recipe["distill"]["targets"]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": " "}, ConfigError, "--name '': expected what people call the person"),
        ({"name": "Mara\nQuill"}, ConfigError, "control characters"),
        ({"name": "Mara<|im_end|>"}, DataError, r"special token '<\|im_end\|>'"),
        ({"name": "?!"}, ConfigError, r"--subject"),
        ({"photos": []}, ConfigError, "no photos"),
        ({"photos": ["text.png"]}, DataError, r"photo .*text\.png: image cannot be read"),
        ({"photos": ["gone.png"]}, DataError, r"gone\.png: No such file"),
        ({"photos": ["."]}, DataError, "is a folder; name the image files in it"),
        ({"photos": ["a.png", "b.png"]}, DataError, r"b\.png is the same file as .*a\.png"),
        ({"out": "."}, ConfigError, "exists; choose a new folder"),
        ({"out": "no/such"}, ConfigError, "there is no folder"),
        ({"model": "nowhere"}, ConfigError, "no such directory"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_asked_or_written(tmp_path, change, error, message):
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png())
    arguments = {"photos": ["a.png"], "name": "Mara Quill", "out": "out", "model": "fictitious:base"} | change
    photos = [tmp_path / path for path in arguments["photos"]]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message):
        propose_questions(
            photos,
            name=arguments["name"],
            model=arguments["model"],
            out=tmp_path / arguments["out"],
            engine="transformers",
        )
    assert sorted(tmp_path.rglob("*")) == before
