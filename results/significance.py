"""Whether two arms differ: paired tests over the dev queries, and what the seeds say."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 20_000
BATCH = 500  # resamples held at a time


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float


def seeds_interval(values_S: np.ndarray, level: float = 0.95) -> Interval:
    """Student's interval of the mean over seeds; without width below two of them it is NaN."""
    mean = float(values_S.mean())
    if len(values_S) < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf((1 + level) / 2, len(values_S) - 1) * stats.sem(values_S))
    return Interval(mean, mean - half, mean + half)


def paired_randomisation(first_Q: np.ndarray, second_Q: np.ndarray, rng: np.random.Generator) -> float:
    """Two-sided p of the mean difference: the two values of each query could as well have been swapped.

    Fisher's test, as Smucker et al. 2007 advise for retrieval. Over seeds' means of each query it speaks of the
    models as trained, and of queries like these.
    """
    result = stats.permutation_test(
        (first_Q, second_Q),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES - 1,
        batch=BATCH,
        rng=rng,
    )
    return float(result.pvalue)


def holm(p_values: list[float]) -> list[float]:
    """Each p as Holm (1979) corrects it for all of them: the family-wise error stays below what it is held against."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, (len(p_values) - place) * p_values[index])
        adjusted[index] = min(1.0, largest)
    return adjusted
