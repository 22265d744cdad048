"""Caches of made-up rows, as large as asked for, for benchmarks about size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from itertools import cycle
from pathlib import Path

from tests.synthetic_targets import PLAN, SETTINGS, TEACHER, realistic_targets
from vgid.cache.vocabulary import Token
from vgid.cache.writer import CacheWriter

DISTINCT_ROWS = 256
ROWS_PER_PART = 2048


def make_big_cache(directory: Path, tokens: int) -> int:
    """Write a cache of at least `tokens` response tokens at k = 64; returns how many it holds.

    Rows differ in their ids and repeat the arrays of `DISTINCT_ROWS` rows, which lie too far apart in a part for the
    compression to notice.
    """
    made = 0
    distinct = list(realistic_targets(DISTINCT_ROWS))
    with CacheWriter(
        directory,
        teacher=TEACHER,
        settings={**SETTINGS, "num_topk": 64},
        plan=PLAN,
        rows_per_part=ROWS_PER_PART,
        vocabulary=_tokens,
    ) as writer:
        for index, row in enumerate(cycle(distinct)):
            if made >= tokens:
                break
            split = "retain" if index % 3 == 0 else "forget"
            target_id = sha256(f"big/{index}".encode()).hexdigest()
            writer.add(replace(row, target_id=target_id, example_id=f"big/{index}/0", split=split))
            made += len(row.token_ids)
    return made


def _tokens() -> Iterator[Token]:
    for token_id in range(int(TEACHER["vocab_size"] or 0)):
        yield Token(token_id=token_id, text=f"token {token_id}", special=False, end=False)
