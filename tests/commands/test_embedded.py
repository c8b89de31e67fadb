"""The committed study of the embedded collection: its figures agree with each other, and the pages with them."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest

from results.page.study import ALPHA, NOISES
from results.stats import holm
from tests import REPO

EMBEDDED = REPO / "results" / "embedded"
SUMMARY = json.loads((EMBEDDED / "summary.json").read_text(encoding="utf-8"))
SWEEP = json.loads((EMBEDDED / "sweep" / "summary.json").read_text(encoding="utf-8"))
README = " ".join((REPO / "README.md").read_text(encoding="utf-8").split())
STUDY_PAGE = " ".join((REPO / "docs" / "study.md").read_text(encoding="utf-8").split())
SEEDS = [1, 2, 3, 4, 5]
ARMS = ["top", "top_bottom", "random", "bottom", "corpus", "again"]
METRICS = ("mrr@10", "ndcg@10")


def mean(name: str, metric: str = "mrr@10") -> float:
    return float(np.mean(SUMMARY["arms"][name][metric]))


def test_every_arm_has_every_seed() -> None:
    assert SUMMARY["seeds"] == SEEDS and list(SUMMARY["arms"]) == ARMS
    assert all(len(SUMMARY["arms"][name][metric]) == len(SEEDS) for name in ARMS for metric in METRICS)
    assert SUMMARY["strategies"] == {**{name: name for name in ARMS}, "again": "top"}
    assert SUMMARY["command"].startswith('bash commands/study.sh --seeds "1 2 3 4 5" --arms "top=top ')
    assert SUMMARY["versions"]["torch"] and SUMMARY["versions"]["git"] and not SUMMARY["warnings"]


@pytest.mark.parametrize("metric", METRICS)
def test_the_tests_are_of_these_figures(metric: str) -> None:
    tests = [test for test in SUMMARY["tests"] if test["metric"] == metric]
    assert [(test["a"], test["b"]) for test in tests] == list(itertools.combinations(ARMS, 2))
    for test in tests:
        assert test["difference"] == pytest.approx(mean(test["a"], metric) - mean(test["b"], metric), abs=1e-6)
    assert [test["p_holm"] for test in tests] == pytest.approx(holm([test["p"] for test in tests]))
    apart = np.array(SUMMARY["arms"]["top"][metric]) - np.array(SUMMARY["arms"]["again"][metric])
    assert SUMMARY["aa_noise"][metric] == pytest.approx(apart.std(ddof=1) / len(SEEDS) ** 0.5)


def pair(better: str, worse: str) -> tuple[float, float, float]:
    """By MRR@10: how much better, that as a multiple of the A/A noise, and Holm's p."""
    test = next(
        test for test in SUMMARY["tests"] if test["metric"] == "mrr@10" and {test["a"], test["b"]} == {better, worse}
    )
    difference = mean(better) - mean(worse)
    return difference, difference / SUMMARY["aa_noise"]["mrr@10"], test["p_holm"]


def test_the_conclusions_of_the_pages_hold() -> None:
    for better, worse in (*itertools.product(("top", "top_bottom", "random", "again"), ("bottom", "corpus")),):
        _, noises, p = pair(better, worse)
        assert f"{p:.4f}" == "0.0005" and 5 <= noises <= 24
    assert pair("bottom", "corpus")[2] < ALPHA and pair("bottom", "corpus")[1] > NOISES
    for other in ("again", "top_bottom", "random"):
        assert pair("top", other)[2] > ALPHA
    assert "p = 0.0005 each" in README and "p = 0.0005 each" in STUDY_PAGE and "5 to 24 times" in STUDY_PAGE


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (README, f"better than `bottom` by {pair('top', 'bottom')[0]:.4f} MRR@10"),
        (README, f"whole collection by {pair('top', 'corpus')[0]:.4f}"),
        (STUDY_PAGE, f"by {pair('top_bottom', 'random')[0]:.4f} MRR@10 (p = {pair('top_bottom', 'random')[2]:.4f})"),
        (STUDY_PAGE, f"from `top` (p = {pair('top', 'again')[2]:.2f})"),
        (STUDY_PAGE, f"`random` from `top` (p = {pair('top', 'random')[2]:.2f})"),
    ],
    ids=lambda value: value[:30],
)
def test_the_pages_have_the_figures_of_the_pairs(page: str, words: str) -> None:
    assert words in page


def test_the_pages_have_the_figures_of_the_arms() -> None:
    section = README[README.index("## The answer") : README.index("## MS MARCO on Slurm")]
    for name in ARMS:
        assert re.search(rf"\| `?{name}`?[^|]*\|[^|]*\| {mean(name):.4f} \(", section), f"{name}: {mean(name):.4f}"
    assert "results/embedded/study.png" in section and "results/embedded/sweep/sweep.png" in STUDY_PAGE
    assert all((EMBEDDED / name).is_file() for name in ("study.png", "sweep/sweep.png"))
    assert "MS MARCO has not been run" in section


def test_the_sweep_covers_the_list() -> None:
    windows = [f"ranks:{first}-{first + 19}" for first in range(1, 200, 20)]
    assert list(SWEEP["strategies"].values()) == windows
    finals = [np.mean(SWEEP["arms"][name]["mrr@10"]) for name in SWEEP["arms"]]
    assert max(finals[:3]) > max(finals[5:]), "docs/study.md says that quality falls with the rank"
    first = f"MRR@10 is {min(finals[:3]):.3f} to {max(finals[:3]):.3f} in the windows of ranks 1 to 60"
    assert f"{first} and falls to {finals[-1]:.3f} at ranks 181 to 200" in STUDY_PAGE
    assert not any(path.stat().st_size > 400_000 for path in EMBEDDED.rglob("*"))
