"""The strategies, against a plain loop over queries, and the statistics of the random draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.negatives import (
    FOR_LINE_ORDER,
    FOR_NEGATIVES,
    FOR_POSITIVES,
    STRATEGIES,
    Candidates,
    choose_positives,
    chunk_of_queries,
    describe_selection,
    random_keys,
    select_columns,
    select_negatives,
)
from data.training_data import NegativeLists

PASSAGES = 40


@dataclass(frozen=True)
class Query:
    """What a plain loop needs to know of one query."""

    offset: int
    retrieved: list[int]  # best first
    scores: list[float]
    positives: set[int]

    def others(self) -> list[tuple[int, int, float]]:
        """(passage, rank, score) of the retrieved passages that are no positives, best first."""
        rows = zip(self.retrieved, range(1, len(self.retrieved) + 1), self.scores, strict=True)
        return [row for row in rows if row[0] not in self.positives]


@st.composite
def query_lists(draw: st.DrawFn) -> list[Query]:
    width = draw(st.integers(1, 12))
    queries = []
    for offset in draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=8, unique=True)):
        found = draw(st.lists(st.integers(0, PASSAGES - 1), max_size=width, unique=True))
        scores = draw(st.lists(st.floats(-50, 50, width=32), min_size=len(found), max_size=len(found)))
        some = st.sampled_from(found) if found else st.integers(0, PASSAGES - 1)
        positives = draw(st.sets(st.one_of(some, st.integers(0, PASSAGES - 1)), min_size=1, max_size=5))
        queries.append(Query(offset, found, sorted(scores, reverse=True), positives))
    return queries


def as_candidates(queries: list[Query], width: int) -> Candidates:
    passage_QK = np.full((len(queries), width), -1, np.int64)
    score_QK = np.full((len(queries), width), -np.inf, np.float32)
    for i, query in enumerate(queries):
        passage_QK[i, : len(query.retrieved)] = query.retrieved
        score_QK[i, : len(query.scores)] = query.scores
    return Candidates(np.array([query.offset for query in queries]), passage_QK, score_QK)


def as_positives(queries: list[Query]) -> tuple[np.ndarray, np.ndarray]:
    pairs = sorted((query.offset, passage) for query in queries for passage in query.positives)
    return np.array([query for query, _ in pairs]), np.array([passage for _, passage in pairs])


def by_query(lists: NegativeLists) -> dict[int, tuple[int, list[tuple[int, int, float]]]]:
    """{query: (positive, [(negative, rank, score)])}; asserts that padding is -1, 0, 0 and only at a row's end."""
    rows = {}
    for i, query in enumerate(lists.query_Q.tolist()):
        row = list(
            zip(lists.negative_QN[i].tolist(), lists.rank_QN[i].tolist(), lists.score_QN[i].tolist(), strict=True)
        )
        chosen = [entry for entry in row if entry[0] >= 0]
        assert row == chosen + [(-1, 0, 0.0)] * (len(row) - len(chosen))
        rows[query] = (int(lists.positive_Q[i]), chosen)
    assert len(rows) == len(lists.query_Q)
    return rows


def expected_members(strategy: str, others: list[tuple[int, int, float]], count: int) -> list[tuple[int, int, float]]:
    if strategy == "top":
        return others[:count]
    if strategy == "bottom":
        return others[max(len(others) - count, 0) :]
    return [row for i, row in enumerate(others) if i < count or i >= len(others) - count]


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=60, deadline=None)
@given(queries=query_lists(), count=st.integers(1, 8), seed=st.integers(0, 2**31), refresh=st.integers(0, 50))
def test_members_are_those_of_a_plain_loop(
    strategy: str, queries: list[Query], count: int, seed: int, refresh: int
) -> None:
    width = max(1, *(len(query.retrieved) for query in queries))
    lists = select_negatives(as_candidates(queries, width), as_positives(queries), strategy, count, seed, refresh)
    asked = 2 * count if strategy == "top_bottom" else count
    assert lists.negative_QN.shape == lists.rank_QN.shape == lists.score_QN.shape == (len(queries), asked)
    assert lists.score_QN.dtype == np.float32
    found = by_query(lists)
    assert set(found) == {query.offset for query in queries}
    for query in queries:
        positive, negatives = found[query.offset]
        others = query.others()
        assert positive in query.positives
        members = [passage for passage, _, _ in negatives]
        assert not set(members) & query.positives
        assert len(set(members)) == len(members)
        if strategy == "random":
            assert len(negatives) == min(count, len(others))
            assert negatives == [row for row in others if row in negatives]  # by rank, with its own rank and score
        else:
            assert negatives == expected_members(strategy, others, count)


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=40, deadline=None)
@given(queries=query_lists(), count=st.integers(1, 8), data=st.data())
def test_batching_and_order_of_the_queries_change_nothing(
    strategy: str, queries: list[Query], count: int, data: st.DataObject
) -> None:
    width = max(1, *(len(query.retrieved) for query in queries))
    positives = as_positives(queries)
    whole = select_negatives(as_candidates(queries, width), positives, strategy, count, 5, 3)
    rows: dict[int, object] = {}
    for query in queries:
        rows |= by_query(select_negatives(as_candidates([query], width), positives, strategy, count, 5, 3))
    assert rows == by_query(whole)
    shuffled = data.draw(st.permutations(queries))
    again = select_negatives(as_candidates(shuffled, width), positives, strategy, count, 5, 3)
    for name in ("query_Q", "positive_Q", "negative_QN", "rank_QN", "score_QN"):
        assert np.array_equal(getattr(again, name), getattr(whole, name)), name


