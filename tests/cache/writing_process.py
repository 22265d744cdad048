"""A writer in a process of its own, to be raced and killed by the tests.

usage: writing_process.py CACHE FIRST LAST ROWS_PER_PART [BARRIER NAME WRITERS ROUNDS]

Writes rows FIRST to LAST - 1. With a barrier directory it does so in ROUNDS caches below CACHE, one after the
other, and begins each of them together with the others of WRITERS processes.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from synthetic_targets import IDENTITY, mixed_targets

from vgid.cache.writer import CacheWriter


def write_rows(cache: str, first: int, last: int, *, rows_per_part: int) -> None:
    with CacheWriter(cache, **IDENTITY, rows_per_part=rows_per_part) as writer:
        for target in mixed_targets(first, last):
            writer.add(target)


def wait_for_the_others(barrier: Path, name: str, *, writers: int) -> None:
    barrier.mkdir(exist_ok=True)
    (barrier / name).touch()
    deadline = time.monotonic() + 60
    while len(list(barrier.iterdir())) < writers:
        assert time.monotonic() < deadline, "the other processes did not come"
        time.sleep(0.0005)


if __name__ == "__main__":
    cache, (first, last, rows_per_part) = sys.argv[1], map(int, sys.argv[2:5])
    print("started", flush=True)
    if len(sys.argv) == 5:
        write_rows(cache, first, last, rows_per_part=rows_per_part)
    else:
        barrier, name, writers, rounds = sys.argv[5:]
        for number in range(int(rounds)):
            wait_for_the_others(Path(barrier) / str(number), name, writers=int(writers))
            write_rows(f"{cache}/{number}", first, last, rows_per_part=rows_per_part)
