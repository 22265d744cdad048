"""Top-k and tail against plain float64 arithmetic."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vgid.stage1_teacher.topk import narrow, round_to_fp16_grid, stats_of_logits, tail_logprob


def test_stats_equal_float64_softmax():
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)) * 4
    ids = torch.arange(7) * 3
    stats = stats_of_logits(logits, ids, num_topk=5)
    exact = torch.log_softmax(logits.double(), -1)
    order = exact.argsort(-1, descending=True)[:, :5]
    assert np.array_equal(stats.topk_ids, order.numpy())
    assert np.allclose(stats.topk_logprobs, exact.gather(1, order).numpy(), atol=1e-6)
    assert np.allclose(stats.token_logprob, exact[torch.arange(7), ids].numpy(), atol=1e-6)
    assert np.allclose(stats.entropy, -(exact.exp() * exact).sum(-1).numpy(), atol=1e-5)
    assert np.allclose(stats.logsumexp, torch.logsumexp(logits.double(), -1).numpy(), atol=1e-5)
    ranks = (exact >= exact[torch.arange(7), ids][:, None]).sum(-1)
    assert np.array_equal(stats.token_rank, ranks.numpy())


def test_k_larger_than_the_vocabulary_returns_all_of_it_and_no_tail():
    stats = stats_of_logits(torch.zeros(2, 6), torch.tensor([0, 5]), num_topk=20)
    assert stats.topk_ids.shape == (2, 6)
    assert (tail_logprob(stats.topk_logprobs) < -14).all()


def test_impossible_tokens_do_not_make_entropy_nan():
    logits = torch.tensor([[0.0, -torch.inf, 0.0]])
    assert np.isclose(stats_of_logits(logits, torch.tensor([0]), num_topk=2).entropy[0], np.log(2))


@given(st.integers(1, 30), st.integers(31, 200), st.floats(0.1, 8.0), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_candidates_and_tail_sum_to_one(k, vocabulary, scale, seed):
    logits = np.random.default_rng(seed).normal(0, scale, (3, vocabulary))
    logprobs = logits - np.logaddexp.reduce(logits, axis=-1)[:, None]
    top = -np.sort(-logprobs, axis=-1)[:, :k].astype(np.float32)
    assert np.allclose(np.exp(top.astype(float)).sum(-1) + np.exp(tail_logprob(top).astype(float)), 1, atol=1e-6)


def test_a_tail_lost_to_rounding_is_minus_infinity():
    assert tail_logprob(np.zeros((1, 1), np.float32))[0] == -np.inf


def test_rounding_keeps_float32_numbers_of_the_fp16_grid():
    values = np.array([-0.1, -7.77777, -12.3456, -np.inf, -0.0], np.float32)
    rounded = round_to_fp16_grid(values)
    assert rounded.dtype == np.float32
    assert np.array_equal(rounded, rounded.astype(np.float16).astype(np.float32))
    assert np.abs(rounded[:3] - values[:3]).max() <= 0.0078 / 2


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.05, 0.999), st.floats(0.1, 8.0), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_narrowing_keeps_the_fewest_candidates_that_reach_top_p(k, min_k, top_p, scale, seed):
    logits = np.random.default_rng(seed).normal(0, scale, (5, 20))
    logprobs = -np.sort(-(logits - np.logaddexp.reduce(logits, axis=-1)[:, None]), axis=-1)[:, :k].astype(np.float32)
    ids = np.argsort(-logits, axis=-1)[:, :k].astype(np.int32)

    kept_ids, kept = narrow(ids, logprobs, top_p=top_p, min_k=min_k)

    assert kept_ids.dtype == np.int32 and kept.dtype == np.float32
    for row, whole in enumerate(logprobs):
        total, fewest = 0.0, 0
        while fewest < k and (total < top_p or fewest < min_k):
            total += float(np.exp(np.float64(whole[fewest])))
            fewest += 1
        assert (kept_ids[row] >= 0).sum() == fewest
        assert np.array_equal(kept[row, :fewest], whole[:fewest]) and np.all(kept[row, fewest:] == -np.inf)
        assert np.array_equal(kept_ids[row, :fewest], ids[row, :fewest]) and np.all(kept_ids[row, fewest:] == -1)
    assert np.allclose(np.exp(kept.astype(float)).sum(-1) + np.exp(tail_logprob(kept).astype(float)), 1, atol=1e-6)
