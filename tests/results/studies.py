"""Studies put together here, whose figures are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tests.results.test_report import Shape, write_arm
from utils.exchange.atomic import dump_with_checksum

QUERIES = 300
# {arm: (strategy, mean reciprocal rank)}
ARMS = {"top": ("top", 0.30), "again": ("top", 0.30), "bottom": ("bottom", 0.22)}
CONFIG: dict[str, Any] = {"learning_rate": 1e-3, "max_steps": 500}


def quality(name: str, seed: int, level: float) -> np.ndarray:
    """Made-up values of the queries, whose difficulty all arms share; their mean is exactly ``level``."""
    difficulty_Q = np.random.default_rng(0).normal(0, 0.1, QUERIES)
    noise_Q = np.random.default_rng([seed, *name.encode()]).normal(0, 0.05, QUERIES)
    values_Q = difficulty_Q + noise_Q
    return values_Q - values_Q.mean() + level


def write_arm_of_study(
    root: Path,
    name: str,
    seed: int,
    strategy: str,
    level: float,
    negatives: str | None = None,
    offset: int = 0,
    **config: Any,
) -> Path:
    """``offset`` is what commands/study.sh's @N adds to the seed of the arm's directory."""
    level += 0.001 * seed
    write_arm(root / "made", name, Shape(0.21, level, strategy=strategy, seed=seed + offset))
    arm = root / f"seed-{seed}" / name
    arm.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(root / "made" / "arms" / name, arm)
    values_Q = quality(name, seed, level)
    rows = [f"q{query}\t{value + 0.05:.17g}\t{value:.17g}" for query, value in enumerate(values_Q)]
    (arm / "eval" / "dev.per_query.tsv").write_text("\n".join(["query_id\tndcg@10\tmrr@10", *rows]) + "\n")
    for place in ("checkpoints", "ann_data"):
        stored = {"role": place, "science": {**CONFIG, "seed": seed + offset, "strategy": strategy, **config}}
        (arm / place / "RUN.json").write_text(dump_with_checksum(stored))
    numbers = negatives or ",".join(str(sum(name.encode()) * 100 + i) for i in range(20))
    lines = [f"{query}\t7\t{numbers}\t{numbers}\t{numbers}\n" for query in range(30)]
    for refresh in (0, 4):
        (arm / "ann_data" / f"ann_training_data_{refresh}").write_text("".join(lines))
    logged = {"rank_1-5_triples": 10, "rank_1-5_loss": 0.5, "rank_1-5_gradient": 2.0, "rank_1-5_satisfied": 0.25}
    more = {"rank_1-5_triples": 30, "rank_1-5_loss": 0.1, "rank_1-5_gradient": 1.0, "rank_1-5_satisfied": 0.75}
    late = {"rank_6-20_triples": 5, "rank_6-20_loss": 0.3, "rank_6-20_gradient": 3.0, "rank_6-20_satisfied": 0.5}
    steps = [{"step": 10, **logged}, {"step": 20, "dev_ndcg": 0.2}, {"step": 30, **more, **late}]
    (arm / "checkpoints" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    return arm


def write_study(root: Path, arms: dict[str, tuple[str, float]] = ARMS, seeds: tuple[int, ...] = (1, 2, 3)) -> Path:
    for name, (strategy, level) in arms.items():
        for seed in seeds:
            write_arm_of_study(root, name, seed, strategy, level, offset=1000 * (name == "again"))
    return root


def places(root: Path, seeds: list[int]) -> dict[int, Path]:
    return {seed: root / f"seed-{seed}" for seed in seeds}
