"""MLLMU-Bench's two schemas, with the quirks of the real files."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_data import evaluation_row, photo, training_row, write_jsonl, write_parquet

from vgid.data.examples import Example
from vgid.data.readers import Source, load_sources
from vgid.errors import DataError


def read(folder: Path, rows: list[dict[str, Any]], *, split: str | None = "forget", **source: Any) -> list[Example]:
    write_parquet(folder, rows)
    return load_sources([Source(folder, split=split, **source)], root=folder)


def items(*entries: dict[str, Any]) -> list[dict[str, Any]]:
    return list(entries)


def entry(question: str = "Where does he live?", answer: Any = "He lives in Oslo.", **keys: Any) -> dict[str, Any]:
    return {"Question": question, "Answer": answer, **keys}


def test_the_evaluation_schema_gives_classification_generation_and_cloze(tmp_path: Path) -> None:
    examples = read(tmp_path / "forget_5", [evaluation_row()])

    assert [(e.example_id, e.task, e.modality) for e in examples] == [
        ("forget_5/p1/0", "classification", "image"),
        ("forget_5/p1/1", "classification", "text"),
        ("forget_5/p1/2", "generation", "image"),
        ("forget_5/p1/3", "generation", "text"),
        ("forget_5/p1/4", "cloze", "image"),
        ("forget_5/p1/5", "cloze", "text"),
    ]
    assert {(e.split, e.subject_id) for e in examples} == {("forget", "p1")}


def test_options_are_sorted_by_letter_and_the_right_ones_text_is_the_fact(tmp_path: Path) -> None:
    example = read(tmp_path / "x", [evaluation_row()])[0]

    assert example.choices == ("Helsinki", "Cairo", "Oslo", "Rome")
    assert (example.answer, example.facts) == ("A", ("Helsinki",))
    assert example.question.splitlines()[1:5] == ["A: Helsinki", "B: Cairo", "C: Oslo", "D: Rome"]


def test_letters_that_a_question_does_not_use_are_null_in_parquet(tmp_path: Path) -> None:
    row = evaluation_row()
    two = {"Question": "Indoors?", "Options": {"A": "Yes", "B": "No"}, "Correct_Answer": "B"}
    row["Classification_Task"]["Image_Textual_Questions"].append(two)

    assert read(tmp_path / "x", [row])[1].choices == ("Yes", "No")


def test_a_cloze_question_asks_for_the_blank_and_its_truth_is_the_fact(tmp_path: Path) -> None:
    example = read(tmp_path / "x", [evaluation_row()])[4]

    assert example.question == "This person is a [Blank] by trade.\nAnswer only with the missing words."
    assert example.answer == "dentist" and example.facts == ("dentist",)


def test_facts_of_a_free_answer_come_from_cloze_truths_and_the_biography(tmp_path: Path) -> None:
    about_photo, by_name = read(tmp_path / "x", [evaluation_row()])[2:4]

    assert set(about_photo.facts) == {"dentist", "Helsinki", "Rosa Salgado"}
    assert by_name.facts == ("Helsinki",), "the name stands in the question"


def test_every_image_of_a_list_is_asked_about_and_text_only_once(tmp_path: Path) -> None:
    row = evaluation_row(images=[photo("red"), photo("blue")])
    del row["image"]
    examples = read(tmp_path / "Test_Set", [row], photo="heldout")

    assert [e.example_id for e in examples if e.task == "generation"] == [
        "Test_Set/p1/2",
        "Test_Set/p1/2/p1",
        "Test_Set/p1/3",
    ]
    assert {e.photo for e in examples if e.modality == "image"} == {"heldout"}
    assert {(e.photo, e.image) for e in examples if e.modality == "text"} == {(None, None)}
    assert examples[0].image == photo("red")["bytes"] and examples[1].image == photo("blue")["bytes"]


def test_the_training_schema_asks_about_the_image_unless_an_item_says_otherwise(tmp_path: Path) -> None:
    rows = [training_row(items=items(entry(), entry("Where does Bo live?", Type="Pure_Text")))]
    examples = read(tmp_path / "forget_5", rows, photo="trained")

    assert [(e.example_id, e.task, e.modality, e.photo) for e in examples] == [
        ("forget_5/p1/0", "facts", "image", "trained"),
        ("forget_5/p1/1", "facts", "text", None),
    ]
    assert [e.facts for e in examples] == [("Oslo",), ("Oslo",)], "guessed: there is no biography"


def test_optional_keys_of_an_item_are_read(tmp_path: Path) -> None:
    listed = entry(Task="facts", Phrasing="heldout", Facts=["Oslo", "fjord"])
    seen = entry("What colour is the hat?", "The hat is Red.", Task="perception", Phrasing="trained")
    first, second = read(tmp_path / "x", [training_row(items=items(listed, seen))])

    assert (first.facts, first.phrasing) == (("Oslo", "fjord"), "heldout")
    assert (second.task, second.facts, second.phrasing) == ("perception", (), "trained")


def test_an_empty_list_of_facts_means_none(tmp_path: Path) -> None:
    assert read(tmp_path / "x", [training_row(items=items(entry(Facts=[])))])[0].facts == ()


def test_rows_of_one_person_are_its_photos(tmp_path: Path) -> None:
    rows = [training_row(items=items(entry())), training_row(items=items(entry()), image=photo("blue"))]
    assert [e.example_id for e in read(tmp_path / "x", rows)] == ["x/p1/0", "x/p1/0/p1"]


def test_photos_are_numbered_across_the_files_of_a_folder(tmp_path: Path) -> None:
    for number, colour in enumerate(["red", "blue"]):
        write_parquet(tmp_path / "x" / f"test-0000{number}-of-00002.parquet", [training_row(image=photo(colour))])
    examples = load_sources([Source(tmp_path / "x", split="test")], root=tmp_path)

    assert [e.example_id for e in examples] == ["x/p1/0", "x/p1/1", "x/p1/0/p1", "x/p1/1/p1"]


def test_naming_the_file_or_its_folder_gives_the_same_examples(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "forget_5", [evaluation_row()])
    by_file = load_sources([Source(path, split="forget")], root=tmp_path)

    assert by_file == load_sources([Source(tmp_path / "forget_5", split="forget")], root=tmp_path)


def text_only_row() -> dict[str, Any]:
    """An evaluation row without its image and the questions about it."""
    row = evaluation_row(image=None)
    for task in ("Generation_Task", "Mask_Task"):
        row[task] = row[task][1:]
    row["Classification_Task"]["Image_Textual_Questions"] = []
    return row


def test_the_schema_is_told_by_columns_in_any_file_format(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "people.jsonl", [text_only_row()])

    tasks = [e.task for e in load_sources([Source(path, split="forget")], root=tmp_path)]
    assert tasks == ["classification", "generation", "cloze"]


def test_a_biography_beside_metadata_serves_for_facts_and_the_directory_is_ignored(tmp_path: Path) -> None:
    row = training_row(items=items(entry(answer="A dentist in Oslo.")), Directory="a/b")
    row["biography"] = json.dumps({"Job:": "dentist"})
    assert read(tmp_path / "x", [row])[0].facts == ("dentist",)


def test_the_id_may_stand_in_the_items_or_be_a_number(tmp_path: Path) -> None:
    row = training_row(items=items(entry(ID="p7")))
    del row["ID"]
    assert read(tmp_path / "a", [row])[0].subject_id == "p7"
    assert read(tmp_path / "b", [training_row() | {"ID": 12}])[0].subject_id == "12"


def changed(path: list[str | int], value: Any) -> dict[str, Any]:
    """An evaluation row with one value deep inside replaced."""
    row = json.loads(json.dumps(evaluation_row(image=None)))
    row["image"] = photo()
    place: Any = row
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return row


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (changed(["ID"], ""), "ID is missing or empty"),
        (changed(["image"], None), r"image is missing, but question 0 \('Where does this person live"),
        (changed(["image", "bytes"], b"no image"), "image: image cannot be read"),
        (changed(["Mask_Task", 0, "Ground_Truth"], " "), r"Mask_Task\[0\]: Ground_Truth is missing or empty"),
        (changed(["Generation_Task", 1, "Question"], None), r"Generation_Task\[1\]: Question is missing or empty"),
        (changed(["Generation_Task", 0, "Type"], "Video"), r"Generation_Task\[0\]: Type is 'Video'"),
        (
            changed(["Classification_Task", "Image_Textual_Questions", 0, "Correct_Answer"], "Helsinki"),
            r"Image_Textual_Questions\[0\]: Correct_Answer is 'Helsinki'; the options are A, B, C, D",
        ),
        (
            changed(["Classification_Task", "Pure_Text_Questions", 0, "Options"], {"A": "x", "C": "y"}),
            r"Pure_Text_Questions\[0\]: Options are lettered A, C; expected A, B",
        ),
        (training_row(items=[]), "the row holds no questions"),
        (training_row() | {"metadata": "[{"}, "metadata is not JSON"),
        (training_row() | {"metadata": '{"Question": "?"}'}, "metadata must hold a JSON list"),
        (training_row() | {"metadata": '["text"]'}, r"metadata\[0\]: a question is an object, not str"),
        (training_row(items=items(entry(), entry(Anwser="x"))), r"metadata\[1\]: key 'Anwser' is unknown"),
        (training_row(items=items(entry(answer=""))), r"metadata\[0\]: Answer is missing or empty"),
        (training_row(items=items(entry(answer=7))), r"metadata\[0\]: Answer must be text, not int"),
        (training_row(items=items(entry(Phrasing="new"))), r"metadata\[0\]: Phrasing is 'new'"),
        (training_row(items=items(entry(Facts=[1]))), r"metadata\[0\]: Facts must be a list of texts"),
    ],
)
def test_a_broken_row_is_named_with_its_file_and_number(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    good = training_row("p0") if "metadata" in row else evaluation_row("p0")
    with pytest.raises(DataError, match=rf"x/train-00000-of-00001\.parquet, row 2: {problem}"):
        read(tmp_path / "x", [good, row])


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"Mask_Task": "text"}, "Mask_Task must be a list of questions, not str"),
        ({"Classification_Task": "text"}, "Classification_Task must hold"),
        ({"Classification_Task": {"Image_Questions": []}}, "key 'Image_Questions' is unknown"),
    ],
)
def test_a_task_column_of_another_shape_is_refused(tmp_path: Path, columns: dict[str, Any], problem: str) -> None:
    path = write_jsonl(tmp_path / "people.jsonl", [text_only_row(), text_only_row() | columns])
    with pytest.raises(DataError, match=rf"people\.jsonl, row 2: {problem}"):
        load_sources([Source(path, split="forget")], root=tmp_path)


def test_a_split_must_be_named_for_files_that_cannot_say_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name the split of the source"):
        read(tmp_path / "x", [evaluation_row()], split=None)
