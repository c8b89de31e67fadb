"""The strategies, against a plain loop over queries, and the statistics of the random draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mining.candidates import Candidates
from data.mining.filters import DROPPED_BY, likely_positive
from data.mining.keyed_random import FOR_LINE_ORDER, FOR_NEGATIVES, FOR_POSITIVES, random_keys
from data.mining.negative_lists import NegativeLists
from data.mining.select import (
    Selected,
    Selection,
    choose_positives,
    chunk_of_queries,
    describe_selection,
    make_selection,
    ranks_of,
    select_negatives,
)
from data.mining.strategy import parse_strategy
from utils.declared.strategies import FILTERS, FORK_STRATEGIES, STRATEGIES, Filter
from utils.errors import UserError
from utils.flag_values import Range

PASSAGES = 40
TOPK = 10**6  # no bound on what a strategy of a test asks for


def choose(
    candidates: Candidates,
    positives: tuple[np.ndarray, np.ndarray],
    strategy: str,
    count: int,
    seed: int,
    refresh: int,
    bm25: Candidates | None = None,
    **settings: Any,
) -> Selected:
    filters = {name: settings.pop(name) for name in FILTERS if name in settings}
    selection = Selection(parse_strategy(strategy, count, TOPK), filters, **settings)
    return select_negatives(candidates, positives, selection, seed, refresh, bm25)


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


@pytest.mark.parametrize("strategy", FORK_STRATEGIES)
@settings(max_examples=60, deadline=None)
@given(queries=query_lists(), count=st.integers(1, 8), seed=st.integers(0, 2**31), refresh=st.integers(0, 50))
def test_members_are_those_of_a_plain_loop(
    strategy: str, queries: list[Query], count: int, seed: int, refresh: int
) -> None:
    width = max(1, *(len(query.retrieved) for query in queries))
    lists = choose(as_candidates(queries, width), as_positives(queries), strategy, count, seed, refresh).lists
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


@pytest.mark.parametrize("word", STRATEGIES)
@settings(max_examples=20, deadline=None)
@given(queries=query_lists(), count=st.integers(1, 8), data=st.data())
def test_batching_and_order_of_the_queries_change_nothing(
    word: str, queries: list[Query], count: int, data: st.DataObject
) -> None:
    width = max(1, *(len(query.retrieved) for query in queries))
    positives = as_positives(queries)
    strategy = STRATEGIES[word].written({"count": count, "first": 1, "last": 8, "reach": 3})
    by_words = Candidates(
        np.array([query.offset for query in queries]), *(np.tile(np.arange(6), (len(queries), 1)) for _ in range(2))
    )

    def chosen(rows: list[Query]) -> NegativeLists:
        return choose(as_candidates(rows, width), positives, strategy, count, 5, 3, by_words, passages=PASSAGES).lists

    whole = chosen(queries)
    rows: dict[int, object] = {}
    for query in queries:
        rows |= by_query(chosen([query]))
    assert rows == by_query(whole)
    again = chosen(data.draw(st.permutations(queries)))
    for name in ("query_Q", "positive_Q", "negative_QN", "rank_QN", "score_QN"):
        assert np.array_equal(getattr(again, name), getattr(whole, name)), name


def plain_candidates(queries: int, width: int) -> tuple[Candidates, tuple[np.ndarray, np.ndarray]]:
    """Every query finds passages 0 to width - 1 in this order; its positive is none of them."""
    query_Q = np.arange(queries, dtype=np.int64)
    passage_QK = np.broadcast_to(np.arange(width), (queries, width))
    return Candidates(query_Q, passage_QK, -passage_QK.astype(np.float32)), (query_Q, np.full(queries, width))


def members(candidates: Candidates, positives: tuple[np.ndarray, np.ndarray], seed: int, refresh: int) -> np.ndarray:
    """Which of the candidates the random strategy chose: bool [Q, K], by query."""
    lists = choose(candidates, positives, "random", 5, seed, refresh).lists
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


def test_positives_are_drawn_uniformly_and_again_each_refresh() -> None:
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
    for strategy in FORK_STRATEGIES:
        lists = choose(candidates, positives, strategy, 4, 1, 0).lists
        chosen[strategy] = {
            query: frozenset(passage for passage, _, _ in row) for query, (_, row) in by_query(lists).items()
        }
    for i, first in enumerate(FORK_STRATEGIES):
        for second in FORK_STRATEGIES[i + 1 :]:
            same = sum(chosen[first][query] == chosen[second][query] for query in range(50))
            assert same == 0, (first, second)


def test_lines_come_in_another_order_each_refresh_whatever_the_strategy() -> None:
    candidates, positives = plain_candidates(200, 5)
    orders = {
        strategy: [choose(candidates, positives, strategy, 2, 1, refresh).lists.query_Q for refresh in (0, 1)]
        for strategy in FORK_STRATEGIES
    }
    for first, second in orders.values():
        assert np.array_equal(np.sort(first), np.arange(200))
        assert not np.array_equal(first, second) and not np.array_equal(first, np.arange(200))
        assert np.array_equal(first, orders["top"][0]) and np.array_equal(second, orders["top"][1])


def test_the_description_names_the_decision_and_what_became_of_the_queries() -> None:
    candidates, positives = plain_candidates(1200, 3)

    def said(strategy: str, count: int, width: int, refresh: int, step: int, **settings: Any) -> str:
        chosen = choose(candidates, positives, strategy, count, 1, refresh, **settings)
        return describe_selection(chosen, parse_strategy(strategy, count, TOPK), width, refresh, step)

    assert said("top", 3, 200, 4, 2000) == (
        "negatives: top, 3 of 200 per query, refresh 4 from step 2000, 1,200 queries"
    )
    short = (
        "negatives: top_bottom, 4 of 3 per query, refresh 0 from step 0, 1,200 queries, 1,200 of them with fewer than 4"
    )
    assert said("top_bottom", 2, 3, 0, 0) == short
    assert said("top_bottom", 2, 3, 0, 0, on_shortage="skip") == short + ", 1,200 skipped"
    assert said("0-1=bottom;2-=top:2", 1, 3, 2, 7) == (
        "negatives: top:2 (0-1=bottom;2-=top:2), 2 of 3 per query, refresh 2 from step 7, 1,200 queries"
    )
    assert said("ranks:2-3", 1, 3, 0, 0, min_rank=3, on_shortage="widen") == (
        "negatives: ranks:2-3, 2 of 3 per query, refresh 0 from step 0, 1,200 queries, "
        "1,200 of them with fewer than 2; --min_rank dropped 2,400 candidates (ranks 1-5: 2,400)"
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


# The language's other words, and the filters


WORDS = (
    *("top:3+random:2", "ranks:2-5", "ranks:2-9:3", "log-uniform:4", "around-positive:3±2", "corpus:3"),
    *("corpus:2+top:3", "bm25:2+bottom:2", "random:2+bm25:3+corpus:2", "top_bottom"),
)


def plain_members(strategy: str, query: Query, bm25: list[int], count: int) -> tuple[set[int], int] | None:
    """What must be among the negatives, and how many there are; None where a draw decides it."""
    others = [(passage, rank) for passage, rank, _ in query.others()]
    if strategy == "ranks:2-5":
        chosen = {passage for passage, rank in others if 2 <= rank <= 5}
    elif strategy == "ranks:2-9:3":
        return set(), min(3, sum(2 <= rank <= 9 for _, rank in others))
    elif strategy in ("top:3+random:2",):
        return {passage for passage, _ in others[:3]}, min(5, len(others))
    elif strategy == "log-uniform:4":
        return set(), min(4, len(others))
    elif strategy == "corpus:3":
        return set(), 3
    elif strategy == "bm25:2+bottom:2":
        best = [passage for passage in bm25 if passage not in query.positives][:2]
        left = [passage for passage, _ in others if passage not in best]
        chosen = {*best, *left[max(len(left) - 2, 0) :]}
    elif strategy == "top_bottom":
        chosen = {passage for passage, _ in [*others[:count], *others[max(len(others) - count, 0) :]]}
    else:
        return None
    return chosen, len(chosen)


def test_every_declared_word_is_among_those_below() -> None:
    kinds = {sampler.kind for text in (*WORDS, *FORK_STRATEGIES) for sampler in parse_strategy(text, 2, TOPK).samplers}
    assert kinds == {word for word, declared in STRATEGIES.items() if not declared.short_for}


@pytest.mark.parametrize("strategy", WORDS)
@settings(max_examples=40, deadline=None)
@given(queries=query_lists(), seed=st.integers(0, 1000), data=st.data())
def test_every_word_of_the_language_against_a_plain_loop(
    strategy: str, queries: list[Query], seed: int, data: st.DataObject
) -> None:
    width, count = max(1, *(len(query.retrieved) for query in queries)), 2
    found_by_bm25 = [data.draw(st.lists(st.integers(0, PASSAGES - 1), max_size=6, unique=True)) for _ in queries]
    bm25_QK = np.full((len(queries), 6), -1)
    for row, passages in enumerate(found_by_bm25):
        bm25_QK[row, : len(passages)] = passages
    bm25 = Candidates(np.array([query.offset for query in queries]), bm25_QK, np.zeros(bm25_QK.shape, np.float32))
    candidates, positives = as_candidates(queries, width), as_positives(queries)
    made = choose(candidates, positives, strategy, count, seed, 1, bm25, passages=PASSAGES)
    found = by_query(made.lists)
    outside_allowed = "corpus" in strategy or "bm25" in strategy
    for query, best in zip(queries, found_by_bm25, strict=True):
        positive, negatives = found[query.offset]
        passages = [passage for passage, _, _ in negatives]
        assert not set(passages) & query.positives and len(set(passages)) == len(passages)
        retrieved = {passage: (rank, score) for passage, rank, score in query.others()}
        for passage, rank, score in negatives:
            assert (rank, score) == retrieved.get(passage, (0, 0.0))
            assert rank or outside_allowed
        ranks = [rank for _, rank, _ in negatives if rank]
        assert ranks == sorted(ranks) and all(rank == 0 for _, rank, _ in negatives[len(ranks) :])
        expected = plain_members(strategy, query, best, count)
        if expected is not None:
            assert expected[0] <= set(passages) and len(passages) == expected[1]
        if strategy.startswith("around"):
            own = query.retrieved.index(positive) + 1 if positive in query.retrieved else width + 1
            near = [rank for rank, _ in retrieved.values() if abs(rank - own) <= 2]
            assert set(ranks) <= set(near) and len(ranks) == min(3, len(near))
    # Each query's negatives are its own affair.
    row = data.draw(st.integers(0, len(queries) - 1))
    alone = choose(candidates.of(np.array([row])), positives, strategy, count, seed, 1, bm25, passages=PASSAGES)
    assert by_query(alone.lists) == {queries[row].offset: found[queries[row].offset]}


@settings(max_examples=60, deadline=None)
@given(
    queries=query_lists(),
    strategy=st.sampled_from(["top:4", "ranks:3-6", "ranks:2-8:5", "around-positive:4±1", "bottom:3+random:3"]),
    ratio=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    min_rank=st.integers(1, 4),
)
def test_shortage_policies(queries: list[Query], strategy: str, ratio: float, min_rank: int) -> None:
    width = max(1, *(len(query.retrieved) for query in queries))
    candidates, positives = as_candidates(queries, width), as_positives(queries)

    def under(policy: str) -> tuple[Selected, dict[int, list[int]]]:
        kept = {"min_rank": min_rank, "max_positive_ratio": ratio, "on_shortage": policy}
        made = choose(candidates, positives, strategy, 4, 7, 0, **kept)
        return made, {query: [rank for _, rank, _ in row] for query, (_, row) in by_query(made.lists).items()}

    (plain, fewer), (widened, wide), (skipping, whole) = (under(policy) for policy in ("fewer", "widen", "skip"))
    dropped = sum(sum(by_rank.values()) for by_rank in plain.dropped.values())
    usable = {query.offset: [rank for _, rank, _ in query.others()] for query in queries}
    assert whole == {query: ranks for query, ranks in fewer.items() if len(ranks) == plain.asked}
    assert skipping.skipped == plain.short == sum(len(ranks) < plain.asked for ranks in fewer.values())
    gained = 0
    for query, ranks in fewer.items():
        assert set(ranks) <= set(wide[query]) and all(rank >= min_rank for rank in wide[query])
        gained += len(wide[query]) > len(ranks)
        if not ratio:
            left = [rank for rank in usable[query] if rank >= min_rank]
            assert len(wide[query]) == min(plain.asked, len(left))
            if strategy == "ranks:3-6":  # the nearest, and of two the better ranked
                nearest = sorted(left, key=lambda rank: (max(3 - rank, rank - 6, 0), rank))
                assert sorted(wide[query]) == sorted(nearest[: plain.asked])
    assert widened.widened == gained
    if not ratio:
        assert dropped == sum(sum(rank < min_rank for rank in ranks) for ranks in usable.values())


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_is_off_by_default_and_its_example_drops(name: str) -> None:
    declared = FILTERS[name]
    assert declared.flag == name and declared.drops and declared.paper
    assert not declared.range.problem(declared.off) and not declared.range.problem(declared.example)
    candidates, positives = plain_candidates(4, 30)  # the positive was not retrieved
    without, off, on = (
        choose(candidates, positives, "top", 5, 0, 0, **value)
        for value in ({}, {name: declared.off}, {name: declared.example})
    )
    assert not without.dropped and not off.dropped and set(on.dropped) == {name} and sum(on.dropped[name].values()) > 0


def test_a_filter_that_is_declared_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one's own: every candidate of an odd rank below the value."""
    odd = Filter("odd", "odd ranks", 0, Range(at_least=0), 5, "a test")
    monkeypatch.setitem(FILTERS, "odd", odd)

    def drop(candidates: Candidates, positive_rank_Q: np.ndarray, value: float) -> np.ndarray:
        ranks_QK = np.broadcast_to(np.arange(1, candidates.passage_QK.shape[1] + 1), candidates.passage_QK.shape)
        return (ranks_QK % 2 == 1) & (ranks_QK < value)

    monkeypatch.setitem(DROPPED_BY, "odd", drop)
    candidates, positives = plain_candidates(4, 30)
    selection = make_selection("top", 100, topk_training=30, negative_sample=4, filters={"odd": 6}, on_shortage="fewer")
    found = select_negatives(candidates, positives, selection, seed=0, refresh=0)
    assert found.lists.rank_QN.tolist() == [[2, 4, 6, 7]] * 4 and sum(found.dropped["odd"].values()) == 3 * 4


