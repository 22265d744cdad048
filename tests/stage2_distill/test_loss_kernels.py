"""The closed forms against full-vocabulary autograd, and at their extremes.

Tests named after a defect guard against one found in other implementations of distillation on cached top-k.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sparse_teachers import (
    LOSSES,
    dense_values,
    gradient,
    one_position,
    plain_loss,
    random_logits,
    sparse,
    with_imputed_tail,
)
from torch import Tensor, nn

from vgid.stage2_distill import loss_kernels
from vgid.stage2_distill.loss_kernels import SparseTargets, dense_loss, fused_head_loss, logits_loss
from vgid.stage2_distill.losses import TAIL_FLOOR
from vgid.stage2_distill.settings import LossSettings

SHAPES = [(1, 1, 5), (2, 7, 33), (3, 4, 257)]
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


@pytest.fixture(params=[1, 10**9], ids=["one", "all"], autouse=True)
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """One position and one of the head's weights at a time, and all at once."""
    monkeypatch.setattr(loss_kernels, "_CHUNK_LOGITS", {"cpu": request.param, "cuda": request.param})
    monkeypatch.setattr(loss_kernels, "_FUSED_CHUNK_LOGITS", request.param)
    monkeypatch.setattr(loss_kernels, "_HEAD_BLOCK", request.param)
    return request.param


# --- equal to dense autograd ---


