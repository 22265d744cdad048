"""A plain user's table, in three file formats."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_data import WRITERS, photo, png, write_csv, write_jsonl, write_parquet, write_table

from vgid.data.readers import Source, load_sources
from vgid.errors import DataError

ROW: dict[str, Any] = {"question": "Where does Bo live?", "answer": "In Oslo.", "subject": "bo", "split": "forget"}


def read(path: Path, **source: Any) -> list[Any]:
    return load_sources([Source(path, **source)], root=path.parent)


# Text that all three formats can hold: no NUL and no lone surrogates; entries of lists without the separator.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20).map(lambda text: "q" + text.strip())
ENTRY = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=";"), max_size=9).map(
    lambda text: "f" + text.strip()
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "image": st.sampled_from(["red.png", "sub/blue.png", None]),
            "question": TEXT,
            "answer": TEXT.map(lambda text: text + ',\n"quoted"'),
            "subject": TEXT,
            "split": st.just("retain"),
            "task": st.sampled_from(["facts", "perception", None]),
            "facts": st.lists(ENTRY, max_size=3),
            "phrasing": st.sampled_from(["trained", "heldout", None]),
            "photo": st.sampled_from(["trained", None]),
        }
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_one_table_reads_the_same_from_every_format(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    (tmp_path / "sub").mkdir(exist_ok=True)
    (tmp_path / "red.png").write_bytes(png("red"))
    (tmp_path / "sub" / "blue.png").write_bytes(png("blue"))
    as_read = [read(write_table(tmp_path / f"table{suffix}", rows)) for suffix in WRITERS]

    assert as_read[0] == as_read[1] == as_read[2]
    for row, example in zip(rows, as_read[0], strict=True):
        assert (example.question, example.answer, example.subject_id) == (
            row["question"],
            row["answer"],
            row["subject"],
        )
        assert (example.task, example.facts) == (row["task"] or "facts", tuple(row["facts"]))
        assert example.phrasing == row["phrasing"]
        assert example.image == (None if row["image"] is None else (tmp_path / row["image"]).resolve())
        assert example.photo == (row["photo"] if row["image"] else None)


def test_ids_number_the_questions_of_a_subject_or_are_the_tables_own(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"subject": "al"}, ROW, ROW | {"id": "q7"}]
    ids = [e.example_id for e in read(write_jsonl(tmp_path / "mine.jsonl", rows))]
    assert ids == ["mine/bo/0", "mine/al/0", "mine/bo/1", "mine/q7"]


def test_images_may_be_bytes_or_pairs_in_parquet(tmp_path: Path) -> None:
    plain = read(write_parquet(tmp_path / "a.parquet", [ROW | {"image": png()}]))
    pair = read(write_parquet(tmp_path / "b.parquet", [ROW | {"image": photo()}, ROW | {"image": None}]))

    assert plain[0].image == pair[0].image == png()
    assert (pair[1].image, pair[1].modality) == (None, "text")


def test_a_pair_without_bytes_is_a_path_under_the_root(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    path = write_jsonl(tmp_path / "a.jsonl", [ROW | {"image": {"bytes": None, "path": "red.png"}}])
    assert read(path)[0].image == (tmp_path / "red.png").resolve()


def test_facts_are_guessed_only_where_the_table_has_no_such_column(tmp_path: Path) -> None:
    assert read(write_csv(tmp_path / "a.csv", [ROW]))[0].facts == ("Oslo",)
    assert read(write_csv(tmp_path / "b.csv", [ROW | {"facts": None}]))[0].facts == ()
    assert read(write_csv(tmp_path / "c.csv", [ROW | {"facts": "Oslo; fjord;"}]))[0].facts == ("Oslo", "fjord")
    assert read(write_csv(tmp_path / "d.csv", [ROW | {"task": "perception"}]))[0].facts == ()


def test_choices_join_the_question_and_the_right_one_is_the_fact(tmp_path: Path) -> None:
    example = read(write_csv(tmp_path / "a.csv", [ROW | {"choices": "Rome;Oslo", "answer": "B"}]))[0]

    assert example.question == "Where does Bo live?\nA: Rome\nB: Oslo\nAnswer only with the letter of the right option."
    assert (example.task, example.choices, example.facts) == ("classification", ("Rome", "Oslo"), ("Oslo",))


def test_the_sources_photo_holds_unless_the_row_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    rows = [ROW | {"image": "red.png", "photo": photo_kind} for photo_kind in ("trained", None)]
    assert [e.photo for e in read(write_csv(tmp_path / "a.csv", rows), photo="heldout")] == ["trained", "heldout"]


@pytest.mark.parametrize("asked", ["forget", "", None])
def test_a_row_says_its_split_and_the_source_may_agree(tmp_path: Path, asked: str | None) -> None:
    assert read(write_jsonl(tmp_path / "a.jsonl", [ROW]), split=asked)[0].split == "forget"


def test_the_source_says_the_split_where_the_rows_do_not(tmp_path: Path) -> None:
    rows = [{key: value for key, value in ROW.items() if key != "split"}]
    assert read(write_csv(tmp_path / "a.csv", rows), split="retain")[0].split == "retain"


def test_a_whole_number_serves_as_an_identifier(tmp_path: Path) -> None:
    assert read(write_jsonl(tmp_path / "a.jsonl", [ROW | {"subject": 3, "id": 4}]))[0].example_id == "a/4"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"question": ""}, "question is missing or empty"),
        ({"answer": None}, "answer is missing or empty"),
        ({"answer": 3}, "answer must be text, not int"),
        ({"subject": " "}, "subject is missing or empty"),
        ({"subject": True}, "subject must be text, not bool"),
        ({"split": None}, "split is missing"),
        ({"split": ["forget"]}, "split must be text, not list of str"),
        ({"facts": [1]}, "facts must be a list of texts or one text cut at ';', not list of int"),
        ({"facts": {"a": 1}}, "facts must be a list of texts"),
        ({"photo": "new"}, "photo is 'new'; it must be 'trained' or 'heldout'"),
        ({"choices": ["Rome"], "answer": "A"}, "choices holds 1 options"),
        ({"choices": ["Rome", "Oslo"], "answer": "Oslo"}, "answer is 'Oslo'; with choices it must be one of"),
        ({"image": 7}, "image: an image is bytes, a path or a pair of both, not int"),
        ({"image": "gone.png"}, "image: image 'gone.png' not found under"),
        ({"image": "table.jsonl"}, "image: image cannot be read"),
        ({"image": "../out.png"}, "image: image '../out.png' leads outside the data root"),
        ({"image": "link.png"}, "image: image 'link.png' leads outside the data root"),
        ({"image": "https://example.org/a.png"}, "is a URL; vgid reads local files only"),
        ({"image": "a\0b"}, "is no usable path"),
        ({"image": "x" * 5000}, "is no usable path"),
        ({"image": "loop"}, "is no usable path"),
        ({"picture": "a.png"}, "column 'picture' is unknown; the table knows answer, choices"),
    ],
)
def test_a_broken_row_is_named_with_its_file_and_line(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "out.png").write_bytes(png())
    (root / "link.png").symlink_to(tmp_path / "out.png")
    (root / "loop").symlink_to(root / "loop")
    path = write_jsonl(root / "table.jsonl", [ROW, ROW | change])

    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, row 2: ") and problem in str(caught.value)


def test_rows_of_another_split_than_the_one_asked_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split is 'forget' but the source is asked for as 'retain'"):
        read(write_jsonl(tmp_path / "a.jsonl", [ROW]), split="retain")


def test_an_image_over_the_pixel_cap_is_refused(tmp_path: Path) -> None:
    Image.new("1", (8000, 8000)).save(tmp_path / "huge.png")
    with pytest.raises(DataError, match="row 1: image: image of 8000x8000 pixels is over the cap"):
        read(write_jsonl(tmp_path / "a.jsonl", [ROW | {"image": "huge.png"}]))
