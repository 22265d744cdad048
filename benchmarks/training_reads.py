"""Random batches of 8 rows, as training asks for them: from the decoded copy, from Parquet row groups, from `datasets`.

A batch is read when every number that the loss needs (`READ`) stands in an array of its own, copied out of wherever it
came from. All ways read the same rows of one cache (600,000 tokens, k = 64), in one process, on one thread, from files
in the page cache that are open already; they take turns, and ratios are taken within a turn. The others get a fair
chance: they are asked for these columns alone, nothing is checked, and a row group is decoded once for a whole batch.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.synthetic import make_cache
from vgid.cache.encoding import parquet_options
from vgid.cache.mapped import map_targets
from vgid.cache.reader import Cache, open_cache
from vgid.cache.schema import RowReader
from vgid.pipeline.console import say, table

TOKENS = 600_000
BATCH_ROWS = 8
BATCHES = 10
"""Of one turn."""
TURNS = 9
READ = ("token_ids", "token_logprob", "tail_logprob", "topk_ids", "topk_logprobs")
"""What the loss of stage two needs of a row."""
OUT = Path("runs/bench/training_reads.json")
OURS = "vgid, decoded copy"

Arrays = list[np.ndarray]
"""The columns of `READ`, row after row."""
Reader = Callable[[Sequence[int]], Arrays]
"""From the numbers of rows, in the order of the cache, to what they hold."""


def main(tokens: int = TOKENS) -> None:
    """Print one line per way to read, then what each costs once, and write the turns to `OUT`."""
    os.environ |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}  # read once, on import
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_cache(folder / "cache", tokens)
        cache = open_cache(folder / "cache")
        readers, costs = _readers(cache, folder)
        turns = _turns(readers, num_rows=sum(part.rows for part in cache.manifest.parts))
    print(table(["way", "ms a batch", "batches/s", "times ours"], [_line(name, turns) for name in turns]))
    print(table(["once", "s", "bytes/token"], costs))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(turns))


def _turns(readers: dict[str, Reader], *, num_rows: int) -> dict[str, list[float]]:
    """Seconds a batch by way and turn; the first turn, not counted, compares what is read."""
    rng = np.random.default_rng(0)
    turns: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(TURNS + 1):
        batches = [rng.choice(num_rows, BATCH_ROWS, replace=False).tolist() for _ in range(BATCHES)]
        expected = [readers[OURS](batch) for batch in batches]
        for name, read in readers.items():
            start = time.perf_counter()
            found = [read(batch) for batch in batches]
            if turn:
                turns[name].append((time.perf_counter() - start) / BATCHES)
            for here, there in zip(found, expected, strict=True):
                if not all(map(np.array_equal, here, there)):
                    raise AssertionError(f"{name}: other values were read")
        say(f"turn {turn} of {TURNS}")
    return turns


def _line(name: str, turns: dict[str, list[float]]) -> list[Any]:
    seconds = median(turns[name])
    times = median(theirs / ours for theirs, ours in zip(turns[name], turns[OURS], strict=True))
    return [name, round(1e3 * seconds, 2), round(1 / seconds), round(times, 1)]


# ---- ways to read


def _readers(cache: Cache, folder: Path) -> tuple[dict[str, Reader], list[list[Any]]]:
    """The ways by name, and lines about what each costs once."""
    from datasets import concatenate_datasets, load_dataset

    tokens = sum(part.tokens for part in cache.manifest.parts)
    mapped, decode_s = _timed(lambda: map_targets(cache))
    _, open_s = _timed(lambda: map_targets(cache))
    costs: list[list[Any]] = [
        ["vgid: decode and map", round(decode_s, 2), round(mapped.path.stat().st_size / tokens)],
        ["vgid: map again, hash checked", round(open_s, 2), 0],
    ]
    readers: dict[str, Reader] = {OURS: lambda rows: _arrays([mapped[row] for row in rows])}

    rows = pa.concat_tables([pq.read_table(Path(cache.location) / part.path) for part in cache.manifest.parts])
    files: dict[str, dict[str, Any]] = {
        f"Parquet as vgid's, row groups of {size}": parquet_options("default") | {"row_group_size": size}
        for size in (64, 128, 256)
    }
    files |= {f"Parquet, pyarrow defaults, row groups of {size}": {"row_group_size": size} for size in (8, 64)}
    for name, options in files.items():
        path = folder / f"{name}.parquet"
        pq.write_table(rows, path, **options)
        readers[name] = _row_groups(path)
        costs.append([name, None, round(path.stat().st_size / tokens)])

    found, load_s = _timed(lambda: load_dataset(cache.location, cache_dir=str(folder / "datasets")))
    size = sum(file.stat().st_size for file in (folder / "datasets").rglob("*.arrow"))
    costs.append(["datasets: load_dataset", round(load_s, 2), round(size / tokens)])
    # Splits come in the order of the card, which is that of the parts.
    whole = concatenate_datasets(list(found.values())).select_columns(list(READ))
    readers["datasets, default (Python lists)"] = lambda rows: _of_columns(whole[rows])
    as_numpy, as_arrow = whole.with_format("numpy"), whole.with_format("arrow")
    readers["datasets, with_format('numpy')"] = lambda rows: _of_columns(as_numpy[rows])
    readers["datasets, with_format('arrow')"] = lambda rows: _of_batch(as_arrow[rows])
    return readers, costs


def _row_groups(path: Path) -> Reader:
    file = pq.ParquetFile(path)
    metadata = file.metadata
    starts = [0, *accumulate(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))]

    def read(rows: Sequence[int]) -> Arrays:
        groups = [bisect_right(starts, row) - 1 for row in rows]
        decoded = {
            group: RowReader(
                file.read_row_group(group, columns=list(READ), use_threads=False).combine_chunks().to_batches()[0]
            )
            for group in set(groups)
        }
        return [
            np.array(decoded[group].value(row - starts[group], name))
            for row, group in zip(rows, groups, strict=True)
            for name in READ
        ]

    return read


def _arrays(rows: Sequence[Any]) -> Arrays:
    return [np.array(getattr(row, name)) for row in rows for name in READ]


def _of_columns(columns: dict[str, Any]) -> Arrays:
    """Of lists or arrays by column and row; every position holds k candidates, so all of them are rectangular."""
    return [_array(value) for row in zip(*(columns[name] for name in READ), strict=True) for value in row]


def _array(value: Any) -> np.ndarray:
    array = np.array(value)
    return np.stack(list(array)) if array.dtype == object else array


def _of_batch(found: pa.Table) -> Arrays:
    rows = RowReader(found.combine_chunks().to_batches()[0])
    return [np.array(rows.value(row, name)) for row in range(found.num_rows) for name in READ]


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start
