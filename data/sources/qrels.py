"""A split's queries and qrels on their way from the collection's own ids to offsets, and what is dropped on the way.

Judged queries and the qrels are what preprocessing holds in memory: megabytes, where the passages are gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.sources.base import Source
from data.sources.own_passages import OwnPassages, own_passage_of
from utils.errors import UserError
from utils.exchange.evaluations import TRAIN
from utils.run_log import say

MOST_UNKNOWN = 0.01  # of the qrels' lines; more means that the files do not belong together
NO_POSITIVE = "no train query has a positive, a relevance of 1 or more; take qrels that have some"

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


def check_known(origin: Path | str | None, judged: int, unknown: dict[str, list[str]], allow_missing: bool) -> str:
    """Count the qrels that name what is not there.

    Args:
        origin: Where the qrels come from, for the message.
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
    found = f"{origin}: {count} of {judged} qrels ({count / judged:.2%}) name what is not there: {examples}"
    if count > MOST_UNKNOWN * judged and not allow_missing:
        raise UserError(
            f"{found}; expected at most 1%: take files of one collection, or pass data.msmarco_data --allow_missing"
        )
    return f"{found}; continuing"


@dataclass(frozen=True)
class SplitData:
    """One split as text: its judgements and the queries that may be kept, {query_id: text} in file order."""

    split: str
    judgements: Judgements
    queries: dict[str, str]
    unknown: list[str]  # for each judgement of a query that is not in the queries file, its id
    dropped: dict[str, int]
    is_judged: bool = True

    def passage_ids(self) -> set[str]:
        """The passages judged for the queries that are there."""
        return {passage_id for query_id, passage_id in self.judgements if query_id in self.queries}


@dataclass(frozen=True)
class ResolvedSplit:
    """One split as it is written: a query's offset is its place in ``queries``.

    ``dropped`` and ``kept`` count, by what is the matter, what is not written and what is. ``own_passage`` has the
    queries that are a passage themselves, with that passage's offset. A split that nobody has judged has empty
    ``qrels``, which are not written.
    """

    split: str
    queries: dict[str, str]
    qrels: Qrels
    dropped: dict[str, int]
    kept: dict[str, int]
    own_passage: dict[int, int]
    is_judged: bool = True


def read_split(source: Source, split: str, allow_missing: bool) -> SplitData:
    """The queries of a split: of train those with a positive, of any other all. UserError where qrels do not fit them.

    A train query without a positive teaches nothing; another's is searched and written to the run, and counts in no
    mean.
    """
    judgements, repeated = read_judgements(source.qrels(split))
    judged = {query_id for query_id, _ in judgements}
    with_positive = {query_id for (query_id, _), grade in judgements.items() if grade >= 1}
    queries = dict(source.queries(split))
    unknown = [query_id for query_id, _ in judgements if query_id not in queries]
    qrels = source.split_files[split].qrels
    check_known(qrels, len(judgements), {"query": unknown}, allow_missing)
    dropped = {f"{qrel_name(split)} repeated": repeated, f"{qrel_name(split)} of an unknown query": len(unknown)}
    if split == TRAIN:
        if not with_positive:
            raise UserError(f"{qrels}: {NO_POSITIVE}")
        dropped |= {
            f"{query_name(split)} without a qrel": sum(query_id not in judged for query_id in queries),
            f"{query_name(split)} without a positive": sum(q in judged and q not in with_positive for q in queries),
        }
        queries = {query_id: text for query_id, text in queries.items() if query_id in with_positive}
    return SplitData(split, judgements, queries, unknown, dropped, qrels is not None)


def resolve(
    origin: Path | str | None, data: SplitData, offset_of: dict[str, int], own: OwnPassages, allow_missing: bool
) -> ResolvedSplit:
    """The qrels of a split by offset; of train without the queries that are left without a known positive.

    Args:
        origin: Where the qrels come from, for messages.
        data: What was read of the split.
        offset_of: {passage_id: offset}, -1 for a passage that is not in the collection.
        own: The passages that are queries.
        allow_missing: Whether over 1% of the qrels may name what is not there.
    Returns:
        Queries and qrels as they are written, and what was dropped.
    Raises:
        UserError: too many passages are not in the collection, or all; no train query has a positive.
    """
    known = [(q, p, relevance) for (q, p), relevance in data.judgements.items() if q in data.queries]
    missing = [passage_id for _, passage_id, _ in known if offset_of[passage_id] < 0]
    unknown = {"query": data.unknown, "passage": missing}
    if message := check_known(origin, len(data.judgements), unknown, allow_missing):
        say(message)
    rows = [(query_id, offset_of[p], relevance) for query_id, p, relevance in known if offset_of[p] >= 0]
    if data.is_judged and not rows:
        raise UserError(
            f"{origin}: none of its {len(data.judgements)} qrels is about this collection; take its own qrels"
        )
    queries = data.queries
    if data.split == TRAIN:
        with_positive = {query_id for query_id, _, relevance in rows if relevance >= 1}
        queries = {query_id: text for query_id, text in queries.items() if query_id in with_positive}
        rows = [row for row in rows if row[0] in with_positive]
    row_of = {query_id: row for row, query_id in enumerate(queries)}
    qrels = sorted_qrels(np.array([(row_of[query_id], *rest) for query_id, *rest in rows], np.int64).reshape(-1, 3))
    if data.split == TRAIN and not queries:
        raise UserError(f"{origin}: {NO_POSITIVE}")
    own_passage = own_passage_of(queries, own, set(zip(*(side.tolist() for side in qrels.positives()), strict=True)))
    dropped = {
        **data.dropped,
        f"{qrel_name(data.split)} of an unknown passage": len(missing),
        f"{query_name(data.split)} without a known positive": len(data.queries) - len(queries),
    }
    kept = {
        f"{query_name(data.split)} without a qrel": len(queries) - len(np.unique(qrels.query_R)),
        f"{query_name(data.split)} that is a passage itself": len(own_passage),
        f"{query_name(data.split)} without text": sum(not text.strip() for text in queries.values()),
    }
    return ResolvedSplit(data.split, queries, qrels, dropped, kept, own_passage, data.is_judged)