@every_loss
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradient_equal_dense_autograd_when_every_id_is_stored(
    shape: tuple[int, int, int], loss: LossSettings
) -> None:
    logits = random_logits(*shape, seed=1).requires_grad_()
    teacher = torch.log_softmax(random_logits(*shape, seed=2), dim=-1)
    dense = dense_values(logits, teacher, loss=loss)
    ours = plain_loss(logits, sparse(teacher, num_topk=shape[-1]), loss=loss)
    assert ours.loss.dtype == torch.float64
    torch.testing.assert_close(ours.values_BT, dense.detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient(ours.loss, logits), gradient(dense.sum(), logits), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("num_topk", [1, 4, 32])
def test_loss_and_gradient_equal_dense_autograd_with_the_tail_imputed_in_the_students_own_shape(
    num_topk: int, name: str
) -> None:
    logits = random_logits(2, 7, 33, seed=3).requires_grad_()
    targets = sparse(torch.log_softmax(random_logits(2, 7, 33, seed=4, scale=1.0), dim=-1), num_topk=num_topk)
    assert targets.tail_logprob_BT.min() > TAIL_FLOOR
    ours = plain_loss(logits, targets, loss=LOSSES[name])
    dense = dense_values(logits, with_imputed_tail(targets, logits), loss=LOSSES[name]).sum()
    torch.testing.assert_close(ours.loss, dense, rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient(ours.loss, logits), gradient(dense, logits), rtol=0, atol=1e-9)


def test_the_conditional_form_equals_dense_autograd_over_the_stored_ids_alone() -> None:
    logits = random_logits(2, 7, 33, seed=3).requires_grad_()
    targets = sparse(torch.log_softmax(random_logits(2, 7, 33, seed=4), dim=-1), num_topk=5)
    ours = plain_loss(logits, targets, loss=LOSSES["topk_conditional_kl"])
    stored = logits.gather(-1, targets.topk_ids_BTK)
    dense = dense_values(stored, targets.topk_logprobs_BTK, loss=LOSSES["topk_conditional_kl"]).sum()
    torch.testing.assert_close(ours.loss, dense, rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient(ours.loss, logits), gradient(dense, logits), rtol=0, atol=1e-9)


@every_loss
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_fused_form_equals_the_plain_one_and_autograd_through_the_output_layer(
    loss: LossSettings, frozen: bool, bias: bool
) -> None:
    torch.manual_seed(0)
    head = nn.Linear(16, 33, bias=bias, dtype=torch.float64).requires_grad_(not frozen)
    hidden = random_logits(2, 8, 16, seed=5).requires_grad_()
    targets = sparse(torch.log_softmax(random_logits(2, 7, 33, seed=6), dim=-1), num_topk=5)
    weight_B = torch.tensor([0.25, 3.0], dtype=torch.float64)
    inputs = [hidden, *(() if frozen else head.parameters())]

    plain = logits_loss(head(hidden), targets, weight_B=weight_B, loss=loss)
    fused = fused_head_loss(hidden, head, targets, weight_B=weight_B, loss=loss)

    torch.testing.assert_close(fused.loss, plain.loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(fused.values_BT, plain.values_BT, rtol=0, atol=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad(fused.loss * 2, inputs), torch.autograd.grad(plain.loss * 2, inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@every_loss
def test_a_teacher_known_in_full_gives_the_loss_and_gradient_of_dense_autograd(loss: LossSettings) -> None:
    logits = random_logits(2, 8, 33, seed=5).requires_grad_()
    teacher = random_logits(2, 8, 33, seed=6)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    weight_B = torch.tensor([0.25, 3.0], dtype=torch.float64)
    ours = dense_loss(logits, teacher, mask, weight_B=weight_B, loss=loss)
    values = dense_values(logits, torch.log_softmax(teacher, dim=-1), loss=loss)[:, :-1] * mask
    dense = (values.sum(-1) * weight_B).sum()
    torch.testing.assert_close(ours.values_BT, values.detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient(ours.loss * 2, logits), gradient(dense * 2, logits), rtol=0, atol=1e-9)


@every_loss
def test_rows_weigh_as_they_are_told_and_an_outer_factor_carries_through(loss: LossSettings) -> None:
    logits = random_logits(3, 4, 33, seed=7).requires_grad_()
    targets = sparse(torch.log_softmax(random_logits(3, 4, 33, seed=8), dim=-1), num_topk=5)
    weight_B = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)
    weighted = logits_loss(logits, targets, weight_B=weight_B, loss=loss)
    plain = plain_loss(logits, targets, loss=loss)
    torch.testing.assert_close(weighted.values_BT, plain.values_BT, rtol=0, atol=0)
    torch.testing.assert_close(weighted.loss, (plain.values_BT.sum(-1) * weight_B).sum(), rtol=0, atol=1e-12)
    expected = gradient(plain.loss, logits) * weight_B[:, None, None] * 7
    torch.testing.assert_close(gradient(weighted.loss * 7, logits), expected, rtol=0, atol=1e-12)


def test_the_loss_is_the_number_that_is_differentiated() -> None:
    """Another implementation returned an auxiliary number and differentiated a different one."""
    logits = random_logits(2, 3, 33, seed=9)
    targets = sparse(torch.log_softmax(random_logits(2, 3, 33, seed=10), dim=-1), num_topk=5)
    step = random_logits(2, 3, 33, seed=11) * 1e-5
    up, down = (plain_loss(logits + sign * step, targets).loss for sign in (1, -1))
    at = logits.clone().requires_grad_()
    predicted = (gradient(plain_loss(at, targets).loss, at) * 2 * step).sum()
    torch.testing.assert_close(up - down, predicted, rtol=1e-6, atol=0)


def test_descent_ends_where_the_student_has_the_teachers_probabilities_and_its_tail() -> None:
    """Renormalising the teacher alone, as others do, drives the student's tail to zero instead."""
    targets = sparse(torch.log_softmax(random_logits(1, 1, 200, seed=12, scale=1.0), dim=-1), num_topk=8)
    logits = torch.zeros(1, 1, 200, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        plain_loss(logits, targets).loss.backward()
        optimizer.step()
    logq = torch.log_softmax(logits.detach(), dim=-1)
    stored = logq.gather(-1, targets.topk_ids_BTK)
    torch.testing.assert_close(stored, targets.topk_logprobs_BTK, rtol=0, atol=1e-3)
    tail = torch.log1p(-stored.exp().sum(-1))
    assert targets.tail_logprob_BT.exp() > 0.5
    torch.testing.assert_close(tail, targets.tail_logprob_BT, rtol=0, atol=1e-3)


def test_loss_is_a_lower_bound_of_the_full_kl_and_grows_with_k() -> None:
    logits = random_logits(3, 4, 257, seed=13)
    teacher = torch.log_softmax(random_logits(3, 4, 257, seed=14, scale=1.0), dim=-1)
    values = [plain_loss(logits, sparse(teacher, num_topk=k)).loss for k in (1, 8, 64, 256)]
    assert values == sorted(values)
    assert values[0] > 0 and values[-1] <= dense_values(logits, teacher, loss=LOSSES["forward_kl"]).sum() + 1e-9


@every_loss
def test_a_student_equal_to_its_teacher_costs_nothing_and_stays(loss: LossSettings) -> None:
    logits = random_logits(2, 7, 33, seed=15).requires_grad_()
    ours = plain_loss(logits, sparse(torch.log_softmax(logits.detach(), dim=-1), num_topk=5), loss=loss)
    torch.testing.assert_close(ours.loss, torch.zeros_like(ours.loss), rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient(ours.loss, logits), torch.zeros_like(logits), rtol=0, atol=1e-9)


def test_moving_the_response_by_one_position_changes_the_loss() -> None:
    """Targets off by one are the defect most often reported of others' offline distillation."""
    logits = random_logits(1, 8, 33, seed=16)
    targets = sparse(torch.log_softmax(logits, dim=-1), num_topk=5)
    moved = SparseTargets(*(tensor.roll(1, dims=1) for tensor in targets))
    assert plain_loss(logits, targets).loss < 1e-9
    assert plain_loss(logits, moved).loss > 1


# --- types ---


@every_loss
def test_bfloat16_logits_are_reduced_in_float32(loss: LossSettings) -> None:
    """A log-sum-exp cast back to bfloat16, as elsewhere, costs 0.06 nat on every log-probability."""
    logits = (random_logits(2, 7, 33, seed=17) * 4).bfloat16()
    targets = sparse(torch.log_softmax(random_logits(2, 7, 33, seed=18), dim=-1), num_topk=5)
    ours, exact = plain_loss(logits, targets, loss=loss).loss, plain_loss(logits.double(), targets, loss=loss).loss
    assert ours.dtype == torch.float32
    assert abs(ours - exact) / exact < 1e-5


def test_gradients_come_in_the_type_of_the_logits() -> None:
    exact = random_logits(2, 7, 33, seed=19)
    targets = sparse(torch.log_softmax(random_logits(2, 7, 33, seed=20), dim=-1), num_topk=5)
    at = exact.bfloat16().requires_grad_()
    found = gradient(plain_loss(at, targets).loss, at)
    wide = at.detach().double().requires_grad_()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), gradient(plain_loss(wide, targets).loss, wide), rtol=2**-8, atol=1e-6)


def test_logits_are_left_as_they_were() -> None:
    logits = random_logits(2, 7, 33, seed=21).requires_grad_()
    before = logits.detach().clone()
    targets = sparse(torch.log_softmax(random_logits(2, 7, 33, seed=22), dim=-1), num_topk=5)
    plain_loss(logits, targets).loss.backward()
    assert torch.equal(logits.detach(), before)


@every_loss
def test_rounding_to_the_fp16_grid_cannot_make_the_loss_negative(loss: LossSettings) -> None:
    """A truncated KL goes negative where the student puts more mass on the candidates; others clamp it to 0."""
    logits = random_logits(2, 7, 33, seed=23)
    targets = sparse(torch.log_softmax(logits, dim=-1), num_topk=5)
    rounded = targets._replace(topk_logprobs_BTK=targets.topk_logprobs_BTK.half().double())
    values = plain_loss(logits, rounded, loss=loss).values_BT
    assert (values >= -1e-15).all() and (values > 0).any()


# --- padding and vocabularies ---


@every_loss
def test_padding_is_never_looked_at(loss: LossSettings) -> None:
    """Ragged k, ragged length, and garbage where nothing is supervised: same loss, same gradient, no nan."""
    logits = random_logits(2, 3, 33, seed=24).requires_grad_()
    targets = sparse(torch.log_softmax(random_logits(2, 3, 33, seed=25), dim=-1), num_topk=5)
    ours = plain_loss(logits, targets, loss=loss).loss

    def pad(tensor: Tensor, amounts: tuple[int, ...], value: float) -> Tensor:
        return nn.functional.pad(tensor, amounts, value=value)

    padded_logits = torch.cat([logits, torch.full((2, 3, 33), math.nan, dtype=torch.float64)], dim=1)
    padded = SparseTargets(
        pad(targets.topk_ids_BTK, (0, 3, 0, 2), 0),
        pad(targets.topk_logprobs_BTK, (0, 3, 0, 2), -math.inf),
        pad(targets.tail_logprob_BT, (0, 2), -math.inf),
        pad(targets.mask_BT, (0, 2), False),
    )
    theirs = plain_loss(padded_logits, padded, loss=loss).loss
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(theirs, logits), gradient(ours, logits), rtol=0, atol=1e-12)


@pytest.mark.parametrize("real_first", [True, False])
def test_padding_does_not_undo_a_real_candidate_of_id_zero(real_first: bool) -> None:
    logits = random_logits(1, 1, 6, seed=26).requires_grad_()
    order = slice(None) if real_first else slice(None, None, -1)
    plain = one_position(ids=[0], logprobs=[math.log(0.7)], tail=math.log(0.3))
    padded = one_position(ids=[0, 0], logprobs=[math.log(0.7), -math.inf][order], tail=math.log(0.3))
    one, other = plain_loss(logits, plain).loss, plain_loss(logits, padded).loss
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(one, logits), gradient(other, logits), rtol=0, atol=1e-12)


