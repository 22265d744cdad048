"""Caches of made-up rows, as large as asked for, for benchmarks about size."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.synthetic_targets import PLAN, SETTINGS, TEACHER, realistic_targets
from vgid.cache.schema import Target
from vgid.cache.vocabulary import Token
from vgid.cache.writer import CacheWriter

NUM_TOPK = 64


def synthetic_rows(tokens: int) -> Iterator[Target]:
    """Rows of about 200 response tokens at k = 64, no two alike, until there are `tokens` of them.

    Every third is in split `retain`, the others in `forget`. They are made one by one, so that they cost no memory.
    """
    made = 0
    for index, row in enumerate(realistic_targets(sys.maxsize, num_topk=NUM_TOPK)):
        if made >= tokens:
            return
        made += len(row.token_ids)
        yield replace(row, split="forget" if index % 3 else "retain", finish_reason="length")


def make_cache(directory: Path, tokens: int) -> None:
    """Write a cache of at least `tokens` response tokens, as a teacher would, in parts of the usual size."""
    settings = {**SETTINGS, "num_topk": NUM_TOPK}
    with CacheWriter(directory, teacher=TEACHER, settings=settings, plan=PLAN, vocabulary=_tokens) as writer:
        for row in synthetic_rows(tokens):
            writer.add(row)


def _tokens() -> Iterator[Token]:
    for token_id in range(int(TEACHER["vocab_size"] or 0)):
        yield Token(token_id=token_id, text=f"token {token_id}", special=False, end=False)
