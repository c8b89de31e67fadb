"""What stands at each rank of an evaluation's lists: scores over the corpus's mean, grades, passages trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.mining.negative_lists import NegativeLists, pair_keys
from data.sources.qrels import Qrels
from drivers.embeddings.encode import PassageShare
from drivers.evaluate.measure import Ranking
from drivers.evaluate.splits import RankedSplit
from utils.distributed import collectives
from utils.distributed.world import World
from utils.ir.rank_buckets import counted
from utils.search.scores import sum_of_rows, sum_of_scores

DEPTH = 200  # of the score curves
OVERLAP_DEPTHS = (10, 100)
EXAMPLES = 10  # queries whose own curve is kept, as many as the paper draws


@dataclass(frozen=True)
class ScoreCurves:
    """``mean_K``: the mean over the queries, float64 [K]; ``example_EK``: those of the queries ``example_E`` alone."""

    mean_K: np.ndarray
    example_E: np.ndarray
    example_EK: np.ndarray


def mean_scores(world: World, queries_QD: np.ndarray, share: PassageShare, passages: int) -> np.ndarray:
    """Each query's mean score over the whole collection.

    A mean of inner products is the inner product with the mean passage: where each passage is one row, none is scored.

    Args:
        world: all its processes call this.
        queries_QD: float, the same on every process.
        share: this process's passages.
        passages: how many the whole collection has.

    Returns:
        float64 [Q], the same on every process.
    """
    if share.passages.has_row_each:
        sum_D = sum_of_rows(share.passages)
        mean_D = np.concatenate(collectives.gather_rows(world, sum_D[None])).sum(axis=0) / passages
        return np.asarray(queries_QD.astype(np.float64) @ mean_D)
    sum_Q = sum_of_scores(queries_QD, share.passages)
    return np.concatenate(collectives.gather_rows(world, sum_Q[None])).sum(axis=0) / passages


def score_curves(
    query_Q: np.ndarray, passages_QK: np.ndarray, scores_QK: np.ndarray, mean_score_Q: np.ndarray
) -> ScoreCurves:
    """Scores at each of the best DEPTH ranks less the query's mean over the corpus.

    Args:
        query_Q: int64, the queries' offsets.
        passages_QK: int64, best first; -1 is a list's end, which no mean counts.
        scores_QK: float, of the same places.
        mean_score_Q: float64, of `mean_scores`.

    Returns:
        The curves, NaN where no list is so long.

    Source:
        Xiong et al. 2020 (arXiv 2007.00808), Figure 3.
    """
    held_QK = passages_QK[:, :DEPTH] >= 0
    over_QK = np.where(held_QK, scores_QK[:, :DEPTH], 0.0) - mean_score_Q[:, None]
    count_K = held_QK.sum(axis=0)
    mean_K = np.where(held_QK, over_QK, 0).sum(axis=0) / np.where(count_K, count_K, np.nan)
    rows_E = np.unique(np.linspace(0, len(query_Q) - 1, min(EXAMPLES, len(query_Q))).astype(np.int64))
    return ScoreCurves(mean_K, query_Q[rows_E], np.where(held_QK, over_QK, np.nan)[rows_E])


def grades_by_rank(qrels: Qrels, query_Q: np.ndarray, passages_QK: np.ndarray) -> dict[str, dict[str, int]]:
    """{grade: {rank bucket: passages}} of the lists, with "retrieved" for all and "0" for those judged irrelevant."""
    held_QK = passages_QK >= 0
    rank_QK = np.broadcast_to(np.arange(1, passages_QK.shape[1] + 1), passages_QK.shape)
    query_QK = np.broadcast_to(query_Q[:, None], passages_QK.shape)
    rank_H, keys_H = rank_QK[held_QK], pair_keys(query_QK[held_QK], passages_QK[held_QK])
    judged_R = pair_keys(qrels.query_R, qrels.passage_R)  # ascending, as the qrels are
    if not len(judged_R):
        return {"retrieved": counted(rank_H)}
    place_H = np.minimum(np.searchsorted(judged_R, keys_H), len(judged_R) - 1)
    grade_H = np.where(judged_R[place_H] == keys_H, np.maximum(qrels.relevance_R[place_H], 0), -1)
    found = {str(grade): counted(rank_H[grade_H == grade]) for grade in np.unique(grade_H[grade_H >= 0]).tolist()}
    return {"retrieved": counted(rank_H), **found}


def overlap(passages_QK: np.ndarray, negative_QN: np.ndarray, passages: int) -> dict[str, float]:
    """How alike training negatives and what is returned are spread over the collection, at the lists' first 10 and 100.

    The sum over all ``passages`` of the smaller of two shares: of the negatives that are this passage, and of the
    returned. 1: spread alike; 0: none in common. ``uniform_at_…`` is that of negatives spread evenly. (Whether a
    passage is a negative at all says nothing where there are as many negatives as passages.) Depths that the lists do
    not reach are omitted.
    """
    trained_N, found = spread(negative_QN, passages), {}
    for depth in (depth for depth in OVERLAP_DEPTHS if depth <= passages_QK.shape[1]):
        returned_N = spread(passages_QK[:, :depth], passages)
        found[f"at_{depth}"] = float(np.minimum(trained_N, returned_N).sum())
        found[f"uniform_at_{depth}"] = float(np.minimum(1 / passages, returned_N).sum())
    return found


def spread(passages_QK: np.ndarray, passages: int) -> np.ndarray:
    """Each passage's share of the lists' places: float64 [N]; -1 is no place."""
    held = passages_QK[passages_QK >= 0]
    return np.bincount(held, minlength=passages) / max(1, len(held))


def as_json(
    curves: ScoreCurves, qrels: Qrels, by_grade: dict[str, dict[str, int]], query_ids: Sequence[str], queries: int
) -> dict[str, object]:
    """What SPLIT.by_rank.json says of the lists.

    Args:
        curves: of `score_curves`.
        qrels: the split's, for the grades above 0 that it has.
        by_grade: of `grades_by_rank`.
        query_ids: every query's own id by its offset.
        queries: over how many the scores and counts are: all that are ranked, judged or not.
    """

    def plain(curve_K: np.ndarray) -> list[float | None]:
        return [None if np.isnan(value) else round(float(value), 6) for value in curve_K]

    return {
        "queries": queries,
        "score_over_corpus_mean": plain(curves.mean_K),
        "examples": {
            query_ids[query]: plain(curve_K)
            for query, curve_K in zip(curves.example_E.tolist(), curves.example_EK, strict=True)
        },
        "grades": [int(grade) for grade in np.unique(qrels.relevance_R[qrels.relevance_R > 0])],
        "passages_by_grade": by_grade,
    }


def describe_ranks(
    split: RankedSplit, ranking: Ranking, mean_score_Q: np.ndarray, negatives: tuple[int, NegativeLists] | None
) -> dict[str, object]:
    """What SPLIT.by_rank.json holds.

    Args:
        split: whose qrels and queries.
        ranking: of the whole collection.
        mean_score_Q: float64, each query's mean score over the collection.
        negatives: the refresh that the model was trained on last and its lists, if known.
    """
    collection, lists_QK = split.collection, ranking.passages_QK
    qrels = collection.qrels(split.name)
    curves = score_curves(ranking.query_Q, lists_QK, ranking.scores_QK, mean_score_Q)
    by_grade = grades_by_rank(qrels, ranking.query_Q, lists_QK)
    query_ids = collection.queries(split.name).original_ids()
    found = as_json(curves, qrels, by_grade, query_ids, len(ranking.query_Q))
    if negatives is not None:
        refresh, lists = negatives
        shares = overlap(lists_QK, lists.negative_QN, len(collection.passages))
        found["training_negatives"] = {"refresh": refresh, **shares}
    return found
