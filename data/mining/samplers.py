"""What each word of the strategy language takes of a query's candidates, or beyond them: one function for each kind.

A new word is declared in utils/declared/strategies.py and has its entry here, in `FROM_CANDIDATES` or
`BEYOND_CANDIDATES`; its row in docs/strategies.md comes from the declaration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.mining.candidates import Candidates
from data.mining.keyed_random import (
    FOR_LATER_SAMPLERS,
    FOR_NEGATIVES,
    exponential_keys,
    k_smallest_mask,
    random_keys,
    repeats_in_row,
)
from data.mining.negative_lists import is_positive
from data.mining.strategy import Phase, Sampler
from utils.errors import UserError


@dataclass(frozen=True)
class CandidatePool:
    """The candidates of Q queries as the samplers of a strategy see them, all [Q] or [Q, K]."""

    candidates: Candidates
    excluded: tuple[np.ndarray, np.ndarray]  # (query_P, passage_P) that are no negatives, sorted
    positive_rank_Q: np.ndarray  # of the positive of the query's line; K + 1 where it was not retrieved
    usable_QK: np.ndarray  # may be taken, as far as the filters and the qrels go
    seed: int
    refresh: int

    @property
    def rank_1K(self) -> np.ndarray:
        return np.arange(1, self.usable_QK.shape[1] + 1)[None, :]

    def keys(self, sampler: int, width: int) -> np.ndarray:
        """The keys of the mixture's ``sampler``-th draw."""
        purpose = FOR_LATER_SAMPLERS + sampler if sampler else FOR_NEGATIVES
        return random_keys(self.seed, self.refresh, purpose, self.candidates.query_Q, width)


def apply_strategy(
    pool: CandidatePool, phase: Phase, passages: int, bm25: Candidates | None
) -> tuple[np.ndarray, np.ndarray]:
    """What the samplers of a phase take, one after the other.

    Args:
        pool: The candidates of Q queries.
        phase: The samplers; a later one takes nothing that an earlier one has.
        passages: How many the collection has.
        bm25: BM25's candidates of at least these queries, for a word that takes from them.
    Returns:
        bool [Q, K], of the candidates; and int64 [Q, M], passages that are none of them, -1 for no passage.
    Raises:
        UserError: BM25's candidates lack a query.
    """
    taken_QK = np.zeros_like(pool.usable_QK)
    outside_QM = np.empty((len(taken_QK), 0), np.int64)
    for number, sampler in enumerate(phase.samplers):
        if sampler.kind in FROM_CANDIDATES:
            available_QK = pool.usable_QK & ~taken_QK
            taken_QK = taken_QK | sample_mask(sampler, pool, available_QK, number)
            continue
        outside = Outside(pool, ExclusionMask(pool, taken_QK, outside_QM), passages, bm25)
        drawn_QM = BEYOND_CANDIDATES[sampler.kind](sampler.count, outside, number)
        # What the search has returned as well keeps its rank and score.
        place_QM = pool.candidates.columns_of(drawn_QM)
        row, column = np.nonzero(place_QM >= 0)
        taken_QK[row, place_QM[row, column]] = True
        outside_QM = np.concatenate([outside_QM, np.where(place_QM < 0, drawn_QM, -1)], axis=1)
    return taken_QK, outside_QM


def sample_mask(sampler: Sampler, pool: CandidatePool, available_QK: np.ndarray, number: int) -> np.ndarray:
    """What one sampler takes of the available candidates.

    Args:
        sampler: A word that takes from candidates, with its numbers.
        pool: The candidates.
        available_QK: bool [Q, K], what may be taken.
        number: The sampler's place in its mixture, from 0: which of the query's random keys are its own.
    Returns:
        bool [Q, K]
    """
    within_QK = available_QK & (distance(sampler, pool) == 0)
    return FROM_CANDIDATES[sampler.kind].take(sampler, pool, within_QK, number)


# What a word takes.


