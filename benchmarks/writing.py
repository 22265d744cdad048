"""Tokens a second from rows in memory to committed parts, on one core, against pyarrow's defaults.

The rows are the generator's at k = 64, some 200 tokens each, log-probabilities as an engine gives them. vgid rounds
them to its grid, checks each row and, for every 256 rows, encodes, reads the bytes back, hashes, syncs, reads the file
back, links it and writes a manifest. pyarrow gets the same columns (nested lists, values in float32) in the same
portions, with its default options, into one file that is synced at the end, and in one line read back as well. Passes
take turns; ratios are taken within a pass.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.synthetic_targets import PLAN, SETTINGS, TEACHER, realistic_targets
from vgid.cache.encoding import Profile, encode_part
from vgid.cache.schema import SCHEMA, Target, to_table
from vgid.cache.writer import CacheWriter
from vgid.pipeline.console import say, table
from vgid.stage1_teacher.topk import round_to_fp16_grid

PARTS = 4
PART_ROWS = 256
NUM_TOPK = 64
PASSES = 5
OUT = Path("runs/bench/writing.json")
BASELINES = {"encode": "pyarrow defaults, in memory", "commit": "pyarrow defaults, to a synced file"}

Way = Callable[[Path], None]
"""Writes all rows, in an empty directory."""


def main(parts: int = PARTS) -> None:
    """Print one line per way and write the passes to `OUT`."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        rows = list(realistic_targets(parts * PART_ROWS, num_topk=NUM_TOPK, on_grid=False))
        passes = _passes(_ways(rows))
    finally:
        os.sched_setaffinity(0, cores)
    tokens = sum(len(row.token_ids) for row in rows)
    print(f"{tokens:,} tokens in {len(rows):,} rows")
    print(
        table(
            ["way", "tokens/s", "by CPU time", "x pyarrow", "by CPU time"], [_line(n, passes, tokens) for n in passes]
        )
    )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"tokens": tokens, "passes": passes}))


def _passes(ways: dict[str, Way]) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds by way and pass; the first, not counted, warms up."""
    passes: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(PASSES + 1):
        for name, write in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                wall, cpu = time.perf_counter(), time.process_time()
                write(Path(folder))
                seconds = time.perf_counter() - wall, time.process_time() - cpu
            if number:
                passes[name].append(seconds)
        say(f"pass {number} of {PASSES}")
    return passes


def _line(name: str, passes: dict[str, list[tuple[float, float]]], tokens: int) -> list[Any]:
    baseline = passes[BASELINES["encode" if "memory" in name else "commit"]]
    speeds = [int(round(tokens / median(times), -2)) for times in zip(*passes[name], strict=True)]
    both = zip(baseline, passes[name], strict=True)
    ratios = zip(*([default / own for default, own in zip(*pair, strict=True)] for pair in both), strict=True)
    wall, cpu = (round(median(ratio), 2) for ratio in ratios)
    return [name, *speeds, wall, cpu]


# ---- ways to write


def _ways(rows: Sequence[Target]) -> dict[str, Way]:
    portions = [rows[first : first + PART_ROWS] for first in range(0, len(rows), PART_ROWS)]
    exact, grid = ([to_table(map(form, portion)) for portion in portions] for form in (lambda row: row, _on_grid))
    profiles: tuple[Profile, ...] = ("default", "compat")
    return {
        BASELINES["encode"]: partial(_encode_as_default, exact),
        **{f"vgid {name}, in memory": partial(_encode, grid, name) for name in profiles},
        BASELINES["commit"]: partial(_to_synced_file, portions),
        "pyarrow defaults, to a synced file, read back": partial(_to_synced_file, portions, read_back=True),
        **{f"vgid {name}, committed": partial(_commit, rows, name) for name in profiles},
    }


def _encode_as_default(tables: Sequence[pa.Table], _: Path) -> None:
    for rows in tables:
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink)
        sink.getvalue().to_pybytes()


def _encode(tables: Sequence[pa.Table], profile: Profile, _: Path) -> None:
    for rows in tables:
        encode_part(rows, profile)


def _to_synced_file(portions: Sequence[Sequence[Target]], folder: Path, *, read_back: bool = False) -> None:
    path = folder / "rows.parquet"
    with path.open("wb") as file:
        with pq.ParquetWriter(file, SCHEMA) as writer:
            for rows in portions:
                writer.write_table(to_table(rows))
        file.flush()
        os.fsync(file.fileno())
    if read_back:
        written = pq.ParquetFile(path)
        for number in range(written.num_row_groups):
            written.read_row_group(number, use_threads=False)


def _commit(rows: Sequence[Target], profile: Profile, folder: Path) -> None:
    settings = {**SETTINGS, "num_topk": NUM_TOPK}
    identity: dict[str, Any] = {"teacher": TEACHER, "settings": settings, "plan": PLAN}
    with CacheWriter(folder / "cache", **identity, rows_per_part=PART_ROWS, profile=profile) as writer:
        for row in rows:
            writer.add(_on_grid(row))


def _on_grid(row: Target) -> Target:
    return replace(row, topk_logprobs=round_to_fp16_grid(row.topk_logprobs))
