"""What is counted over all passages that a ranking returns together, and not as a mean over queries."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

OVERLAP_DEPTH = 100  # of the ANCE paper's Table 6
OVERLAP, OVERLAP_QUERIES = f"overlap@{OVERLAP_DEPTH}", "overlap_queries"  # the share, and of how many queries it is


def pooled_hole_rates(
    qrels: Mapping[int, Mapping[int, int]], query_Q: np.ndarray, passages_QK: np.ndarray, depth: float
) -> dict[str, float]:
    """Shares of the passages returned for judged queries that nobody has judged: of the first 10, and of all.

    Args:
        qrels: ``qrels[query][passage]`` is a grade.
        query_Q: int64, the queries of the lists.
        passages_QK: int64, -1 after a list's end.
        depth: how deep the lists are; the first 10 are omitted where they are shorter.

    Source:
        ANCE's notebook "Calculate Metrics" (hole rate@10, hole rate).
    """
    columns = {**({"hole_rate@10": 10} if depth >= 10 else {}), "hole_rate": passages_QK.shape[1]}
    holes, returned = dict.fromkeys(columns, 0), dict.fromkeys(columns, 0)
    for query, passages_K in zip(query_Q.tolist(), passages_QK, strict=True):
        if (judged := qrels.get(query)) is None:
            continue
        passages = passages_K.tolist()
        for name, cutoff in columns.items():
            top = [passage for passage in passages[:cutoff] if passage >= 0]
            holes[name] += sum(passage not in judged for passage in top)
            returned[name] += len(top)
    return {name: holes[name] / returned[name] for name in columns if returned[name]}


def overlap_with(
    qrels: Mapping[int, Mapping[int, int]], query_Q: np.ndarray, passages_QK: np.ndarray, other_QK: np.ndarray
) -> dict[str, float]:
    """The share of all passages among the first OVERLAP_DEPTH that another ranking has there, too.

    Only of judged queries for which both rankings have a list; their number is told as well. Empty where there is none.

    Args:
        qrels: ``qrels[query][passage]`` is a grade.
        query_Q: int64, the queries of the lists.
        passages_QK: int64, -1 after a list's end.
        other_QK: of the same queries.

    Source:
        the overlap with BM25 of Xiong et al. 2020 (arXiv 2007.00808), Table 6.
    """
    both = returned = queries = 0
    tops = zip(query_Q.tolist(), passages_QK[:, :OVERLAP_DEPTH], other_QK[:, :OVERLAP_DEPTH], strict=True)
    for query, ours_K, theirs_K in tops:
        ours, theirs = ({passage for passage in top_K.tolist() if passage >= 0} for top_K in (ours_K, theirs_K))
        if query in qrels and ours and theirs:
            both, returned, queries = both + len(ours & theirs), returned + len(ours), queries + 1
    return {OVERLAP: both / returned, OVERLAP_QUERIES: queries} if queries else {}