def best_ranked(sampler: Sampler, pool: CandidatePool, available_QK: np.ndarray, number: int) -> np.ndarray:
    """The first of the ranking.

    Args: those of `sample_mask`, the window taken off already.
    """
    return available_QK & (np.cumsum(available_QK, axis=1) <= sampler.count)


def worst_ranked(sampler: Sampler, pool: CandidatePool, available_QK: np.ndarray, number: int) -> np.ndarray:
    """The last of the ranking.

    Args: those of `sample_mask`, the window taken off already.
    """
    return available_QK & (np.cumsum(available_QK[:, ::-1], axis=1)[:, ::-1] <= sampler.count)


def drawn_evenly(sampler: Sampler, pool: CandidatePool, available_QK: np.ndarray, number: int) -> np.ndarray:
    """Each available candidate with the same chance; all of them where the sampler has no number.

    Args: those of `sample_mask`, the window taken off already.
    """
    if not sampler.count:
        return available_QK
    return k_smallest_mask(pool.keys(number, available_QK.shape[1]), available_QK, sampler.count)


def drawn_by_rank(sampler: Sampler, pool: CandidatePool, available_QK: np.ndarray, number: int) -> np.ndarray:
    """A rank's chance is in proportion to one over it.

    Args: those of `sample_mask`, the window taken off already.
    """
    keys_QK = exponential_keys(pool.keys(number, available_QK.shape[1]), 1.0 / pool.rank_1K)
    return k_smallest_mask(keys_QK, available_QK, sampler.count)


# A word's window of ranks: the first and the last, int64 [1, 1] or [Q, 1].


def declared_window(sampler: Sampler, pool: CandidatePool) -> tuple[np.ndarray, np.ndarray]:
    assert sampler.window is not None, f"{sampler.kind} declares no window"
    first, last = sampler.window
    return np.array([[first]]), np.array([[last]])


def window_around_positive(sampler: Sampler, pool: CandidatePool) -> tuple[np.ndarray, np.ndarray]:
    rank_Q1, reach = pool.positive_rank_Q[:, None], sampler.numbers["reach"]
    return rank_Q1 - reach, rank_Q1 + reach


@dataclass(frozen=True)
class FromCandidates:
    """How a word takes candidates. ``window`` None: of all ranks; else it is what --on_shortage widen makes wider."""

    take: Callable[[Sampler, CandidatePool, np.ndarray, int], np.ndarray]
    window: Callable[[Sampler, CandidatePool], tuple[np.ndarray, np.ndarray]] | None = None


FROM_CANDIDATES: dict[str, FromCandidates] = {
    "top": FromCandidates(best_ranked),
    "bottom": FromCandidates(worst_ranked),
    "random": FromCandidates(drawn_evenly),
    "ranks": FromCandidates(drawn_evenly, declared_window),
    "log-uniform": FromCandidates(drawn_by_rank),
    "around-positive": FromCandidates(drawn_evenly, window_around_positive),
}


def distance(sampler: Sampler, pool: CandidatePool) -> np.ndarray:
    """Ranks between each candidate and the sampler's window, 0 within it: int64, [1, K] or [Q, K]."""
    window = FROM_CANDIDATES[sampler.kind].window
    if window is None:
        return np.zeros_like(pool.rank_1K)
    first_Q1, last_Q1 = window(sampler, pool)
    return np.maximum(0, np.maximum(first_Q1 - pool.rank_1K, pool.rank_1K - last_Q1))


