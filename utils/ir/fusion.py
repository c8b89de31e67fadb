"""Linear fusion of two runs: a passage's score in one, plus a weight times its score in the other.

BM25+DPR is made so: BM25(q, p) + lambda * sim(q, p) over the union of both lists, lambda 1.1 (Karpukhin et al. 2020,
arXiv 2004.04906, section 5). What a passage scores in a list that lacks it, that paper does not say, and its code for
this was not published. Pyserini's hybrid search, with which DPR was reproduced (Ma et al. 2021, arXiv 2104.05740),
counts the list's lowest score, an upper bound of the passage's own. So it is here. Where one run has no list for a
query, its part is 0 for all passages, as in Pyserini: the other list keeps its order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.ir.runs import Entries

LARGEST_SCORE = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ScoredList:
    """Of one query: ``place_L`` int64, passages, each once; ``score_L`` float64, finite."""

    place_L: np.ndarray
    score_L: np.ndarray


NOTHING = ScoredList(np.zeros(0, np.int64), np.zeros(0))


@dataclass(frozen=True)
class FusedRun:
    """What `write_run` takes: ``passages_QK`` int64 are places in ``passage_ids``, best first, -1 after a list's end;
    ``scores_QK`` float64, -inf there.
    """

    query_ids: list[str]
    passage_ids: list[str]
    passages_QK: np.ndarray
    scores_QK: np.ndarray


def fuse_runs(first: Entries, second: Entries, weight: float, topk: int) -> FusedRun:
    """The queries of both runs, in the first's order, then the second's; of equal scores the id that is the last.

    Args:
        first: the run whose scores are added as they are, float32 as they were read; as all sums, in float64.
        second: the run whose scores are multiplied.
        weight: by what.
        topk: passages of a query that are kept, the best.
    """
    query_ids = list(dict.fromkeys((*first.query_ids_Q, *second.query_ids_Q)))
    passage_ids = sorted({*first.ids, *second.ids}, key=str.encode, reverse=True)  # ascending places break ties
    place_of = {passage_id: place for place, passage_id in enumerate(passage_ids)}
    lists, weighted = lists_of(first, place_of), lists_of(second, place_of)
    fused = [best(fuse(lists.get(query, NOTHING), weighted.get(query, NOTHING), weight), topk) for query in query_ids]
    passages_QK = np.full((len(fused), max(len(found.place_L) for found in fused)), -1, np.int64)
    scores_QK = np.full(passages_QK.shape, -np.inf)
    for row, found in enumerate(fused):
        passages_QK[row, : len(found.place_L)] = found.place_L
        scores_QK[row, : len(found.place_L)] = found.score_L
    return FusedRun(query_ids, passage_ids, passages_QK, scores_QK)


def fuse(first: ScoredList, second: ScoredList, weight: float) -> ScoredList:
    """One query's passages of either list, ascending, with the sum of their scores, the second's times ``weight``."""
    place_U = np.union1d(first.place_L, second.place_L)
    return ScoredList(place_U, scores_in(first, place_U) + weight * scores_in(second, place_U))


def scores_in(scored: ScoredList, place_U: np.ndarray) -> np.ndarray:
    """The score [U] of each of the ascending places in a list; of those it lacks its lowest, of an empty one 0."""
    score_U = np.full(len(place_U), scored.score_L.min() if len(scored.score_L) else 0.0)
    score_U[np.searchsorted(place_U, scored.place_L)] = scored.score_L
    return score_U


def best(scored: ScoredList, topk: int) -> ScoredList:
    """The first of a list by descending scores, of equal ones by ascending places."""
    kept_K = np.lexsort((scored.place_L, -scored.score_L))[:topk]
    return ScoredList(scored.place_L[kept_K], scored.score_L[kept_K])


def lists_of(entries: Entries, place_of: dict[str, int]) -> dict[str, ScoredList]:
    """A run's lists by query. A score that a float32 cannot hold is the largest that it can."""
    place_E = np.array([place_of[passage_id] for passage_id in entries.ids], np.int64)[entries.place_E]
    score_E = np.clip(entries.score_E, -LARGEST_SCORE, LARGEST_SCORE).astype(np.float64)
    order_E = np.argsort(entries.row_E, kind="stable")
    ends_Q = np.cumsum(np.bincount(entries.row_E, minlength=len(entries.query_ids_Q)))[:-1]
    lists = zip(np.split(place_E[order_E], ends_Q), np.split(score_E[order_E], ends_Q), strict=True)
    return {query: ScoredList(*found) for query, found in zip(entries.query_ids_Q, lists, strict=True)}
