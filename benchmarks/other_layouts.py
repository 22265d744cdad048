"""How other distillation tools lay out the same targets: ids and log-probabilities of k candidates a token.

Written anew from what their formats hold, not from their code, as bytes in memory. Each is given arrays, because that
is what an engine hands over; a layout that is made of Python objects builds them itself.
"""

from __future__ import annotations

import io
import json
import struct
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Matrices = tuple[np.ndarray, np.ndarray]
"""Ids int32 [tokens, k] and natural log-probabilities float32 [tokens, k], most likely first."""

PACKED_ID_BITS = 18
"""Enough for the 151,936 ids of Qwen's vocabulary."""
EXACT_HEAD = 16
COEFFICIENTS = 6
MEGATRON_ID_BITS = 17


def write_packed(ids: np.ndarray, logprobs: np.ndarray) -> bytes:
    """DistillKit: a position is opaque bytes: bit-packed ids, fp16 values of the first ranks, a curve for the rest.

    The curve is a polynomial of the rank, fitted by least squares, with float32 coefficients. Parquet, snappy.
    """
    bits = np.unpackbits(ids.astype(">u4").view(np.uint8).reshape(*ids.shape, 4), axis=-1)[..., -PACKED_ID_BITS:]
    packed = np.packbits(bits.reshape(len(ids), -1), axis=-1)
    head = logprobs[:, :EXACT_HEAD].astype(np.float16).view(np.uint8)
    fit = logprobs[:, EXACT_HEAD:] @ np.linalg.pinv(_powers(ids.shape[1])).T
    rows = np.concatenate([packed, head, fit.astype(np.float32).view(np.uint8)], axis=1)
    offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1])
    return _parquet(pa.table({"packed": pa.ListArray.from_arrays(offsets, pa.array(rows.ravel()))}))


