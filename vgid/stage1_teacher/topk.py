"""From logits or engine log-probabilities to what a target stores: top-k, tail, exact values of the response token.

Gives up everything inside the tail: its total mass is kept (`tail_logprob`), its shape is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vgid.cache.schema import NO_CANDIDATE

if TYPE_CHECKING:
    import torch


class PositionStats(NamedTuple):
    """What all logits of T positions say about the response tokens; see `TeacherResponse` for shapes and units."""

    token_logprob: np.ndarray
    token_rank: np.ndarray
    topk_ids: np.ndarray
    topk_logprobs: np.ndarray
    logsumexp: np.ndarray
    entropy: np.ndarray


def stats_of_logits(logits: torch.Tensor, token_ids: torch.Tensor, *, num_topk: int) -> PositionStats:
    """Top-k log-probabilities and exact per-token values from full logits.

    Args:
        logits: [T, V], any float dtype; position t predicts token t.
        token_ids: int64 [T], the response, on the same device.
        num_topk: K; cut to V.
    """
    import torch

    logits = logits.float()
    lse = torch.logsumexp(logits, dim=-1)
    logprobs = logits - lse[:, None]
    own = logprobs.gather(1, token_ids[:, None])
    rank = (logprobs >= own).sum(-1)
    top = logprobs.topk(min(num_topk, logits.shape[-1]), dim=-1)
    # xlogx at p = 0 is 0 while exp(-inf) * -inf is nan; special.entr states that limit.
    entropy = torch.special.entr(logprobs.exp()).sum(-1)
    return PositionStats(
        token_logprob=own[:, 0].cpu().numpy(),
        token_rank=rank.int().cpu().numpy(),
        topk_ids=top.indices.int().cpu().numpy(),
        topk_logprobs=top.values.cpu().numpy(),
        logsumexp=lse.cpu().numpy(),
        entropy=entropy.cpu().numpy(),
    )


def narrow(
    topk_ids: np.ndarray, topk_logprobs: np.ndarray, *, top_p: float, min_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keep at each position the fewest candidates that reach `top_p`, at least `min_k`; the rest joins the tail.

    Args:
        topk_ids: int32 [T, K], most likely first.
        topk_logprobs: float32 [T, K], nats, not rounded.
        top_p: Probability to reach, of the whole vocabulary; positions whose K candidates do not reach it keep all.
        min_k: Fewest to keep.

    Returns:
        Both arrays, [T, K'] with K' the widest position; narrower ones end in `NO_CANDIDATE` and -inf.
    """
    before = np.cumsum(np.exp(topk_logprobs.astype(np.float64)), axis=-1) - np.exp(topk_logprobs.astype(np.float64))
    rank = np.arange(topk_ids.shape[-1])
    kept = (before < top_p) | (rank < min_k)
    width = int(kept.sum(axis=-1).max(initial=0))
    ids = np.where(kept, topk_ids, np.int32(NO_CANDIDATE))[:, :width]
    return ids, np.where(kept, topk_logprobs, np.float32(-np.inf))[:, :width]


def tail_logprob(topk_logprobs: np.ndarray) -> np.ndarray:
    """Log of the mass outside the stored candidates.

    Computed in float64 from unrounded values; float32 log-probabilities leave an error of about 1e-7 in the mass, so a
    smaller tail is noise and one that comes out negative is -inf.

    Args:
        topk_logprobs: float [T, K], nats.

    Returns:
        float32 [T], -inf where nothing is left.
    """
    mass = 1.0 - np.exp(topk_logprobs.astype(np.float64)).sum(-1)
    with np.errstate(divide="ignore"):
        return np.log(np.clip(mass, 0.0, 1.0)).astype(np.float32)


def round_to_fp16_grid(values: np.ndarray) -> np.ndarray:
    """Nearest float16 number, kept as float32 (-inf stays; below -65504 becomes -inf, which is a probability of 0)."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)
