"""What the student fork published; results/published/README.md says where its figures are from."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

PUBLISHED = Path(__file__).resolve().parents[1] / "published"
RAN_AS_TOP = "random_as_run"
NOISE_REFRESHES = range(40, 91)  # after the start, as far as both equal arms go


def read_published(name: str, x: str, y: str) -> dict[str, list[tuple[int, float]]]:
    """A published curve of each arm: (x, y) by x."""
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    with (PUBLISHED / name).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            curves[row["arm"]].append((int(row[x]), float(row[y])))
    return {arm: sorted(curve) for arm, curve in curves.items()}


def read_dev_ndcg() -> dict[str, list[tuple[int, float]]]:
    """(refresh, dev nDCG@10) of the four arms; the fork logged the refresh in the step's place."""
    return read_published("fork_dev_ndcg.csv", "refresh", "ndcg_at_10")


def apart(curves: dict[str, list[tuple[int, float]]], name: str) -> float:
    """How far an arm lies from top, in the mean over NOISE_REFRESHES."""
    top, other = dict(curves["top"]), dict(curves[name])
    return abs(float(np.mean([top[refresh] - other[refresh] for refresh in NOISE_REFRESHES])))
