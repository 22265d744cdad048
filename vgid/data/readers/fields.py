"""Typed values out of a row of plain values; each function says what is wrong with the field it was asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vgid.data.examples import Exposure
from vgid.errors import DataError

LIST_SEPARATOR = ";"


def required_text(record: Mapping[str, Any], key: str) -> str:
    """The text of a field that must be there, without white space around it.

    Raises:
        DataError: missing, empty, or not a string.
    """
    text = optional_text(record, key)
    if text is None:
        raise DataError(f"{key} is missing or empty")
    return text


def optional_text(record: Mapping[str, Any], key: str) -> str | None:
    """The text of a field without white space around it, or None where it is missing, null or empty.

    Raises:
        DataError: not a string.
    """
    value = record.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"{key} must be text, not {_kind(value)}")
    return value.strip() or None


def optional_id(record: Mapping[str, Any], key: str) -> str | None:
    """Like `optional_text`, for identifiers: a whole number is taken as its digits.

    Raises:
        DataError: neither a string nor a whole number.
    """
    value = record.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return optional_text(record, key)


def optional_exposure(record: Mapping[str, Any], key: str) -> Exposure | None:
    """`trained`, `heldout` or None.

    Raises:
        DataError: any other value.
    """
    value = optional_text(record, key)
    if value not in (None, "trained", "heldout"):
        raise DataError(f"{key} is {value!r}; it must be 'trained' or 'heldout'")
    return value


def text_list(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of strings, or one string cut at ';'; white space around entries and empty entries are dropped.

    Raises:
        DataError: anything else.
    """
    value = record.get(key)
    entries = value.split(LIST_SEPARATOR) if isinstance(value, str) else value or []
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise DataError(f"{key} must be a list of texts or one text cut at ';', not {_kind(value)}")
    return tuple(entry.strip() for entry in entries if entry.strip())


def check_keys(record: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse keys that nobody would read.

    Raises:
        DataError: naming the first of them, and what is known.
    """
    for key in record:
        if key not in known:
            raise DataError(f"key {key!r} is unknown; known are {', '.join(sorted(known))}")


def _kind(value: Any) -> str:
    if isinstance(value, list) and value:
        return f"list of {type(value[0]).__name__}"
    return type(value).__name__
