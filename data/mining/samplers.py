"""What each word of the strategy language takes of a query's candidates, or beyond them: one function for each kind.

A new kind takes three lines: its word in data/mining/strategy.py, what `distance` or `chosen_by` makes of it here, and
a row in docs/strategies.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.mining.candidates import Candidates
from data.mining.keyed_random import FOR_LATER_PARTS, FOR_NEGATIVES, as_races, random_keys, repeats_in_row, smallest
from data.mining.negative_lists import is_positive
from data.mining.strategy import OUTSIDE, WINDOWED, Part, Stage
from utils.errors import UserError


@dataclass(frozen=True)
class View:
    """The candidates of Q queries as the parts of a strategy see them, all [Q] or [Q, K]."""

    candidates: Candidates
    positives: tuple[np.ndarray, np.ndarray]
    positive_rank_Q: np.ndarray  # of the positive of the query's line; K + 1 where it was not retrieved
    usable_QK: np.ndarray  # may be taken, as far as the filters and the qrels go
    seed: int
    refresh: int

    @property
    def rank_1K(self) -> np.ndarray:
        return np.arange(1, self.usable_QK.shape[1] + 1)[None, :]

    def keys(self, part: int, width: int) -> np.ndarray:
        """The keys of the mixture's ``part``-th draw."""
        purpose = FOR_LATER_PARTS + part if part else FOR_NEGATIVES
        return random_keys(self.seed, self.refresh, purpose, self.candidates.query_Q, width)


def take(view: View, stage: Stage, passages: int, bm25: Candidates | None) -> tuple[np.ndarray, np.ndarray]:
    """taken_QK of the candidates, and outside_QM: passages that are none, -1 for no passage."""
    taken_QK = np.zeros_like(view.usable_QK)
    outside_QM = np.empty((len(taken_QK), 0), np.int64)
    for number, part in enumerate(stage.parts):
        if part.kind not in OUTSIDE:
            available_QK = view.usable_QK & ~taken_QK
            taken_QK = taken_QK | chosen_by(part, view, available_QK, number)
            continue
        refused = Refused(view, taken_QK, outside_QM)
        if part.kind == "corpus":
            drawn_QM = from_corpus(part.count, passages, view, refused, number)
        else:
            drawn_QM = from_bm25(part.count, view, refused, bm25)
        # What the search has returned as well keeps its rank and score.
        place_QM = view.candidates.columns_of(drawn_QM)
        row, column = np.nonzero(place_QM >= 0)
        taken_QK[row, place_QM[row, column]] = True
        outside_QM = np.concatenate([outside_QM, np.where(place_QM < 0, drawn_QM, -1)], axis=1)
    return taken_QK, outside_QM


def chosen_by(part: Part, view: View, available_QK: np.ndarray, number: int) -> np.ndarray:
    """bool [Q, K]: what the part takes of the available candidates."""
    available_QK = available_QK & (distance(part, view) == 0)
    if part.kind == "top":
        return available_QK & (np.cumsum(available_QK, axis=1) <= part.count)
    if part.kind == "bottom":
        return available_QK & (np.cumsum(available_QK[:, ::-1], axis=1)[:, ::-1] <= part.count)
    if not part.count:
        return available_QK
    keys_QK = view.keys(number, available_QK.shape[1])
    if part.kind == "log-uniform":
        keys_QK = as_races(keys_QK, 1.0 / view.rank_1K)
    return smallest(keys_QK, available_QK, part.count)


def distance(part: Part, view: View) -> np.ndarray:
    """Ranks between each candidate and the part's window, 0 within it: int64, [1, K] or [Q, K]."""
    if part.kind == "ranks":
        first, last = np.array(part.first), np.array(part.last)
    elif part.kind == "around-positive":
        first, last = view.positive_rank_Q[:, None] - part.reach, view.positive_rank_Q[:, None] + part.reach
    else:
        return np.zeros_like(view.rank_1K)
    return np.maximum(0, np.maximum(first - view.rank_1K, view.rank_1K - last))


