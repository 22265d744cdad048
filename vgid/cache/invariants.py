"""What must hold in every row of a cache, checked for many rows at once.

A row may be intact as a file and still be wrong: made by other software, or by an engine with a fault. Every rule of
docs/cache-format.md that shows in a row alone is checked here, on flat arrays. What this gives up: nothing here knows
whether the teacher really said so.

Dimension key: R rows, P positions of all rows, K candidates of the widest position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa

from vgid.cache.manifest import Manifest
from vgid.cache.schema import SCHEMA

SLACK_NATS = 1e-4
"""What float32 leaves of a log-probability: logits up to 1,000 have steps of 6e-5."""

_LEAST_FP16 = -65504.0
"""What is below is stored as -inf."""

# By the eight exponent bits of a float32: half a step of fp16, whose numbers below 2**-14 are all equally far apart.
_HALF_STEPS = np.ldexp(np.float32(1.0), np.clip(np.arange(256) - 127, -14, 15) - 11)
_EXP_OF_STEP = 1.01
"""A probability moves by at most this times itself times the half step, where it is not negligible."""

_VALUES = {
    "view": ("base", "noise", "icu", "noise+icu"),
    "modality": ("image", "text"),
    "response_kind": ("generated", "reference"),
    "finish_reason": ("stop", "length", "forced"),
}
_PRESENT = (
    ("perturbation", "view", "noise"),
    ("strength", "view", "noise"),
    ("noise_seed", "view", "noise"),
    ("icu_id", "view", "icu"),
    ("image_sha256", "modality", "image"),
    ("pixel_sha256", "modality", "image"),
    ("fact_mask", "response_kind", "reference"),
)
"""The first column has a value where the second holds the word, and is null elsewhere."""
_OPTIONAL = ("noise_seed",)
"""But these may be null there too: noise without randomness."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What manifest and token table say about the values of a row; None where they do not say."""

    num_topk: int | None = None
    min_k: int | None = None
    top_p: float | None = None
    vocab_size: int | None = None
    known: np.ndarray | None = None
    """bool by token id: the table has it."""
    ends: np.ndarray | None = None
    """bool by token id: it ends a turn."""

    @classmethod
    def of(cls, manifest: Manifest, vocabulary: pa.Table | None) -> Self:
        """The terms of one cache; `vocabulary` is its token table, if it has one."""
        known, ends = (None, None) if vocabulary is None else _by_id(vocabulary)
        numbers = {name: value for name, value in said_terms(manifest).items() if is_term(name, value)}
        return cls(**numbers, known=known, ends=ends)


def said_terms(manifest: Manifest) -> dict[str, Any]:
    """What the manifest has for the numbers among `Terms`, whatever it is; None where it has nothing."""
    settings = {name: manifest.settings.get(name) for name in ("num_topk", "min_k", "top_p")}
    return {"vocab_size": manifest.teacher.get("vocab_size"), **settings}


def is_term(name: str, value: Any) -> bool:
    """Whether it can be that: a number between 0 and 1 for `top_p`, a whole number from 1 for the others."""
    if name == "top_p":
        return isinstance(value, float) and 0 < value < 1
    return type(value) is int and value > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """One rule, broken in one or more places."""

    rule: str
    rows: np.ndarray
    """int64 by place."""
    positions: np.ndarray | None
    """int64 by place; None for a rule about rows as a whole."""
    text: str
    """With a field for each of the values."""
    values: tuple[Any, ...]
    """Arrays by place."""

    def describe(self, place: int) -> str:
        """What is wrong in one place, with the values seen."""
        return self.text.format(*(value[place] for value in self.values))


def iter_breaches(table: pa.Table, terms: Terms) -> Iterator[Breach]:
    """Everything that is wrong in a table of `SCHEMA`; row numbers count from its first row.

    A row whose lists do not fit together is reported for that and not looked into further.
    """
    numbers = np.arange(table.num_rows)
    yield from _whole_rows(table)
    for check in (_null_entries, _lengths, _widths):
        found = list(check(_columns(table, numbers)))
        yield from found
        if found:
            sound = ~np.isin(numbers, np.concatenate([breach.rows for breach in found]))
            table, numbers = table.filter(pa.array(sound)), numbers[sound]
    columns = _columns(table, numbers)
    yield from _numbers(columns, terms)
    yield from _distributions(columns, terms)
    yield from _endings(columns, table["finish_reason"], terms)


# --- rows as a whole ---


