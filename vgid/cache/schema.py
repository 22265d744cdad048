"""The contract between the stages: one row per target, nested lists in rank order.

Values of `topk_logprobs` are float32 numbers on the fp16 grid: SQL engines read them as FLOAT, and they compress like
fp16 (error at most 0.0039 nat at |x| <= 8 and 0.0078 at |x| <= 16, which is below the step of a bfloat16 head).
Positions may store different numbers of candidates (adaptive width). `token_logprob` and `tail_logprob` keep full
float32. Prompts and pixels are not stored, only their hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa

from vgid.errors import CacheError

ROW_VERSION = 1
"""Of the columns and their meaning; part of every target's identity."""

NO_CANDIDATE = -1
"""Id that fills `topk_ids` where a position stores fewer candidates than the widest of its row (never on disk)."""

_TEXT = pa.string()
_INTS = pa.list_(pa.int32())
_FLOATS = pa.list_(pa.float32())

SCHEMA = pa.schema(
    [
        pa.field("target_id", _TEXT, nullable=False),
        pa.field("example_id", _TEXT, nullable=False),
        pa.field("split", _TEXT, nullable=False),
        pa.field("subject_id", _TEXT, nullable=False),
        pa.field("task", _TEXT, nullable=False),
        pa.field("modality", _TEXT, nullable=False),
        pa.field("view", _TEXT, nullable=False),
        pa.field("perturbation", _TEXT),
        pa.field("strength", pa.float64()),
        pa.field("noise_seed", pa.int64()),
        pa.field("draw", pa.int32(), nullable=False),
        pa.field("icu_id", _TEXT),
        pa.field("response_kind", _TEXT, nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("engine_id", _TEXT, nullable=False),
        pa.field("finish_reason", _TEXT, nullable=False),
        pa.field("response_text", _TEXT, nullable=False),
        pa.field("image_sha256", _TEXT),
        pa.field("pixel_sha256", _TEXT),
        pa.field("prompt_sha256", _TEXT, nullable=False),
        pa.field("token_ids", _INTS, nullable=False),
        pa.field("token_logprob", _FLOATS, nullable=False),
        pa.field("token_rank", _INTS, nullable=False),
        pa.field("logsumexp", _FLOATS),
        pa.field("entropy", _FLOATS),
        pa.field("tail_logprob", _FLOATS, nullable=False),
        pa.field("topk_ids", pa.list_(_INTS), nullable=False),
        pa.field("topk_logprobs", pa.list_(_FLOATS), nullable=False),
        pa.field("fact_mask", pa.list_(pa.bool_())),
    ],
    metadata={"vgid_format_version": str(ROW_VERSION)},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One cached response with its distributions. T response positions, K stored candidates; entry t is about token t.

    Only response positions are stored, the end-of-turn token included when the teacher stopped by itself.
    """

    target_id: str
    example_id: str
    split: str
    subject_id: str
    task: str
    modality: str
    view: str
    """`base`, `noise`, `icu` or `noise+icu`."""
    perturbation: str | None
    strength: float | None
    noise_seed: int | None
    draw: int
    icu_id: str | None
    response_kind: str
    """`generated` by the teacher, or `reference`: the data set's answer, teacher-forced."""
    sample: int
    engine_id: str
    finish_reason: str
    """`stop`, `length` (cut at the token limit) or `forced`."""
    response_text: str
    image_sha256: str | None
    pixel_sha256: str | None
    prompt_sha256: str
    token_ids: np.ndarray
    """int32 [T]."""
    token_logprob: np.ndarray
    """float32 [T], of the response token itself, exact."""
    token_rank: np.ndarray
    """int32 [T], 1-based."""
    logsumexp: np.ndarray | None
    """float32 [T] or None."""
    entropy: np.ndarray | None
    """float32 [T] in nats, full vocabulary, or None."""
    tail_logprob: np.ndarray
    """float32 [T], log of all mass outside the stored ids; -inf where nothing is left."""
    topk_ids: np.ndarray
    """int32 [T, K], most likely first; narrower positions end in `NO_CANDIDATE`."""
    topk_logprobs: np.ndarray
    """float32 [T, K] on the fp16 grid, natural log, T = 1, not renormalised; -inf where there is no candidate."""
    fact_mask: np.ndarray | None
    """bool [T], True where a token carries a fact (`reference` rows only)."""


_NESTED = {"topk_ids": NO_CANDIDATE, "topk_logprobs": -np.inf}
"""Columns of lists of lists, with what stands where there is no candidate."""


def ids_sha256(ids: Iterable[str]) -> str:
    """Hash of a set of ids, in hex; their order does not matter."""
    return sha256("\n".join(sorted(ids)).encode()).hexdigest()


def to_table(targets: Iterable[Target]) -> pa.Table:
    """Rows as an Arrow table of `SCHEMA`."""
    rows = list(targets)
    return pa.Table.from_arrays([_column(rows, field) for field in SCHEMA], schema=SCHEMA)


def iter_targets(table: pa.Table) -> Iterator[Target]:
    """Rows of an Arrow table as `Target`s, in order.

    Raises:
        CacheError: the table has another schema.
    """
    if not table.schema.equals(SCHEMA):
        raise CacheError(f"columns {table.schema.names} are not those of row version {ROW_VERSION}")
    for batch in table.to_batches():
        rows = RowReader(batch)
        yield from (rows.target(index) for index in range(batch.num_rows))


class RowReader:
    """Values of one record batch by row and column, in any order; numbers are views into the batch, not copies."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        """Take a batch of `SCHEMA`; a column costs nothing until it is asked for."""
        self._batch = batch
        self._columns: dict[str, Callable[[int], Any]] = {}

    def target(self, index: int) -> Target:
        """Row `index` of the batch."""
        return Target(**{name: self.value(index, name) for name in SCHEMA.names})

    def value(self, index: int, name: str) -> Any:
        """Field `name` of row `index`."""
        if name not in self._columns:
            self._columns[name] = _reader_of(self._batch.column(name), name)
        return self._columns[name](index)


def _reader_of(column: pa.Array, name: str) -> Callable[[int], Any]:
    """From row to value, for one column."""
    if not pa.types.is_list(column.type):
        return lambda index: column[index].as_py()
    missing = np.asarray(column.is_null()) if column.null_count else None
    offsets = column.offsets.to_numpy()
    between = _matrices(column.values, fill=_NESTED[name]) if name in _NESTED else _vectors(column.values)
    return lambda row: None if missing is not None and missing[row] else between(offsets[row], offsets[row + 1])


def _vectors(values: pa.Array) -> Callable[[int, int], np.ndarray]:
    if pa.types.is_boolean(values.type):  # stored as bits, so a row is unpacked when it is read
        return lambda first, last: values.slice(first, last - first).to_numpy(zero_copy_only=False)
    numbers = values.to_numpy(zero_copy_only=False)
    return lambda first, last: numbers[first:last]


def _matrices(lists: pa.Array, *, fill: float) -> Callable[[int, int], np.ndarray]:
    offsets, numbers = lists.offsets.to_numpy(), lists.values.to_numpy(zero_copy_only=False)
    widths = np.diff(offsets)
    if len(widths) and (widths == widths[0]).all():  # the usual case: settled here once, not again for every row
        matrix = numbers[offsets[0] : offsets[-1]].reshape(len(widths), widths[0])
        return lambda first, last: matrix[first:last]

    def between(first: int, last: int) -> np.ndarray:
        edges = offsets[first : last + 1]
        return _matrix(numbers[edges[0] : edges[-1]], np.diff(edges), fill=fill)

    return between


def _column(rows: list[Target], field: pa.Field) -> pa.Array:
    values = [getattr(row, field.name) for row in rows]
    if not pa.types.is_list(field.type):
        return pa.array(values, type=field.type)
    lengths = np.array([0 if value is None else len(value) for value in values], np.int64)
    present = [value for value in values if value is not None]
    missing = pa.array([value is None for value in values]) if len(present) < len(values) else None
    if field.name not in _NESTED:
        return pa.ListArray.from_arrays(_offsets(lengths), _flat(present, field.type.value_type), mask=missing)
    stored = [row.topk_ids != NO_CANDIDATE for row in rows]
    widths = np.concatenate([mask.sum(axis=-1) for mask in stored]) if stored else lengths
    flat = _flat([value[mask] for value, mask in zip(values, stored, strict=True)], field.type.value_type.value_type)
    return pa.ListArray.from_arrays(_offsets(lengths), pa.ListArray.from_arrays(_offsets(widths), flat))


def _flat(values: list[np.ndarray], kind: pa.DataType) -> pa.Array:
    return pa.array(np.concatenate(values) if values else np.empty(0), type=kind)


def _offsets(lengths: np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32))


def _matrix(flat: np.ndarray, widths: np.ndarray, *, fill: float) -> np.ndarray:
    """[T, K] with K the widest; a view where all are as wide."""
    width = int(widths.max(initial=0))
    if (widths == width).all():
        return flat.reshape(len(widths), width)
    matrix = np.full((len(widths), width), fill, flat.dtype)
    matrix[np.arange(width) < widths[:, None]] = flat
    return matrix
