"""results.page.study: which differences are called differences, and in which words."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from results.page import study
from results.read.study import read_study
from tests.results.studies import places, write_arm_of_study, write_study

pytestmark = pytest.mark.usefixtures("few_resamples")


def test_many_arms_can_still_be_told_apart(tmp_path: Path) -> None:
    arms = {f"a{number}": (f"top:{number + 1}", 0.3) for number in range(15)}
    root = write_study(tmp_path, {**arms, "worse": ("bottom", 0.1)}, (1,))
    found = study.compare(read_study(places(root, [1]), [*arms, "worse"]), np.random.default_rng(0))
    assert max(test.p_holm for test in found if test.b == "worse") < study.ALPHA


def test_what_is_within_the_noise_is_not_called_better(tmp_path: Path) -> None:
    """Two arms of one strategy that lie far apart, in one seed this way and in the other that way."""
    for seed, shift in ((1, 0.05), (2, -0.05)):
        write_arm_of_study(tmp_path, "top", seed, "top", 0.30)
        write_arm_of_study(tmp_path, "again", seed, "top", 0.30 + shift, offset=1000)
        write_arm_of_study(tmp_path, "bottom", seed, "bottom", 0.26)
        write_arm_of_study(tmp_path, "corpus", seed, "corpus", 0.10)
    found = read_study(places(tmp_path, [1, 2]), ["top", "again", "bottom", "corpus"])
    tests = study.compare(found, np.random.default_rng(0))
    noise = study.noise_of(found, "mrr@10")
    assert noise == pytest.approx(0.05)
    by_pair = {(test.a, test.b): test for test in tests if test.metric == "mrr@10"}
    near, far = by_pair["top", "bottom"], by_pair["top", "corpus"]
    assert near.p_holm < 0.01 and study.verdict(found, near) == study.WITHIN_NOISE
    assert study.verdict(found, far) == "top better than corpus"
    text = "\n".join(study.conclusions(found, tests))
    assert "top - bottom" in text and "Within 2 times the A/A noise" in text and "top is better than corpus" in text
    assert f"({noise:.4f} in MRR@10, " in study.how_tested(found, tests)
    told = study.sentence(found, tests)
    expected = (
        r"By MRR@10, (top, again|again, top) and bottom are better than corpus; 3 of 6 pairs cannot be told apart\."
    )
    assert re.fullmatch(expected, told), told


def test_one_seed_says_nothing_of_strategies(tmp_path: Path) -> None:
    root = write_study(tmp_path, {"top": ("top", 0.3), "bottom": ("bottom", 0.2)}, (1,))
    found = read_study(places(root, [1]), ["top", "bottom"])
    tests = study.compare(found, np.random.default_rng(0))
    assert "one seed" in study.conclusions(found, tests)[-1]
    assert study.sentence(found, tests) == (
        "By MRR@10, top is better than bottom (one seed: this is said of these models, not of their strategies)."
    )
