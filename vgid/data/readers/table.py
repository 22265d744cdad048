"""A plain user's table: one question a row, as JSONL, CSV or Parquet.

image      a path under the data root, or (Parquet) the encoded bytes; nothing for a text-only question
question   answer   subject
split      forget, retain, outsiders, test, ...; may be left out where the source names the split
id         optional, unique in the table; otherwise rows are numbered within their subject, in file order
task       optional, `facts` by default; `perception` for what the picture shows, `classification` with choices
facts      optional: a list, or in a CSV cut at ';'. Where the table has no such column they are guessed (facts.py);
           where it has, a row with nothing in it has no facts
choices    optional, like facts: the options in letter order; the answer is then the letter. They are appended to
           the question
phrasing   photo    optional: trained or heldout
subject_name        optional: what people call the subject, for instructions that name it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vgid.data.examples import Example
from vgid.data.readers.facts import find_facts
from vgid.data.readers.fields import optional_exposure, optional_id, optional_text, required_text, text_list
from vgid.data.readers.source import Origin, Outcome
from vgid.data.readers.wording import classification_question
from vgid.errors import DataError

REQUIRED = ("question", "answer", "subject")
KNOWN = frozenset({*REQUIRED, "image", "split", "id", "task", "facts", "choices", "phrasing", "photo", "subject_name"})
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def read_table_row(record: Mapping[str, Any], origin: Origin) -> Iterator[Outcome]:
    """Yield the one example of a row.

    Raises:
        DataError: any field is missing, empty, of the wrong type or contradicts another.
    """
    subject = optional_id(record, "subject")
    if subject is None:
        raise DataError("subject is missing or empty")
    number = origin.seen[subject]
    origin.seen[subject] += 1
    question, answer = required_text(record, "question"), required_text(record, "answer")
    choices = text_list(record, "choices")
    task = optional_text(record, "task") or ("classification" if choices else "facts")
    image = origin.gallery.admit(record.get("image"), where="image")
    own_id, own_photo = optional_id(record, "id"), optional_exposure(record, "photo")
    yield Example(
        example_id=f"{origin.name}/{own_id}" if own_id else f"{origin.name}/{subject}/{number}",
        split=_split(record, origin),
        subject_id=subject,
        subject_name=optional_text(record, "subject_name"),
        task=task,
        modality="text" if image is None else "image",
        image=image,
        photo=None if image is None else own_photo or origin.photo,
        phrasing=optional_exposure(record, "phrasing"),
        question=classification_question(question, _lettered(choices, answer)) if choices else question,
        answer=answer,
        facts=_facts(record, task=task, question=question, answer=answer, choices=choices),
        choices=choices,
    )


def _split(record: Mapping[str, Any], origin: Origin) -> str:
    own = optional_text(record, "split")
    if own and origin.split and own != origin.split:
        raise DataError(f"split is {own!r} but the source is asked for as {origin.split!r}; name no split, or the same")
    split = own or origin.split
    if not split:
        raise DataError("split is missing; add a split column or name the split of the source")
    return split


def _lettered(choices: tuple[str, ...], answer: str) -> dict[str, str]:
    if not 2 <= len(choices) <= len(LETTERS):
        raise DataError(f"choices holds {len(choices)} options; expected 2 to {len(LETTERS)}")
    options = dict(zip(LETTERS, choices, strict=False))
    if answer not in options:
        raise DataError(f"answer is {answer!r}; with choices it must be one of the letters {', '.join(options)}")
    return options


def _facts(
    record: Mapping[str, Any], *, task: str, question: str, answer: str, choices: tuple[str, ...]
) -> tuple[str, ...]:
    if "facts" in record:
        return text_list(record, "facts")
    if task == "perception":
        return ()
    if choices:
        return (choices[LETTERS.index(answer)],)
    return find_facts(answer, question=question, values=None)