def _whole_rows(table: pa.Table) -> Iterator[Breach]:
    def breach(rule: str, wrong: np.ndarray, text: str, name: str) -> Iterator[Breach]:
        if wrong.any():
            values = table[name].filter(pa.array(wrong)).to_pylist()
            yield Breach(rule=rule, rows=np.flatnonzero(wrong), positions=None, text=text, values=(values,))

    for name, allowed in _VALUES.items():
        wrong = np.array([value not in allowed for value in table[name].to_pylist()], np.bool_)
        yield from breach("value", wrong, f"{name} is {{!r}}, not one of {', '.join(allowed)}", name)
    for name in ("draw", "sample"):
        yield from breach("value", table[name].to_numpy() < 0, f"{name} is {{}}, below 0", name)
    for name, other, word in _PRESENT:
        present = table[name].is_valid().to_numpy()
        wanted = np.array([word in value for value in table[other].to_pylist()], np.bool_)
        yield from breach("null", present & ~wanted, f"{name} has a value although {other} is {{!r}}", other)
        if name not in _OPTIONAL:
            yield from breach("null", wanted & ~present, f"{name} is null although {other} is {{!r}}", other)


# --- lists that fit together ---


class _Column:
    """A list column as flat arrays of its P entries; a list that is null has none."""

    def __init__(self, column: pa.ChunkedArray, numbers: np.ndarray) -> None:
        array = column.combine_chunks()
        self.row_numbers = numbers
        self.present = np.asarray(array.is_valid())
        self.lengths = np.diff(array.offsets) * self.present
        self.rows = np.repeat(numbers, self.lengths)
        self.positions = np.arange(len(self.rows)) - np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)
        self.entries: pa.Array = array.flatten()
        self.numbers: pa.Array = self.entries
        self.widths = np.ones(len(self.entries), np.int64)
        """Numbers in each entry: one, or its candidates."""
        if pa.types.is_list(self.entries.type):
            self.numbers = self.entries.flatten()
            self.widths = np.diff(self.entries.offsets) * np.asarray(self.entries.is_valid())

    @property
    def values(self) -> np.ndarray:
        """The P numbers of a list of numbers."""
        return np.asarray(self.numbers)

    @property
    def has_null(self) -> np.ndarray:
        """True [P] where an entry, or a number in it, is null."""
        null = np.asarray(self.entries.is_null())
        null[np.repeat(np.arange(len(null)), self.widths)[np.asarray(self.numbers.is_null())]] = True
        return null

    def matrix(self, *, fill: np.ndarray) -> np.ndarray:
        """The numbers of a list of lists, [P, K]; narrower positions end in those of `fill` [K]."""
        width = len(fill)
        if (self.widths == width).all():
            return self.values.reshape(len(self.entries), width)
        matrix = np.tile(fill.astype(self.values.dtype), (len(self.entries), 1))
        matrix[np.arange(width) < self.widths[:, None]] = self.values
        return matrix

    def breaches(self, rule: str, wrong: np.ndarray, text: str, *values: np.ndarray) -> Iterator[Breach]:
        """The places where `wrong` [P] is true, if any; values by position."""
        if wrong.any():
            yield Breach(
                rule=rule,
                rows=self.rows[wrong],
                positions=self.positions[wrong],
                text=text,
                values=tuple(value[wrong] for value in values),
            )


def _columns(table: pa.Table, numbers: np.ndarray) -> dict[str, _Column]:
    names = [field.name for field in SCHEMA if pa.types.is_list(field.type)]
    return {name: _Column(table[name], numbers) for name in names}


def _null_entries(columns: dict[str, _Column]) -> Iterator[Breach]:
    for name, column in columns.items():
        yield from column.breaches("null", column.has_null, f"an entry of {name} is null")


def _lengths(columns: dict[str, _Column]) -> Iterator[Breach]:
    tokens = columns["token_ids"].lengths
    for name, column in columns.items():
        wrong = column.present & (column.lengths != tokens)
        if wrong.any():
            text, values = f"{name} has {{}} entries for {{}} token_ids", (column.lengths[wrong], tokens[wrong])
            yield Breach(rule="length", rows=column.row_numbers[wrong], positions=None, text=text, values=values)
    if not tokens.all():
        rows = columns["token_ids"].row_numbers[tokens == 0]
        yield Breach(rule="length", rows=rows, positions=None, text="it has no response token", values=())


def _widths(columns: dict[str, _Column]) -> Iterator[Breach]:
    ids, logprobs = columns["topk_ids"], columns["topk_logprobs"]
    text = "{} topk_ids for {} topk_logprobs"
    yield from ids.breaches("length", ids.widths != logprobs.widths, text, ids.widths, logprobs.widths)


# --- numbers of one position ---


