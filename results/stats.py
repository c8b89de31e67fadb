"""Whether two arms differ: paired tests over the dev queries, and what the seeds say."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 20_000  # at least
BATCH = 1000  # resamples held at a time


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


def paired_randomisation(differences_QP: np.ndarray, rng: np.random.Generator, resamples: int = 0) -> np.ndarray:
    """Two-sided p of each column's mean [P]: of every query, the two values could as well have been swapped.

    Fisher's test, as Smucker et al. 2007 advise for retrieval. Over seeds' means of each query it speaks of the
    models as trained, and of queries like these. All columns share the random swaps, which makes many pairs one
    matrix product; ``resamples`` is raised to RESAMPLES.
    """
    queries, pairs = differences_QP.shape
    total, left = max(RESAMPLES, resamples), max(RESAMPLES, resamples)
    seen_P = abs(differences_QP.sum(0)) * (1 - 1e-9)  # an equal sum may differ in its last bits
    beyond_P = np.zeros(pairs, np.int64)
    while left:
        batch = min(left, BATCH)
        swapped_RQ = np.unpackbits(rng.integers(0, 256, (batch, (queries + 7) // 8), np.uint8), axis=1)[:, :queries]
        sums_RP = (1.0 - 2.0 * swapped_RQ) @ differences_QP
        beyond_P += (abs(sums_RP) >= seen_P).sum(0)
        left -= batch
    return np.asarray((beyond_P + 1) / (total + 1))


def standard_error(values_S: np.ndarray) -> float:
    return float(stats.sem(values_S))


def paired_t(first_S: np.ndarray, second_S: np.ndarray) -> float | None:
    """Two-sided p over the seeds; None where there are too few, or they all differ by the same."""
    if len(first_S) < 2 or float(np.ptp(first_S - second_S)) == 0:
        return None
    return float(stats.ttest_rel(first_S, second_S).pvalue)


def holm(p_values: list[float]) -> list[float]:
    """Each p as Holm (1979) corrects it for all of them: the family-wise error stays below what it is held against."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, (len(p_values) - place) * p_values[index])
        adjusted[index] = min(1.0, largest)
    return adjusted
