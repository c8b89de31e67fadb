"""The tests of significance: against other tests, and calibrated on data where nothing differs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from results import significance
from results.significance import holm, paired_randomisation, seeds_interval


def test_p_values_are_uniform_where_two_arms_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated A/A pairs: 5 seeds of both arms on 300 queries whose difficulty they share."""
    monkeypatch.setattr(significance, "RESAMPLES", 1000)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        difficulty_Q = rng.beta(0.4, 0.8, 300)
        arms_2Q = [
            np.mean([1 / np.maximum(1, rng.geometric(difficulty_Q)) for _ in range(5)], axis=0) for _ in range(2)
        ]
        found.append(paired_randomisation(*arms_2Q, rng))
    assert stats.kstest(found, "uniform").pvalue > 0.001
    assert 0.02 < np.mean(np.array(found) < 0.05) < 0.09


def test_p_values_are_small_where_they_differ() -> None:
    rng = np.random.default_rng(1)
    first_Q = rng.normal(0.25, 0.3, 1000)
    second_Q = first_Q - 0.02 + rng.normal(0, 0.1, 1000)
    found = paired_randomisation(first_Q, second_Q, rng)
    assert found == pytest.approx(2 / significance.RESAMPLES, rel=1.01) and found > 0
    near = first_Q - 0.006 + rng.normal(0, 0.1, 1000)
    assert paired_randomisation(first_Q, near, rng) == pytest.approx(stats.ttest_rel(first_Q, near).pvalue, abs=0.02)


def test_few_queries_are_tried_in_every_way() -> None:
    """Of 2^3 swaps, two are as far from 0 as what was seen."""
    rng = np.random.default_rng(2)
    assert paired_randomisation(np.array([3.0, 2.0, 1.5]), np.zeros(3), rng) == pytest.approx(0.25)


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
