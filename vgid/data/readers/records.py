"""Parquet, JSONL and CSV files as rows of plain values, whatever their columns mean.

Rows are numbered from 1: Parquet by row, CSV by record after the header, JSONL by line. Files are read in pieces, so a
file larger than memory can be checked. What this gives up: a Parquet file damaged in the middle is reported as a whole,
without a row, and a JSONL file is recognised by the keys of its first good line.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from vgid.errors import DataError

SUFFIXES = (".parquet", ".jsonl", ".csv")
_ROWS_PER_BATCH = 64

Record = dict[str, Any]
Row = tuple[int, Record | DataError]


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """An opened file: its columns, and its rows still to be read."""

    columns: tuple[str, ...]
    rows: Iterator[Row]
    """Row number and values, or what is wrong with the row. Iterating raises DataError where the file itself breaks."""


def open_records(path: Path) -> Records:
    """Open a Parquet, JSONL or CSV file, told apart by its suffix.

    Raises:
        DataError: no such file, another suffix, a damaged file, or a column that occurs twice.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"format {suffix!r} is not read; convert it to one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError("no such file; check the path")
    opener = {".parquet": _open_parquet, ".jsonl": _open_jsonl, ".csv": _open_csv}[suffix]
    records = opener(path)
    twice = [name for name, times in Counter(records.columns).items() if times > 1]
    if twice:
        raise DataError(f"column {twice[0]!r} occurs more than once; rename one of them")
    return records


def _open_parquet(path: Path) -> Records:
    rows = _parquet_rows(path)
    _, columns = next(rows)
    return Records(columns=tuple(columns), rows=rows)


def _parquet_rows(path: Path) -> Iterator[Any]:
    """Yield (0, the columns' names), then the rows: one generator, so that one block turns damage into one error."""
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            yield 0, file.schema_arrow.names
            for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH):
                batch.validate(full=True)
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"not an intact Parquet file ({reason}); fetch or write it again") from error


def _open_jsonl(path: Path) -> Records:
    rows = _jsonl_rows(path)
    before: list[Row] = []
    columns: tuple[str, ...] = ()
    for row in rows:
        before.append(row)
        if isinstance(row[1], dict):
            columns = tuple(row[1])
            break
    return Records(columns=columns, rows=chain(before, rows))


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _json_object(line)


def _json_object(line: bytes) -> Record | DataError:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return DataError(f"not a line of JSON ({error}); write one object a line, in UTF-8")
    if not isinstance(value, dict):
        return DataError(f"a JSON object is expected on each line, not {type(value).__name__}")
    return value


def _open_csv(path: Path) -> Records:
    lines = _csv_lines(path)
    header = tuple(next(lines, []))
    return Records(columns=header, rows=_csv_rows(lines, header))


def _csv_lines(path: Path) -> Iterator[list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        try:
            yield from reader
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"not a CSV file in UTF-8 ({error}, near line {reader.line_num})") from error


def _csv_rows(lines: Iterator[list[str]], header: tuple[str, ...]) -> Iterator[Row]:
    for number, cells in enumerate(filter(None, lines), start=1):
        if len(cells) == len(header):
            yield number, {name: cell or None for name, cell in zip(header, cells, strict=True)}
        else:
            yield number, DataError(f"{len(cells)} cells where the header names {len(header)} columns; quote commas")