def _numbers(columns: dict[str, _Column], terms: Terms) -> Iterator[Breach]:
    """Each number by itself."""
    for name, column in columns.items():
        if pa.types.is_floating(column.entries.type):
            yield from column.breaches("nan", np.isnan(column.values), f"{name} is NaN")
    for name in ("token_logprob", "tail_logprob"):
        values = columns[name].values
        yield from columns[name].breaches("logprob", values > SLACK_NATS, f"{name} is {{:.6g}}, above 0", values)
    logsumexp, entropy = columns["logsumexp"], columns["entropy"]
    yield from logsumexp.breaches("value", np.isinf(logsumexp.values), "logsumexp is {}", logsumexp.values)
    most = np.inf if terms.vocab_size is None else np.log(terms.vocab_size)
    wrong = (entropy.values < -SLACK_NATS) | (entropy.values > most + SLACK_NATS)
    yield from entropy.breaches("value", wrong, f"entropy is {{:.6g}}, not in [0, {most:.4f}]", entropy.values)
    for name, first in (("token_ids", 0), ("token_rank", 1)):
        column, last = columns[name], _last(terms) + first
        wrong = (column.values < first) | (column.values > last)
        yield from column.breaches("range", wrong, f"{name} is {{}}, not in [{first}, {last}]", column.values)
    tokens = columns["token_ids"]
    if terms.known is not None:
        yield from tokens.breaches(
            "token", ~_holds(terms.known, tokens.values), "token {} is not in the token table", tokens.values
        )


def _distributions(columns: dict[str, _Column], terms: Terms) -> Iterator[Breach]:
    """The candidates of a position among themselves, with the tail and with the response token."""
    column, widths = columns["topk_ids"], columns["topk_ids"].widths
    if not len(widths):
        return
    yield from _width(column, widths, terms)
    width = int(widths.max())
    # What fills narrower positions differs from column to column, so that it is never an id that stands twice.
    ids = column.matrix(fill=np.arange(width) - 2**31)
    logprobs = columns["topk_logprobs"].matrix(fill=np.full(width, -np.inf))
    stored = np.arange(width) < widths[:, None]

    def where(rule: str, wrong: np.ndarray, text: str, *values: np.ndarray) -> Iterator[Breach]:
        """The first wrong candidate [P, K] of each position."""
        if wrong.any():
            first = wrong.argmax(axis=1)[:, None]
            seen = (np.take_along_axis(value, first, axis=1)[:, 0] for value in values)
            yield from column.breaches(rule, np.any(wrong, axis=1), text, first[:, 0] + 1, *seen)

    wrong = np.asarray(stored & ((ids < 0) | (ids > _last(terms))))
    yield from where("range", wrong, f"candidate {{}} has id {{}}, not in [0, {_last(terms)}]", ids)
    in_order = np.sort(ids, axis=1)
    again = in_order[:, 1:] == in_order[:, :-1]
    yield from where("twice", again, "an id stands twice among its candidates: {1}", in_order)
    yield from where("nan", np.isnan(logprobs), "the log-probability of candidate {} is NaN")
    yield from where("logprob", logprobs > SLACK_NATS, "candidate {} has log-probability {:.6g}, above 0", logprobs)
    with np.errstate(over="ignore"):
        off_grid = (logprobs.astype(np.float16) != logprobs) & ~np.isnan(logprobs)
    yield from where("grid", off_grid, "candidate {} has log-probability {:.9g}, off the fp16 grid", logprobs)
    rising = logprobs[:, 1:] > logprobs[:, :-1]
    text = "candidate {} has log-probability {:.6g}, the next one {:.6g}"
    yield from where("order", rising, text, logprobs[:, :-1], logprobs[:, 1:])

    with np.errstate(over="ignore", invalid="ignore"):
        masses = np.exp(logprobs)
        mass, tail = masses.sum(axis=1), np.exp(columns["tail_logprob"].values)
        tolerance = SLACK_NATS + _EXP_OF_STEP * np.nan_to_num(masses * _half_steps(logprobs)).sum(axis=1)
        text = "candidates sum to {:.6f} and the tail is {:.6f}: together not 1 within {:.1g}"
        wrong = np.asarray(abs(mass + tail - 1) > tolerance)
        yield from column.breaches("mass", wrong, text, mass, tail, tolerance)
    yield from _top_p(column, widths, masses, mass, tolerance, terms)
    yield from _own_tokens(columns, ids, logprobs, widths)


def _width(column: _Column, widths: np.ndarray, terms: Terms) -> Iterator[Breach]:
    if terms.num_topk is not None:
        text = f"{{}} candidates, num_topk of the settings is {terms.num_topk}"
        yield from column.breaches("width", widths > terms.num_topk, text, widths)
    if terms.min_k is not None:
        text = f"{{}} candidates, min_k of the settings is {terms.min_k}"
        yield from column.breaches("width", widths < min(terms.min_k, _last(terms) + 1), text, widths)


