"""Which of the retrieved candidates become negatives: the strategies this project compares.

A candidate's rank is its 1-based place in the raw retrieved list. Known positives are removed first,
so ``top`` takes the best ranked *others*. Everything is vectorised over queries, and a random choice
depends on (seed, refresh, query) alone: not on batching, nor on the number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.training_data import NegativeLists, is_positive
from utils.errors import UserError

STRATEGIES = ("top", "top_bottom", "bottom", "random")
NO_FLAG = "no strategy flag given"


@dataclass(frozen=True)
class Candidates:
    """What a search returned: ``passage_QK`` int64 (K above 0), best first, -1 after the end; ``score_QK`` float32."""

    query_Q: np.ndarray
    passage_QK: np.ndarray
    score_QK: np.ndarray


def resolve_strategy(
    negative_strategy: str | None,
    ann_measure_topk_mrr: bool | None,
    bottom_neg: bool | None,
    bottom_only: bool | None,
) -> tuple[str, str]:
    """The strategy's word, and the flags it came from in words.

    The three booleans are ANCE's and its fork's way to say it (drivers/run_ann_data_gen.py there).
    Raises UserError where flags contradict each other or the word is unknown.
    """
    old = {"ann_measure_topk_mrr": ann_measure_topk_mrr, "bottom_neg": bottom_neg, "bottom_only": bottom_only}
    given = {name: value for name, value in old.items() if value is not None}
    if negative_strategy is not None and negative_strategy not in STRATEGIES:
        raise UserError(f"--negative_strategy is {negative_strategy!r}, expected one of {', '.join(STRATEGIES)}")
    if not given:
        if negative_strategy is None:
            return "top", f"{NO_FLAG}; ANCE's own default is random, its fork's is top"
        return negative_strategy, "--negative_strategy"
    said = " ".join(f"--{name} {str(value).lower()}" for name, value in given.items())
    if bottom_only and not bottom_neg:
        raise UserError(
            f"{said}: --bottom_only alone meant top in ANCE's fork; write --negative_strategy bottom or top"
        )
    if bottom_neg and ann_measure_topk_mrr is False:
        raise UserError(f"{said} asks for random and for bottom negatives; write --negative_strategy with one word")
    if bottom_neg:
        meant = "bottom" if bottom_only else "top_bottom"
    else:
        meant = "random" if ann_measure_topk_mrr is False else "top"
    if negative_strategy not in (None, meant):
        raise UserError(f"{said} means {meant}, but --negative_strategy is {negative_strategy}; leave one out")
    return meant, said


def mixed_bits(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele, Lea and Flood 2014): uint64 in, well mixed uint64 out."""
    mixed = values.astype(np.uint64)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def random_keys(seed: int, refresh: int, purpose: int, query_Q: np.ndarray, width: int) -> np.ndarray:
    """uint64 keys_QW for random choices: functions of (seed, refresh, purpose, query, column) alone."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    state_Q = np.zeros(len(query_Q), np.uint64)
    for word in (seed, refresh, purpose, query_Q):
        state_Q = mixed_bits(state_Q + golden + np.asarray(word).astype(np.uint64))
    columns_W = (np.arange(1, width + 1, dtype=np.uint64)) * golden
    return mixed_bits(state_Q[:, None] + columns_W)


# What the keys are for: draws for one purpose tell nothing about another's.
FOR_NEGATIVES, FOR_POSITIVES, FOR_LINE_ORDER = range(3)


def choose_positives(
    query_Q: np.ndarray, positives: tuple[np.ndarray, np.ndarray], seed: int, refresh: int
) -> np.ndarray:
    """One known positive of each query, drawn anew each refresh; every query must have one."""
    query_P, passage_P = positives
    first_Q = np.searchsorted(query_P, query_Q, side="left")
    count_Q = np.searchsorted(query_P, query_Q, side="right") - first_Q
    keys_Q = random_keys(seed, refresh, FOR_POSITIVES, query_Q, 1)[:, 0]
    return passage_P[first_Q + (keys_Q % count_Q.astype(np.uint64)).astype(np.int64)]


def select_columns(strategy: str, eligible_QK: np.ndarray, count: int, keys_QK: np.ndarray) -> np.ndarray:
    """Columns of the chosen candidates, ascending, -1 after the last: int64 [Q, count], twice that for top_bottom.

    ``eligible_QK`` marks what may be chosen; ``keys_QK`` (distinct in a row) decides for ``random``: the smallest win.
    """
    queries, width = eligible_QK.shape
    if strategy == "random":
        drawn = min(count, width)
        keys_QK = np.where(eligible_QK, keys_QK, np.iinfo(np.uint64).max)
        largest_Q1 = np.partition(keys_QK, drawn - 1, axis=1)[:, drawn - 1 : drawn]
        eligible_QK = eligible_QK & (keys_QK <= largest_Q1)
    eligible_Q1 = eligible_QK.sum(1, keepdims=True)
    in_rank_order_QK = np.argsort(~eligible_QK, axis=1, kind="stable")
    places_1N = np.arange(count)[None, :]
    top_QN = np.broadcast_to(places_1N, (queries, count))
    if strategy in ("top", "random"):
        places_QN = top_QN
    elif strategy == "bottom":
        places_QN = np.maximum(eligible_Q1 - count, 0) + places_1N
    elif strategy == "top_bottom":
        places_QN = np.concatenate([top_QN, np.maximum(eligible_Q1 - count, count) + places_1N], axis=1)
    else:
        raise ValueError(f"unknown strategy {strategy!r}")
    columns_QN = np.take_along_axis(in_rank_order_QK, np.minimum(places_QN, width - 1), axis=1)
    return np.where(places_QN < eligible_Q1, columns_QN, -1)


def select_negatives(
    candidates: Candidates,
    positives: tuple[np.ndarray, np.ndarray],
    strategy: str,
    count: int,
    seed: int,
    refresh: int,
) -> NegativeLists:
    """The negatives of each query, with their raw ranks and scores, one drawn positive beside them.

    ``positives`` is (query_P, passage_P) int64, sorted by query then passage; every query must have one.
    Lines come in a seeded random order, as ANCE's do. A query with fewer eligible candidates than asked
    has a shorter list, possibly an empty one; nothing is repeated.
    """
    width = candidates.passage_QK.shape[1]
    keys_Q1 = random_keys(seed, refresh, FOR_LINE_ORDER, candidates.query_Q, 1)
    order_Q = np.lexsort((candidates.query_Q, keys_Q1[:, 0]))
    query_Q, passage_QK = candidates.query_Q[order_Q], candidates.passage_QK[order_Q]
    eligible_QK = (passage_QK >= 0) & ~is_positive(query_Q[:, None], passage_QK, positives)
    keys_QK = random_keys(seed, refresh, FOR_NEGATIVES, query_Q, width)
    columns_QN = select_columns(strategy, eligible_QK, count, keys_QK)
    chosen_QN = columns_QN >= 0
    at_QN = np.maximum(columns_QN, 0)
    score_QK = candidates.score_QK[order_Q]
    return NegativeLists(
        query_Q=query_Q,
        positive_Q=choose_positives(query_Q, positives, seed, refresh),
        negative_QN=np.where(chosen_QN, np.take_along_axis(passage_QK, at_QN, 1), -1),
        rank_QN=np.where(chosen_QN, columns_QN + 1, 0),
        score_QN=np.where(chosen_QN, np.take_along_axis(score_QK, at_QN, 1), 0).astype(np.float32),
    )


def describe_selection(lists: NegativeLists, strategy: str, width: int, count: int, refresh: int, step: int) -> str:
    """The decision in one line: ``negatives: bottom, 20 of 200 per query, refresh 3 from step 2000``."""
    asked = 2 * count if strategy == "top_bottom" else count
    found_Q = (lists.negative_QN >= 0).sum(1)
    short, none = int((found_Q < asked).sum()), int((found_Q == 0).sum())
    text = f"negatives: {strategy}, {asked} of {width} per query, refresh {refresh} from step {step}, "
    text += f"{len(lists.query_Q):,} queries"
    text += f", {short:,} of them with fewer than {asked}" if short else ""
    return text + (f", {none:,} with none and left out" if none else "")


def chunk_of_queries(query_Q: np.ndarray, chunk_factor: int, refresh: int, seed: int) -> np.ndarray:
    """This refresh's share of the train queries, ascending (ANCE's ``--ann_chunk_factor``).

    A seeded permutation is cut in ``chunk_factor`` parts, so that each is a fair sample and as many
    refreshes visit every query once. 1 or less means all queries, each time; no part is empty.
    """
    chunk_factor = min(chunk_factor, len(query_Q))
    if chunk_factor <= 1:
        return query_Q
    shuffled = np.random.default_rng([seed, 7]).permutation(query_Q)
    return np.sort(np.array_split(shuffled, chunk_factor)[refresh % chunk_factor])
