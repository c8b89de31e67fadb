"""The queries' own metrics of every split that a model was evaluated on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from results.read.study import read_by_query
from utils.exchange.atomic import listing
from utils.exchange.layout import EvaluationLayout
from utils.ir.metrics import NDCG
from utils.text_files import read_lines

Table = tuple[tuple[str, ...], np.ndarray]  # the queries' ids, and a value of each


def evaluated_splits(evaluation: EvaluationLayout) -> list[str]:
    """By the tables of the queries' metrics that it has left, sorted.

    Those without nDCG@10 are passed over: nobody has judged the split, or the lists were shorter.
    """
    ending = EvaluationLayout(Path()).per_query("").name
    tables = [name for name in listing(evaluation.root) if name.endswith(ending)]
    return sorted(name.removesuffix(ending) for name in tables if has_ndcg(evaluation.root / name))


def has_ndcg(table: Path) -> bool:
    """By its first line."""
    return NDCG in next(read_lines(table)).split("\t")


def read_ndcg(evaluation: EvaluationLayout, split: str) -> Table:
    """The ids of a split's judged queries, and their nDCG@10, float [Q]. UserError where the table is damaged."""
    query_ids, by_query = read_by_query(evaluation.per_query(split), (NDCG,))
    return query_ids, by_query[NDCG]
