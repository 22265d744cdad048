"""What each divergence says of two distributions: identities, bounds and order, on the partition itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sparse_teachers import LOSSES, dense_values, random_logits
from torch import Tensor

from vgid.stage2_distill.losses import TAIL_FLOOR, Partition, divergence, partition, role_counts, role_sums


def some_teacher(*, seed: int, width: int = 6, vocab_size: int = 100) -> Partition:
    """Four positions of `width` candidates and a tail."""
    cells = torch.log_softmax(random_logits(4, width + 1, seed=seed), dim=-1)
    ids = torch.arange(width).expand(4, width)
    return partition(ids, cells[:, :-1], cells[:, -1], vocab_size=vocab_size, dtype=torch.float64)


def some_student(*, seed: int, width: int = 7) -> Tensor:
    return torch.log_softmax(random_logits(4, width, seed=seed), dim=-1)


@pytest.mark.parametrize("name", LOSSES)
def test_the_slope_is_the_derivative_by_the_students_log_probabilities(name: str) -> None:
    teacher, logq = some_teacher(seed=1), some_student(seed=2)
    _, slope = divergence(teacher, logq, loss=LOSSES[name])
    for cell in range(logq.shape[-1]):
        step = torch.zeros_like(logq)
        step[:, cell] = 1e-5
        up, down = (divergence(teacher, logq + sign * step, loss=LOSSES[name])[0] for sign in (1, -1))
        torch.testing.assert_close((up - down) / 2e-5, slope[:, cell], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_a_divergence_of_the_partition_is_the_dense_one_of_its_cells(name: str) -> None:
    teacher, logq = some_teacher(seed=3), some_student(seed=4)
    value, _ = divergence(teacher, logq, loss=LOSSES[name])
    torch.testing.assert_close(value, dense_values(logq, teacher.logp_NC, loss=LOSSES[name]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_a_student_equal_to_its_teacher_costs_nothing(name: str) -> None:
    teacher = some_teacher(seed=5)
    value, _ = divergence(teacher, teacher.logp_NC, loss=LOSSES[name])
    torch.testing.assert_close(value, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-14)


@given(seed=st.integers(0, 2**16), scale=st.floats(0.1, 20))
def test_the_jensen_shannon_divergence_is_symmetric_and_at_most_log_two(seed: int, scale: float) -> None:
    one, other = (torch.log_softmax(random_logits(4, 7, seed=seed + n, scale=scale), dim=-1) for n in (0, 1))
    ids = torch.arange(6).expand(4, 6)
    there = Partition(ids, torch.ones(4, 6, dtype=torch.bool), torch.ones(4, dtype=torch.bool), one)
    back = there._replace(logp_NC=other)
    value = divergence(there, other, loss=LOSSES["jsd"])[0]
    torch.testing.assert_close(value, divergence(back, one, loss=LOSSES["jsd"])[0], rtol=0, atol=1e-12)
    assert (value >= 0).all() and (value <= math.log(2) + 1e-12).all()


def test_forward_kl_asks_to_cover_what_the_teacher_says_and_reverse_kl_to_say_nothing_else() -> None:
    ids = torch.tensor([[0, 1]])
    teacher = partition(
        ids, torch.tensor([[0.5, 0.5]]).log(), torch.tensor([-math.inf]), vocab_size=9, dtype=torch.float64
    )
    half = torch.tensor([[1 - 2e-6, 1e-6, 1e-6]], dtype=torch.float64).log()
    spread = torch.tensor([[0.4, 0.4, 0.2]], dtype=torch.float64).log()
    cost = {
        name: [divergence(teacher, student, loss=LOSSES[name])[0].item() for student in (half, spread)]
        for name in ("forward_kl", "reverse_kl")
    }
    assert cost["forward_kl"][0] > cost["forward_kl"][1]
    assert cost["reverse_kl"][0] < cost["reverse_kl"][1]


def test_an_empty_tail_costs_a_student_of_reverse_kl_as_much_as_one_at_the_floor() -> None:
    ids, logprobs = torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    student = torch.tensor([[0.4, 0.4, 0.2]], dtype=torch.float64).log()
    empty, floor = (
        divergence(
            partition(ids, logprobs, torch.tensor([tail]), vocab_size=9, dtype=torch.float64),
            student,
            loss=LOSSES["reverse_kl"],
        )[0]
        for tail in (-math.inf, TAIL_FLOOR + 1e-9)
    )
    assert empty.isfinite()
    torch.testing.assert_close(empty, floor, rtol=1e-6, atol=0)


def test_the_conditional_form_says_nothing_of_the_tail() -> None:
    teacher, logq = some_teacher(seed=6), some_student(seed=7)
    shifted = torch.cat([logq[:, :-1] - 3.0, logq[:, -1:]], dim=-1)
    loss = LOSSES["topk_conditional_kl"]
    value, slope = divergence(teacher, logq, loss=loss)
    torch.testing.assert_close(divergence(teacher, shifted, loss=loss)[0], value, rtol=0, atol=1e-12)
    assert (slope[:, -1] == 0).all()


def test_what_rounding_moved_is_put_right_once() -> None:
    cells = torch.log_softmax(random_logits(4, 7, seed=8), dim=-1)
    ids = torch.arange(6).expand(4, 6)
    teacher = partition(ids, cells[:, :-1].half(), cells[:, -1], vocab_size=100, dtype=torch.float64)
    torch.testing.assert_close(teacher.logp_NC.exp().sum(-1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-12)


def test_sums_and_counts_keep_the_roles_apart_and_weigh_rows() -> None:
    values = torch.tensor([[1.0, 2.0], [4.0, 0.0], [8.0, 16.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    forget = torch.tensor([True, False, False])
    sums = role_sums(values, weight_B=torch.tensor([10.0, 1.0, 0.5]), forget_B=forget)
    np.testing.assert_allclose(sums, [30.0, 16.0])
    assert role_counts(mask, forget_B=forget).tolist() == [2, 3]
