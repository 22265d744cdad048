"""`vgid sql`: the rows of a query as a table, CSV, JSON or Parquet, on stdout or in a file.

A file appears whole or not at all, and is readable by its owner only: it is a copy of what must be forgotten.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import sys
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from vgid.cache.reader import open_cache
from vgid.cache.sql import Answer, open_query
from vgid.cache.views import VIEWS
from vgid.errors import ConfigError
from vgid.pipeline.console import say, table
from vgid.pipeline.private_files import check_free, new_private_file

FORMATS = ("table", "csv", "json", "parquet")

_TERMINAL_ROWS = 100
_NARROWEST = 8
_ROW_GROUP_BYTES = 64 * 2**20


def read_query(query: str | None, *, file: str | None) -> str | None:
    """The query from the command line, a file or stdin; None if there is none.

    Raises:
        ConfigError: both are given, or the file cannot be read.
    """
    if query is not None and file is not None:
        raise ConfigError("the query was given twice, as an argument and with --file; leave one out")
    if file is None:
        return query
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--file {file}: cannot be read ({error})") from error


def describe_views(cache: str) -> str:
    """What can be asked of a cache: views, columns, meanings.

    Raises:
        CacheError: no cache there.
    """
    open_cache(cache)
    blocks = []
    for name, (meaning, columns) in VIEWS.items():
        width = max(map(len, columns))
        blocks.append(
            "\n".join([f"{name}: {meaning}", *(f"  {c.ljust(width)}  {line}" for c, line in columns.items())])
        )
    return "\n\n".join(blocks)


def print_query(
    cache: str,
    query: str,
    *,
    output_format: str | None,
    output: Path | None,
    overwrite: bool,
    timeout_s: float,
    memory: str,
) -> None:
    """Run one query and write its rows.

    Args:
        cache: Path or URL.
        query: SQL.
        output_format: One of `FORMATS`; None for what the output's name ends in, or a table.
        output: A file; None for stdout.
        overwrite: Whether `output` may exist.
        timeout_s: Most seconds; 0 for no limit.
        memory: Most memory of DuckDB.

    Raises:
        ConfigError: the SQL or an option is wrong, or a limit is exceeded.
        CacheError: no cache there, or a part that the query needs is missing or damaged.
    """
    suffix = output.suffix.removeprefix(".") if output else ""
    chosen = output_format or (suffix if suffix in FORMATS else "table")
    if chosen not in FORMATS:
        raise ConfigError(f"--format {chosen!r} is unknown; choose {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if output:
        check_free(output, option="--output", overwrite=overwrite)
    terminal = output is None and sys.stdout.isatty()
    if terminal and chosen == "parquet":
        raise ConfigError("--format parquet is not for a terminal; add --output FILE")
    with open_query(cache, query, timeout_s=timeout_s or None, memory=memory) as answer:
        if output is None:
            _write(answer, chosen, _Counted(sys.stdout.buffer), terminal=terminal)
        else:
            with new_private_file(output, option="--output", overwrite=overwrite) as sink:
                _write(answer, chosen, sink, terminal=False)


def _write(answer: Answer, chosen: str, sink: Any, *, terminal: bool) -> None:
    if chosen == "parquet":
        _write_parquet(answer, sink)
    elif chosen == "csv":
        _write_csv(answer, sink)
    elif chosen == "json":
        _write_json(answer, sink)
    else:
        _write_table(answer, sink, terminal=terminal)


def _write_parquet(answer: Answer, sink: Any) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(sink, answer.schema, compression="zstd") as writer:
        gathered: list[pa.RecordBatch] = []
        for batch in answer.batches:
            gathered.append(batch)
            if sum(each.nbytes for each in gathered) >= _ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(gathered))
                gathered = []
        writer.write_table(pa.Table.from_batches(gathered, answer.schema))


def _write_csv(answer: Answer, sink: Any) -> None:
    """Lists and structs, which CSV does not know, as JSON."""
    import pyarrow.csv

    nested = {i for i, field in enumerate(answer.schema) if pa.types.is_nested(field.type)}
    schema = pa.schema([(f.name, pa.string() if i in nested else f.type) for i, f in enumerate(answer.schema)])
    with pyarrow.csv.CSVWriter(sink, schema) as writer:
        for batch in answer.batches:
            columns = [
                pa.array([None if value is None else _json(value) for value in column.to_pylist()], pa.string())
                if i in nested
                else column
                for i, column in enumerate(batch.columns)
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _write_json(answer: Answer, sink: Any) -> None:
    """A list of objects, one a line."""
    before = "["
    for batch in answer.batches:
        for row in batch.to_pylist():
            sink.write(f"{before}{_json(row)}".encode())
            before = ",\n "
    sink.write(b"[]\n" if before == "[" else b"]\n")


def _write_table(answer: Answer, sink: Any, *, terminal: bool) -> None:
    rows = (list(row.values()) for batch in answer.batches for row in batch.to_pylist())
    shown = list(islice(rows, _TERMINAL_ROWS) if terminal else rows)
    width = shutil.get_terminal_size().columns if terminal else None
    text = table(answer.schema.names, shown, number=".6g", width=width)
    sink.write(f"{text}\n".encode())
    if terminal and next(rows, None) is not None:
        say(f"the first {_TERMINAL_ROWS} rows; --format csv prints all, --output FILE keeps them")


def _json(value: Any) -> str:
    """JSON has no infinities and no NaN: null."""
    try:
        return json.dumps(value, default=_plain, allow_nan=False, ensure_ascii=False)
    except ValueError:
        return json.dumps(_finite(value), default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):  # also what DuckDB's sum of integers is
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Counted(io.RawIOBase):
    """A pipe that knows how much went through it, which the Parquet writer asks."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._written += self._sink.write(data)
        return len(data)

    def tell(self) -> int:
        return self._written

    def flush(self) -> None:
        self._sink.flush()