def plain_candidates(queries: int, width: int) -> tuple[Candidates, tuple[np.ndarray, np.ndarray]]:
    """Every query finds passages 0 to width - 1 in this order; its positive is none of them."""
    query_Q = np.arange(queries, dtype=np.int64)
    passage_QK = np.broadcast_to(np.arange(width), (queries, width))
    return Candidates(query_Q, passage_QK, -passage_QK.astype(np.float32)), (query_Q, np.full(queries, width))


def members(candidates: Candidates, positives: tuple[np.ndarray, np.ndarray], seed: int, refresh: int) -> np.ndarray:
    """Which of the candidates the random strategy chose: bool [Q, K], by query."""
    lists = select_negatives(candidates, positives, "random", 5, seed, refresh)
    chosen_QK = np.zeros(candidates.passage_QK.shape, bool)
    np.put_along_axis(chosen_QK, lists.negative_QN[np.argsort(lists.query_Q)], True, axis=1)
    return chosen_QK


def test_random_draws_repeat_for_one_seed_and_refresh_and_are_independent_otherwise() -> None:
    candidates, positives = plain_candidates(4000, 20)
    first = members(candidates, positives, 1, 0)
    assert np.array_equal(first, members(candidates, positives, 1, 0))
    for seed, refresh in ((1, 1), (2, 0), (0, 1)):
        other = members(candidates, positives, seed, refresh)
        # Independent draws of 5 from 20 have 1.25 in common, with a standard deviation of 0.86 (hypergeometric).
        common = (first & other).sum(1)
        assert abs(common.mean() - 1.25) < 4 * 0.861 / np.sqrt(4000)
    neighbours = (first[1:] & first[:-1]).sum(1)
    assert abs(neighbours.mean() - 1.25) < 4 * 0.861 / np.sqrt(4000)


def chi_square(counts: np.ndarray, expected: float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_random_draws_include_each_candidate_with_probability_n_of_k() -> None:
    queries, width, count = 20_000, 20, 5
    chosen_QK = members(*plain_candidates(queries, width), seed=3, refresh=2)
    assert (chosen_QK.sum(1) == count).all()
    share = count / width
    # Inclusion counts vary by q(1-share); the statistic scaled so is chi-square with k-1 = 19 degrees of freedom.
    statistic = chi_square(chosen_QK.sum(0), queries * share) / (1 - share) * (width - 1) / width
    assert statistic < 43.8  # 0.1 % quantile from above
    # Pairs, too: each of the 190 is drawn with probability 5/20 * 4/19.
    pair_KK = chosen_QK.T.astype(np.int64) @ chosen_QK
    expected = queries * share * (count - 1) / (width - 1)
    z = (pair_KK[np.triu_indices(width, 1)] - expected) / np.sqrt(expected * (1 - share * (count - 1) / (width - 1)))
    assert abs(z).max() < 4.5


def test_positives_are_drawn_uniformly_and_anew_each_refresh() -> None:
    queries, each = 12_000, 3
    query_P = np.repeat(np.arange(queries), each)
    positives = (query_P, query_P * 10 + np.tile(np.arange(each), queries))
    query_Q = np.arange(queries)
    drawn = choose_positives(query_Q, positives, 1, 0) - query_Q * 10
    assert chi_square(np.bincount(drawn, minlength=each), queries / each) < 13.8  # 2 degrees of freedom, 0.1 %
    assert np.array_equal(drawn, choose_positives(query_Q, positives, 1, 0) - query_Q * 10)
    again = choose_positives(query_Q, positives, 1, 1) - query_Q * 10
    assert abs((again == drawn).mean() - 1 / 3) < 4 * np.sqrt(2 / 9 / queries)


def splitmix64(state: int, outputs: int) -> list[int]:
    """The generator as published (Vigna, splitmix64.c), in Python's integers."""
    mask, found = 2**64 - 1, []
    for _ in range(outputs):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        found.append(z ^ (z >> 31))
    return found


def keys_by_hand(seed: int, refresh: int, purpose: int, query: int, width: int) -> list[int]:
    state = 0
    for word in (seed, refresh, purpose, query):
        state = splitmix64((state + word) % 2**64, 1)[0]
    return splitmix64(state, width)


def test_keys_are_splitmix64_seeded_with_seed_refresh_purpose_and_query() -> None:
    assert splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]  # published test vector
    for query in (0, 7, 2**40):
        found = random_keys(11, 3, FOR_NEGATIVES, np.array([query]), 6)
        assert found[0].tolist() == keys_by_hand(11, 3, FOR_NEGATIVES, query, 6)


