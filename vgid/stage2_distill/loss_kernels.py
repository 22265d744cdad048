"""The weighted sum of divergences over a batch, and its gradient in closed form, a few positions at a time.

A divergence D depends on the student's cells: log q_i = z_i - lse for a stored id, and log u = rest - lse for the tail,
where z are the logits, lse their log-sum-exp and rest that over the ids not stored. With slopes g_i and g_u of D by
these, and G their sum, its gradient by the logits is

    stored i      g_i - q_i G
    any other j   exp(z_j - rest) (g_u - u G)

so one pass of exponentials gives value and gradient both, and what autograd would keep (float32 logits, their
log-softmax, masks of it) never exists. The gradient is made in the forward pass. `logits_loss` writes it into one
tensor of the logits' own type; `fused_head_loss` makes the logits itself, from hidden states, and keeps neither.
What this gives up: second derivatives.

Checked against dense autograd in float64 by tests/stage2_distill/test_loss_kernels.py. Dimension key: losses.py, and
L positions, supervised or not, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vgid.stage2_distill.losses import Partition, dense_divergence, divergence, partition
from vgid.stage2_distill.settings import LossSettings

_CHUNK_LOGITS = {"cpu": 2**19, "cuda": 6 * 2**20}
"""Logits worked on at once. A CPU wants them in its cache; a GPU wants few and large steps."""
_FUSED_CHUNK_LOGITS = 2**24
"""For the fused form, whose matrix products want many rows: 64 MiB in float32."""
_HEAD_BLOCK = 2**24
"""Weights of the output layer multiplied at once: on a CPU a product in bfloat16 copies them (32 MiB)."""


class LossAndValues(NamedTuple):
    """What a batch costs."""

    loss: Tensor
    """Sum over the supervised positions of weight times divergence; carries the gradient."""
    values_BT: Tensor
    """Divergence at each position in nats, 0 where not supervised; without gradient."""


class SparseTargets(NamedTuple):
    """What a teacher said at the positions of a batch, as `batches.Batch` holds it."""

    topk_ids_BTK: Tensor
    """int64, each below V, unique among the real ones; padding is id 0 with log-probability -inf."""
    topk_logprobs_BTK: Tensor
    """Nats, not renormalised."""
    tail_logprob_BT: Tensor
    """Log of the mass outside the ids, -inf where there is none."""
    mask_BT: Tensor
    """True where the position is supervised; what stands at other positions is never looked at."""


def logits_loss(
    student_logits_BLV: Tensor, targets: SparseTargets, *, weight_B: Tensor, loss: LossSettings
) -> LossAndValues:
    """Loss of logits.

    Args:
        student_logits_BLV: Column t predicts response token t; columns after the last, if any, are not looked at.
        targets: Of the same rows.
        weight_B: Factor on each row's divergences; the caller has normalised it over its accumulation window.
        loss: Which divergence.

    Returns:
        float32, or the logits' type if that is wider.
    """
    teacher, places_N, weight_N = _flattened(targets, weight_B, student_logits_BLV)
    flat_LV = student_logits_BLV.detach().flatten(0, 1)

    def piece(part: slice) -> tuple[Tensor, Tensor]:
        # Never the caller's own memory: indexing copies.
        z_NV = flat_LV[places_N[part]].to(weight_N.dtype)
        return _value_and_gradient(z_NV, _rows(teacher, part), weight_N[part], loss), z_NV

    loss_sum, values_N = _LogitsLoss.apply(student_logits_BLV, places_N, weight_N, piece)  # type: ignore[misc]
    return LossAndValues(loss_sum, _unflattened(values_N, targets.mask_BT))


def fused_head_loss(
    hidden_BLD: Tensor, head: torch.nn.Linear, targets: SparseTargets, *, weight_B: Tensor, loss: LossSettings
) -> LossAndValues:
    """`logits_loss` of `head(hidden)` without the logits ever being there.

    Args:
        hidden_BLD: What the output layer would be given.
        head: The output layer, frozen or not.
        targets: As for `logits_loss`.
        weight_B: As for `logits_loss`.
        loss: As for `logits_loss`.
    """
    teacher, places_N, weight_N = _flattened(targets, weight_B, hidden_BLD, vocab_size=head.weight.shape[0])
    loss_sum, values_N = _FusedHeadLoss.apply(  # type: ignore[misc]
        hidden_BLD, head.weight, head.bias, places_N, weight_N, teacher, loss
    )
    return LossAndValues(loss_sum, _unflattened(values_N, targets.mask_BT))


def dense_loss(
    student_logits_BLV: Tensor, teacher_logits_BLV: Tensor, mask_BT: Tensor, *, weight_B: Tensor, loss: LossSettings
) -> LossAndValues:
    """The same for a teacher whose logits over the whole vocabulary are at hand.

    Args:
        student_logits_BLV: As for `logits_loss`.
        teacher_logits_BLV: Of the same positions; seen as constants.
        mask_BT: True where the position is supervised.
        weight_B: As for `logits_loss`.
        loss: Which divergence.
    """
    places_N, weight_N = _places(mask_BT, weight_B, student_logits_BLV)
    both_LV = [each.detach().flatten(0, 1) for each in (teacher_logits_BLV, student_logits_BLV)]

    def piece(part: slice) -> tuple[Tensor, Tensor]:
        logp_NV, logq_NV = (torch.log_softmax(each[places_N[part]].to(weight_N.dtype), dim=-1) for each in both_LV)
        value_N, slope_NV = dense_divergence(logp_NV, logq_NV, loss=loss)
        gradient_NV = slope_NV.sub_(logq_NV.exp_().mul_(slope_NV.sum(-1, keepdim=True)))
        return value_N, gradient_NV.mul_(weight_N[part, None])

    loss_sum, values_N = _LogitsLoss.apply(student_logits_BLV, places_N, weight_N, piece)  # type: ignore[misc]
    return LossAndValues(loss_sum, _unflattened(values_N, mask_BT))


class _LogitsLoss(torch.autograd.Function):
    """Values and weighted gradient of logits [B, L, V], as `piece` gives them for a part of the places."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, places_N: Tensor, weight_N: Tensor, piece: Callable[[slice], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        width = logits.shape[-1]
        grad_LV = None
        if logits.requires_grad:
            grad_LV = torch.empty_like(logits.flatten(0, 1))
            _zero_elsewhere(grad_LV, places_N)
        values_N = torch.empty_like(weight_N)
        limit = _CHUNK_LOGITS["cpu" if logits.device.type == "cpu" else "cuda"]
        for part in _chunks(len(places_N), width=width, limit=limit):
            values_N[part], gradient_NV = piece(part)
            if grad_LV is not None:
                grad_LV[places_N[part]] = gradient_NV.to(grad_LV.dtype)
        ctx.gradient, ctx.shape = grad_LV, logits.shape
        ctx.mark_non_differentiable(values_N)
        return (weight_N * values_N).sum(), values_N

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradient, ctx.gradient = ctx.gradient, None
        return None if gradient is None else _scaled(gradient, outer[0]).view(ctx.shape), None, None, None


