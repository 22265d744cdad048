"""From sources to examples: recognise each file by its columns, read its rows, find what clashes between them.

One walk serves both ways of reading: `load_sources` stops at the first problem, `check_sources` reports them all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vgid.data.check import Event, Finding, Ledger, Located, Report, SchemaFound, build_report
from vgid.data.examples import Example
from vgid.data.readers import mllmu, table
from vgid.data.readers.gallery import Gallery
from vgid.data.readers.items import TASK_COLUMNS
from vgid.data.readers.records import Record, open_records
from vgid.data.readers.source import Origin, Outcome, Source
from vgid.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """A set of columns that a reader knows."""

    name: str
    known: Collection[str]
    required: Collection[str]
    says_split: bool
    """Whether a row may say its own split."""
    read_row: Callable[[Mapping[str, Any], Origin], Iterator[Outcome]]


EVALUATION = Schema(
    name="evaluation schema of MLLMU-Bench",
    known=mllmu.EVALUATION_COLUMNS,
    required=("ID",),
    says_split=False,
    read_row=mllmu.read_evaluation_row,
)
TRAINING = Schema(
    name="training schema of MLLMU-Bench",
    known=mllmu.TRAINING_COLUMNS,
    required=(),
    says_split=False,
    read_row=mllmu.read_training_row,
)
TABLE = Schema(name="table", known=table.KNOWN, required=table.REQUIRED, says_split=True, read_row=table.read_table_row)


def load_sources(sources: Sequence[Source], *, root: Path) -> list[Example]:
    """Read every example of the sources, in order. Each image is decoded once to make sure that it can be.

    Args:
        sources: Data sets to read.
        root: Folder that image paths are relative to and may not leave.

    Raises:
        DataError: the first problem, naming file and row; `check_sources` finds them all.
    """
    examples = []
    for event in _walk(sources, Gallery(root=root)):
        if isinstance(event, Finding):
            raise DataError(str(event))
        if isinstance(event, Located):
            examples.append(event.example)
    return examples


def check_sources(sources: Sequence[Source], *, root: Path) -> Report:
    """Read all of the sources and say what they hold and everything that is wrong with them.

    Args:
        sources: Data sets to read.
        root: Folder that image paths are relative to and may not leave.
    """
    gallery = Gallery(root=root)
    return build_report(_walk(sources, gallery), image_sizes=gallery.sizes.values())


def detect_schema(columns: Collection[str]) -> tuple[Schema, str]:
    """Recognise a file by its columns; returns the schema and a sentence that says by what.

    Raises:
        DataError: the columns belong to no schema, or a column that the schema needs is missing.
    """
    tasks = [name for name in TASK_COLUMNS if name in columns]
    if "metadata" in columns:
        schema, sign = TRAINING, "has metadata" + (f"; its {', '.join(tasks)} are not asked" if tasks else "")
    elif tasks:
        schema, sign = EVALUATION, f"has {tasks[-1]}, no metadata"
    elif "question" in columns and "answer" in columns:
        schema, sign = TABLE, "has question and answer"
    else:
        seen = ", ".join(sorted(columns)) or "none"
        raise DataError(
            f"columns ({seen}) fit no schema; a table has question, answer, subject; "
            "MLLMU-Bench's files have metadata or Mask_Task"
        )
    missing = [name for name in schema.required if name not in columns]
    if missing:
        raise DataError(f"column {missing[0]!r} is missing; the {schema.name} needs it")
    return schema, f"{schema.name}: {sign}"


def _walk(sources: Sequence[Source], gallery: Gallery) -> Iterator[Event]:
    ledger = Ledger()
    if not sources:
        yield Finding(file="data", row=None, problem="no sources are named; name at least one")
    for source in sources:
        empty = True
        for event in _source_events(source, gallery):
            yield event
            empty = empty and isinstance(event, SchemaFound)
            if isinstance(event, Located):
                yield from ledger.clashes(event)
        if empty:
            asked = f"split {source.split!r} is empty" if source.split else "no rows"
            yield Finding(file=str(source.path), row=None, problem=f"{asked}; fill it or leave the source out")


def _source_events(source: Source, gallery: Gallery) -> Iterator[Event]:
    origin = Origin(name=source.name, split=source.split or None, photo=source.photo, gallery=gallery)
    try:
        files = source.files()
    except DataError as error:
        yield Finding(file=str(source.path), row=None, problem=str(error))
        return
    for file in files:
        try:
            yield from _file_events(file, origin)
        except DataError as error:
            yield Finding(file=str(file), row=None, problem=str(error))


def _file_events(file: Path, origin: Origin) -> Iterator[Event]:
    records = open_records(file)
    schema, description = detect_schema(records.columns)
    yield SchemaFound(file=str(file), schema=description)
    if origin.split is None and not schema.says_split:
        raise DataError(f"the {schema.name} does not say its split; name the split of the source")
    known = set(schema.known)
    for number, record in records.rows:
        for outcome in _row_outcomes(record, schema, origin, known):
            if isinstance(outcome, DataError):
                yield Finding(file=str(file), row=number, problem=str(outcome))
            else:
                yield Located(file=str(file), row=number, example=outcome)


def _row_outcomes(record: Record | DataError, schema: Schema, origin: Origin, known: set[str]) -> Iterator[Outcome]:
    """Read one row; a column that is unknown is reported on the first row that has it, then counted as known."""
    if isinstance(record, DataError):
        yield record
        return
    for column in [name for name in record if name not in known]:
        known.add(column)
        yield DataError(f"column {column!r} is unknown; the {schema.name} knows {', '.join(sorted(schema.known))}")
    try:
        yield from schema.read_row(record, origin)
    except DataError as error:
        yield error