def test_random_takes_the_candidates_of_the_smallest_keys() -> None:
    chosen_QK = members(*plain_candidates(30, 20), seed=11, refresh=3)
    for query in range(30):
        keys = keys_by_hand(11, 3, FOR_NEGATIVES, query, 20)
        assert set(np.flatnonzero(chosen_QK[query])) == {keys.index(key) for key in sorted(keys)[:5]}


def test_keys_differ_by_purpose_and_never_repeat_within_a_row() -> None:
    query_Q = np.arange(500)
    keys = [random_keys(1, 1, purpose, query_Q, 50) for purpose in (FOR_NEGATIVES, FOR_POSITIVES, FOR_LINE_ORDER)]
    assert len(np.unique(np.stack(keys))) == 3 * 500 * 50
    assert random_keys(-1, 0, 0, query_Q, 2).shape == (500, 2)


def test_strategies_differ_pairwise() -> None:
    candidates, positives = plain_candidates(50, 30)
    chosen = {}
    for strategy in STRATEGIES:
        lists = select_negatives(candidates, positives, strategy, 4, 1, 0)
        chosen[strategy] = {
            query: frozenset(passage for passage, _, _ in row) for query, (_, row) in by_query(lists).items()
        }
    for i, first in enumerate(STRATEGIES):
        for second in STRATEGIES[i + 1 :]:
            same = sum(chosen[first][query] == chosen[second][query] for query in range(50))
            assert same == 0, (first, second)


def test_lines_come_in_another_order_each_refresh_whatever_the_strategy() -> None:
    candidates, positives = plain_candidates(200, 5)
    orders = {
        strategy: [select_negatives(candidates, positives, strategy, 2, 1, refresh).query_Q for refresh in (0, 1)]
        for strategy in STRATEGIES
    }
    for first, second in orders.values():
        assert np.array_equal(np.sort(first), np.arange(200))
        assert not np.array_equal(first, second) and not np.array_equal(first, np.arange(200))
        assert np.array_equal(first, orders["top"][0]) and np.array_equal(second, orders["top"][1])


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown strategy 'best'"):
        select_columns("best", np.ones((1, 3), bool), 2, np.zeros((1, 3), np.uint64))


def test_the_description_names_the_decision_and_the_short_lists() -> None:
    candidates, positives = plain_candidates(1200, 3)
    whole = select_negatives(candidates, positives, "top", 3, 1, 0)
    assert describe_selection(whole, "top", 200, 3, 4, 2000) == (
        "negatives: top, 3 of 200 per query, refresh 4 from step 2000, 1,200 queries"
    )
    short = select_negatives(candidates, positives, "top_bottom", 2, 1, 0)
    assert describe_selection(short, "top_bottom", 3, 2, 0, 0) == (
        "negatives: top_bottom, 4 of 3 per query, refresh 0 from step 0, 1,200 queries, 1,200 of them with fewer than 4"
    )


@settings(max_examples=60, deadline=None)
@given(
    queries=st.lists(st.integers(0, 10**6), min_size=1, max_size=60, unique=True),
    chunk_factor=st.integers(-1, 70),
    seed=st.integers(0, 1000),
    first=st.integers(0, 30),
)
def test_chunks_of_successive_refreshes_partition_the_queries(
    queries: list[int], chunk_factor: int, seed: int, first: int
) -> None:
    query_Q = np.sort(np.array(queries))
    parts = max(1, min(chunk_factor, len(queries)))
    chunks = [chunk_of_queries(query_Q, chunk_factor, refresh, seed) for refresh in range(first, first + parts)]
    assert sorted(np.concatenate(chunks).tolist()) == query_Q.tolist()
    sizes = [len(chunk) for chunk in chunks]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
    for chunk in chunks:
        assert (np.diff(chunk) > 0).all()


def test_chunks_depend_on_the_seed_and_are_samples_not_slices() -> None:
    query_Q = np.arange(1000)
    first, other = (chunk_of_queries(query_Q, 5, 0, seed) for seed in (1, 2))
    assert not np.array_equal(first, other)
    assert abs(first.mean() - 499.5) < 4 * 288.7 / np.sqrt(200)
    assert first.max() > 900 and first.min() < 100
