"""Which queries of a split are ranked, and the lists that a file has for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np

from data.tokens.collection import Preprocessed
from utils.errors import UserError
from utils.exchange.evaluations import TRAIN, check_as_published
from utils.flag_values import LARGEST_INTEGER
from utils.ir.metrics import MetricChoice, always_measured, choose_metrics
from utils.ir.runs import GivenRun, read_run
from utils.ir.trec import read_lists_to_rerank
from utils.text_files import check_ends


@dataclass(frozen=True)
class RankedSplit:
    """Queries of a split, ``query_Q`` int64 by offset: those that are ranked; and what is measured of them."""

    collection: Preprocessed
    name: str
    query_Q: np.ndarray
    choice: MetricChoice

    @cached_property
    def judgements(self) -> dict[int, dict[int, int]]:
        """{query: {passage: grade}} of all judged queries of the split."""
        return self.collection.qrels(self.name).as_dict()

    @cached_property
    def query_ids(self) -> list[str]:
        """The collection's own ids of the ranked queries."""
        ids = self.collection.queries(self.name).original_ids()
        return [ids[query] for query in self.query_Q]

    @cached_property
    def own_passage_Q(self) -> np.ndarray:
        """int64: the passage that is the query itself, which is no answer to it; -1 where there is none."""
        return self.collection.own_passage_Q(self.name, self.query_Q)

    def tokens_of(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Each query's token ids, int64 and uncut, by offset."""
        tokens_T, offsets_Q1 = self.collection.queries(self.name).gather(rows, LARGEST_INTEGER)
        return np.split(tokens_T, offsets_Q1[1:])[:-1]

    def describe(self) -> str:
        """What of the split is ranked, and what of that is measured."""
        ranked = set(self.query_Q.tolist())
        positive = ranked & set(self.collection.qrels(self.name).queries_with_positive().tolist())
        parts = [f"{self.name}: {len(ranked):,} queries are ranked"]
        if unjudged := len(ranked - self.judgements.keys()):
            parts.append(f"{unjudged:,} of them are not judged, and in no mean")
        if without := len(self.judgements) - len(positive):
            parts.append(f"{without:,} of {len(self.judgements):,} judged queries have no positive, and count as 0")
        if own := int((self.own_passage_Q >= 0).sum()):
            parts.append(f"{own:,} are a passage themselves, which is in no list of theirs")
        if self.judgements:
            parts.append(f"relevant is grade {self.choice.relevance_level} and above")
        return "; ".join(parts)


def queries_with_positive(collection: Preprocessed, split: str, choice: MetricChoice | None = None) -> RankedSplit:
    """What is ranked while training, where no ``choice`` is made of what is measured."""
    choice = choice or always_measured(collection.relevance_level(split))
    return RankedSplit(collection, split, collection.qrels(split).queries_with_positive(), choice)


def all_queries(collection: Preprocessed, split: str, choice: MetricChoice) -> RankedSplit:
    """What is ranked of a split that is asked for; of train those with a positive."""
    if split == TRAIN:
        return queries_with_positive(collection, split, choice)
    return RankedSplit(collection, split, np.arange(len(collection.queries(split))), choice)


def splits_asked(
    collection: Preprocessed, names: Sequence[str] | None, metrics: str = "", relevance_level: int | None = None
) -> list[RankedSplit]:
    """The splits of these names, each once; without one the first of the collection's `judged_splits`.

    Args:
        collection: that has them.
        names: as a user gives them.
        metrics: what is measured as well, as `choose_metrics` takes it.
        relevance_level: the lowest grade that is relevant; None for each split's own.

    Raises:
        UserError: there is no such split, or none is named and none but train is judged; a measure is not known; or
            nothing of a judged split is relevant.
    """
    names = names or collection.judged_splits()[:1]
    if not names:
        raise UserError(
            f"{collection.directory} has no split other than train with qrels, only {', '.join(collection.splits)}; "
            "name those to rank by --split"
        )
    splits = []
    for name in dict.fromkeys(names):
        collection.check_split(name)
        level = relevance_level or collection.relevance_level(name)
        splits.append(all_queries(collection, name, choose_metrics(metrics, level, collection.is_of_documents)))
    check_levels(splits)
    return splits


def check_levels(splits: Sequence[RankedSplit]) -> None:
    """UserError where nothing of a judged split is relevant."""
    for split in splits:
        level = split.choice.relevance_level
        grades = [grade for passages in split.judgements.values() for grade in passages.values()]
        if level > 1 and grades and max(grades) < level:
            advice = "give" if len(splits) == 1 else f"evaluate {split.name} by itself with"
            raise UserError(
                f"relevant is grade {level} and above, the highest grade of {split.name} is {max(grades)}: nothing "
                f"would be relevant; {advice} a lower --relevance_level"
            )


def rows_by_split(splits: Sequence[RankedSplit]) -> tuple[list[str], list[np.ndarray]]:
    """The ids of all queries, each once; and the row among them of each split's: splits may share queries."""
    row_of: dict[str, int] = {}
    rows = [np.array([row_of.setdefault(name, len(row_of)) for name in split.query_ids], np.int64) for split in splits]
    return list(row_of), rows


def check_same_queries(splits: Sequence[RankedSplit]) -> None:
    """UserError where two splits have an id for different queries: a file's list for it can be of one of them alone.

    DPR's ids are places in a file, so they begin at 0 in each split.
    """
    for first, second in combinations(splits, 2):
        row_of = dict(zip(first.query_ids, first.query_Q.tolist(), strict=True))
        shared = [
            (query_id, row_of[query_id], row)
            for query_id, row in zip(second.query_ids, second.query_Q.tolist(), strict=True)
            if query_id in row_of
        ]
        tokens = zip(
            first.tokens_of([row for _, row, _ in shared]), second.tokens_of([row for *_, row in shared]), strict=True
        )
        for (query_id, *_), (one, other) in zip(shared, tokens, strict=True):
            if not np.array_equal(one, other):
                raise UserError(
                    f"one run cannot be of {first.name} and {second.name}, whose ids are the same for other queries "
                    f"(the first is {query_id}): evaluate one --split at a time"
                )


def read_candidates_of(path: Path, splits: Sequence[RankedSplit], passage_ids: Sequence[str]) -> list[np.ndarray]:
    """Lists to rerank of each split's queries: passages_QK int64, -1 after a list's end.

    UserError as `read_lists_to_rerank`.
    """
    query_ids, rows = rows_by_split(splits)
    passages_QK = read_lists_to_rerank(path, query_ids, passage_ids)
    return [passages_QK[rows_Q] for rows_Q in rows]


def read_run_of(
    path: Path, splits: Sequence[RankedSplit], passage_ids: Sequence[str], unknown_ids: dict[str, int]
) -> tuple[GivenRun, list[tuple[np.ndarray, np.ndarray]]]:
    """A run for all splits' queries, and each split's passages_QK and scores_QK.

    Args:
        path: the file.
        splits: whose queries are wanted.
        passage_ids: of the collection.
        unknown_ids: numbers of other passages, as `read_run` takes them.

    Raises:
        UserError: as `read_run`.
    """
    query_ids, rows = rows_by_split(splits)
    found = read_run(path, query_ids, passage_ids, unknown_ids)
    return found, [(found.passages_QK[rows_Q], found.scores_QK[rows_Q]) for rows_Q in rows]


def describe_splits(splits: Sequence[RankedSplit]) -> str:
    """What is ranked and measured of each split. UserError where qrels name what is not there."""
    return f"splits: {' | '.join(split.describe() for split in splits)}"


def check_run(path: Path, flag: str) -> None:
    """UserError where a run is not there, is not what an evaluation published, or ends wrongly."""
    if not path.is_file():
        raise UserError(f"{flag} {path} is missing, expected a run: TREC's six columns, or query, passage and rank")
    check_as_published(path)
    check_ends(path)
