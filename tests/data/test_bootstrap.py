"""Intervals by subject: whole people are drawn, and measures that belong together keep their pairing."""

import numpy as np

from vgid.data.bootstrap import RESAMPLES, bootstrap_interval, resampled_means


def test_interval_resamples_subjects_not_questions():
    values, one_subject = [1.0] * 50 + [0.0] * 50, ["a"] * 100
    assert bootstrap_interval(values, one_subject) == (None, None)
    low, high = bootstrap_interval(values, ["a"] * 50 + ["b"] * 50)
    assert (low, high) == (0.0, 1.0)


def test_interval_of_independent_subjects_matches_the_normal_approximation():
    rng = np.random.default_rng(0)
    values = rng.random(400)
    low, high = bootstrap_interval(list(values), [str(i) for i in range(400)])
    assert low is not None and high is not None
    half = 1.96 * values.std() / 20
    assert np.isclose(high - low, 2 * half, rtol=0.15) and low < values.mean() < high


def test_measures_are_drawn_together():
    totals = np.random.default_rng(0).random((6, 1)) @ np.array([[1.0, 2.0]])
    means = resampled_means(totals, np.ones((6, 2)))
    assert means.shape == (RESAMPLES, 2) and means[:, 0].std() > 0
    np.testing.assert_allclose(means[:, 1] / means[:, 0], 2.0)


def test_a_draw_without_a_value_is_no_zero():
    means = resampled_means(np.array([[3.0], [0.0]]), np.array([[1.0], [0.0]]))[:, 0]
    assert np.isnan(means).any() and set(means[~np.isnan(means)]) == {3.0}
