"""Forward KL from a sparse teacher to a student on the k+1 partition: the stored candidates and one tail bucket.

Pure functions of tensors. What they give up: inside the tail the student keeps its own shape, since only the tail's
total mass is known; and the logits of all supervised positions are in memory at once, without chunks.

Dimension key: B sequences, T padded response positions, N supervised positions, K candidates, V student vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TAIL_FLOOR = math.log(1e-6)
"""A smaller tail is noise of float32 log-probabilities and is dropped, which moves the KL by 1e-5 nat at most."""


def sparse_kl(
    student_logits_BTV: Tensor,
    *,
    topk_ids_BTK: Tensor,
    topk_logprobs_BTK: Tensor,
    tail_logprob_BT: Tensor,
    mask_BT: Tensor,
) -> tuple[Tensor, Tensor]:
    """Forward KL summed over the supervised positions; see `token_kl` for the arguments.

    Sum and count, not a mean: the caller normalises over its whole accumulation window.

    Returns:
        Summed KL in nats (float32, or the logits' type if wider), and the number of supervised positions (int64).
    """
    kl_BT = token_kl(
        student_logits_BTV,
        topk_ids_BTK=topk_ids_BTK,
        topk_logprobs_BTK=topk_logprobs_BTK,
        tail_logprob_BT=tail_logprob_BT,
        mask_BT=mask_BT,
    )
    return kl_BT.sum(), mask_BT.sum()


def token_kl(
    student_logits_BTV: Tensor,
    *,
    topk_ids_BTK: Tensor,
    topk_logprobs_BTK: Tensor,
    tail_logprob_BT: Tensor,
    mask_BT: Tensor,
) -> Tensor:
    """Forward KL at each position, tail included as one bucket. Teacher temperature is 1.

    Args:
        student_logits_BTV: Position t predicts response token t; the caller has already shifted.
        topk_ids_BTK: int64, each below V, unique among the real ones; padding is id 0 with log-probability -inf.
        topk_logprobs_BTK: Teacher log-probabilities in nats, not renormalised.
        tail_logprob_BT: Log of the teacher's mass outside the ids, -inf where there is none.
        mask_BT: True where the position is supervised; what stands at other positions is never looked at.

    Returns:
        [B, T] in nats, >= 0, 0 where not supervised. float32, or the logits' type if that is wider.
    """
    dtype = torch.promote_types(student_logits_BTV.dtype, torch.float32)
    kl_N = _partition_kl(
        student_logits_BTV[mask_BT].to(dtype),
        topk_ids_BTK[mask_BT],
        topk_logprobs_BTK[mask_BT].to(dtype),
        tail_logprob_BT[mask_BT].to(dtype),
    )
    return torch.zeros_like(mask_BT, dtype=dtype).masked_scatter(mask_BT, kl_N)


def role_sums(kl_BT: Tensor, *, weight_B: Tensor, forget_B: Tensor) -> Tensor:
    """Weighted KL summed over the forget rows and over the retain rows: [2], in that order."""
    kl_B = kl_BT.sum(-1) * weight_B.to(kl_BT.dtype)
    return torch.stack([kl_B[forget_B].sum(), kl_B[~forget_B].sum()])


def role_counts(mask_BT: Tensor, *, forget_B: Tensor) -> Tensor:
    """Supervised positions of the forget rows and of the retain rows: int64 [2], in that order."""
    count_B = mask_BT.sum(-1)
    return torch.stack([count_B[forget_B].sum(), count_B[~forget_B].sum()])


def _partition_kl(logits_NV: Tensor, ids_NK: Tensor, logprobs_NK: Tensor, tail_N: Tensor) -> Tensor:
    valid_NK = logprobs_NK > -math.inf
    # Without an unstored id left in the student's vocabulary its tail is log 0; the bucket is then dropped as well.
    has_tail_N = (tail_N > TAIL_FLOOR) & (valid_NK.sum(-1) < logits_NV.shape[-1])
    logp_NK, logt_N = _renormalise(logprobs_NK, tail_N.masked_fill(~has_tail_N, -math.inf))

    lse_N = torch.logsumexp(logits_NV, dim=-1)
    logq_NK = logits_NV.gather(-1, ids_NK) - lse_N[:, None]
    logu_N = _rest_logsumexp(logits_NV, ids_NK, valid_NK & has_tail_N[:, None]) - lse_N

    # 0 * -inf is nan, forward and backward: where p is 0 its logarithm is replaced before it is multiplied.
    head_N = (logp_NK.exp() * (logp_NK.masked_fill(~valid_NK, 0.0) - logq_NK)).sum(-1)
    return head_N + logt_N.exp() * (logt_N.masked_fill(~has_tail_N, 0.0) - logu_N)


def _renormalise(logprobs_NK: Tensor, tail_N: Tensor) -> tuple[Tensor, Tensor]:
    """Make candidates and tail sum to exactly 1, which rounding to the fp16 grid has moved by about 1e-4."""
    norm_N = torch.logsumexp(torch.cat([logprobs_NK, tail_N[:, None]], dim=-1), dim=-1)
    return logprobs_NK - norm_N[:, None], tail_N - norm_N


def _rest_logsumexp(logits_NV: Tensor, ids_NK: Tensor, taken_NK: Tensor) -> Tensor:
    """Log-sum-exp over the ids that are not taken; over all of them where none is.

    Not log(1 - sum): that loses all digits where the candidates hold nearly all mass. Adding -inf, rather than writing
    it, keeps a padding entry (id 0, not taken) from undoing a real id 0.
    """
    minus_NK = torch.zeros_like(ids_NK, dtype=logits_NV.dtype).masked_fill(taken_NK, -math.inf)
    return torch.logsumexp(logits_NV.scatter_add(-1, ids_NK, minus_NK), dim=-1)
