"""Which strings of an answer must not leak, for data sets that do not say.

The rule, in this order:

1. facts that the row itself lists are taken as they stand (an empty list means none);
2. a multiple-choice question's fact is the text of the right option, a cloze question's the missing words;
3. a perception question has none: what is seen in the picture is nobody's secret;
4. where the row has `Mask_Task` ground truths or a `biography`: those truths, the pieces of the biography's values (cut
   at punctuation and "and"), and the names and numbers (see 5) inside the pieces, as far as they have at least three
   characters (a number: two) and occur in the answer;
5. otherwise the names and numbers of the answer: runs of capitalised words, and numbers of two digits or more. A single
   capitalised word that opens a sentence counts for nothing, since any word is capitalised there, unless it is all the
   sentence says.

Under 4 and 5 what the question itself says is left out: repeating the name one was asked about is no leak. What this
gives up: a fact in lower case ("dentist") is found by 1 to 4 only, so list the facts where the leak rate matters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vgid.data.judge import leaks, normalise

MIN_FACT_CHARS = 3

_CUT = re.compile(r"[,;:/()\n]|\.\s|\.$|\band\b")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_TOKEN = re.compile(r"\d[\d.,/-]*\d|[^\W\d][\w'\u2019-]*|\S")
_FUNCTION_WORD = re.compile(
    r"an?|and|as|at|but|by|for|from|he|her|his|in|its?|my|no|of|on|or|she|the|their|these|they|this|that|those|to|we"
    r"|when|while|with|yes|your?",
    re.IGNORECASE,
)


def known_values(record: Mapping[str, Any]) -> tuple[str, ...] | None:
    """What the row says about its subject: cloze truths and pieces of the biography; None if it says nothing."""
    masks = record.get("Mask_Task")
    masks = masks if isinstance(masks, list) else []
    truths = [mask["Ground_Truth"] for mask in masks if isinstance(mask, Mapping) and mask.get("Ground_Truth")]
    biography = record.get("biography")
    if not truths and not biography:
        return None
    pieces = [piece for text in _texts(_parsed(biography)) for piece in _CUT.split(text)]
    inside = [name for piece in pieces for name in _names_and_numbers(piece)]
    return distinct([*(truth for truth in truths if isinstance(truth, str)), *pieces, *inside])


def find_facts(answer: str, *, question: str, values: Iterable[str] | None) -> tuple[str, ...]:
    """The facts of an answer by rules 4 and 5 above.

    Args:
        answer: The reference answer.
        question: What was asked; strings in it are no facts.
        values: `known_values` of the row; None makes rule 5 apply.
    """
    candidates = _names_and_numbers(answer) if values is None else values
    return tuple(value for value in distinct(candidates) if leaks(answer, [value]) and not leaks(question, [value]))


def _parsed(biography: Any) -> Any:
    """Biographies are JSON with varying keys in some releases and prose in others; prose is one long value."""
    if not isinstance(biography, str):
        return biography
    try:
        return json.loads(biography)
    except (ValueError, RecursionError):
        return biography


def _texts(value: Any) -> Iterator[str]:
    """All the texts and numbers inside nested dictionaries and lists; keys are not values."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from _texts(entry)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)


def _names_and_numbers(answer: str) -> Iterator[str]:
    for sentence in _SENTENCE.split(answer):
        yield from _runs(_TOKEN.findall(sentence))


def _runs(tokens: Sequence[str]) -> Iterator[str]:
    """Runs of neighbouring capitalised words, and numbers, of one sentence's words, numbers and punctuation marks."""
    run: list[str] = []
    for place, token in enumerate([*tokens, "."]):
        if token[0].isupper() and (run or not _FUNCTION_WORD.fullmatch(token)):
            run.append(token)
            continue
        opens_sentence = place == len(run) and any(following[0].isalnum() for following in tokens[place:])
        if len(run) > 1 or (run and not opens_sentence):
            yield " ".join(run)
        run = []
        if len(token) > 1 and token[0].isdigit():
            yield token


def distinct(values: Iterable[str]) -> tuple[str, ...]:
    """Trimmed values of some length, the first of those that the judge cannot tell apart."""
    by_form: dict[str, str] = {}
    for value in (value.strip(" .'\"") for value in values):
        if len(value) >= MIN_FACT_CHARS or (value.isdigit() and len(value) > 1):
            by_form.setdefault(normalise(value), value)
    return tuple(value for form, value in by_form.items() if form)