EIGHTHS = st.integers(-400, 400).map(lambda number: number / 8)  # sums of them are exact


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(EIGHTHS, min_size=8, max_size=8), min_size=1, max_size=6),
    place=st.integers(1, 9),
    ratio=st.sampled_from([0.0, 0.5, 0.75, 1.0]),
    shift=EIGHTHS,
)
def test_the_margin_filter_is_safe_for_any_sign(
    rows: list[list[float]], place: int, ratio: float, shift: float
) -> None:
    score_QK = np.array([sorted(row, reverse=True) for row in rows], np.float32)
    passage_QK = np.broadcast_to(np.arange(8), score_QK.shape)
    place_Q = np.full(len(rows), place)

    def dropped(score_QK: np.ndarray) -> np.ndarray:
        return likely_positive(Candidates(np.arange(len(rows)), passage_QK, score_QK), place_Q, ratio)

    found_QK = dropped(score_QK)
    assert np.array_equal(found_QK, dropped(score_QK + np.float32(shift))), "a constant added to all scores"
    assert np.array_equal(found_QK, dropped(score_QK * np.float32(4))), "another scale"
    for row, found_K in zip(score_QK.astype(float).tolist(), found_QK.tolist(), strict=True):
        if place == 9:
            assert all(found_K)
            continue
        positive, mean = row[place - 1], sum(row) / 8
        threshold = positive - (1 - ratio) * abs(positive - mean)
        assert threshold <= positive
        assert found_K == [score > threshold for score in row]
        if positive >= mean:
            assert not any(is_dropped for score, is_dropped in zip(row, found_K, strict=True) if score <= mean)