class _FusedHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_VD: Tensor,
        bias_V: Tensor | None,
        places_N: Tensor,
        weight_N: Tensor,
        teacher: Partition,
        loss: LossSettings,
    ) -> tuple[Tensor, Tensor]:
        flat_LD = hidden.flatten(0, 1)
        wants_hidden, wants_head, wants_bias, *_ = ctx.needs_input_grad
        grad_LD = torch.zeros_like(flat_LD) if wants_hidden else None
        # Summed over all positions, so in the wide type.
        grad_VD = torch.zeros_like(head_VD, dtype=weight_N.dtype) if wants_head else None
        grad_V = torch.zeros_like(bias_V, dtype=weight_N.dtype) if bias_V is not None and wants_bias else None
        values_N = torch.empty_like(weight_N)
        blocks = list(_chunks(len(head_VD), width=head_VD.shape[1], limit=_HEAD_BLOCK))
        for part in _chunks(len(places_N), width=head_VD.shape[0], limit=_FUSED_CHUNK_LOGITS):
            hidden_ND = flat_LD[places_N[part]]
            z_NV = torch.empty(len(hidden_ND), len(head_VD), dtype=weight_N.dtype, device=head_VD.device)
            for block in blocks:
                bias = None if bias_V is None else bias_V[block]
                z_NV[:, block] = torch.nn.functional.linear(hidden_ND, head_VD[block], bias)
            values_N[part] = _value_and_gradient(z_NV, _rows(teacher, part), weight_N[part], loss)
            pulled_ND = torch.zeros_like(hidden_ND, dtype=weight_N.dtype)
            for block in blocks:
                narrow = z_NV[:, block].to(head_VD.dtype)
                if grad_LD is not None:
                    pulled_ND += narrow @ head_VD[block]
                if grad_VD is not None:
                    grad_VD[block] += narrow.T @ hidden_ND
            if grad_LD is not None:
                grad_LD[places_N[part]] = pulled_ND.to(grad_LD.dtype)
            if grad_V is not None:
                grad_V += z_NV.sum(0)
        ctx.gradients = grad_LD, grad_VD, grad_V
        ctx.shape, ctx.dtype = hidden.shape, head_VD.dtype
        ctx.mark_non_differentiable(values_N)
        return (weight_N * values_N).sum(), values_N

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (grad_LD, grad_VD, grad_V), ctx.gradients = ctx.gradients, None
        return (
            None if grad_LD is None else _scaled(grad_LD, outer[0]).view(ctx.shape),
            None if grad_VD is None else _scaled(grad_VD, outer[0]).to(ctx.dtype),
            None if grad_V is None else _scaled(grad_V, outer[0]).to(ctx.dtype),
            *[None] * 4,
        )