def widen(pool: CandidatePool, phase: Phase, taken_QK: np.ndarray, missing_Q: np.ndarray) -> np.ndarray:
    """Give the queries that have too few the usable candidates nearest to a window of the phase, the better rank first.

    Args:
        pool: The candidates.
        phase: Its samplers with a window, or all that take from candidates where none has one, say what is near.
        taken_QK: bool [Q, K], what was taken.
        missing_Q: int64 [Q], how many more each query should have.
    Returns:
        bool [Q, K]: ``taken_QK`` and what was added.
    """
    ranked = [sampler for sampler in phase.samplers if sampler.kind in FROM_CANDIDATES]
    ranked = [sampler for sampler in ranked if FROM_CANDIDATES[sampler.kind].window is not None] or ranked
    short = np.flatnonzero(missing_Q > 0)
    if not ranked or not len(short):
        return taken_QK
    width = taken_QK.shape[1]
    distances = [np.broadcast_to(distance(sampler, pool), taken_QK.shape)[short] for sampler in ranked]
    order_SK = np.minimum.reduce(distances) * (width + 1) + pool.rank_1K
    free_SK = pool.usable_QK[short] & ~taken_QK[short]
    order_SK = np.where(free_SK, order_SK, np.iinfo(np.int64).max)
    place_SK = np.argsort(np.argsort(order_SK, axis=1, kind="stable"), axis=1, kind="stable")
    taken_QK = taken_QK.copy()
    taken_QK[short] |= free_SK & (place_SK < missing_Q[short, None])
    return taken_QK


# Passages that need not be candidates


@dataclass(frozen=True)
class ExclusionMask:
    """What a sampler beyond the candidates may not take: positives, dropped candidates, what was taken before."""

    pool: CandidatePool
    taken_QK: np.ndarray
    outside_QM: np.ndarray

    def __call__(self, passage_QM: np.ndarray) -> np.ndarray:
        """bool [Q, M]"""
        query_Q1 = self.pool.candidates.query_Q[:, None]
        place_QM = self.pool.candidates.columns_of(passage_QM)
        free_QK = self.pool.usable_QK & ~self.taken_QK
        is_free_QM = np.take_along_axis(free_QK, np.maximum(place_QM, 0), axis=1)
        refused_QM = (passage_QM < 0) | ((place_QM >= 0) & ~is_free_QM)
        refused_QM |= is_positive(query_Q1, passage_QM, self.pool.excluded)
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


@dataclass(frozen=True)
class Outside:
    """What a sampler beyond the candidates takes from: a collection of so many passages, or BM25's candidates."""

    pool: CandidatePool
    excluded: ExclusionMask
    passages: int
    bm25: Candidates | None


def from_corpus(count: int, outside: Outside, number: int) -> np.ndarray:
    """``count`` different passages of the collection for each query, each with the same chance."""
    pool, excluded, passages = outside.pool, outside.excluded, outside.passages
    width = pool.usable_QK.shape[1]
    if passages <= 4 * (count + width):  # few: all of them in an order drawn for the query
        keys_QN = pool.keys(number, passages)
        passage_QN = np.argsort(keys_QN, axis=1, kind="stable")
        return first_allowed(passage_QN, ~excluded(passage_QN), count)
    drawn = 2 * count
    while True:  # a row's draws continue where they ended: it is the same whatever others need
        passage_QM = (pool.keys(number, drawn) % np.uint64(passages)).astype(np.int64)
        allowed_QM = ~excluded(passage_QM) & ~repeats_in_row(passage_QM)
        if (allowed_QM.sum(1) >= count).all() or drawn > 64 * count:
            return first_allowed(passage_QM, allowed_QM, count)
        drawn *= 2


def from_bm25(count: int, outside: Outside, number: int) -> np.ndarray:
    """The best ``count`` of each query's BM25 candidates. UserError where a query has none."""
    pool, excluded, bm25 = outside.pool, outside.excluded, outside.bm25
    assert bm25 is not None, "the strategy needs BM25's candidates"
    query_Q, order = pool.candidates.query_Q, np.argsort(bm25.query_Q)
    found_Q = order[np.minimum(np.searchsorted(bm25.query_Q, query_Q, sorter=order), len(order) - 1)]
    missing_Q = bm25.query_Q[found_Q] != query_Q
    if missing_Q.any():
        raise UserError(
            f"BM25's candidates lack {missing_Q.sum()} of {len(query_Q)} queries, such as {query_Q[missing_Q][0]}; "
            "make them from the same --data_dir"
        )
    passage_QM = bm25.passage_QK[found_Q]
    return first_allowed(passage_QM, ~excluded(passage_QM), count)


BEYOND_CANDIDATES: dict[str, Callable[[int, Outside, int], np.ndarray]] = {"corpus": from_corpus, "bm25": from_bm25}
