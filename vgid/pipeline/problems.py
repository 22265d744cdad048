"""What is wrong with a recipe: each problem once, by its place in the recipe, and nothing that follows from another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

_EXPECTED = {
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a group of settings",
    "model_type": "a group of settings",
}
"""What a value should have been, by the error of one that is something else altogether."""

_Place = tuple[str | int, ...]


def first_problems(error: ValidationError, values: Mapping[str, Any], *, limit: int = 3) -> str:
    """The first problems of a recipe, on one line, and how many more there are.

    Args:
        error: What pydantic says of it.
        values: What stands in it.
        limit: Most problems to tell.
    """
    found: dict[_Place, list[Mapping[str, Any]]] = {}
    for item in error.errors():
        if item["type"] != "default_factory_not_called":  # said of every such default beside any other error
            found.setdefault(_place(item, values), []).append(item)
    problems: list[str] = []
    for place, items in found.items():
        # A list is also too short without its bad entries, and a group of settings is also not the text it could be.
        if not any(len(inner) > len(place) and inner[: len(place)] == place for inner in found):
            problems += _told(".".join(map(str, place)) or "recipe", items)
    more = f" (and {len(problems) - limit} more)" if len(problems) > limit else ""
    return "; ".join(problems[:limit]) + more


def _place(item: Mapping[str, Any], values: Any) -> _Place:
    """Keys and positions that lead to the problem. Between them pydantic names its own types where it tried several."""
    place: list[str | int] = []
    for part in item["loc"]:
        if part in values if isinstance(values, Mapping) else isinstance(values, list) and isinstance(part, int):
            values = values[part]
            place.append(part)
    return (*place, item["loc"][-1]) if item["type"] == "missing" else tuple(place)


def _told(place: str, items: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    expected = [_EXPECTED[item["type"]] for item in items if item["type"] in _EXPECTED]
    if len(expected) == len(items):
        yield f"{place}: expected {' or '.join(expected)} (got {items[0]['input']!r:.80})"
    for item in items:
        if item["type"] == "extra_forbidden":
            yield f"unknown key {place!r}"
        elif item["type"] == "missing":
            yield f"{place} is missing"
        elif item["type"] == "too_short":
            yield f"{place}: expected {item['ctx']['min_length']} or more (got {item['input']!r:.80})"
        elif item["type"] not in _EXPECTED:
            yield f"{place}: {item['msg'].removeprefix('Value error, ')} (got {item['input']!r:.80})"
