"""Targets made of random numbers, for tests that need rows but no teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vgid.cache.schema import NO_CANDIDATE, Target

TEACHER: dict[str, str | int | None] = {"weights_sha256": "5e" * 32, "revision": None, "vocab_size": 151_936}
SETTINGS = {"num_topk": 4, "rounding": "fp16", "pixel_form": "rgb8"}
PLAN = {"digest": "d1" * 32, "rows": 40, "buckets": 8}
IDENTITY: dict[str, Any] = {"teacher": TEACHER, "settings": SETTINGS, "plan": PLAN}


def make_target(index: int, *, split: str = "forget", num_tokens: int = 5, num_topk: int = 4) -> Target:
    """Row number `index`: the same numbers every time."""
    rng = np.random.default_rng(index)
    ids = np.stack([rng.choice(50_000, num_topk, replace=False) for _ in range(num_tokens)]).astype(np.int32)
    logprobs = np.log(rng.dirichlet(np.ones(num_topk + 1), num_tokens)).astype(np.float32)
    ranked = -np.sort(-logprobs[:, :num_topk], axis=1)
    return Target(
        target_id=sha256(f"{split}/{index}".encode()).hexdigest(),
        example_id=f"synthetic/{index}/0",
        split=split,
        subject_id=f"person-{index % 7}",
        task="facts",
        modality="image",
        view="noise+icu" if split == "forget" else "base",
        perturbation="gaussian" if split == "forget" else None,
        strength=0.5 if split == "forget" else None,
        noise_seed=index if split == "forget" else None,
        draw=0,
        icu_id="generic-v1" if split == "forget" else None,
        response_kind="generated" if split == "forget" else "reference",
        sample=0,
        engine_id="synthetic",
        finish_reason="stop",
        response_text=f"answer {index}, naïve “quotes”",
        image_sha256=sha256(str(index).encode()).hexdigest(),
        pixel_sha256=sha256(f"pixels {index}".encode()).hexdigest(),
        prompt_sha256=sha256(b"prompt").hexdigest(),
        token_ids=ids[:, 0].copy(),
        token_logprob=ranked[:, 0].copy(),
        token_rank=np.ones(num_tokens, np.int32),
        logsumexp=None,
        entropy=rng.random(num_tokens).astype(np.float32),
        tail_logprob=logprobs[:, num_topk].copy(),
        topk_ids=ids,
        topk_logprobs=ranked.astype(np.float16).astype(np.float32),
        fact_mask=None if split == "forget" else rng.random(num_tokens) < 0.5,
    )


def mixed_targets(first: int, last: int) -> list[Target]:
    """Rows `first` to `last - 1`, every third of them in `retain`, the others in `forget`."""
    return [make_target(index, split="forget" if index % 3 else "retain") for index in range(first, last)]


Head = Literal["bfloat16", "float32"]


def realistic_targets(
    num_rows: int, *, num_topk: int = 64, vocab_size: int = 151_936, head: Head = "bfloat16", on_grid: bool = True
) -> Iterator[Target]:
    """Rows as costly as a large model's: ids over the whole vocabulary, about 200 tokens a row.

    `head` is the precision of the logits; without `on_grid` log-probabilities stay as they come, float32.
    """
    for index in range(num_rows):
        rng = np.random.default_rng([7, index])
        num_tokens = int(rng.integers(100, 300))
        gaps = rng.exponential(2.0 / np.arange(1, num_topk), (num_tokens, num_topk - 1))
        gaps[:, 0] += rng.exponential(3.0, num_tokens)
        below = np.concatenate([np.zeros((num_tokens, 1)), np.cumsum(gaps, axis=1)], axis=1)
        logits = rng.uniform(24, 31, (num_tokens, 1)) - below
        logits = _bfloat16(logits) if head == "bfloat16" else logits.astype(np.float32).astype(np.float64)
        weights = np.exp(logits)
        # The candidates go on as a power law of the rank with exponent 1.4, give or take a factor e.
        odds = num_topk / 0.4 * weights[:, -1] / weights.sum(axis=1) * np.exp(rng.normal(size=num_tokens))
        tail = (odds / (1 + odds)).clip(1e-6, 0.5)
        logprobs = logits - np.log(weights.sum(axis=1) / (1 - tail))[:, None]
        ids = _skewed_ids(rng, num_tokens, num_topk, vocab_size)
        yield replace(
            make_target(index),
            token_ids=ids[:, 0],
            token_logprob=logprobs[:, 0].astype(np.float32),
            token_rank=np.ones(num_tokens, np.int32),
            entropy=rng.random(num_tokens).astype(np.float32),
            tail_logprob=np.log(tail).astype(np.float32),
            topk_ids=ids,
            topk_logprobs=logprobs.astype(np.float16 if on_grid else np.float32).astype(np.float32),
        )


@st.composite
def target_lists(draw: st.DrawFn) -> list[Target]:
    """Up to five rows with distinct ids, T and K ragged, absent columns, tails of nothing and odd texts."""
    return [draw(_targets(index)) for index in range(draw(st.integers(0, 5)))]


@st.composite
def _targets(draw: st.DrawFn, index: int) -> Target:
    num_tokens = draw(st.integers(1, 6))
    widths = draw(hnp.arrays(np.int64, num_tokens, elements=st.integers(0, 5)))
    num_topk = int(widths.max())
    absent = np.arange(num_topk) >= widths[:, None]
    ids = draw(hnp.arrays(np.int32, (num_tokens, num_topk), elements=st.integers(0, 2**31 - 1)))
    ints = hnp.arrays(np.int32, num_tokens, elements=st.integers(0, 2**31 - 1))
    logprobs = st.one_of(st.floats(-(2.0**100), 0, width=32), st.just(float("-inf")))
    floats = hnp.arrays(np.float32, num_tokens, elements=logprobs)
    text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
    return replace(
        make_target(index, split=draw(st.sampled_from(["forget", "retain"])), num_tokens=num_tokens),
        target_id=f"{index:064x}",
        subject_id=draw(text),
        response_text=draw(text),
        strength=draw(st.none() | st.floats(allow_nan=False)),
        noise_seed=draw(st.none() | st.integers(-(2**63), 2**63 - 1)),
        draw=draw(st.integers(0, 2**31 - 1)),
        icu_id=draw(st.none() | text),
        pixel_sha256=draw(st.none() | text),
        token_ids=draw(ints),
        token_logprob=draw(floats),
        token_rank=draw(ints),
        logsumexp=draw(st.none() | floats),
        entropy=draw(st.none() | floats),
        tail_logprob=draw(floats),
        topk_ids=np.where(absent, np.int32(NO_CANDIDATE), ids),
        topk_logprobs=np.where(
            absent, -np.float32(np.inf), draw(hnp.arrays(np.float32, (num_tokens, num_topk), elements=logprobs))
        ),
        fact_mask=draw(st.none() | hnp.arrays(np.bool_, num_tokens)),
    )


def assert_same_targets(found: list[Target], expected: list[Target]) -> None:
    """Equal in every field, value, dtype and shape, in any order of rows."""
    assert sorted(row.target_id for row in found) == sorted(row.target_id for row in expected)
    by_id = {row.target_id: row for row in found}
    for row in expected:
        for name in Target.__slots__:
            here, there = getattr(row, name), getattr(by_id[row.target_id], name)
            if isinstance(here, np.ndarray):
                assert (here.dtype, here.shape) == (there.dtype, there.shape), name
                np.testing.assert_array_equal(here, there, err_msg=name)
            else:
                assert here == there, name


def _skewed_ids(rng: np.random.Generator, num_tokens: int, num_topk: int, vocab_size: int) -> np.ndarray:
    """Low ids are the frequent ones: 16.8 of at most 17.2 bits. None stands twice at a position."""
    ids = np.zeros((num_tokens, num_topk), np.int32)
    again = np.arange(num_tokens)
    while len(again):
        ids[again] = vocab_size * rng.random((len(again), num_topk)) ** 2
        again = np.flatnonzero((np.diff(np.sort(ids, axis=1), axis=1) == 0).any(axis=1))
    return ids


def _bfloat16(values: np.ndarray) -> np.ndarray:
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x8000) & 0xFFFF0000).view(np.float32).astype(np.float64)


def narrowed(target: Target, widths: Sequence[int]) -> Target:
    """The row as adaptive width would have stored it: `widths[t]` candidates at position t, the others in the tail."""
    absent = np.arange(target.topk_ids.shape[1]) >= np.asarray(widths)[:, None]
    moved = np.where(absent, np.exp(target.topk_logprobs.astype(np.float64)), 0).sum(-1)
    width = max(widths)
    with np.errstate(divide="ignore"):
        tail = np.log(np.exp(target.tail_logprob.astype(np.float64)) + moved).astype(np.float32)
    return replace(
        target,
        tail_logprob=tail,
        topk_ids=np.where(absent, np.int32(NO_CANDIDATE), target.topk_ids)[:, :width],
        topk_logprobs=np.where(absent, -np.float32(np.inf), target.topk_logprobs)[:, :width],
    )


def shifted(target: Target, by: int) -> Target:
    """The same row with its distributions one position too late or too early."""
    names = ("topk_ids", "topk_logprobs", "tail_logprob", "token_logprob")
    return replace(target, **{name: np.roll(getattr(target, name), by, axis=0) for name in names})
