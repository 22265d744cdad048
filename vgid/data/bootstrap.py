"""Bootstrap intervals by subject: answers about one person are not independent, so whole people are drawn. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000


def bootstrap_interval(
    values: Sequence[float], subjects: Sequence[str], *, seed: int = 0
) -> tuple[float, float] | tuple[None, None]:
    """95% percentile interval of the mean, resampling whole subjects.

    Returns:
        Low and high; None for a single subject, about whose likeness to others nothing is known.
    """
    names, index = np.unique(np.asarray(subjects), return_inverse=True)
    if len(names) < 2:
        return None, None
    totals = np.bincount(index, weights=np.asarray(values, np.float64))
    means = resampled_means(totals[:, None], np.bincount(index)[:, None], seed=seed)[:, 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def resampled_means(totals: np.ndarray, counts: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Means of several measures over the same draws of subjects, so that ratios and differences keep their pairing.

    Args:
        totals: [S, M], the sum of each measure over a subject's values.
        counts: [S, M], how many values that are; 0 where a subject has none.
        seed: Of the draws.

    Returns:
        [RESAMPLES, M]; NaN where a draw holds no value of a measure.
    """
    subjects = len(totals)
    draws = np.random.default_rng(seed).multinomial(subjects, np.full(subjects, 1 / subjects), size=RESAMPLES)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (draws @ totals) / (draws @ counts)
