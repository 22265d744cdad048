"""What one cached token costs on disk and in CPU time: the cache's two profiles, what else was tried, other tools.

Three samples at k = 64: the tests' generator (vocabulary 151,936; 52,000 tokens in answers of 200) with a bfloat16 and
with a float32 head, and what the transformers engine captures for the shipped recipe (vocabulary 1,536; 32,000 tokens
in answers of 7, values on the grid already).

A layout counts only if it reads back: the ids must be the same, and the largest error of a log-probability is printed.
Seconds are CPU time of one thread; passes are interleaved and ratios taken within a pass: small machines are noisy.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import other_layouts as others
from tests.synthetic_targets import realistic_targets
from vgid.cache.encoding import ROW_GROUP_ROWS, parquet_options
from vgid.cache.reader import open_cache
from vgid.cache.schema import SCHEMA, Target, to_table
from vgid.pipeline.console import say, table
from vgid.pipeline.recipe import load_examples, load_recipe
from vgid.pipeline.teacher import prepare_teacher, run_teacher
from vgid.stage1_teacher.topk import narrow, round_to_fp16_grid, tail_logprob

TOPK, TOP_P, MIN_K = 64, 0.999, 8
REPEATS = 5
PYTHON_ROWS = 16
"""For layouts made of Python objects: they take seconds for more and cost the same by token."""
OUT = Path("runs/bench/encodings.json")
IDS, LOGPROBS = "topk_ids", "topk_logprobs"
BASELINE = "pyarrow defaults (dictionary, snappy)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of one part in every form that a layout starts from."""

    num_tokens: int
    forms: dict[str, pa.Table]
    """`exact` (float32 as the engine gives it), `grid` (as cached), `lean` (without entropy), `pair` (ids and values
    alone), `narrow` (adaptive width)."""
    ids: np.ndarray
    """int32 [tokens, k]."""
    logprobs: np.ndarray
    """float32 [tokens, k], exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One way to store a batch."""

    name: str
    holds: str
    write: Callable[[Batch], bytes]
    read: Callable[[bytes], others.Matrices]
    wanted: str = "exact"
    """The form that must come back."""
    id_bits: int = 31
    of_python_objects: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A sample written and read once, by token."""

    size_bytes: float
    write_s: float
    read_s: float
    max_error: float
    """Of a log-probability, nats."""


def main() -> None:
    """Print one line per layout and write all passes to `runs/bench/encodings.json`."""
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # `datasets` reads it once, on import
    rows = {head: list(realistic_targets(ROW_GROUP_ROWS, head=head, on_grid=False)) for head in ("bfloat16", "float32")}
    captured = _captured()
    samples = {"bf16": [rows["bfloat16"]], "f32": [rows["float32"]], "demo": captured}
    batches = {name: [_batch(part) for part in parts] for name, parts in samples.items()}
    few = {name: [_batch(parts[0][:PYTHON_ROWS])] for name, parts in samples.items()}
    layouts = list(_layouts())
    passes: dict[str, dict[str, list[Pass]]] = {layout.name: {name: [] for name in samples} for layout in layouts}
    for number in range(REPEATS):
        for layout in layouts:
            for name in samples if number == 0 else ("bf16", "f32"):
                parts = (few if layout.of_python_objects else batches)[name]
                passes[layout.name][name].append(_pass(layout, parts))
        say(f"pass {number + 1} of {REPEATS}")
    headers = ["layout", "holds", "B/token bf16", "f32", "demo", "max error", "write kt/s bf16", "f32"]
    lines = [_line(layout, passes[layout.name], passes[BASELINE]) for layout in layouts]
    print(table([*headers, "x default bf16", "f32", "read kt/s bf16"], lines))
    for name, parts in batches.items():
        kept = sum(len(_flat(part.forms["narrow"], IDS)) for part in parts) / sum(part.num_tokens for part in parts)
        print(f"adaptive width keeps {kept:.1f} of {TOPK} candidates on average ({name})")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({k: {n: [asdict(p) for p in ps] for n, ps in v.items()} for k, v in passes.items()}))


def _pass(layout: Layout, parts: Sequence[Batch]) -> Pass:
    size, write_s, read_s, error = 0, 0.0, 0.0, 0.0
    layout.read(layout.write(parts[0]))  # fresh memory is slow once; a writer of many parts pays that once
    for batch in parts:
        start = time.process_time()
        data = layout.write(batch)
        written = time.process_time()
        ids, logprobs = layout.read(data)
        read_s += time.process_time() - written
        write_s += written - start
        size += len(data)
        wanted_ids, wanted = (_flat(batch.forms[layout.wanted], name) for name in (IDS, LOGPROBS))
        if not np.array_equal(ids.ravel(), wanted_ids & (2**layout.id_bits - 1)):
            raise AssertionError(f"{layout.name}: other ids came back")
        error = max(error, float(np.abs(logprobs.ravel() - wanted).max()))
    tokens = sum(batch.num_tokens for batch in parts)
    return Pass(size_bytes=size / tokens, write_s=write_s / tokens, read_s=read_s / tokens, max_error=error)


def _line(layout: Layout, passes: dict[str, list[Pass]], baseline: dict[str, list[Pass]]) -> list[Any]:
    def ratio(name: str) -> float:
        return median(default.write_s / own.write_s for default, own in zip(baseline[name], passes[name], strict=True))

    size = [round(passes[name][0].size_bytes, 1) for name in ("bf16", "f32", "demo")]
    write = [round(1e-3 / median(one.write_s for one in passes[name])) for name in ("bf16", "f32")]
    read = round(1e-3 / median(one.read_s for one in passes["bf16"]))
    ratios = [round(ratio(name), 2) for name in ("bf16", "f32")]
    return [layout.name, layout.holds, *size, f"{passes['bf16'][0].max_error:.1e}", *write, *ratios, read]


# ---- what is stored


def _batch(rows: Sequence[Target]) -> Batch:
    on_grid = [replace(row, topk_logprobs=round_to_fp16_grid(row.topk_logprobs)) for row in rows]
    forms = {
        "exact": to_table(rows),
        "grid": to_table(on_grid),
        "lean": to_table(replace(row, entropy=None, logsumexp=None) for row in on_grid),
        "narrow": to_table(_narrowed(row) for row in rows),
    }
    return Batch(
        num_tokens=sum(len(row.token_ids) for row in rows),
        forms={**forms, "pair": forms["grid"].select([IDS, LOGPROBS])},
        ids=np.concatenate([row.topk_ids for row in rows]),
        logprobs=np.concatenate([row.topk_logprobs for row in rows]),
    )


def _narrowed(row: Target) -> Target:
    ids, logprobs = narrow(row.topk_ids, row.topk_logprobs, top_p=TOP_P, min_k=MIN_K)
    tail = tail_logprob(logprobs)
    return replace(row, topk_ids=ids, topk_logprobs=round_to_fp16_grid(logprobs), tail_logprob=tail)


def _captured() -> list[list[Target]]:
    recipe, folder = load_recipe("fictitious", overrides=[f"teacher.num_topk={TOPK}"])
    job = prepare_teacher(recipe, load_examples(recipe.data, folder=folder), engine="transformers")
    with tempfile.TemporaryDirectory() as scratch:
        run_teacher(job, Path(scratch) / "cache")
        rows = list(open_cache(Path(scratch) / "cache").iter_targets())
    return [rows[first : first + ROW_GROUP_ROWS] for first in range(0, len(rows), ROW_GROUP_ROWS)]


# ---- layouts


def _layouts() -> Iterator[Layout]:
    default, compat = parquet_options("default"), parquet_options("compat")
    yield _parquet("vgid default", "grid", default)
    yield _parquet("vgid compat", "grid", compat)
    yield _parquet(f"vgid default, top_p {TOP_P}, min_k {MIN_K}", "narrow", default, wanted="narrow")
    yield _parquet("vgid default, float32 not rounded", "exact", default)
    yield _parquet("vgid default, no entropy", "lean", default, holds="row, no entropy")
    yield _parquet("vgid compat, no entropy", "lean", compat, holds="row, no entropy")
    yield _parquet(BASELINE, "exact", {})
    yield _parquet("pyarrow defaults, zstd 3", "exact", {"compression": "zstd", "compression_level": 3})
    yield _parquet("pyarrow defaults, values on the grid", "grid", {})
    yield from _variants(default)
    yield from _pairs(default)


def _variants(default: dict[str, Any]) -> Iterator[Layout]:
    """The default with one thing changed."""
    encodings: dict[str, str] = default["column_encoding"]
    ids, values = (f"{name}.list.element.list.element" for name in (IDS, LOGPROBS))
    plain = {
        name: "PLAIN" if name in (ids, "token_ids.list.element", "token_rank.list.element") else encoding
        for name, encoding in encodings.items()
    }
    levels = dict.fromkeys(_leaves(), 2) | {ids: 1, values: 3}
    hashes = ["target_id", "image_sha256", "pixel_sha256", "prompt_sha256"]
    others_text = [name for name in default["use_dictionary"] if name not in hashes]
    changes: dict[str, dict[str, Any]] = {
        **{f"zstd {level}": {"compression_level": level} for level in (1, 3, 4, 5, 6, 9)},
        "ids zstd 1, values zstd 3": {"compression_level": levels},
        **{f"pages of {kib} KiB": {"data_page_size": kib * 1024} for kib in (256, 1024, 16384)},
        **{f"row groups of {rows}": {"row_group_size": rows} for rows in (64, 128)},
        "version 2 pages": {"data_page_version": "2.0"},
        "extremes of lists too": {"write_statistics": True},
        "no page checksums": {"write_page_checksum": False},
        "integers PLAIN": {"column_encoding": plain},
        "values PLAIN": {"column_encoding": encodings | {values: "PLAIN"}},
        "hashes DELTA_BYTE_ARRAY": {
            "use_dictionary": others_text,
            "column_encoding": encodings | dict.fromkeys(hashes, "DELTA_BYTE_ARRAY"),
        },
    }
    for name, change in changes.items():
        yield _parquet(f"- {name}", "grid", default | change)


def _pairs(default: dict[str, Any]) -> Iterator[Layout]:
    """Ids and log-probabilities alone: what the other tools store."""
    encodings = {path: value for path, value in default["column_encoding"].items() if path.startswith("topk_")}
    ours = default | {"column_encoding": encodings, "use_dictionary": False}
    yield _parquet("vgid default, two columns", "pair", ours, holds="ids, values")
    yield _other("exploded, a row a candidate", others.write_exploded, others.read_exploded)
    yield _other("like DistillKit, packed bytes", others.write_packed, others.read_packed)
    bits = others.MEGATRON_ID_BITS
    yield _other("like Megatron-LM, zstd tensors", others.write_tensors, others.read_tensors, id_bits=bits)
    yield _other("like MaxText, raw records", others.write_records, others.read_records)
    slow = partial(_other, of_python_objects=True)
    yield slow("like axolotl, lists", others.write_dataset_lists, others.read_dataset_lists)
    yield slow("like axolotl, dicts", others.write_dataset_dicts, others.read_dataset_dicts)
    yield slow("like EasyDistill, JSON lines", others.write_json, others.read_json)


def _parquet(name: str, form: str, options: dict[str, Any], *, holds: str = "row", wanted: str = "exact") -> Layout:
    def write(batch: Batch) -> bytes:
        sink = pa.BufferOutputStream()
        pq.write_table(batch.forms[form], sink, **options)
        return sink.getvalue().to_pybytes()

    def read(data: bytes) -> others.Matrices:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        found = file.read(columns=[IDS, LOGPROBS], use_threads=False)
        return _flat(found, IDS), _flat(found, LOGPROBS)

    return Layout(name=name, holds=holds, write=write, read=read, wanted=wanted)


def _other(
    name: str,
    write: Callable[[np.ndarray, np.ndarray], bytes],
    read: Callable[[bytes, int], others.Matrices],
    *,
    id_bits: int = 31,
    of_python_objects: bool = False,
) -> Layout:
    return Layout(
        name=name,
        holds="ids, values",
        write=lambda batch: write(batch.ids, batch.logprobs),
        read=lambda data: read(data, TOPK),
        id_bits=id_bits,
        of_python_objects=of_python_objects,
    )


def _flat(rows: pa.Table, name: str) -> np.ndarray:
    return rows[name].combine_chunks().flatten().flatten().to_numpy()


def _leaves() -> list[str]:
    """What Parquet calls the columns."""
    sink = pa.BufferOutputStream()
    pq.write_table(SCHEMA.empty_table(), sink)
    columns = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [columns.column(index).path for index in range(len(columns))]