def test_a_filter_of_raw_shares_would_be_wrong_where_ours_is_right() -> None:
    """All scores below 0: 0.95 of the positive's -10 is -9.5, above it."""
    score_QK = np.array([[-9.6, -10.0, -10.1, -12.0, -20.0]], np.float32)
    found_QK = likely_positive(
        Candidates(np.array([0]), np.arange(5)[None], score_QK), ranks_of(np.arange(5)[None], np.array([1])), 0.95
    )
    assert found_QK.tolist() == [[True, True, True, False, False]]


def test_drops_are_counted_by_rank() -> None:
    candidates, positives = plain_candidates(10, 60)
    made = choose(candidates, positives, "top", 5, 0, 0, min_rank=22)
    assert made.dropped == {"min_rank": {"1-5": 50, "6-20": 150, "21-50": 10}}
    assert (made.lists.rank_QN == np.arange(22, 27)).all()


def test_log_uniform_draws_a_rank_in_proportion_to_one_over_it() -> None:
    queries, width = 30_000, 20
    candidates, positives = plain_candidates(queries, width)
    rank_Q = choose(candidates, positives, "log-uniform:1", 1, 4, 0).lists.rank_QN[:, 0]
    chance_K = 1 / np.arange(1, width + 1)
    expected_K = queries * chance_K / chance_K.sum()
    counts_K = np.bincount(rank_Q, minlength=width + 1)[1:]
    assert float(((counts_K - expected_K) ** 2 / expected_K).sum()) < 43.8  # chi-square of 19, 0.1 %