def _value_and_gradient(z_NV: Tensor, teacher: Partition, weight_N: Tensor, loss: LossSettings) -> Tensor:
    """Divergence [N] of logits; in their place stands afterwards their gradient, times the weight."""
    taken_NK = teacher.is_stored_NK & teacher.has_tail_N[:, None]
    z_NK = z_NV.gather(-1, teacher.ids_NK)
    # Adding -inf, rather than writing it, keeps a padding entry (id 0, not taken) from undoing a real id 0.
    z_NV.scatter_add_(-1, teacher.ids_NK, torch.zeros_like(z_NK).masked_fill_(taken_NK, -torch.inf))
    top_N = z_NV.amax(-1)
    top_N = top_N.masked_fill(torch.isneginf(top_N), 0.0)
    total_N = z_NV.sub_(top_N[:, None]).exp_().sum(-1)
    # Not log(1 - sum of the candidates): that loses all digits where they hold nearly all mass.
    rest_N = top_N + total_N.log()
    lse_N = torch.logaddexp(rest_N, z_NK.masked_fill(~taken_NK, -torch.inf).logsumexp(-1))
    logq_NC = torch.cat([z_NK, rest_N[:, None]], dim=-1) - lse_N[:, None]

    value_N, slope_NC = divergence(teacher, logq_NC, loss=loss)
    slope_NC = slope_NC * weight_N[:, None]
    sum_N, q_NC = slope_NC.sum(-1), logq_NC.exp()
    # Where nothing is taken, rest is the whole vocabulary: then q of the last cell is 1, and the formula holds as well.
    z_NV.mul_(((slope_NC[:, -1] - q_NC[:, -1] * sum_N) / total_N.clamp(min=torch.finfo(z_NV.dtype).tiny))[:, None])
    pulled_NK = slope_NC[:, :-1] - torch.where(taken_NK, q_NC[:, :-1] * sum_N[:, None], torch.zeros_like(z_NK))
    z_NV.scatter_add_(-1, teacher.ids_NK, torch.where(teacher.is_stored_NK, pulled_NK, torch.zeros_like(z_NK)))
    return value_N


def _flattened(
    targets: SparseTargets, weight_B: Tensor, like_BLX: Tensor, *, vocab_size: int | None = None
) -> tuple[Partition, Tensor, Tensor]:
    """The supervised positions one after the other: teacher, place in the flattened [B * L], weight."""
    mask_BT = targets.mask_BT
    places_N, weight_N = _places(mask_BT, weight_B, like_BLX)
    teacher = partition(
        targets.topk_ids_BTK[mask_BT],
        targets.topk_logprobs_BTK[mask_BT],
        targets.tail_logprob_BT[mask_BT],
        vocab_size=vocab_size or like_BLX.shape[-1],
        dtype=weight_N.dtype,
    )
    return teacher, places_N, weight_N


def _places(mask_BT: Tensor, weight_B: Tensor, like_BLX: Tensor) -> tuple[Tensor, Tensor]:
    """Of every supervised position its place in the flattened [B * L], and its row's weight as the type to sum in."""
    row_N, column_N = mask_BT.nonzero(as_tuple=True)
    dtype = torch.promote_types(like_BLX.dtype, torch.float32)
    return row_N * like_BLX.shape[1] + column_N, weight_B.to(dtype)[row_N]


def _unflattened(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    return torch.zeros_like(mask_BT, dtype=values_N.dtype).masked_scatter(mask_BT, values_N)


def _chunks(count: int, *, width: int, limit: int) -> Iterator[slice]:
    rows = max(1, limit // width)
    return (slice(start, start + rows) for start in range(0, count, rows))


def _rows(teacher: Partition, part: slice) -> Partition:
    return Partition(*(tensor[part] for tensor in teacher))


def _zero_elsewhere(grad_LV: Tensor, places_N: Tensor) -> None:
    elsewhere_L = torch.ones(len(grad_LV), dtype=torch.bool, device=grad_LV.device)
    elsewhere_L[places_N] = False
    grad_LV[elsewhere_L] = 0


def _scaled(gradient: Tensor, outer: Tensor) -> Tensor:
    """In place. On a CPU a factor of 1, which it nearly always is, is not worth a pass; on a GPU not worth a wait."""
    return gradient if outer.device.type == "cpu" and outer == 1 else gradient.mul_(outer)
