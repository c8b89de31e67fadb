"""Staleness between two refreshes, against sets and loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mining.candidates import Candidates
from data.mining.negative_lists import NegativeLists
from data.mining.select import Selection, select_negatives
from data.mining.staleness import staleness_since
from data.mining.strategy import parse_strategy
from tests.drivers.generate.test_refresh import CPU, put_model, refresh_once, settings_over, start, stay
from utils.distributed.world import World
from utils.exchange.negatives import read_records
from utils.ir.rank_buckets import FIRST_RANKS, NAMES

WIDTH, PASSAGES = 30, 60


def name_of(rank: int) -> str:
    return NAMES[sum(rank >= first for first in FIRST_RANKS)]


def searched(queries: list[int], seed: int) -> Candidates:
    rng = np.random.default_rng(seed)
    passage_QK = np.stack([rng.permutation(PASSAGES)[:WIDTH] for _ in queries])
    passage_QK[rng.random(len(queries)) < 0.3, WIDTH // 2 :] = -1
    return Candidates(np.array(queries), passage_QK, np.zeros(passage_QK.shape, np.float32))


def chosen(candidates: Candidates, text: str, refresh: int) -> NegativeLists:
    positives = (np.sort(candidates.query_Q), np.full(len(candidates.query_Q), PASSAGES - 1))
    selection = Selection(parse_strategy(text, 5, WIDTH), passages=PASSAGES)
    return select_negatives(candidates, positives, selection, 1, refresh).lists


def as_sets(lists: NegativeLists) -> dict[tuple[int, int], int]:
    """{(query, negative): rank}"""
    rows = zip(lists.query_Q.tolist(), lists.negative_QN.tolist(), lists.rank_QN.tolist(), strict=True)
    return {
        (query, passage): rank
        for query, passages, ranks in rows
        for passage, rank in zip(passages, ranks, strict=True)
        if passage >= 0
    }


@settings(max_examples=60, deadline=None)
@given(
    earlier=st.lists(st.integers(0, 12), min_size=1, max_size=9, unique=True),
    later=st.lists(st.integers(0, 12), min_size=1, max_size=9, unique=True),
    text=st.sampled_from(["top", "bottom", "top:3+random:4", "ranks:4-25", "corpus:6"]),
    seed=st.integers(0, 100),
)
def test_staleness_against_sets(earlier: list[int], later: list[int], text: str, seed: int) -> None:
    candidates = searched(later, seed + 1)
    before, now = chosen(searched(earlier, seed), text, 0), chosen(candidates, text, 1)
    found = staleness_since(before, now, candidates)
    shared = set(earlier) & set(later)
    ranks_now = {
        (query, passage): place + 1
        for query, row in zip(later, candidates.passage_QK.tolist(), strict=True)
        for place, passage in enumerate(row)
        if passage >= 0
    }
    mine = {pair: rank for pair, rank in as_sets(before).items() if pair[0] in shared}
    theirs = {pair: rank for pair, rank in as_sets(now).items() if pair[0] in shared}
    rank_retention, jaccard = {}, {}
    for name in NAMES:
        old = {pair for pair, rank in mine.items() if name_of(rank) == name}
        new = {pair for pair, rank in theirs.items() if name_of(rank) == name}
        if old:
            rank_retention[name] = sum(name_of(ranks_now.get(pair, 0)) == name for pair in old) / len(old)
        if old | new:
            jaccard[name] = len(old & new) / len(old | new)
    assert found.queries == len(shared)
    assert found.rank_retention == pytest.approx(rank_retention) and found.jaccard == pytest.approx(jaccard)


def test_a_refresh_says_what_became_of_the_one_that_searched_the_same_queries(
    tiny_preprocessed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(settings_over(tiny_preprocessed, tmp_path), chunk_factor=2)
    here, log = start(tmp_path, World(0, 1, CPU))
    work = put_model(tmp_path / "checkpoints", tiny_preprocessed, 3)
    for refresh in range(3):  # all from the same model: nothing has moved
        assert refresh_once(settings, here, replace(work, refresh=refresh), {}, log, stay)
    records = read_records(tmp_path / "ann")
    assert ["churn" in record for record in records] == [False, False, True]
    churn = records[2]["churn"]
    assert churn["since_refresh"] == 0 and churn["queries"] == records[0]["queries"]
    assert set(churn["still_there"].values()) == {1.0}
    assert all(0 < share < 1 for share in churn["jaccard"].values()), "another draw"
    assert "of refresh 0's negatives are still in their ranks: 1-5 100%" in capsys.readouterr().out
    assert '"still_rank_1-5": 1.0' in (tmp_path / "ann" / "metrics.jsonl").read_text()
