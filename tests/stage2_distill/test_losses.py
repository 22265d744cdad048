"""The k+1 loss against full-vocabulary autograd, and at its extremes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vgid.stage2_distill.losses import TAIL_FLOOR, role_counts, role_sums, sparse_kl, token_kl

SHAPES = [(1, 1, 5), (2, 7, 33), (3, 4, 257)]


def random_logits(*shape: int, seed: int, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def sparse(teacher_logprobs: Tensor, *, num_topk: int) -> dict[str, Tensor]:
    """Top-k and exact tail of dense teacher log-probabilities, in random order of the candidates."""
    top = teacher_logprobs.topk(num_topk, dim=-1)
    taken = torch.zeros_like(teacher_logprobs, dtype=torch.bool).scatter(-1, top.indices, True)
    tail = teacher_logprobs.masked_fill(taken, -math.inf).logsumexp(-1)
    order = torch.randperm(num_topk, generator=torch.Generator().manual_seed(0))
    return {
        "topk_ids_BTK": top.indices[..., order],
        "topk_logprobs_BTK": top.values[..., order],
        "tail_logprob_BT": tail,
        "mask_BT": torch.ones(teacher_logprobs.shape[:2], dtype=torch.bool),
    }


def dense_kl(student_logits: Tensor, teacher_logprobs: Tensor) -> Tensor:
    logq = torch.log_softmax(student_logits, dim=-1)
    return (teacher_logprobs.exp() * (teacher_logprobs - logq)).sum()


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    (value,) = torch.autograd.grad(loss, logits)
    return value


@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradient_equal_dense_autograd_when_every_id_is_stored(shape: tuple[int, int, int]) -> None:
    logits = random_logits(*shape, seed=1).requires_grad_()
    teacher = torch.log_softmax(random_logits(*shape, seed=2), dim=-1)
    dense = dense_kl(logits, teacher)
    loss, count = sparse_kl(logits, **sparse(teacher, num_topk=shape[-1]))
    assert count == shape[0] * shape[1]
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, dense, rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient(loss, logits), gradient(dense, logits), rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_topk", [1, 4, 32])
def test_gradient_equals_dense_autograd_with_the_tail_imputed_in_the_students_own_shape(num_topk: int) -> None:
    logits = random_logits(2, 7, 33, seed=3).requires_grad_()
    stored = sparse(torch.log_softmax(random_logits(2, 7, 33, seed=4, scale=1.0), dim=-1), num_topk=num_topk)
    assert stored["tail_logprob_BT"].min() > TAIL_FLOOR
    loss, _ = sparse_kl(logits, **stored)

    logq = torch.log_softmax(logits.detach(), dim=-1)
    taken = torch.zeros_like(logq, dtype=torch.bool).scatter(-1, stored["topk_ids_BTK"], True)
    rest = logq.masked_fill(taken, -math.inf)
    imputed = rest - rest.logsumexp(-1, keepdim=True) + stored["tail_logprob_BT"][..., None]
    imputed = imputed.scatter(-1, stored["topk_ids_BTK"], stored["topk_logprobs_BTK"])

    torch.testing.assert_close(loss, dense_kl(logits, imputed), rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient(loss, logits), gradient(dense_kl(logits, imputed), logits), rtol=0, atol=1e-9)


def test_loss_is_a_lower_bound_of_the_full_kl_and_grows_with_k() -> None:
    logits = random_logits(3, 4, 257, seed=5)
    teacher = torch.log_softmax(random_logits(3, 4, 257, seed=6, scale=1.0), dim=-1)
    values = [sparse_kl(logits, **sparse(teacher, num_topk=k))[0] for k in (1, 8, 64, 256)]
    assert values == sorted(values)
    assert values[0] > 0 and values[-1] <= dense_kl(logits, teacher) + 1e-9


def test_loss_is_zero_with_zero_gradient_for_a_student_equal_to_its_teacher() -> None:
    logits = random_logits(2, 7, 33, seed=7).requires_grad_()
    loss, _ = sparse_kl(logits, **sparse(torch.log_softmax(logits.detach(), dim=-1), num_topk=5))
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient(loss, logits), torch.zeros_like(logits), rtol=0, atol=1e-9)


def test_bfloat16_logits_are_reduced_in_float32() -> None:
    logits = (random_logits(2, 7, 33, seed=8) * 4).bfloat16()
    stored = sparse(torch.log_softmax(random_logits(2, 7, 33, seed=9), dim=-1), num_topk=5)
    loss, _ = sparse_kl(logits, **stored)
    exact, _ = sparse_kl(logits.double(), **stored)
    assert loss.dtype == torch.float32
    assert abs(loss - exact) / exact < 1e-5


def test_rounding_to_the_fp16_grid_cannot_make_the_loss_negative() -> None:
    logits = random_logits(2, 7, 33, seed=10)
    stored = sparse(torch.log_softmax(logits, dim=-1), num_topk=5)
    stored["topk_logprobs_BTK"] = stored["topk_logprobs_BTK"].half().double()
    kl = token_kl(logits, **stored)
    assert (kl >= 0).all() and (kl > 0).any()


def test_padding_is_never_looked_at() -> None:
    """Ragged k, ragged length, and garbage where nothing is supervised: same loss, same gradient, no nan."""
    logits = random_logits(2, 3, 33, seed=11).requires_grad_()
    stored = sparse(torch.log_softmax(random_logits(2, 3, 33, seed=12), dim=-1), num_topk=5)
    loss, _ = sparse_kl(logits, **stored)

    padded_logits = torch.cat([logits, torch.full((2, 2, 33), math.nan, dtype=torch.float64)], dim=1)
    padded = {
        "topk_ids_BTK": torch.nn.functional.pad(stored["topk_ids_BTK"], (0, 3, 0, 2), value=0),
        "topk_logprobs_BTK": torch.nn.functional.pad(stored["topk_logprobs_BTK"], (0, 3, 0, 2), value=-math.inf),
        "tail_logprob_BT": torch.nn.functional.pad(stored["tail_logprob_BT"], (0, 2), value=-math.inf),
        "mask_BT": torch.nn.functional.pad(stored["mask_BT"], (0, 2), value=False),
    }
    padded_loss, count = sparse_kl(padded_logits, **padded)
    assert count == 6
    torch.testing.assert_close(padded_loss, loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(padded_loss, logits), gradient(loss, logits), rtol=0, atol=1e-12)


@pytest.mark.parametrize("real_first", [True, False])
def test_padding_does_not_undo_a_real_candidate_of_id_zero(real_first: bool) -> None:
    logits = random_logits(1, 1, 6, seed=13)
    ids, logprobs = [0, 0], [math.log(0.7), -math.inf]
    plain = one_position(ids=[0], logprobs=[math.log(0.7)], tail=math.log(0.3))
    order = slice(None) if real_first else slice(None, None, -1)
    padded = one_position(ids=ids[order], logprobs=logprobs[order], tail=math.log(0.3))
    torch.testing.assert_close(token_kl(logits, **padded), token_kl(logits, **plain), rtol=0, atol=1e-12)


def one_position(*, ids: list[int], logprobs: list[float], tail: float) -> dict[str, Tensor]:
    return {
        "topk_ids_BTK": torch.tensor([[ids]]),
        "topk_logprobs_BTK": torch.tensor([[logprobs]], dtype=torch.float64),
        "tail_logprob_BT": torch.tensor([[tail]], dtype=torch.float64),
        "mask_BT": torch.tensor([[True]]),
    }


EXTREMES = {
    "no tail": one_position(ids=[3, 1], logprobs=[math.log(0.6), math.log(0.4)], tail=-math.inf),
    "tail below the floor": one_position(ids=[3, 1], logprobs=[math.log(0.6), math.log(0.4)], tail=-40.0),
    "nearly all tail": one_position(ids=[3], logprobs=[-30.0], tail=0.0),
    "all tail": one_position(ids=[0], logprobs=[-math.inf], tail=0.0),
    "one candidate": one_position(ids=[3], logprobs=[math.log(0.9)], tail=math.log(0.1)),
    "one certain candidate": one_position(ids=[3], logprobs=[0.0], tail=-math.inf),
    "a candidate of probability 0": one_position(ids=[3, 1], logprobs=[0.0, -math.inf], tail=-math.inf),
    "an id twice": one_position(ids=[3, 3], logprobs=[math.log(0.4), math.log(0.4)], tail=math.log(0.2)),
    "every id and a tail": one_position(ids=list(range(6)), logprobs=[math.log(0.15)] * 6, tail=math.log(0.1)),
}


@pytest.mark.parametrize("stored", EXTREMES.values(), ids=EXTREMES.keys())
@pytest.mark.parametrize("scale", [0.0, 1.0, 200.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_are_finite_forward_and_backward(stored: dict[str, Tensor], scale: float, dtype: torch.dtype) -> None:
    logits = (random_logits(1, 1, 6, seed=14) * scale).to(dtype).requires_grad_()
    loss, _ = sparse_kl(logits, **stored)
    assert loss.isfinite() and loss > -1e-5
    assert gradient(loss, logits).isfinite().all()


@given(
    seed=st.integers(0, 2**16),
    vocab=st.integers(2, 40),
    num_topk=st.integers(1, 40),
    scale=st.floats(0.1, 30),
)
def test_any_teacher_and_student_give_a_finite_loss_between_zero_and_the_full_kl(
    seed: int, vocab: int, num_topk: int, scale: float
) -> None:
    logits = random_logits(2, 3, vocab, seed=seed, scale=scale).requires_grad_()
    teacher = torch.log_softmax(random_logits(2, 3, vocab, seed=seed + 1, scale=scale), dim=-1)
    loss, _ = sparse_kl(logits, **sparse(teacher, num_topk=min(num_topk, vocab)))
    # A tail below the floor is dropped, and with it up to 6 positions x 1e-6 x the student's log-tail.
    slack = 6e-6 * (1 + 20 * scale)
    assert -slack <= loss <= dense_kl(logits, teacher) + slack
    assert gradient(loss, logits).isfinite().all()


def test_sums_and_counts_keep_the_roles_apart_and_weigh_rows() -> None:
    kl = torch.tensor([[1.0, 2.0], [4.0, 0.0], [8.0, 16.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    forget = torch.tensor([True, False, False])
    sums = role_sums(kl, weight_B=torch.tensor([10.0, 1.0, 0.5]), forget_B=forget)
    np.testing.assert_allclose(sums, [30.0, 16.0])
    assert role_counts(mask, forget_B=forget).tolist() == [2, 3]
