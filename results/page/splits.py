"""What training did to each split that was evaluated before and after it, the train queries among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from results.page.markdown import Section, align, columns
from results.page.study import ALPHA, TEST_SEED
from results.read.evaluation import HEADINGS
from results.read.run import Run
from results.read.splits import evaluated_splits, read_ndcg
from results.stats import paired_randomisation
from utils.errors import UserError
from utils.exchange.evaluations import TRAIN
from utils.exchange.layout import RunLayout
from utils.ir.metrics import NDCG


@dataclass(frozen=True)
class SplitChange:
    """nDCG@10 of a split's queries before and after an arm's training; ``p`` of a paired test over the queries."""

    split: str
    arm: str
    queries: int
    before: float
    after: float
    p: float

    @property
    def verdict(self) -> str:
        if self.p >= ALPHA:
            return "cannot be told apart"
        return "better" if self.after > self.before else "worse"


def changes_of(run: Run) -> list[SplitChange]:
    """Of every split that the arms' start and an arm were evaluated on, the train queries last.

    Raises:
        UserError: they were evaluated on different queries, or a table is damaged.
    """
    start, rng = RunLayout(run.directory).warmup_evaluation, np.random.default_rng(TEST_SEED)
    found = []
    for split in sorted(evaluated_splits(start), key=lambda split: (split == TRAIN, split)):
        query_ids, before_Q = read_ndcg(start, split)
        for arm in run.arms:
            if split not in evaluated_splits(arm.layout.evaluation):
                continue
            arm_ids, after_Q = read_ndcg(arm.layout.evaluation, split)
            if arm_ids != query_ids:
                raise UserError(
                    f"{arm.layout.evaluation.per_query(split)} is of other queries than {start.per_query(split)}, "
                    "expected the same: evaluate again"
                )
            (p,) = paired_randomisation((after_Q - before_Q)[:, None], rng).tolist()
            means = float(before_Q.mean()), float(after_Q.mean())
            found.append(SplitChange(split, arm.name, len(query_ids), *means, p))
    return found


def rows_of(changes: list[SplitChange], start: str) -> list[list[str]]:
    """A heading, and a row for each split and arm."""
    label = HEADINGS[NDCG]
    rows = [["split", "queries", "arm", f"{label} of the {start}", "after training", "difference", "p", ""]]
    for change in changes:
        numbers = [f"{change.before:.4f}", f"{change.after:.4f}", f"{change.after - change.before:+.4f}"]
        rows.append([change.split, f"{change.queries:,}", change.arm, *numbers, f"{change.p:.2g}", change.verdict])
    return rows


def short_splits(run: Run) -> str:
    """What a terminal shows; "" where the arms were evaluated on one split."""
    changes = changes_of(run)
    return columns(rows_of(changes, run.start_name)) if is_of_several(changes) else ""


def is_of_several(changes: list[SplitChange]) -> bool:
    return len({change.split for change in changes}) > 1


def splits_section(run: Run) -> Section | None:
    """None where the arms were evaluated on one split: the tables before have it."""
    changes = changes_of(run)
    if not is_of_several(changes):
        return None
    text = (
        f"Means over the judged queries of each split, before and after training. p is of a two-sided paired "
        f"randomisation test over the queries, and a difference is called one below {ALPHA:g}. The {TRAIN} queries are "
        "those that were trained on: they tell whether anything was learnt, not how good the model is on others."
    )
    return Section("What training did, split by split", [text, align(rows_of(changes, run.start_name))])