def test_a_vocabulary_beyond_two_to_the_seventeenth_works() -> None:
    """Another cache stores 17 bits an id and cannot hold Qwen's 151,936 or 152,064."""
    logits = random_logits(1, 2, 152_064, seed=27).requires_grad_()
    teacher = torch.log_softmax(random_logits(1, 2, 152_064, seed=28), dim=-1)
    targets = sparse(teacher, num_topk=64)
    assert targets.topk_ids_BTK.max() > 2**17
    ours = plain_loss(logits, targets).loss
    dense = dense_values(logits, with_imputed_tail(targets, logits), loss=LOSSES["forward_kl"]).sum()
    torch.testing.assert_close(gradient(ours, logits), gradient(dense, logits), rtol=0, atol=1e-9)


# --- extremes ---

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
    "every id and no tail": one_position(ids=list(range(6)), logprobs=[math.log(1 / 6)] * 6, tail=-math.inf),
}


@every_loss
@pytest.mark.parametrize("targets", EXTREMES.values(), ids=EXTREMES.keys())
@pytest.mark.parametrize("scale", [0.0, 1.0, 200.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_are_finite_forward_and_backward(
    targets: SparseTargets, scale: float, dtype: torch.dtype, loss: LossSettings
) -> None:
    logits = (random_logits(1, 1, 6, seed=29) * scale).to(dtype).requires_grad_()
    ours = plain_loss(logits, targets, loss=loss).loss
    assert ours.isfinite() and ours > -1e-5
    assert gradient(ours, logits).isfinite().all()


@pytest.mark.parametrize("spread", [60.0, 300.0])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_a_student_without_a_tail_is_pulled_to_one_with_the_right_force(spread: float, name: str) -> None:
    """The student's tail is exp(-spread): 1 minus the candidates' sum would have no digit left, and t / u none to 0."""
    logits = torch.tensor([[[spread, spread - 0.5, 0.0, -1.0, -2.0, 0.5]]], dtype=torch.float32).requires_grad_()
    targets = one_position(ids=[0, 1], logprobs=[math.log(0.5), math.log(0.3)], tail=math.log(0.2))
    wide = logits.detach().double().requires_grad_()
    dense = dense_values(wide, with_imputed_tail(targets, wide), loss=LOSSES[name]).sum()
    found, expected = gradient(plain_loss(logits, targets, loss=LOSSES[name]).loss, logits), gradient(dense, wide)
    # float32 resolves a logit of 300 to 3e-5; forces are of order 0.1.
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=5e-5)


def _slack(scale: float) -> float:
    """A tail below the floor is dropped, and with it up to 6 positions x 1e-6 x the student's log-tail."""
    return 6e-6 * (1 + 20 * scale)


@given(
    seed=st.integers(0, 2**16),
    vocab=st.integers(2, 40),
    num_topk=st.integers(1, 40),
    scale=st.floats(0.1, 30),
    name=st.sampled_from(["forward_kl", "reverse_kl", "jsd"]),
)
def test_any_teacher_and_student_give_a_finite_loss_between_zero_and_the_full_divergence(
    seed: int, vocab: int, num_topk: int, scale: float, name: str
) -> None:
    logits = random_logits(2, 3, vocab, seed=seed, scale=scale).requires_grad_()
    teacher = torch.log_softmax(random_logits(2, 3, vocab, seed=seed + 1, scale=scale), dim=-1)
    ours = plain_loss(logits, sparse(teacher, num_topk=min(num_topk, vocab)), loss=LOSSES[name]).loss
    full = dense_values(logits, teacher, loss=LOSSES[name]).sum()
    assert -_slack(scale) <= ours <= full + _slack(scale)
    assert gradient(ours, logits).isfinite().all()


def test_nothing_supervised_costs_nothing() -> None:
    logits = random_logits(2, 3, 33, seed=30).requires_grad_()
    targets = sparse(torch.log_softmax(random_logits(2, 3, 33, seed=31), dim=-1), num_topk=5)
    ours = plain_loss(logits, targets._replace(mask_BT=torch.zeros(2, 3, dtype=torch.bool)))
    assert ours.loss == 0
    assert (gradient(ours.loss, logits) == 0).all()
