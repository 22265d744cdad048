"""Divergences between a sparse teacher and a student on the k+1 partition: the stored candidates and one tail bucket.

Pure functions of small tensors: a student enters as the log-probabilities of its cells, [N, K+1], and leaves as a value
and its slope by each of them. How cells come from logits, and how slopes become a gradient of logits, is
`loss_kernels.py`. What every form gives up: inside the tail the student keeps its own shape, since only the tail's
total mass is known.

Dimension key: B sequences, T padded response positions, N supervised positions, K candidates, C = K + 1 cells (the last
is the tail), V student vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vgid.stage2_distill.settings import LossSettings

TAIL_FLOOR = math.log(1e-6)
"""A smaller tail is noise of float32 log-probabilities: it counts as empty, which moves a forward KL by 1e-5 nat at
most. Where an empty tail would cost an infinite amount (reverse KL), it counts as this."""


class Partition(NamedTuple):
    """The teacher at N positions."""

    ids_NK: Tensor
    """int64, below V; 0 where there is no candidate."""
    is_stored_NK: Tensor
    """bool, False where there is no candidate."""
    has_tail_N: Tensor
    """bool, False where every id of the student's vocabulary is stored, so that there is no tail to speak of."""
    logp_NC: Tensor
    """Log-probabilities of the cells, in nats, summing to exactly 1; -inf where there is no candidate or no mass."""


def partition(
    topk_ids_NK: Tensor, topk_logprobs_NK: Tensor, tail_logprob_N: Tensor, *, vocab_size: int, dtype: torch.dtype
) -> Partition:
    """The teacher's cells, renormalised once: rounding to the fp16 grid has moved their sum by about 1e-4.

    Args:
        topk_ids_NK: int64, each below `vocab_size`, unique among the real ones; padding is id 0.
        topk_logprobs_NK: Nats; -inf for padding.
        tail_logprob_N: Log of the mass outside the ids, -inf where there is none.
        vocab_size: V.
        dtype: Of the result.
    """
    logprobs_NK, tail_N = topk_logprobs_NK.to(dtype), tail_logprob_N.to(dtype)
    is_stored_NK = logprobs_NK > -math.inf
    has_tail_N = is_stored_NK.sum(-1) < vocab_size
    tail_N = tail_N.masked_fill(~has_tail_N | (tail_N <= TAIL_FLOOR), -math.inf)
    logp_NC = torch.cat([logprobs_NK, tail_N[:, None]], dim=-1)
    return Partition(topk_ids_NK, is_stored_NK, has_tail_N, logp_NC - torch.logsumexp(logp_NC, dim=-1, keepdim=True))


def divergence(teacher: Partition, logq_NC: Tensor, *, loss: LossSettings) -> tuple[Tensor, Tensor]:
    """What a student's distribution costs at each position, and how fast that changes.

    Args:
        teacher: Its cells.
        logq_NC: The student's log-probabilities of the same cells; at absent ones anything but nan.
        loss: Which divergence.

    Returns:
        Value [N] in nats, and its derivative by every `logq` [N, C] as if they were independent; 0 at absent cells.
    """
    logp_NC, has_tail_N = teacher.logp_NC, teacher.has_tail_N
    if loss.divergence == "reverse_kl":
        logp_NC = _with_floor(logp_NC, has_tail_N)
    elif loss.divergence == "topk_conditional_kl":
        has_tail_N = torch.zeros_like(has_tail_N)
    is_there_NC = torch.cat([teacher.is_stored_NK, has_tail_N[:, None]], dim=-1)
    value_NC, slope_NC = _cells(logp_NC, logq_NC, is_there_NC, loss=loss)
    zero = torch.zeros((), dtype=value_NC.dtype, device=value_NC.device)
    return torch.where(is_there_NC, value_NC, zero).sum(-1), torch.where(is_there_NC, slope_NC, zero)


