"""A split's queries and qrels on their way from the collection's own ids to offsets, and what is dropped on the way.

Judged queries and the qrels are what preprocessing holds in memory: megabytes, where the passages are gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.sources.base import Source
from utils.errors import UserError
from utils.run_log import say

MOST_UNKNOWN = 0.01  # of the qrels' lines; more means that the files do not belong together

Judgements = dict[tuple[str, str], int]  # (query_id, passage_id) -> relevance


def query_name(split: str) -> str:
    return f"{split}-query"


def qrel_name(split: str) -> str:
    return f"{split}-qrel"


@dataclass(frozen=True)
class Qrels:
    """R judgements by query and passage offset, all int64 [R], sorted by (query, passage)."""

    query_R: np.ndarray
    passage_R: np.ndarray
    relevance_R: np.ndarray

    def queries_with_positive(self) -> np.ndarray:
        """The query offsets with a relevance of at least 1, sorted, each once."""
        return np.unique(self.query_R[self.relevance_R >= 1])

    def positives(self) -> tuple[np.ndarray, np.ndarray]:
        """(query_P, passage_P) of a relevance of at least 1, sorted."""
        positive_R = self.relevance_R >= 1
        return self.query_R[positive_R], self.passage_R[positive_R]

    def as_dict(self) -> dict[int, dict[int, int]]:
        """{query: {passage: relevance}}"""
        judged: dict[int, dict[int, int]] = {}
        rows = zip(self.query_R.tolist(), self.passage_R.tolist(), self.relevance_R.tolist(), strict=True)
        for query, passage, relevance in rows:
            judged.setdefault(query, {})[passage] = relevance
        return judged


def sorted_qrels(rows_R3: np.ndarray) -> Qrels:
    """Qrels from (query, passage, relevance) in any order."""
    rows_R3 = rows_R3[np.lexsort((rows_R3[:, 1], rows_R3[:, 0]))]
    return Qrels(*np.ascontiguousarray(rows_R3.T))


def read_judgements(qrels: Iterable[tuple[str, str, int]]) -> tuple[Judgements, int]:
    """The judgements of a split's (query_id, passage_id, grade), and how many lines repeat another."""
    judgements: Judgements = {}
    lines = 0
    for query_id, passage_id, relevance in qrels:
        judgements[query_id, passage_id] = relevance
        lines += 1
    return judgements, lines - len(judgements)


def judged_queries(queries: Iterable[tuple[str, str]], judgements: Judgements) -> tuple[dict[str, str], int]:
    """{query_id: text} of the queries that are judged, in file order, and how many are not."""
    judged = {query_id for query_id, _ in judgements}
    found: dict[str, str] = {}
    dropped = 0
    for query_id, text in queries:
        if query_id in judged:
            found[query_id] = text
        else:
            dropped += 1
    return found, dropped


def check_known(path: Path, judged: int, unknown: dict[str, list[str]], allow_missing: bool) -> str:
    """Count the qrels that name what is not there.

    Args:
        path: The file of the qrels, for the message.
        judged: How many qrels there are.
        unknown: By kind (query, passage), the id that each such qrel names.
        allow_missing: Whether over 1% may.
    Returns:
        A sentence that says so, "" where there is no such qrel.
    Raises:
        UserError: over 1% name what is not there, and may not.
    """
    count = sum(map(len, unknown.values()))
    if count == 0:
        return ""
    examples = ", ".join(f"{len(ids)} an unknown {kind} (as {ids[0]!r})" for kind, ids in unknown.items() if ids)
    found = f"{path}: {count} of {judged} qrels ({count / judged:.2%}) name what is not there: {examples}"
    if count > MOST_UNKNOWN * judged and not allow_missing:
        raise UserError(f"{found}; expected at most 1%: take files of one collection, or pass --allow_missing")
    return f"{found}; continuing"


@dataclass(frozen=True)
class SplitData:
    """One split as text: its judgements and judged queries, {query_id: text} in file order."""

    split: str
    judgements: Judgements
    queries: dict[str, str]
    unknown: list[str]  # for each judgement of a query that is not in the queries file, its id
    dropped: dict[str, int]

    def passage_ids(self) -> set[str]:
        """The passages judged for the queries that are there."""
        return {passage_id for query_id, passage_id in self.judgements if query_id in self.queries}


@dataclass(frozen=True)
class ResolvedSplit:
    """One split as it is written: a query's offset is its place in ``queries``."""

    split: str
    queries: dict[str, str]
    qrels: Qrels
    dropped: dict[str, int]


def read_split(source: Source, split: str, allow_missing: bool) -> SplitData:
    """The judged queries of a split. UserError where its qrels do not fit its queries."""
    judgements, repeated = read_judgements(source.qrels(split))
    queries, unjudged = judged_queries(source.queries(split), judgements)
    unknown = [query_id for query_id, _ in judgements if query_id not in queries]
    check_known(source.split_files[split].qrels, len(judgements), {"query": unknown}, allow_missing)
    dropped = {
        f"{qrel_name(split)} repeated": repeated,
        f"{qrel_name(split)} of an unknown query": len(unknown),
        f"{query_name(split)} without a qrel": unjudged,
    }
    return SplitData(split, judgements, queries, unknown, dropped)


def resolve(path: Path, data: SplitData, offset_of: dict[str, int], allow_missing: bool) -> ResolvedSplit:
    """The qrels of a split by offset, without the queries none of whose passages are known.

    Args:
        path: The file of the qrels, for messages.
        data: What was read of the split.
        offset_of: {passage_id: offset}, -1 for a passage that is not in the collection.
        allow_missing: Whether over 1% of the qrels may name what is not there.
    Returns:
        Queries and qrels as they are written, and what was dropped.
    Raises:
        UserError: too many passages are not in the collection, or all.
    """
    known = [(q, p, relevance) for (q, p), relevance in data.judgements.items() if q in data.queries]
    missing = [passage_id for _, passage_id, _ in known if offset_of[passage_id] < 0]
    unknown = {"query": data.unknown, "passage": missing}
    if message := check_known(path, len(data.judgements), unknown, allow_missing):
        say(message)
    rows = [(query_id, offset_of[p], relevance) for query_id, p, relevance in known if offset_of[p] >= 0]
    if not rows:
        raise UserError(
            f"{path}: none of its {len(data.judgements)} qrels is about this collection; take its own qrels"
        )
    answered = {query_id for query_id, _, _ in rows}
    queries = {query_id: text for query_id, text in data.queries.items() if query_id in answered}
    row_of = {query_id: row for row, query_id in enumerate(queries)}
    qrels = sorted_qrels(np.array([(row_of[query_id], *rest) for query_id, *rest in rows], dtype=np.int64))
    dropped = {
        **data.dropped,
        f"{qrel_name(data.split)} of an unknown passage": len(missing),
        f"{query_name(data.split)} without a known passage": len(data.queries) - len(queries),
    }
    return ResolvedSplit(data.split, queries, qrels, dropped)
