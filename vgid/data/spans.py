"""Which tokens of a reference answer carry a fact: by character offsets, never by comparing token strings."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np


def fact_mask(tokenizer: Any, answer: str, facts: Iterable[str], *, length: int) -> np.ndarray:
    """True where a token of the answer overlaps a fact, case aside.

    Args:
        tokenizer: A fast tokenizer (it must know character offsets).
        answer: The reference answer.
        facts: Strings to find in it; those that do not occur mark nothing.
        length: T, the answer's tokens plus the end-of-turn token.

    Returns:
        bool [T].
    """
    offsets = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    spans = [span for fact in facts for span in _occurrences(answer, fact)]
    mask = np.zeros(length, np.bool_)
    for index, (start, end) in enumerate(offsets):
        mask[index] = any(start < stop and begin < end for begin, stop in spans)
    return mask


def first_fact_token(tokenizer: Any, answer: str, facts: Iterable[str]) -> tuple[list[int], int]:
    """Ids of the answer, and the index of its first token that overlaps a fact (their number if none does)."""
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    mask = fact_mask(tokenizer, answer, facts, length=len(ids))
    return ids, int(mask.argmax()) if mask.any() else len(ids)


def _occurrences(text: str, needle: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(re.escape(needle), text, re.IGNORECASE)] if needle else []
