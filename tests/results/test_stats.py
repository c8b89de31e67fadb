"""The tests of significance: against other tests, and calibrated on data where nothing differs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from results import stats
from results.stats import holm, paired_randomisation, seeds_interval


def one(first_Q: np.ndarray, second_Q: np.ndarray, rng: np.random.Generator, resamples: int = 0) -> float:
    return float(paired_randomisation((first_Q - second_Q)[:, None], rng, resamples)[0])


def test_p_values_are_uniform_where_two_arms_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated A/A pairs: 5 seeds of both arms on 300 queries whose difficulty they share."""
    monkeypatch.setattr(stats, "RESAMPLES", 1000)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        difficulty_Q = rng.beta(0.4, 0.8, 300)
        arms_2Q = [
            np.mean([1 / np.maximum(1, rng.geometric(difficulty_Q)) for _ in range(5)], axis=0) for _ in range(2)
        ]
        found.append(one(*arms_2Q, rng))
    assert scipy_stats.kstest(found, "uniform").pvalue > 0.001
    assert 0.02 < np.mean(np.array(found) < 0.05) < 0.09


def test_p_values_are_small_where_they_differ() -> None:
    rng = np.random.default_rng(1)
    first_Q = rng.normal(0.25, 0.3, 1000)
    second_Q = first_Q - 0.02 + rng.normal(0, 0.1, 1000)
    assert one(first_Q, second_Q, rng) == pytest.approx(1 / (stats.RESAMPLES + 1))
    assert one(first_Q, second_Q, rng, 50_000) == pytest.approx(1 / 50_001)
    near = first_Q - 0.006 + rng.normal(0, 0.1, 1000)
    assert one(first_Q, near, rng) == pytest.approx(scipy_stats.ttest_rel(first_Q, near).pvalue, abs=0.02)


def test_it_is_scipy_s_test_for_every_pair_at_once() -> None:
    """Of 12 queries scipy tries all 2^12 swaps; ties, too."""
    rng = np.random.default_rng(2)
    differences_QP = np.round(rng.normal([0.0, 0.4, 1.0], 1, (12, 3)), 1)
    found_P = paired_randomisation(differences_QP, rng, 100_000)
    for column_Q, found in zip(differences_QP.T, found_P, strict=True):
        exact = scipy_stats.permutation_test(
            (column_Q, np.zeros(12)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=10_000
        )
        assert found == pytest.approx(exact.pvalue, abs=0.006)


@settings(max_examples=100, deadline=None)
@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_steps_do(p_values: list[float]) -> None:
    """Step down: the k-th smallest of m is held against alpha / (m - k + 1), until one is not below."""
    adjusted = holm(p_values)
    for alpha in (0.01, 0.05, 0.3):
        rejected = set()
        for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
            if p_values[index] * (len(p_values) - place) > alpha:
                break
            rejected.add(index)
        assert {index for index, p in enumerate(adjusted) if p <= alpha} == rejected
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))


def test_the_interval_over_seeds_holds_its_level() -> None:
    rng = np.random.default_rng(3)
    intervals = [seeds_interval(rng.normal(0.25, 0.006, 5)) for _ in range(4000)]
    share = np.mean([interval.low <= 0.25 <= interval.high for interval in intervals])
    assert abs(share - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 4000)
    assert np.isnan(seeds_interval(np.array([0.2])).low)
