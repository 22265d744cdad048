"""Targets that a teacher could have given, from logits over a small vocabulary, by plain numpy: `verify` finds nothing.

`synthetic_targets` makes rows that a cache must keep; these are rows that mean something.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from synthetic_targets import PLAN, make_target

from vgid.cache.schema import NO_CANDIDATE, Target
from vgid.cache.vocabulary import Token
from vgid.cache.writer import CacheWriter

VOCAB_SIZE = 40
END_IDS = (0, 1)
NUM_TOPK = 8
TEACHER: dict[str, str | int | None] = {"weights_fingerprint": "5e" * 32, "vocab_size": VOCAB_SIZE}
FIXED: dict[str, Any] = {"num_topk": NUM_TOPK, "rounding": "fp16-grid", "pixel_form": "rgb8-v1"}
ADAPTIVE: dict[str, Any] = {**FIXED, "top_p": 0.9, "min_k": 2}


def token_table() -> list[Token]:
    return [Token(token_id=i, text=f"w{i}", special=i in END_IDS, end=i in END_IDS) for i in range(VOCAB_SIZE)]


def write_sound(cache: Path, rows: list[Target], *, settings: dict[str, Any] = FIXED, **options: Any) -> None:
    options = {"vocabulary": token_table, **options}
    with CacheWriter(cache, teacher=TEACHER, settings=settings, plan=PLAN, **options) as writer:
        for row in rows:
            writer.add(row)


def sound_target(index: int, *, split: str = "forget", num_tokens: int = 5, settings: dict[str, Any] = FIXED) -> Target:
    """Row number `index`; `forget` rows end by themselves, every other split's hold a reference answer."""
    rng = np.random.default_rng(index)
    logits = (4 * rng.normal(size=(num_tokens, VOCAB_SIZE))).astype(np.float32)
    token_ids = rng.integers(len(END_IDS), VOCAB_SIZE, num_tokens)
    token_ids[-1] = END_IDS[0]
    return target_of(logits, token_ids, make_target(index, split=split, num_tokens=num_tokens), settings=settings)


def target_of(logits: np.ndarray, token_ids: np.ndarray, row: Target, *, settings: dict[str, Any] = FIXED) -> Target:
    """The row with the distributions of these logits [T, V] and these response tokens [T]."""
    exact = logits.astype(np.float64)
    logsumexp = np.log(np.exp(exact - exact.max(axis=1, keepdims=True)).sum(axis=1)) + exact.max(axis=1)
    logprobs = (exact - logsumexp[:, None]).astype(np.float32)
    own = np.take_along_axis(logprobs, token_ids[:, None], axis=1)
    order = np.argsort(-logprobs, axis=1, kind="stable")[:, : settings["num_topk"]].astype(np.int32)
    values = np.take_along_axis(logprobs, order, axis=1)
    for t, p in enumerate(np.exp(values.astype(np.float64))) if "top_p" in settings else ():
        fewest = next((k for k in range(1, len(p)) if p[:k].sum() >= settings["top_p"]), len(p))
        order[t, max(fewest, settings["min_k"]) :], values[t, max(fewest, settings["min_k"]) :] = NO_CANDIDATE, -np.inf
    width = int((order != NO_CANDIDATE).sum(axis=1).max())
    order, values = order[:, :width], values[:, :width]
    with np.errstate(divide="ignore"):
        tail = np.log(np.clip(1 - np.exp(values.astype(np.float64)).sum(axis=1), 0, 1))
        probabilities = np.exp(logprobs.astype(np.float64))
        entropy = -np.where(probabilities > 0, probabilities * logprobs, 0).sum(axis=1)
    return replace(
        row,
        finish_reason="forced" if row.response_kind == "reference" else row.finish_reason,
        token_ids=token_ids.astype(np.int32),
        token_logprob=own[:, 0],
        token_rank=(logprobs >= own).sum(axis=1).astype(np.int32),
        logsumexp=logsumexp.astype(np.float32),
        entropy=entropy.astype(np.float32),
        tail_logprob=tail.astype(np.float32),
        topk_ids=order,
        topk_logprobs=values.astype(np.float16).astype(np.float32),
    )


@st.composite
def sound_lists(draw: st.DrawFn, *, settings: dict[str, Any] = FIXED) -> list[Target]:
    """Up to four rows of any logits, ties and near certainty included, that ended in every way a response can end."""
    rows: list[Target] = []
    for index in range(draw(st.integers(0, 4))):
        num_tokens = draw(st.integers(1, 4))
        elements = st.floats(-60, 60, width=32) | st.sampled_from([0.0, 1.0, 30.0])
        logits = draw(hnp.arrays(np.float32, (num_tokens, VOCAB_SIZE), elements=elements))
        token_ids = draw(hnp.arrays(np.int64, num_tokens, elements=st.integers(len(END_IDS), VOCAB_SIZE - 1)))
        row = make_target(index, split=draw(st.sampled_from(["forget", "retain"])), num_tokens=num_tokens)
        if draw(st.booleans()) and row.response_kind == "generated":
            row = replace(row, finish_reason="length")
        else:
            token_ids[-1] = draw(st.sampled_from(END_IDS))
        rows.append(target_of(logits, token_ids, row, settings=settings))
    return rows
