"""The contract between the stages: one row per target, nested lists in rank order.

Values of `topk_logprobs` are float32 numbers on the fp16 grid: SQL engines read them as FLOAT, and they compress like
fp16 (error at most 0.0039 nat at |x| <= 8 and 0.0078 at |x| <= 16, which is below the step of a bfloat16 head).
`token_logprob` and `tail_logprob` keep full float32. Prompts and pixels are not stored, only their hashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from vgid.errors import CacheError

FORMAT_VERSION = 1

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
    metadata={"vgid_format_version": str(FORMAT_VERSION)},
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
    """int32 [T, K], most likely first."""
    topk_logprobs: np.ndarray
    """float32 [T, K] on the fp16 grid, natural log, T = 1, not renormalised."""
    fact_mask: np.ndarray | None
    """bool [T], True where a token carries a fact (`reference` rows only)."""


_DTYPES = {
    "token_ids": np.int32,
    "token_logprob": np.float32,
    "token_rank": np.int32,
    "logsumexp": np.float32,
    "entropy": np.float32,
    "tail_logprob": np.float32,
    "fact_mask": np.bool_,
}
_NESTED = {"topk_ids": np.int32, "topk_logprobs": np.float32}


def to_table(targets: Iterable[Target]) -> pa.Table:
    """Rows as an Arrow table of `SCHEMA`."""
    rows = list(targets)
    columns = []
    for field in SCHEMA:
        values = [getattr(row, field.name) for row in rows]
        columns.append(_nested_array(values, field) if field.name in _NESTED else pa.array(values, type=field.type))
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def iter_targets(table: pa.Table) -> Iterator[Target]:
    """Rows of an Arrow table as `Target`s, in order.

    Raises:
        CacheError: the table has another schema.
    """
    if not table.schema.equals(SCHEMA):
        raise CacheError(f"columns {table.schema.names} are not those of cache format {FORMAT_VERSION}")
    names = [field.name for field in fields(Target)]
    for batch in table.to_batches():
        columns = {name: _decode(name, batch.column(name)) for name in names}
        for i in range(batch.num_rows):
            yield Target(**{name: column[i] for name, column in columns.items()})


def _nested_array(values: list[np.ndarray], field: pa.Field) -> pa.Array:
    widths = np.concatenate([np.full(len(value), value.shape[1], np.int32) for value in values]) if values else []
    lengths = [len(value) for value in values]
    flat = np.concatenate([value.ravel() for value in values]) if values else np.empty(0)
    inner = pa.ListArray.from_arrays(_offsets(widths), pa.array(flat, type=field.type.value_type.value_type))
    return pa.ListArray.from_arrays(_offsets(lengths), inner)


def _offsets(lengths: Iterable[int]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int32))


def _decode(name: str, column: pa.Array) -> list[Any]:
    if name in _NESTED:
        return [_matrix(row.values, _NESTED[name]) for row in column]
    if name in _DTYPES:
        return [None if not row.is_valid else np.asarray(row.values, _DTYPES[name]) for row in column]
    return column.to_pylist()


def _matrix(rows: pa.ListArray, dtype: type) -> np.ndarray:
    flat = np.asarray(rows.flatten(), dtype)
    widths = np.unique(np.diff(rows.offsets))
    if len(widths) > 1:
        raise CacheError(
            f"a target stores {widths.tolist()} candidates at its positions; format 1 has one number a row"
        )
    return flat.reshape(len(rows), -1) if len(rows) else flat.reshape(0, 0)
