"""`vgid data check`: every problem at once, each with its file and row, and what the data holds."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_data import evaluation_row, photo, png, training_row, write_csv, write_jsonl, write_parquet

from vgid.data.check import Finding, Ledger, Located, build_report
from vgid.data.examples import Example
from vgid.data.readers import Source, check_sources, load_sources
from vgid.errors import DataError

ROW: dict[str, Any] = {"question": "Where?", "answer": "In Oslo.", "subject": "bo", "split": "forget"}


def located(example_id: str = "a", *, split: str = "forget", subject: str = "p1", row: int = 1) -> Located:
    example = Example(
        example_id=example_id,
        split=split,
        subject_id=subject,
        task="facts",
        modality="text",
        image=None,
        question="?",
        answer="!",
    )
    return Located(file="f", row=row, example=example)


def problems(sources: list[Source], root: Path) -> list[tuple[str, int | None, str]]:
    findings = check_sources(sources, root=root).findings
    return [(Path(finding.file).name, finding.row, finding.problem) for finding in findings]


def test_good_data_has_no_findings_and_is_counted(tmp_path: Path) -> None:
    second = evaluation_row("p2", image=photo("blue", width=9, height=9))
    write_parquet(tmp_path / "forget_5", [evaluation_row(), second])
    write_parquet(tmp_path / "retain_95", [training_row("p3"), training_row("p4")])
    sources = [Source(tmp_path / "forget_5", split="forget"), Source(tmp_path / "retain_95", split="retain")]
    report = check_sources(sources, root=tmp_path)

    assert report.ok
    assert [(count.split, count.task, count.modality, count.rows) for count in report.rows] == [
        ("forget", "classification", "image", 2),
        ("forget", "classification", "text", 2),
        ("forget", "cloze", "image", 2),
        ("forget", "cloze", "text", 2),
        ("forget", "generation", "image", 2),
        ("forget", "generation", "text", 2),
        ("retain", "facts", "image", 4),
    ]
    assert report.subjects == {"forget": 2, "retain": 2}
    assert (report.num_images, report.smallest_image, report.largest_image) == (2, (4, 3), (9, 9))
    assert [schema for _, schema in sorted(report.schemas.items())] == [
        "evaluation schema of MLLMU-Bench: has Mask_Task, no metadata",
        "training schema of MLLMU-Bench: has metadata",
    ]


def broken_sources(folder: Path) -> list[Source]:
    """Sources with one of everything that can be wrong."""
    (folder / "bad.png").write_bytes(png()[:40])
    write_jsonl(
        folder / "mine.jsonl",
        [
            ROW,
            ROW | {"image": "gone.png"},
            ROW | {"image": "bad.png", "colour": "red"},
            ROW | {"answer": ""},
            ROW | {"split": "retain"},
            ROW | {"id": "0", "subject": "al"},
            ROW | {"id": "0", "subject": "al"},
        ],
    )
    (folder / "x.parquet").write_bytes(b"PAR1 and no more")
    write_csv(folder / "other.csv", [{"caption": "a", "name": "b"}])
    (folder / "empty.csv").write_text("question,answer,subject\n")
    (folder / "folder").mkdir()
    write_parquet(folder / "outsiders", [training_row("bo"), training_row(items=[{"Question": "?", "Answer": 1}])])
    names = [("mine.jsonl", None), ("x.parquet", "test"), ("other.csv", "test"), ("empty.csv", "retain")]
    names += [("folder", "test"), ("outsiders", "outsiders"), ("absent.jsonl", "test")]
    return [Source(folder / name, split=split) for name, split in names]


def test_everything_wrong_is_found_at_once_with_file_and_row(tmp_path: Path) -> None:
    found = problems(broken_sources(tmp_path), tmp_path)
    expected = [
        ("mine.jsonl", 2, "image: image 'gone.png' not found"),
        ("mine.jsonl", 3, "column 'colour' is unknown"),
        ("mine.jsonl", 3, "image: image cannot be read"),
        ("mine.jsonl", 4, "answer is missing or empty"),
        ("mine.jsonl", 5, "subject 'bo' is in retain here and in forget in"),
        ("mine.jsonl", 7, "example id 'mine/0' is used before"),
        ("x.parquet", None, "not an intact Parquet file"),
        ("other.csv", None, "columns (caption, name) fit no schema"),
        ("empty.csv", None, "split 'retain' is empty"),
        ("folder", None, "the folder holds neither train-*.parquet nor test-*.parquet"),
        ("train-00000-of-00001.parquet", 1, "subject 'bo' is in outsiders here and in forget in"),
        ("train-00000-of-00001.parquet", 1, "subject 'bo' is in outsiders here and in retain in"),
        ("train-00000-of-00001.parquet", 2, "metadata[0]: Answer must be text, not int"),
        ("absent.jsonl", None, "no such file"),
    ]

    assert [(file, row) for file, row, _ in found] == [(file, row) for file, row, _ in expected]
    for (_, _, problem), (_, _, start) in zip(found, expected, strict=True):
        assert problem.startswith(start)


def test_loading_stops_at_the_first_of_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mine\.jsonl, row 2: image: image 'gone\.png' not found"):
        load_sources(broken_sources(tmp_path), root=tmp_path)


def test_every_single_problem_stops_loading_too(tmp_path: Path) -> None:
    sources = broken_sources(tmp_path)
    for source in (*sources[1:5], sources[6]):
        with pytest.raises(DataError) as caught:
            load_sources([source], root=tmp_path)
        assert str(caught.value) == str(check_sources([source], root=tmp_path).findings[0])


@pytest.mark.parametrize("other", ["retain", "outsiders", "instruct"])
def test_a_subject_of_forget_may_not_stand_in_a_split_that_measures_what_stays(tmp_path: Path, other: str) -> None:
    write_parquet(tmp_path / "a", [training_row("p1")])
    write_parquet(tmp_path / "b", [training_row("p0"), training_row("p1")])
    sources = [Source(tmp_path / "a", split="forget"), Source(tmp_path / "b", split=other)]

    words = rf"b/train.*, row 2: subject 'p1' is in {other} here and in forget in .*a/train"
    with pytest.raises(DataError, match=words):
        load_sources(sources, root=tmp_path)
    assert len(check_sources(sources, root=tmp_path).findings) == 1, "once for the subject, not for each question"


def test_a_subject_of_forget_may_stand_in_test(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a", [training_row("p1")])
    write_parquet(tmp_path / "b", [training_row("p1")])
    sources = [Source(tmp_path / "a", split="forget"), Source(tmp_path / "b", split="test")]
    assert check_sources(sources, root=tmp_path).ok


def test_two_folders_of_one_name_clash_by_their_ids(tmp_path: Path) -> None:
    sources = []
    for parent in ("a", "b"):
        write_parquet(tmp_path / parent / "forget", [training_row("p1")])
        sources.append(Source(tmp_path / parent / "forget", split="forget"))
    assert "example id 'forget/p1/0' is used before" in problems(sources, tmp_path)[0][2]


def test_an_unknown_column_is_reported_once_a_file(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x", [training_row(caption="a"), training_row("p2", caption="b")])
    found = problems([Source(path, split="forget")], tmp_path)
    assert [(row, problem[:28]) for _, row, problem in found] == [(1, "column 'caption' is unknown;")]


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"question": "?", "answer": "!", "split": "forget"}])
    assert problems([Source(path)], tmp_path) == [("a.csv", None, "column 'subject' is missing; the table needs it")]


def test_no_sources_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sources are named"):
        load_sources([], root=tmp_path)


def test_one_broken_photo_does_not_hide_the_other_questions_of_its_row(tmp_path: Path) -> None:
    row = evaluation_row(images=[photo(), {"bytes": b"x", "path": None}])
    del row["image"]
    path = write_parquet(tmp_path / "x", [row])
    report = check_sources([Source(path, split="test")], root=tmp_path)

    assert [finding.problem[:10] for finding in report.findings] == ["images[1]:"]
    assert sum(count.rows for count in report.rows) == 6


def test_the_report_prints_as_json_and_as_text(tmp_path: Path) -> None:
    report = check_sources(broken_sources(tmp_path), root=tmp_path)
    values = json.loads(json.dumps(report.to_dict()))
    text = report.to_text()

    assert values["findings"][0]["row"] == 2 and values["subjects"] == report.subjects
    assert all(str(finding) in text for finding in report.findings)
    assert text.endswith("14 problems") and "table: has question and answer" in text


def test_a_clean_report_says_so(tmp_path: Path) -> None:
    text = check_sources([Source(write_jsonl(tmp_path / "a.jsonl", [ROW]))], root=tmp_path).to_text()
    assert text.endswith("no problems") and "0 images" in text and "forget: 1 subjects" in text


def test_the_ledger_names_both_places() -> None:
    ledger = Ledger()
    assert not list(ledger.clashes(located("a", row=1)))
    assert [str(clash) for clash in ledger.clashes(located("a", row=5, split="retain"))] == [
        "f, row 5: example id 'a' is used before, in f row 1; give every row its own id",
        "f, row 5: subject 'p1' is in retain here and in forget in f row 1; a subject belongs to one of them",
    ]


def test_findings_are_kept_in_the_order_of_the_data() -> None:
    events = [Finding(file="b", row=2, problem="x"), located(), Finding(file="a", row=None, problem="y")]
    report = build_report(events, image_sizes=[(2, 9), (4, 4), (1, 30)])

    assert [str(finding) for finding in report.findings] == ["b, row 2: x", "a: y"]
    assert (report.smallest_image, report.largest_image) == ((4, 4), (1, 30))
