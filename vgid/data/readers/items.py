"""The questions inside a row of MLLMU-Bench, whatever photo they will be asked about.

Each function reads one kind of entry. An item that makes no sense becomes its problem, so that the rest of the row is
still read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vgid.data.examples import Exposure
from vgid.data.readers.facts import find_facts, known_values
from vgid.data.readers.fields import check_keys, optional_exposure, optional_text, required_text, text_list
from vgid.data.readers.wording import classification_question, cloze_question
from vgid.errors import DataError

TASK_COLUMNS = ("Classification_Task", "Generation_Task", "Mask_Task")
_EXTRA_KEYS = frozenset({"Phrasing", "Facts"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question of a person's row, before it meets a photo."""

    question: str
    answer: str
    task: str
    text_only: bool
    phrasing: Exposure | None
    facts: tuple[str, ...]
    choices: tuple[str, ...] = ()


Parsed = Item | DataError
"""An item, or what is wrong with it."""


def metadata_items(entries: Sequence[Any], values: tuple[str, ...] | None) -> Iterator[Parsed]:
    """Parse the questions of a training row.

    Args:
        entries: The list that the metadata column holds.
        values: What the row says about its subject (`known_values`).
    """
    for number, entry in enumerate(entries):
        yield _parsed(_metadata_item, entry, f"metadata[{number}]", values)


def task_items(record: Mapping[str, Any]) -> Iterator[Parsed]:
    """Parse the questions of an evaluation row: classification (image, then text), generation, cloze.

    Raises:
        DataError: a task column of another shape.
    """
    values = known_values(record)
    classification = record.get("Classification_Task") or {}
    if not isinstance(classification, Mapping):
        raise DataError("Classification_Task must hold Image_Textual_Questions and Pure_Text_Questions")
    check_keys(classification, {"Image_Textual_Questions", "Pure_Text_Questions"})
    for key, text_only in (("Image_Textual_Questions", False), ("Pure_Text_Questions", True)):
        for where, entry in _entries(classification, key):
            yield _parsed(_classification_item, entry, where, text_only)
    for where, entry in _entries(record, "Generation_Task"):
        yield _parsed(_generation_item, entry, where, values)
    for where, entry in _entries(record, "Mask_Task"):
        yield _parsed(_cloze_item, entry, where)


def _metadata_item(entry: Mapping[str, Any], values: tuple[str, ...] | None) -> Item:
    check_keys(entry, {"Question", "Answer", "ID", "Type", "Task", *_EXTRA_KEYS})
    question, answer = required_text(entry, "Question"), required_text(entry, "Answer")
    return _open_item(entry, question, answer, optional_text(entry, "Task") or "facts", values)


def _generation_item(entry: Mapping[str, Any], values: tuple[str, ...] | None) -> Item:
    check_keys(entry, {"Question", "Ground_Truth", "Type", "Task", *_EXTRA_KEYS})
    question, answer = required_text(entry, "Question"), required_text(entry, "Ground_Truth")
    return _open_item(entry, question, answer, optional_text(entry, "Task") or "generation", values)


def _open_item(entry: Mapping[str, Any], question: str, answer: str, task: str, values: tuple[str, ...] | None) -> Item:
    found = () if task == "perception" else find_facts(answer, question=question, values=values)
    return Item(
        question=question,
        answer=answer,
        task=task,
        text_only=_text_only(entry),
        phrasing=optional_exposure(entry, "Phrasing"),
        facts=_listed_facts(entry, otherwise=found),
    )


def _cloze_item(entry: Mapping[str, Any]) -> Item:
    check_keys(entry, {"Question", "Ground_Truth", "Type", *_EXTRA_KEYS})
    answer = required_text(entry, "Ground_Truth")
    return Item(
        question=cloze_question(required_text(entry, "Question")),
        answer=answer,
        task="cloze",
        text_only=_text_only(entry),
        phrasing=optional_exposure(entry, "Phrasing"),
        facts=_listed_facts(entry, otherwise=(answer,)),
    )


def _classification_item(entry: Mapping[str, Any], text_only: bool) -> Item:
    check_keys(entry, {"Question", "Options", "Correct_Answer", *_EXTRA_KEYS})
    options, letter = _options(entry), required_text(entry, "Correct_Answer")
    if letter not in options:
        raise DataError(f"Correct_Answer is {letter!r}; the options are {', '.join(options)}")
    return Item(
        question=classification_question(required_text(entry, "Question"), options),
        answer=letter,
        task="classification",
        text_only=text_only,
        phrasing=optional_exposure(entry, "Phrasing"),
        facts=_listed_facts(entry, otherwise=(options[letter],)),
        choices=tuple(options.values()),
    )


def _options(entry: Mapping[str, Any]) -> dict[str, str]:
    """Letter to text in letter order; files do not keep an order, and a struct has nulls for letters not used."""
    options = entry.get("Options")
    if not isinstance(options, Mapping):
        raise DataError("Options must be an object of letters and texts")
    texts = {letter: required_text(options, letter) for letter in sorted(options) if options[letter] is not None}
    if list(texts) != [chr(ord("A") + place) for place in range(len(texts))] or len(texts) < 2:
        raise DataError(f"Options are lettered {', '.join(texts) or 'with nothing'}; expected A, B, ... without a gap")
    return texts


def _text_only(entry: Mapping[str, Any]) -> bool:
    kind = optional_text(entry, "Type") or "Image_Textual"
    if kind not in ("Image_Textual", "Pure_Text"):
        raise DataError(f"Type is {kind!r}; it must be 'Image_Textual' or 'Pure_Text'")
    return kind == "Pure_Text"


def _listed_facts(entry: Mapping[str, Any], *, otherwise: tuple[str, ...]) -> tuple[str, ...]:
    return otherwise if entry.get("Facts") is None else text_list(entry, "Facts")


def _entries(holder: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    entries = holder.get(key) or []
    if not isinstance(entries, list):
        raise DataError(f"{key} must be a list of questions, not {type(entries).__name__}")
    yield from ((f"{key}[{number}]", entry) for number, entry in enumerate(entries))


def _parsed(parse: Callable[..., Item], entry: Any, where: str, *context: Any) -> Parsed:
    if not isinstance(entry, Mapping):
        return DataError(f"{where}: a question is an object, not {type(entry).__name__}")
    try:
        return parse(entry, *context)
    except DataError as error:
        return DataError(f"{where}: {error}")
