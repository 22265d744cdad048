"""Sparse teachers made from dense distributions, and the dense divergences they are compared with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vgid.stage2_distill.loss_kernels import LossAndValues, SparseTargets, logits_loss
from vgid.stage2_distill.settings import LossSettings

LOSSES = {
    "forward_kl": LossSettings(),
    "reverse_kl": LossSettings(divergence="reverse_kl"),
    "jsd": LossSettings(divergence="jsd"),
    "topk_conditional_kl": LossSettings(divergence="topk_conditional_kl", temperature=2.0),
}
FORWARD = LOSSES["forward_kl"]


def random_logits(*shape: int, seed: int, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def sparse(teacher_logprobs: Tensor, *, num_topk: int) -> SparseTargets:
    """Top-k and exact tail of dense teacher log-probabilities, in random order of the candidates."""
    top = teacher_logprobs.topk(num_topk, dim=-1)
    taken = torch.zeros_like(teacher_logprobs, dtype=torch.bool).scatter(-1, top.indices, True)
    tail = teacher_logprobs.masked_fill(taken, -math.inf).logsumexp(-1)
    order = torch.randperm(num_topk, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(teacher_logprobs.shape[:2], dtype=torch.bool)
    return SparseTargets(top.indices[..., order], top.values[..., order], tail, mask)


def one_position(*, ids: list[int], logprobs: list[float], tail: float) -> SparseTargets:
    return SparseTargets(
        torch.tensor([[ids]]),
        torch.tensor([[logprobs]], dtype=torch.float64),
        torch.tensor([[tail]], dtype=torch.float64),
        torch.tensor([[True]]),
    )


def plain_loss(logits: Tensor, targets: SparseTargets, *, loss: LossSettings = FORWARD) -> LossAndValues:
    """Every row counts once."""
    return logits_loss(logits, targets, weight_B=torch.ones(len(logits)), loss=loss)


def summed_kl(logits: Tensor, batch: Any) -> Tensor:
    """Summed forward KL of a batch of `batches.collate`."""
    return plain_loss(logits, SparseTargets(*(batch[name] for name in SparseTargets._fields))).loss


def dense_values(logits: Tensor, teacher_logprobs: Tensor, *, loss: LossSettings) -> Tensor:
    """The divergence over the whole vocabulary at each position, by its definition; autograd gives the gradient."""
    logp, logq = teacher_logprobs, torch.log_softmax(logits, dim=-1)
    if loss.divergence == "forward_kl":
        return _kl(logp, logq)
    if loss.divergence == "reverse_kl":
        return _kl(logq, logp)
    if loss.divergence == "jsd":
        middle = ((logp.exp() + logq.exp()) / 2).log()
        return (_kl(logp, middle) + _kl(logq, middle)) / 2
    assert loss.temperature is not None
    softer = torch.log_softmax(logp / loss.temperature, dim=-1)
    return loss.temperature**2 * _kl(softer, torch.log_softmax(logits / loss.temperature, dim=-1))


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def with_imputed_tail(targets: SparseTargets, logits: Tensor) -> Tensor:
    """Dense teacher [B, T, V] whose tail has the student's own shape, seen as a constant."""
    logq = torch.log_softmax(logits.detach(), dim=-1)
    taken = torch.zeros_like(logq, dtype=torch.bool).scatter(-1, targets.topk_ids_BTK, True)
    rest = logq.masked_fill(taken, -math.inf)
    imputed = rest - rest.logsumexp(-1, keepdim=True) + targets.tail_logprob_BT[..., None]
    return imputed.scatter(-1, targets.topk_ids_BTK, targets.topk_logprobs_BTK)


def gradient(loss: Tensor, inputs: Tensor) -> Tensor:
    (value,) = torch.autograd.grad(loss, inputs)
    return value
