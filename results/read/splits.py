"""The queries' own metrics of every split that a model was evaluated on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from results.read.study import read_by_query
from utils.exchange.atomic import listing
from utils.exchange.layout import EvaluationLayout
from utils.ir.metrics import NDCG


def evaluated_splits(evaluation: EvaluationLayout) -> list[str]:
    """By the tables of the queries' metrics that it has left, sorted."""
    ending = EvaluationLayout(Path()).per_query("").name
    return sorted(name.removesuffix(ending) for name in listing(evaluation.root) if name.endswith(ending))


def read_ndcg(evaluation: EvaluationLayout, split: str) -> tuple[tuple[str, ...], np.ndarray]:
    """The ids of a split's judged queries, and their nDCG@10, float [Q]. UserError where the table is damaged."""
    query_ids, by_query = read_by_query(evaluation.per_query(split))
    return query_ids, by_query[NDCG]
