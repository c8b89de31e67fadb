"""What is exported of a query: its known positives and its negatives, and what a search scored them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.mining.candidates import Candidates


@dataclass(frozen=True)
class Example:
    """A query and its passages, all by offset, the negatives best first; the scores are theirs, or there are none."""

    query: int
    positives: list[int]
    negatives: list[int]
    positive_scores: list[float] | None = None
    negative_scores: list[float] | None = None


def examples_of(
    ranked: Candidates,
    positives: tuple[np.ndarray, np.ndarray],
    most_negatives: int = 0,
    scored_by: Candidates | None = None,
) -> Iterator[Example]:
    """One for each query, in the order of ``ranked``.

    Args:
        ranked: Of each query its negatives, or all its candidates: those that are no known positive are the negatives.
        positives: (query_P, passage_P) int64, sorted by query then passage.
        most_negatives: Negatives that are kept of a query, the first; 0 keeps all.
        scored_by: Where it is given, passages that it does not score are omitted; a query that it does not have has
            none.
    """
    row_of = {query: row for row, query in enumerate(scored_by.query_Q.tolist())} if scored_by is not None else {}
    for query, passage_N in zip(ranked.query_Q.tolist(), ranked.passage_QK, strict=True):
        known = positives_of(query, positives)
        is_known = set(known)
        negatives = [passage for passage in passage_N.tolist() if passage >= 0 and passage not in is_known]
        if scored_by is None:
            yield Example(query, known, negatives[: most_negatives or None])
            continue
        score_of = scores_in(scored_by, row_of.get(query))
        known = [passage for passage in known if passage in score_of]
        negatives = [passage for passage in negatives if passage in score_of][: most_negatives or None]
        scores = ([score_of[passage] for passage in passages] for passages in (known, negatives))
        yield Example(query, known, negatives, *scores)


def positives_of(query: int, positives: tuple[np.ndarray, np.ndarray]) -> list[int]:
    """The known positives of a query, ascending. ``positives`` as in `examples_of`."""
    query_P, passage_P = positives
    first, end = np.searchsorted(query_P, [query, query + 1])
    found: list[int] = passage_P[first:end].tolist()
    return found


def scores_in(candidates: Candidates, row: int | None) -> dict[int, float]:
    """{passage: score} of one row; empty where there is none."""
    if row is None:
        return {}
    return dict(zip(candidates.passage_QK[row].tolist(), candidates.score_QK[row].tolist(), strict=True))
