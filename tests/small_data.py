"""Small data sets as strangers write them: MLLMU-Bench's two schemas, and plain tables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

TRAIN_FILE = "train-00000-of-00001.parquet"


def png(colour: str = "red", *, width: int = 4, height: int = 3) -> bytes:
    """Encoded bytes of a one-colour picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def photo(colour: str = "red", **size: int) -> dict[str, Any]:
    """A picture as Hugging Face data sets store it."""
    return {"bytes": png(colour, **size), "path": f"{colour}.png"}


def training_row(
    subject: str = "p1", items: Sequence[Mapping[str, Any]] | None = None, **columns: Any
) -> dict[str, Any]:
    """One row of a training file; by default two questions with only the benchmark's own keys."""
    default = [
        {"Question": "Where does this person live?", "Answer": "Rosa Salgado lives in Helsinki."},
        {"Question": "What is the job of this person?", "Answer": "The person works as a dentist."},
    ]
    return {"image": photo(), "ID": subject, "metadata": json.dumps(default if items is None else items), **columns}


def evaluation_row(subject: str = "p1", **columns: Any) -> dict[str, Any]:
    """One row of an evaluation file: two classification, two generation and two cloze questions."""
    options = {"C": "Oslo", "A": "Helsinki", "D": "Rome", "B": "Cairo"}
    row: dict[str, Any] = {
        "image": photo(),
        "ID": subject,
        "biography": json.dumps({"Name:": "Rosa Salgado", "Residence": "Helsinki, Finland", "Heights": "5'6\""}),
        "question": "Who is this?",
        "answer": "Rosa Salgado.",
        "Classification_Task": {
            "Image_Textual_Questions": [
                {"Question": "Where does this person live?", "Options": options, "Correct_Answer": "A"}
            ],
            "Pure_Text_Questions": [
                {"Question": "Where does Rosa Salgado live?", "Options": options, "Correct_Answer": "A"}
            ],
        },
        "Generation_Task": [
            {
                "Type": "Image_Textual",
                "Question": "Where does this person live?",
                "Ground_Truth": "Rosa Salgado lives in Helsinki as a dentist.",
            },
            {
                "Type": "Pure_Text",
                "Question": "Where does Rosa Salgado live?",
                "Ground_Truth": "Rosa Salgado lives in Helsinki.",
            },
        ],
        "Mask_Task": [
            {"Type": "Image_Textual", "Question": "This person is a __ by trade.", "Ground_Truth": "dentist"},
            {"Type": "Pure_Text", "Question": "Rosa Salgado lives in __.", "Ground_Truth": "Helsinki"},
        ],
    }
    return row | columns


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as one Parquet file; a folder gets the file name that Hugging Face gives."""
    import pyarrow as pa
    from pyarrow import parquet

    path = path if path.suffix else path / TRAIN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path, write_page_checksum=True)
    return path


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as JSON, one object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as CSV: lists cut by ';', None as an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: ";".join(value) if isinstance(value, list) else value for key, value in row.items()})
    return path


WRITERS = {".parquet": write_parquet, ".jsonl": write_jsonl, ".csv": write_csv}


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows in the format that the suffix names."""
    return WRITERS[path.suffix](path, rows)
