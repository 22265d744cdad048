"""Files as rows: what is damaged, and where."""

from pathlib import Path
from typing import Any

import pytest
from small_data import write_csv, write_parquet

from vgid.data.readers.records import open_records
from vgid.errors import DataError


def rows_of(path: Path) -> list[Any]:
    return list(open_records(path).rows)


def test_the_three_formats_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"a": "x", "b": "y"}, {"a": "z", "b": None}]
    (tmp_path / "t.jsonl").write_text('{"a": "x", "b": "y"}\n{"a": "z", "b": null}\n')
    expected = [(1, rows[0]), (2, rows[1])]

    assert rows_of(write_parquet(tmp_path / "t.parquet", rows)) == expected
    assert rows_of(write_csv(tmp_path / "t.csv", rows)) == expected
    assert rows_of(tmp_path / "t.jsonl") == expected


def test_columns_are_known_without_any_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n")
    records = open_records(tmp_path / "t.csv")
    assert (records.columns, list(records.rows)) == (("a", "b"), [])


def test_jsonl_rows_are_numbered_by_line_and_a_bad_line_does_not_stop_the_reading(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": \n[1]\n{"a": "\xff"}\n{"a": 2}')
    rows = rows_of(tmp_path / "t.jsonl")

    assert [number for number, _ in rows] == [1, 3, 4, 5, 6]
    assert (rows[0][1], rows[4][1]) == ({"a": 1}, {"a": 2})
    assert "not a line of JSON" in str(rows[1][1]) and "not list" in str(rows[2][1])
    assert "not a line of JSON" in str(rows[3][1])


def test_deeply_nested_json_is_a_finding_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": ' + "[" * 100_000 + "\n")
    assert isinstance(rows_of(tmp_path / "t.jsonl")[0][1], DataError)


def test_csv_cells_may_hold_commas_and_newlines(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('\ufeffa,b\n"x, y","1\n2"\n\nz,\n', encoding="utf-8")
    assert rows_of(tmp_path / "t.csv") == [(1, {"a": "x, y", "b": "1\n2"}), (2, {"a": "z", "b": None})]


def test_a_csv_row_of_another_length_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2,3\n4\n5,6\n")
    rows = rows_of(tmp_path / "t.csv")
    assert "3 cells where the header names 2 columns" in str(rows[0][1]) and isinstance(rows[1][1], DataError)
    assert rows[2] == (3, {"a": "5", "b": "6"})


@pytest.mark.parametrize("body", [b"a,b\n\xff,1\n", b'a,b\n"open,1\n', b'a,b\n"x"y,1\n'])
def test_a_damaged_csv_is_a_data_error(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(body)
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        rows_of(tmp_path / "t.csv")


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,a\n")
    with pytest.raises(DataError, match="column 'a' occurs more than once"):
        open_records(tmp_path / "t.csv")


def test_other_formats_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"format '\.xlsx' is not read; convert it to one of \.parquet"):
        open_records(tmp_path / "t.xlsx")
    with pytest.raises(DataError, match="no such file"):
        open_records(tmp_path / "t.csv")


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    for body in (b"", b"PAR1", b"text" * 100):
        (tmp_path / "t.parquet").write_bytes(body)
        with pytest.raises(DataError, match="not an intact Parquet file"):
            open_records(tmp_path / "t.parquet")


def test_any_flipped_bit_in_a_page_is_found(tmp_path: Path) -> None:
    """Page checksums are verified, so a value that changed on disk is never taken for data."""
    path = write_parquet(tmp_path / "t.parquet", [{"a": f"some words {n}", "b": n} for n in range(50)])
    intact, expected = path.read_bytes(), rows_of(path)
    footer = len(intact) - 8 - int.from_bytes(intact[-8:-4], "little")
    found = 0
    for place in range(4, footer, 3):
        path.write_bytes(intact[:place] + bytes([intact[place] ^ 4]) + intact[place + 1 :])
        try:
            assert rows_of(path) == expected
        except DataError:
            found += 1
    assert found > 0.9 * len(range(4, footer, 3))
