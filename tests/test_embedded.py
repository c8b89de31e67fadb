"""The committed study of the embedded collection: its figures agree with each other, and the README with them."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from results.significance import holm
from results.study import ALPHA, NOISES

REPOSITORY = Path(__file__).resolve().parent.parent
EMBEDDED = REPOSITORY / "results" / "embedded"
SUMMARY = json.loads((EMBEDDED / "summary.json").read_text(encoding="utf-8"))
SWEEP = json.loads((EMBEDDED / "sweep" / "summary.json").read_text(encoding="utf-8"))
README = " ".join((REPOSITORY / "README.md").read_text(encoding="utf-8").split())
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


def test_the_conclusions_of_the_readme_hold() -> None:
    by_pair = {(test["a"], test["b"]): test for test in SUMMARY["tests"] if test["metric"] == "mrr@10"}
    for better, worse in (("top", "bottom"), ("top", "corpus"), ("bottom", "corpus")):
        test = by_pair[better, worse]
        assert test["p_holm"] < ALPHA and test["difference"] > NOISES * SUMMARY["aa_noise"]["mrr@10"]
    assert by_pair["top", "again"]["p_holm"] > ALPHA


def test_the_readme_has_these_figures() -> None:
    section = README[README.index("## Which ranks: a study") : README.index("## MS MARCO on Slurm")]
    for name in ARMS:
        assert re.search(rf"\| `?{name}`?[^|]*\|[^|]*\| {mean(name):.4f} \(", section), f"{name}: {mean(name):.4f}"
    for name in ("study.png", "sweep/sweep.png"):
        assert f"results/embedded/{name}" in section and (EMBEDDED / name).is_file()
    assert "MS MARCO has not been run" in section


def test_the_sweep_covers_the_list() -> None:
    windows = [f"ranks:{first}-{first + 19}" for first in range(1, 200, 20)]
    assert list(SWEEP["strategies"].values()) == windows
    finals = [np.mean(SWEEP["arms"][name]["mrr@10"]) for name in SWEEP["arms"]]
    assert max(finals[:3]) > max(finals[5:]), "the README says that quality falls with the rank"
    assert not any(path.stat().st_size > 400_000 for path in EMBEDDED.rglob("*"))
