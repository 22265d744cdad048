"""What changes from 0.6 to 6 million tokens: the memory of whoever writes or reads a cache, `status`, SQL.

    python -m benchmarks size            # SMALL and LARGE in tokens can follow: size 60000 600000

Every line is a process of its own, command lines as a person would type them. Processes that are timed take turns, and
files lie in the page cache. Memory is the peak; `benchmarks.processes` says of what.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.processes import Usage, run_module
from benchmarks.synthetic import make_cache
from benchmarks.training_reads import BATCH_ROWS, READ
from vgid.cache.mapped import map_targets
from vgid.cache.reader import open_cache
from vgid.pipeline.console import say, table

TOKENS = (600_000, 6_000_000)
REPEATS = 3
OUT = Path("runs/bench/size.json")

QUERIES = {
    "mean tail and probability by split": """SELECT split, avg(tail_mass), avg(exp(token_logprob))
        FROM tokens GROUP BY split""",
    "rows of targets": "SELECT count(*) FROM targets",
    "most frequent tokens, with text": """SELECT token_text, count(*) AS n
        FROM tokens GROUP BY ALL ORDER BY n DESC LIMIT 10""",
    "one response token by token": "SELECT * FROM tokens WHERE example_id = 'synthetic/777/0'",
    "mean probability by rank (all candidates)": "SELECT rank, avg(probability) FROM candidates GROUP BY ALL",
}
AGGREGATE = "vgid sql: mean tail and probability by split"
TIMED = ("vgid cache status", AGGREGATE)
"""These have a bar, so they run more than once."""


def main(tokens: tuple[int, ...] = TOKENS) -> None:
    """Print what each process took at each size, and write all of it to `runs/bench/size.json`."""
    used: dict[str, list[list[Usage]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        caches = [Path(scratch) / str(number) for number in tokens]
        for number, cache in zip(tokens, caches, strict=True):
            used.setdefault("writer", []).append([run_module("benchmarks.size", "write", cache, number)])
            say(_described(cache))
        for name, arguments in _readers().items():
            used[name] = [[] for _ in caches]
            for _ in range(REPEATS if name in TIMED else 1):
                for runs, cache in zip(used[name], caches, strict=True):
                    runs.append(run_module(*(str(cache) if part is None else part for part in arguments)))
            say(name)
    headers = ["peak, MB", *(f"anonymous, {number:,}" for number in tokens), "x", "resident", "x"]
    print(table(headers, [_memory(name, sizes) for name, sizes in used.items()]))
    print(table([f"at {tokens[-1]:,} tokens", "s, median", "best", "CPU s"], [_time(n, s) for n, s in used.items()]))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({n: [[asdict(run) for run in runs] for runs in sizes] for n, sizes in used.items()}))


def _readers() -> dict[str, tuple[str | None, ...]]:
    """Arguments of `run_module` by name, None for the cache; in this order, since the first makes the copy."""
    return {
        "training: decode and map": ("benchmarks.size", "map", None),
        "training: an epoch in random batches": ("benchmarks.size", "epoch", None),
        "vgid cache status": ("vgid", "cache", "status", None),
        "vgid cache verify": ("vgid", "cache", "verify", None),
        **{f"vgid sql: {name}": ("vgid", "sql", None, query) for name, query in QUERIES.items()},
    }


def _memory(name: str, sizes: list[list[Usage]]) -> list[object]:
    anonymous = [max(run.anonymous_bytes for run in runs) / 1e6 for runs in sizes]
    resident = [max(run.resident_bytes for run in runs) / 1e6 for runs in sizes]
    growth = [round(kind[-1] / kind[0], 2) for kind in (anonymous, resident)]
    return [name, *map(round, anonymous), growth[0], " to ".join(f"{size:,.0f}" for size in resident), growth[1]]


def _time(name: str, sizes: list[list[Usage]]) -> list[object]:
    walls = [run.wall_s for run in sizes[-1]]
    return [name, *(round(s, 2) for s in (median(walls), min(walls), min(run.cpu_s for run in sizes[-1])))]


def _described(cache: Path) -> str:
    parts = open_cache(cache).manifest.parts
    rows, tokens, size = (sum(getattr(part, name) for part in parts) for name in ("rows", "tokens", "bytes"))
    return f"{tokens:,} tokens in {rows:,} rows and {len(parts)} parts, {size / 1e9:.2f} GB"


# ---- the processes that are measured


def _map(cache: Path) -> None:
    map_targets(open_cache(cache))


def _epoch(cache: Path) -> None:
    """Each row once, in random order, all numbers of it copied out of the map."""
    targets = map_targets(open_cache(cache))
    order = np.random.default_rng(0).permutation(len(targets))
    for first in range(0, len(order), BATCH_ROWS):
        _ = [np.array(getattr(row, name)) for row in targets.select(order[first : first + BATCH_ROWS]) for name in READ]


if __name__ == "__main__":
    what, cache, *rest = sys.argv[1:]
    if what == "write":
        make_cache(Path(cache), int(rest[0]))
    else:
        {"map": _map, "epoch": _epoch}[what](Path(cache))
