"""What reading data can bring up, and the report of `vgid data check`.

Readers turn files into a stream of three records: the schema that a file was found to have, an example with its place,
or a finding with its place. Loading stops at the first finding; checking goes to the end and reports them all. Nothing
here touches a disk. What this gives up: once a row is broken, a later row that would only have clashed with it is not
reported until the first is mended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from vgid.data.examples import Example

EXCLUSIVE_SPLITS = ("forget", "retain", "outsiders", "instruct", "strangers")
"""A subject may stand in one of these only: whoever is to be forgotten cannot also measure what must stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaFound:
    """A file was opened and its columns recognised."""

    file: str
    schema: str
    """For people: which schema, and by which columns it was told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """An example and where it was read."""

    file: str
    row: int
    example: Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One problem in the data, and where it is."""

    file: str
    row: int | None
    """1-based: the line of a JSONL file, the record after the header of a CSV file, the row of a Parquet file."""
    problem: str

    def __str__(self) -> str:
        place = self.file if self.row is None else f"{self.file}, row {self.row}"
        return f"{place}: {self.problem}"


Event = SchemaFound | Located | Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCount:
    """How many examples share a split, a task and a modality."""

    split: str
    task: str
    modality: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the data holds and everything that is wrong with it."""

    findings: tuple[Finding, ...]
    rows: tuple[RowCount, ...]
    subjects: dict[str, int]
    """Number of different subjects by split."""
    num_images: int
    """Number of different images that decode."""
    smallest_image: tuple[int, int] | None
    """Width and height in pixels, of the image with the fewest pixels; None where there is no image."""
    largest_image: tuple[int, int] | None
    schemas: dict[str, str]
    """File to schema found."""

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """The report as lines for a terminal: schemas, counts, then the findings."""
        lines = [f"{file}: {schema}" for file, schema in self.schemas.items()]
        lines += ["", f"{'split':<12}{'task':<16}{'modality':<10}{'rows':>8}"]
        lines += [f"{count.split:<12}{count.task:<16}{count.modality:<10}{count.rows:>8}" for count in self.rows]
        lines += ["", *(f"{split}: {number} subjects" for split, number in self.subjects.items())]
        lines.append(f"{self.num_images} images" + self._size_range())
        lines += ["", *map(str, self.findings), f"{len(self.findings)} problems" if self.findings else "no problems"]
        return "\n".join(lines)

    def _size_range(self) -> str:
        if self.smallest_image is None or self.largest_image is None:
            return ""
        (width, height), (most_width, most_height) = self.smallest_image, self.largest_image
        return f", {width}x{height} to {most_width}x{most_height} pixels"


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Remembers ids and subjects, to find clashes between rows, files and sources."""

    _places: dict[str, Located] = field(default_factory=dict)
    _subjects: dict[str, dict[str, Located]] = field(default_factory=dict)

    def clashes(self, new: Located) -> Iterator[Finding]:
        """Enter an example and yield what it clashes with: an id used before, a subject of another exclusive split."""
        for problem in (*self._same_id(new), *self._other_split(new)):
            yield Finding(file=new.file, row=new.row, problem=problem)

    def _same_id(self, new: Located) -> Iterator[str]:
        name = new.example.example_id
        first = self._places.setdefault(name, new)
        if first is not new:
            yield f"example id {name!r} is used before, in {_place(first)}; give every row its own id"

    def _other_split(self, new: Located) -> Iterator[str]:
        split, subject = new.example.split, new.example.subject_id
        known = self._subjects.setdefault(subject, {})
        if split not in EXCLUSIVE_SPLITS or split in known:
            return
        known[split] = new
        for other, first in known.items():
            if other != split:
                yield (
                    f"subject {subject!r} is in {split} here and in {other} in {_place(first)}; "
                    "a subject belongs to one of them"
                )


def build_report(events: Iterable[Event], *, image_sizes: Iterable[tuple[int, int]]) -> Report:
    """Count a stream of events to its end.

    Args:
        events: What the readers brought up.
        image_sizes: Width and height of every different image that decoded; read after the events are exhausted.
    """
    findings: list[Finding] = []
    schemas: dict[str, str] = {}
    rows: Counter[tuple[str, str, str]] = Counter()
    subjects: dict[str, set[str]] = {}
    for event in events:
        match event:
            case Finding():
                findings.append(event)
            case SchemaFound():
                schemas[event.file] = event.schema
            case Located(example=example):
                rows[example.split, example.task, example.modality] += 1
                subjects.setdefault(example.split, set()).add(example.subject_id)
    sizes = sorted(image_sizes, key=lambda size: (size[0] * size[1], size))
    return Report(
        findings=tuple(findings),
        rows=tuple(RowCount(split=s, task=t, modality=m, rows=n) for (s, t, m), n in sorted(rows.items())),
        subjects={split: len(names) for split, names in sorted(subjects.items())},
        num_images=len(sizes),
        smallest_image=sizes[0] if sizes else None,
        largest_image=sizes[-1] if sizes else None,
        schemas=schemas,
    )


def _place(located: Located) -> str:
    return f"{located.file} row {located.row}"