@pytest.mark.parametrize("passages", [60, 2000])  # all in an order drawn for the query; draws until there are enough
def test_corpus_draws_each_passage_with_the_same_chance(passages: int) -> None:
    queries, width, count = 20_000, 10, 4
    candidates, positives = plain_candidates(queries, width)
    lists = choose(candidates, positives, f"corpus:{count}", 1, 4, 0, passages=passages).lists
    assert (lists.negative_QN >= 0).all()
    counts_N = np.bincount(lists.negative_QN.ravel(), minlength=passages)
    assert counts_N[width] == 0, "the positive"
    others_N = np.delete(counts_N, width)
    share = count / (passages - 1)
    statistic = chi_square(others_N, queries * share) / (1 - share)
    degrees = passages - 2
    assert abs(statistic - degrees) < 4 * np.sqrt(2 * degrees)
    among = lists.rank_QN > 0
    assert np.array_equal(among, (lists.negative_QN < width)), "one that was retrieved keeps its rank"
    assert np.array_equal(lists.rank_QN[among], lists.negative_QN[among] + 1)


def test_bm25_without_a_query_is_an_error() -> None:
    candidates, positives = plain_candidates(3, 5)
    bm25 = Candidates(np.array([0, 2]), np.array([[3], [4]]), np.zeros((2, 1), np.float32))
    with pytest.raises(UserError, match="lack 1 of 3 queries, such as 1"):
        choose(candidates, positives, "bm25:1", 1, 0, 0, bm25)
