"""What training did to each split that was evaluated before and after it, the train queries among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from results.page.markdown import Section, align, columns
from results.page.study import ALPHA, TEST_SEED
from results.read.arm import Arm
from results.read.evaluation import HEADINGS
from results.read.run import Run
from results.read.splits import Table, evaluated_splits, read_ndcg
from results.stats import paired_randomisation
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


def tables_of(run: Run) -> Iterator[tuple[str, Arm, Table, Table]]:
    """Split, arm, and the tables before and after, of every split that the arms' start and an arm were evaluated on.

    The train queries are last. UserError where a table is damaged.
    """
    start = RunLayout(run.directory).warmup_evaluation
    evaluated = {arm.name: evaluated_splits(arm.layout.evaluation) for arm in run.arms}
    for split in sorted(evaluated_splits(start), key=lambda split: (split == TRAIN, split)):
        before = read_ndcg(start, split)
        for arm in run.arms:
            if split in evaluated[arm.name]:
                yield split, arm, before, read_ndcg(arm.layout.evaluation, split)


def changes_of(run: Run) -> list[SplitChange]:
    """Of the splits whose tables before and after are of the same queries; UserError where one is damaged."""
    found, rng = [], np.random.default_rng(TEST_SEED)
    for split, arm, (query_ids, before_Q), (arm_ids, after_Q) in tables_of(run):
        if arm_ids == query_ids:
            (p,) = paired_randomisation((after_Q - before_Q)[:, None], rng).tolist()
            means = float(before_Q.mean()), float(after_Q.mean())
            found.append(SplitChange(split, arm.name, len(query_ids), *means, p))
    return found


def of_other_queries(run: Run) -> list[str]:
    """A sentence for each split and arm that cannot be compared with before; UserError where a table is damaged."""
    return [
        f"The evaluation of {arm.name} is of other {split} queries than that of the {run.start_name}: evaluate again."
        for split, arm, (query_ids, _), (arm_ids, _) in tables_of(run)
        if arm_ids != query_ids
    ]


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
