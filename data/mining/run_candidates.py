"""Anyone's run as the candidates of the train queries: its ranks and scores in place of a search's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.mining.candidates import Candidates
from data.sources.qrels import MOST_UNKNOWN
from data.tokens.collection import Preprocessed
from utils.errors import UserError
from utils.exchange.atomic import sha256_of
from utils.exchange.evaluations import DEV, TRAIN
from utils.ir.metrics import DEPTH_OF_RECORD, always_measured, deepest_cutoff, evaluate
from utils.ir.runs import GivenRun, read_run
from utils.run_log import say
from utils.search.ranked_lists import without, without_own


@dataclass(frozen=True)
class RunCandidates:
    """``record`` says of a run what a refresh's record says of a search; without ``has_scores`` it has ranks alone."""

    candidates: Candidates
    record: dict[str, object]
    has_scores: bool


@dataclass(frozen=True)
class Lists:
    """A run's lists of a split's queries with a positive, by offset; passages that the collection lacks are not there.

    ``query_Q`` int64, ``passages_QK`` int64 and ``scores_QK`` float32, -1 and -inf after a list's end.
    """

    query_Q: np.ndarray
    passages_QK: np.ndarray
    scores_QK: np.ndarray

    @property
    def has_list_Q(self) -> np.ndarray:
        return np.asarray((self.passages_QK >= 0).any(axis=1))


def read_run_candidates(path: Path, collection: Preprocessed) -> RunCandidates:
    """Lists of the train queries with a positive, and what the run is worth on the dev split, else on train.

    Args:
        path: a run, as `read_run` reads it.
        collection: whose queries and passages it is over.

    Raises:
        UserError: a line cannot be read, the run has no list for a train query, or over 1% of it is not in the
            collection.
    """
    others = [split for split in collection.splits if split != TRAIN and collection.has_qrels(split)]
    splits = [TRAIN, *([collection.dev_split()] if others else [])]
    run, lists = lists_of_splits(path, collection, splits)
    train = lists[TRAIN]
    has_list_Q = train.has_list_Q
    if not has_list_Q.any():
        raise UserError(f"{path} has a list for no train query with a positive; give a run over the train queries")
    measured = splits[-1] if lists[splits[-1]].has_list_Q.any() else TRAIN
    say(describe(path, run, train, measured))
    candidates = Candidates(train.query_Q[has_list_Q], train.passages_QK[has_list_Q], train.scores_QK[has_list_Q])
    return RunCandidates(candidates, record_of(path, collection, measured, lists[measured]), run.has_scores)


def lists_of_splits(path: Path, collection: Preprocessed, splits: list[str]) -> tuple[GivenRun, dict[str, Lists]]:
    """The run, and its lists of each split, whose queries may be the same. UserError as `read_run_candidates`."""
    queries: dict[str, np.ndarray] = {}
    row_of: dict[str, int] = {}
    rows: dict[str, np.ndarray] = {}
    for split in splits:
        ids = collection.queries(split).original_ids()
        queries[split] = collection.qrels(split).queries_with_positive()
        rows[split] = np.array([row_of.setdefault(ids[q], len(row_of)) for q in queries[split].tolist()], np.int64)
    passage_ids = collection.passages.stored_ids()
    run = read_run(path, list(row_of), passage_ids)
    entries = int((run.passages_QK >= 0).sum())
    if run.unknown > MOST_UNKNOWN * entries:
        raise UserError(
            f"{path}: {run.unknown:,} of {entries:,} passages are not in {collection.directory}, expected at most 1%; "
            "give a run over this collection"
        )
    known = without(run.passages_QK, run.scores_QK, run.passages_QK >= len(passage_ids))
    found = {}
    for split, query_Q in queries.items():
        own_Q = collection.own_passage_Q(split, query_Q)
        passages_QK, scores_QK = known[0][rows[split]], known[1][rows[split]]
        found[split] = Lists(query_Q, *without_own(passages_QK, scores_QK, own_Q, passages_QK.shape[1]))
    return run, found


def describe(path: Path, run: GivenRun, train: Lists, measured: str) -> str:
    """What of the run is used, and what is not.

    Args:
        path, run: the run.
        train: its lists of the train queries.
        measured: the split that its record is of.
    """
    parts = [f"{path}: candidates of {int(train.has_list_Q.sum()):,} of {len(train.query_Q):,} train queries"]
    parts += run.remarks("; what is ranked below them moves up")
    if measured != DEV:
        parts.append(f"it is measured on {measured}")
    return "; ".join(parts)


def record_of(path: Path, collection: Preprocessed, split: str, lists: Lists) -> dict[str, object]:
    """Of a run, under the keys of a refresh's record: ANCE's measures (at 10, however short the lists are) of a split.

    Args:
        path: the run.
        collection: that it is over.
        split: that is measured.
        lists: of its queries.
    """
    width, passages = lists.passages_QK.shape[1], len(collection.passages)
    depth = deepest_cutoff(max(width, DEPTH_OF_RECORD), passages)
    judgements: Mapping[int, Mapping[int, int]] = collection.qrels(split).as_dict()
    choice = always_measured(collection.relevance_level(split))
    metrics = evaluate(judgements, lists.query_Q, lists.passages_QK, depth, choice)
    return {
        "ndcg": metrics["ndcg@10"],
        "mrr": metrics["mrr@10"],
        "metrics": metrics,
        "checkpoint": str(path),
        "step": 0,
        **({} if split == DEV else {"dev_split": split}),
        "collection_fingerprint": collection.manifest["collection_fingerprint"],
        "candidates": {"sha256": sha256_of(path)},
    }
