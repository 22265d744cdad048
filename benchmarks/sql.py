"""How long SQL over all tokens of a large cache takes, and where the time goes; the machine's cores and noise matter.

Each query has a connection of its own, as on the command line, so the sandbox reads and hashes every part it needs.
"""

from __future__ import annotations

import tempfile
import time
from hashlib import sha256
from pathlib import Path

import duckdb

from benchmarks.synthetic import make_big_cache
from vgid.cache.reader import open_cache
from vgid.cache.sql import run_sql
from vgid.pipeline.console import say, table

TOKENS = 6_000_000
REPEATS = 3

QUERIES = {
    "rows of targets": "SELECT count(*) FROM targets",
    "mean tail and probability by split": """SELECT split, avg(tail_mass), avg(exp(token_logprob))
        FROM tokens GROUP BY split""",
    "most frequent tokens, with text": """SELECT token_text, count(*) AS n
        FROM tokens GROUP BY ALL ORDER BY n DESC LIMIT 10""",
    "one response token by token": "SELECT * FROM tokens WHERE example_id = 'big/777/0'",
    "mean probability by rank (all candidates)": "SELECT rank, avg(probability) FROM candidates GROUP BY ALL",
}


def main() -> None:
    """Print one line per query, then what its pieces cost alone."""
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch) / "cache"
        started = time.monotonic()
        tokens = make_big_cache(cache, TOKENS)
        parts = open_cache(cache).manifest.parts
        size = sum(part.bytes for part in parts)
        say(f"{tokens:,} tokens, {size / 1e9:.2f} GB in {len(parts)} parts, made in {time.monotonic() - started:.0f} s")
        lines = [[name, *_timed(lambda query=query: run_sql(cache, query))] for name, query in QUERIES.items()]
        files = [cache / part.path for part in parts]
        lines += [
            ["reading all parts, one thread", *_timed(lambda: [file.read_bytes() for file in files])],
            ["reading and hashing them, one thread", *_timed(lambda: [sha256(f.read_bytes()) for f in files])],
            ["the mean by split, files unchecked, no sandbox", *_timed(lambda: _unchecked(files))],
        ]
        print(table(["query", "best of 3, s", "CPU s"], lines))


def _timed(run: object) -> tuple[float, float]:
    assert callable(run)
    times: list[tuple[float, float]] = []
    for _ in range(REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(times)


def _unchecked(files: list[Path]) -> None:
    query = """SELECT split, avg(exp(tail)), avg(exp(own)) FROM (
        SELECT split, unnest(tail_logprob) AS tail, unnest(token_logprob) AS own FROM read_parquet($1)
    ) GROUP BY split"""
    with duckdb.connect() as connection:
        connection.execute(query, [[str(file) for file in files]]).fetchall()