def widen(view: View, stage: Stage, taken_QK: np.ndarray, missing_Q: np.ndarray) -> np.ndarray:
    """taken_QK with so many more: the usable candidates nearest to a window of the strategy, the better rank first."""
    ranked = [part for part in stage.parts if part.kind not in OUTSIDE]
    ranked = [part for part in ranked if part.kind in WINDOWED] or ranked
    short = np.flatnonzero(missing_Q > 0)
    if not ranked or not len(short):
        return taken_QK
    width = taken_QK.shape[1]
    distances = [np.broadcast_to(distance(part, view), taken_QK.shape)[short] for part in ranked]
    order_SK = np.minimum.reduce(distances) * (width + 1) + view.rank_1K
    free_SK = view.usable_QK[short] & ~taken_QK[short]
    order_SK = np.where(free_SK, order_SK, np.iinfo(np.int64).max)
    place_SK = np.argsort(np.argsort(order_SK, axis=1, kind="stable"), axis=1, kind="stable")
    taken_QK = taken_QK.copy()
    taken_QK[short] |= free_SK & (place_SK < missing_Q[short, None])
    return taken_QK


# Passages that need not be candidates


@dataclass(frozen=True)
class Refused:
    """What a part that looks beyond the candidates may not take: positives, dropped candidates, earlier parts'."""

    view: View
    taken_QK: np.ndarray
    outside_QM: np.ndarray

    def __call__(self, passage_QM: np.ndarray) -> np.ndarray:
        """bool [Q, M]"""
        query_Q1 = self.view.candidates.query_Q[:, None]
        place_QM = self.view.candidates.columns_of(passage_QM)
        free_QK = self.view.usable_QK & ~self.taken_QK
        is_free_QM = np.take_along_axis(free_QK, np.maximum(place_QM, 0), axis=1)
        refused_QM = (passage_QM < 0) | ((place_QM >= 0) & ~is_free_QM)
        refused_QM |= is_positive(query_Q1, passage_QM, self.view.positives)
        for column_Q in self.outside_QM.T:
            refused_QM |= passage_QM == column_Q[:, None]
        return refused_QM


def first_allowed(passage_QM: np.ndarray, allowed_QM: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` allowed passages of each row, -1 after the last: int64 [Q, count]."""
    order_QM = np.argsort(~allowed_QM, axis=1, kind="stable")[:, :count]
    found_QM = np.where(
        np.take_along_axis(allowed_QM, order_QM, axis=1), np.take_along_axis(passage_QM, order_QM, axis=1), -1
    )
    return np.pad(found_QM, ((0, 0), (0, count - found_QM.shape[1])), constant_values=-1)


def from_corpus(count: int, passages: int, view: View, refused: Refused, number: int) -> np.ndarray:
    """``count`` different passages of the collection for each query, each with the same chance."""
    width = view.usable_QK.shape[1]
    if passages <= 4 * (count + width):  # few: all of them in an order drawn for the query
        keys_QN = view.keys(number, passages)
        passage_QN = np.argsort(keys_QN, axis=1, kind="stable")
        return first_allowed(passage_QN, ~refused(passage_QN), count)
    drawn = 2 * count
    while True:  # a row's draws go on where they ended: it is the same whatever others need
        passage_QM = (view.keys(number, drawn) % np.uint64(passages)).astype(np.int64)
        allowed_QM = ~refused(passage_QM) & ~repeats_in_row(passage_QM)
        if (allowed_QM.sum(1) >= count).all() or drawn > 64 * count:
            return first_allowed(passage_QM, allowed_QM, count)
        drawn *= 2


def from_bm25(count: int, view: View, refused: Refused, bm25: Candidates | None) -> np.ndarray:
    """The best ``count`` of each query's BM25 candidates. UserError where a query has none."""
    assert bm25 is not None, "the strategy needs BM25's candidates"
    query_Q, order = view.candidates.query_Q, np.argsort(bm25.query_Q)
    found_Q = order[np.minimum(np.searchsorted(bm25.query_Q, query_Q, sorter=order), len(order) - 1)]
    missing_Q = bm25.query_Q[found_Q] != query_Q
    if missing_Q.any():
        raise UserError(
            f"BM25's candidates lack {missing_Q.sum()} of {len(query_Q)} queries, such as {query_Q[missing_Q][0]}; "
            "make them from the same --data_dir"
        )
    passage_QM = bm25.passage_QK[found_Q]
    return first_allowed(passage_QM, ~refused(passage_QM), count)
