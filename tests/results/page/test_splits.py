"""What training did, split by split: against the tables of the queries that an evaluation leaves."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from results.page.run import warnings_of, what_was_run
from results.page.splits import changes_of, short_splits, splits_section
from results.read.run import read_run
from tests.results.test_report import Shape, write_run

ARMS = {"top": Shape(0.2, 0.3), "random": Shape(0.2, 0.3)}
BEFORE, GAINS = [0.1, 0.5, 0.3, 0.0, 0.9, 0.2, 0.4, 0.6], [0.22, 0.1, -0.05, 0.3, 0.0, 0.25, 0.15, 0.1]


def write_table(directory: Path, split: str, values: list[float], first: int = 0) -> None:
    rows = [f"q{first + query}\t{value:.9g}\t0.5" for query, value in enumerate(values)]
    (directory / f"{split}.per_query.tsv").write_text("\n".join(["query_id\tndcg@10\tmrr@10", *rows]) + "\n")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """train rises by GAINS in both arms; dev is as before in ``top``, and not evaluated in ``random``."""
    write_run(tmp_path, ARMS)
    write_table(tmp_path / "warmup" / "eval", "train", BEFORE)
    write_table(tmp_path / "warmup" / "eval", "dev", BEFORE[:4])
    for name in ARMS:
        after = [before + gain for before, gain in zip(BEFORE, GAINS, strict=True)]
        write_table(tmp_path / "arms" / name / "eval", "train", after)
    write_table(tmp_path / "arms" / "top" / "eval", "dev", BEFORE[:4])
    return tmp_path


def test_the_changes_are_those_of_the_queries(run_dir: Path) -> None:
    changes = changes_of(read_run(run_dir, "run"))
    assert [(change.split, change.arm, change.queries) for change in changes] == [
        ("dev", "top", 4), ("train", "top", 8), ("train", "random", 8)
    ]  # fmt: skip
    dev, train, _ = changes
    assert (dev.before, dev.after, dev.p) == (np.mean(BEFORE[:4]), np.mean(BEFORE[:4]), 1)
    assert train.after - train.before == pytest.approx(np.mean(GAINS))
    # Fisher's test, every swap once.
    sums = [abs(np.dot(signs, GAINS)) for signs in product((-1, 1), repeat=len(GAINS))]
    exact = np.mean([found >= abs(sum(GAINS)) - 1e-9 for found in sums])
    assert train.p == pytest.approx(exact, abs=0.01)
    assert dev.verdict == "cannot be told apart"


def test_the_report_and_the_terminal_show_them_where_there_are_several_splits(run_dir: Path) -> None:
    run = read_run(run_dir, "run")
    section = splits_section(run)
    assert section is not None and section.title == "What training did, split by split"
    table = section.blocks[-1]
    for shown in (table, short_splits(run)):
        assert f"{np.mean(BEFORE):.4f}" in shown and f"{np.mean(GAINS):+.4f}" in shown
        assert "nDCG@10 of the warmup" in shown
    for path in run_dir.rglob("train.per_query.tsv"):
        path.unlink()
    assert splits_section(run) is None and short_splits(run) == ""


def test_other_queries_are_a_warning(run_dir: Path) -> None:
    write_table(run_dir / "arms" / "random" / "eval", "train", BEFORE, first=1)
    run = read_run(run_dir, "run")
    assert [(change.split, change.arm) for change in changes_of(run)] == [("dev", "top"), ("train", "top")]
    told = "The evaluation of random is of other train queries than that of the warmup: evaluate again."
    assert [warning for warning in warnings_of(run) if "other train queries" in warning] == [told]


def test_tables_without_the_metric_are_passed_over(run_dir: Path) -> None:
    """Of a split that nobody has judged, and of lists that were too short for it."""
    before = changes_of(read_run(run_dir, "run"))
    for place in ("warmup/eval", "arms/top/eval", "arms/random/eval"):
        (run_dir / place / "blind.per_query.tsv").write_text("query_id\n")
        (run_dir / place / "short.per_query.tsv").write_text("query_id\tmrr@5\nq1\t0.5\n")
    write_table(run_dir / "warmup" / "eval", "later", BEFORE)
    (run_dir / "arms" / "top" / "eval" / "later.per_query.tsv").write_text("query_id\n")
    run = read_run(run_dir, "run")
    assert changes_of(run) == before and not any("other" in warning for warning in warnings_of(run))
    (run_dir / "warmup" / "eval" / "dev.per_query.tsv").write_text("query_id\tndcg@10\nq0\t0.1\n")
    assert [change.split for change in changes_of(run)] == ["train", "train"], "MRR is not needed"


def test_a_given_model_is_called_the_start(run_dir: Path) -> None:
    assert read_run(run_dir, "run").start_name == "warmup"
    (run_dir / "plan.tsv").write_text("model\t/models/minilm\t\n")
    run = read_run(run_dir, "run")
    assert run.start_name == "start"
    assert any(line.startswith("- start: ") for line in what_was_run(run))