def dense_divergence(logp_NV: Tensor, logq_NV: Tensor, *, loss: LossSettings) -> tuple[Tensor, Tensor]:
    """`divergence` of distributions that are known in full: every id is a cell and there is no tail."""
    everywhere_NV = torch.ones_like(logp_NV, dtype=torch.bool)
    value_NV, slope_NV = _cells(logp_NV, logq_NV, everywhere_NV, loss=loss)
    return value_NV.sum(-1), slope_NV


def _cells(logp_NC: Tensor, logq_NC: Tensor, is_there_NC: Tensor, *, loss: LossSettings) -> tuple[Tensor, Tensor]:
    if loss.divergence == "forward_kl":
        return _forward_kl(logp_NC, logq_NC)
    if loss.divergence == "reverse_kl":
        return _reverse_kl(logp_NC, logq_NC)
    if loss.divergence == "jsd":
        return _jsd(logp_NC, logq_NC)
    assert loss.temperature is not None
    return _conditional_kl(logp_NC, logq_NC, is_there_NC, temperature=loss.temperature)


def _forward_kl(logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
    p_NC = logp_NC.exp()
    return _times_log(p_NC, logp_NC - logq_NC), -p_NC


def _reverse_kl(logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
    q_NC = logq_NC.exp()
    value_NC = _times_log(q_NC, logq_NC - logp_NC)
    return value_NC, value_NC + q_NC


def _jsd(logp_NC: Tensor, logq_NC: Tensor) -> tuple[Tensor, Tensor]:
    p_NC, q_NC = logp_NC.exp(), logq_NC.exp()
    logm_NC = torch.logaddexp(logp_NC, logq_NC) - math.log(2)
    half_NC = _times_log(q_NC, logq_NC - logm_NC) / 2
    return _times_log(p_NC, logp_NC - logm_NC) / 2 + half_NC, half_NC


def _conditional_kl(
    logp_NC: Tensor, logq_NC: Tensor, is_stored_NC: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """Forward KL among the stored candidates alone, softened; times temperature squared, as in Hinton et al. 2015."""

    def softened(log_NC: Tensor) -> Tensor:
        # A position without candidates would be all -inf and its log-sum too; 0 there is masked by the caller.
        return torch.log_softmax((log_NC / temperature).masked_fill(~is_stored_NC, -1e30), dim=-1)

    logp_NC, logq_NC = softened(logp_NC), softened(logq_NC)
    value_NC = _times_log(logp_NC.exp(), logp_NC - logq_NC) * temperature**2
    return value_NC, (logq_NC.exp() - logp_NC.exp()) * temperature


def _times_log(mass: Tensor, log_ratio: Tensor) -> Tensor:
    """Their product, 0 where the mass is 0 whatever the logarithm."""
    return torch.where(mass > 0, mass * log_ratio, torch.zeros_like(mass))


def _with_floor(logp_NC: Tensor, has_tail_N: Tensor) -> Tensor:
    """An empty tail raised to `TAIL_FLOOR`, the other cells making room."""
    tail_N = torch.where(has_tail_N, logp_NC[:, -1].clamp(min=TAIL_FLOOR), logp_NC[:, -1])
    raised_NC = torch.cat([logp_NC[:, :-1], tail_N[:, None]], dim=-1)
    return raised_NC - torch.logsumexp(raised_NC, dim=-1, keepdim=True)


def role_sums(value_BT: Tensor, *, weight_B: Tensor, forget_B: Tensor) -> Tensor:
    """Weighted divergence summed over the forget rows and over the retain rows: [2], in that order."""
    value_B = value_BT.sum(-1) * weight_B.to(value_BT.dtype)
    return torch.stack([value_B[forget_B].sum(), value_B[~forget_B].sum()])


def role_counts(mask_BT: Tensor, *, forget_B: Tensor) -> Tensor:
    """Supervised positions of the forget rows and of the retain rows: int64 [2], in that order."""
    count_B = mask_BT.sum(-1)
    return torch.stack([count_B[forget_B].sum(), count_B[~forget_B].sum()])