def read_packed(data: bytes, num_topk: int) -> Matrices:
    """Unpack ids, evaluate the polynomial."""
    column = pq.read_table(pa.BufferReader(data), use_threads=False)["packed"].combine_chunks()
    rows = column.values.to_numpy().reshape(len(column), -1)
    ends = np.cumsum([num_topk * PACKED_ID_BITS // 8, 2 * EXACT_HEAD])
    packed, head, fit = np.split(rows, ends, axis=1)
    bits = np.unpackbits(packed, axis=1).reshape(len(rows), num_topk, PACKED_ID_BITS)
    padded = np.concatenate([np.zeros((len(rows), num_topk, 32 - PACKED_ID_BITS), np.uint8), bits], axis=-1)
    ids = np.packbits(padded, axis=-1).view(">u4")[..., 0].astype(np.int32)
    curve = np.ascontiguousarray(fit).view(np.float32) @ _powers(num_topk).T
    values = np.concatenate([np.ascontiguousarray(head).view(np.float16), curve], axis=1)
    return ids, values.astype(np.float32)


def write_tensors(ids: np.ndarray, logprobs: np.ndarray) -> bytes:
    """Megatron-LM: fp16 values, ids as uint16 and a bool for the bit above, each tensor through zstd.

    Ids of 131,072 and more do not fit; they lose their top bit here, where the tool refuses the vocabulary.
    """
    tensors = logprobs.astype(np.float16), ids.astype(np.uint16), (ids >> 16 & 1).astype(np.bool_)
    packed = [pa.compress(tensor.tobytes(), codec="zstd", asbytes=True) for tensor in tensors]
    return struct.pack("<4q", ids.size, *map(len, packed)) + b"".join(packed)


def read_tensors(data: bytes, num_topk: int) -> Matrices:
    """Decompress, join the ids."""
    size, *lengths = struct.unpack_from("<4q", data)
    starts = np.cumsum([struct.calcsize("<4q"), *lengths])
    packed = [data[start:end] for start, end in pairwise(starts)]
    values, low, high = (
        np.frombuffer(pa.decompress(one, size * np.dtype(kind).itemsize, codec="zstd"), kind)
        for one, kind in zip(packed, (np.float16, np.uint16, np.bool_), strict=True)
    )
    ids = low.astype(np.int32) | high.astype(np.int32) << 16
    return ids.reshape(-1, num_topk), values.astype(np.float32).reshape(-1, num_topk)


def write_records(ids: np.ndarray, logprobs: np.ndarray) -> bytes:
    """MaxText: int64 ids and float32 values, uncompressed."""
    return struct.pack("<q", ids.size) + ids.astype(np.int64).tobytes() + logprobs.tobytes()


def read_records(data: bytes, num_topk: int) -> Matrices:
    """Views of the bytes."""
    size = struct.unpack_from("<q", data)[0]
    ids = np.frombuffer(data, np.int64, size, 8).astype(np.int32)
    return ids.reshape(-1, num_topk), np.frombuffer(data, np.float32, size, 8 + 8 * size).reshape(-1, num_topk)


def write_json(ids: np.ndarray, logprobs: np.ndarray) -> bytes:
    """EasyDistill: text, an object {id: probability} a position; here one line each."""
    pairs = zip(ids.tolist(), np.exp(logprobs.astype(np.float64)).tolist(), strict=True)
    return "\n".join(json.dumps(dict(zip(map(str, keys), values, strict=True))) for keys, values in pairs).encode()


def read_json(data: bytes, num_topk: int) -> Matrices:
    """Parse, take the logarithm."""
    rows = [json.loads(line) for line in data.splitlines()]
    ids = np.array([[int(key) for key in row] for row in rows], np.int32)
    return ids, np.log(np.array([list(row.values()) for row in rows])).astype(np.float32).reshape(-1, num_topk)


def write_dataset_lists(ids: np.ndarray, logprobs: np.ndarray) -> bytes:
    """Axolotl, its lists: Python ints and floats a position in a `datasets` data set, saved as Parquet."""
    return _dataset({"ids": ids.tolist(), "logprobs": logprobs.tolist()})


def read_dataset_lists(data: bytes, num_topk: int) -> Matrices:
    """The columns as arrays, which is faster than through `datasets`."""
    table = pq.read_table(pa.BufferReader(data), use_threads=False)
    ids, values = (table[name].combine_chunks().flatten().to_numpy() for name in ("ids", "logprobs"))
    return ids.astype(np.int32).reshape(-1, num_topk), values.astype(np.float32).reshape(-1, num_topk)


def write_dataset_dicts(ids: np.ndarray, logprobs: np.ndarray) -> bytes:
    """Axolotl, as an OpenAI-like server answers: {token: "token_id:N", logprob} a candidate."""
    rows = [
        [{"token": f"token_id:{key}", "logprob": value} for key, value in zip(*pair, strict=True)]
        for pair in zip(ids.tolist(), logprobs.tolist(), strict=True)
    ]
    return _dataset({"candidates": rows})


def read_dataset_dicts(data: bytes, num_topk: int) -> Matrices:
    """The columns as arrays, ids out of their texts."""
    table = pq.read_table(pa.BufferReader(data), use_threads=False)
    pairs = table["candidates"].combine_chunks().flatten()
    ids = np.array([int(text[len("token_id:") :]) for text in pairs.field("token").to_pylist()], np.int32)
    return ids.reshape(-1, num_topk), pairs.field("logprob").to_numpy().astype(np.float32).reshape(-1, num_topk)


def write_exploded(ids: np.ndarray, logprobs: np.ndarray) -> bytes:
    """A row a candidate, encoded as well as we can: BYTE_STREAM_SPLIT and zstd 3 for id and value."""
    position, rank = np.indices(ids.shape, np.int32)
    columns = {"position": position, "rank": rank, "id": ids, "logprob": logprobs.astype(np.float16).astype(np.float32)}
    split = {"id": "BYTE_STREAM_SPLIT", "logprob": "BYTE_STREAM_SPLIT"}
    table = pa.table({name: values.ravel() for name, values in columns.items()})
    keys = ["position", "rank"]
    return _parquet(table, compression="zstd", compression_level=3, use_dictionary=keys, column_encoding=split)


def read_exploded(data: bytes, num_topk: int) -> Matrices:
    """Two columns."""
    table = pq.read_table(pa.BufferReader(data), columns=["id", "logprob"], use_threads=False)
    ids, values = (table[name].combine_chunks().to_numpy().reshape(-1, num_topk) for name in ("id", "logprob"))
    return ids, values


def _powers(num_topk: int) -> np.ndarray:
    return np.vander(np.linspace(-1, 1, num_topk - EXACT_HEAD), COEFFICIENTS).astype(np.float32)


def _parquet(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def _dataset(columns: dict[str, list[Any]]) -> bytes:
    from datasets import Dataset

    sink = io.BytesIO()
    Dataset.from_dict(columns).to_parquet(sink)
    return sink.getvalue()