def _top_p(
    column: _Column, widths: np.ndarray, masses: np.ndarray, mass: np.ndarray, tolerance: np.ndarray, terms: Terms
) -> Iterator[Breach]:
    """With adaptive width: the fewest candidates that reach `top_p`."""
    if terms.top_p is None or not masses.shape[1]:
        return
    last = np.take_along_axis(masses, np.maximum(widths - 1, 0)[:, None], axis=1)[:, 0]
    short = (mass < terms.top_p - tolerance) & (widths < (terms.num_topk or np.inf))
    long = (mass - last > terms.top_p + tolerance) & (widths > (terms.min_k or 0))
    wrong = np.asarray(short | long)
    text = f"{{}} candidates that sum to {{:.6f}} are not the fewest that reach top_p {terms.top_p}"
    yield from column.breaches("width", wrong, text, widths, mass)


def _own_tokens(
    columns: dict[str, _Column], ids: np.ndarray, logprobs: np.ndarray, widths: np.ndarray
) -> Iterator[Breach]:
    """Rank and log-probability of the response token against the candidates; equal ones may have any order."""
    column, own, rank = columns["token_ids"], columns["token_logprob"].values, columns["token_rank"].values
    if not ids.shape[1]:
        return

    def compared(place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By position: the candidate in that place, how far the token is above it, and how far rounding explains."""
        there = np.take_along_axis(logprobs, np.clip(place, 0, ids.shape[1] - 1)[:, None], axis=1)[:, 0]
        seen, mine = np.maximum(there, _LEAST_FP16), np.maximum(own, _LEAST_FP16)
        return there, mine - seen, _half_steps(there) + SLACK_NATS

    match = ids == column.values[:, None]
    among, inside = match.any(axis=1), (rank >= 1) & (rank <= widths)
    stored, difference, most = compared(match.argmax(axis=1))
    text = "token_logprob is {:.6g}, but the token's candidate has {:.6g}"
    yield from column.breaches("rank", among & (abs(difference) > most), text, own, stored)
    text = "token_rank is {}, but the token is none of the {} candidates"
    yield from column.breaches("rank", inside & ~among, text, rank, widths)
    stored, difference, most = compared(np.minimum(rank, widths) - 1)
    text = "token_rank is {} and token_logprob {:.6g}, but the candidate of that rank has {:.6g}"
    yield from column.breaches("rank", inside & among & (abs(difference) > most), text, rank, own, stored)
    text = "token_rank is {}, beyond the {} candidates, but the token is one of them"
    yield from column.breaches("rank", (rank > widths) & among & (abs(difference) > most), text, rank, widths)
    text = "token_rank is {}, beyond the {} candidates, but token_logprob {:.6g} is above the last of them"
    beyond = (rank > widths) & ~among & (widths > 0) & (difference > most)
    yield from column.breaches("rank", beyond, text, rank, widths, own)


def _endings(columns: dict[str, _Column], finish_reasons: pa.ChunkedArray, terms: Terms) -> Iterator[Breach]:
    """A response that was not cut ends in a token that ends a turn."""
    column = columns["token_ids"]
    if terms.ends is None or not len(column.lengths):
        return
    last = np.cumsum(column.lengths) - 1
    is_last = np.zeros(len(column.rows), np.bool_)
    is_last[last] = True
    reasons = np.repeat(np.array(finish_reasons.to_pylist(), dtype=object), column.lengths)
    ends = _holds(terms.ends, column.values)
    text = "finish_reason is {!r}, but the last token {} does not end a turn"
    yield from column.breaches("end", is_last & (reasons != "length") & ~ends, text, reasons, column.values)
    text = "finish_reason is {!r}, but the last token {} ends a turn"
    yield from column.breaches("end", is_last & (reasons == "length") & ends, text, reasons, column.values)


# --- small things ---


def _half_steps(values: np.ndarray) -> np.ndarray:
    """Half the distance of fp16 numbers around each value, which is how far rounding moves a number at most."""
    return _HALF_STEPS[(values.view(np.uint32) >> 23) & 255]


def _last(terms: Terms) -> int:
    """The highest token id there can be."""
    return 2**31 - 2 if terms.vocab_size is None else terms.vocab_size - 1


def _by_id(vocabulary: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """By token id, whether the table has it and whether it ends a turn."""
    ids = vocabulary["token_id"].to_numpy()
    known = np.zeros(ids.max(initial=-1) + 1, np.bool_)
    ends = known.copy()
    known[ids] = True
    ends[ids] = vocabulary["end"].to_numpy()
    return known, ends


def _holds(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The table's answer for each id; false for ids outside it."""
    inside = (ids >= 0) & (ids < len(table))
    return np.where(inside, table[np.where(inside, ids, 0)], False) if len(table) else inside
