"""Encoding in batches, against encoding one by one, and the plan of the batches."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RobertaConfig

from model.embedding import LARGEST_BLOCK, attention_mask, block_size, encode, plan_batches, share_of
from model.roberta_dot import RobertaDot
from model.static import StaticEncoder
from utils.errors import UserError

CPU = torch.device("cpu")
PAD = 1
Gather = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def made_up_lengths(count: int, longest: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, longest + 1, count).astype(np.int32)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 700), longest=st.integers(1, 60), budget_tokens=st.integers(1, 500), seed=st.integers(0, 99)
)
def test_the_plan_covers_every_row_once_within_the_budget(
    count: int, longest: int, budget_tokens: int, seed: int
) -> None:
    lengths_N = made_up_lengths(count, longest, seed)
    batches = list(plan_batches(lengths_N, 0, count, budget_tokens))
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(count))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths_N[batch].max() <= budget_tokens
        assert int(batch.max()) // block_size(count) == int(batch.min()) // block_size(count), "one block"
    for first, second in pairwise(batches):
        if first[0] // block_size(count) == second[0] // block_size(count):
            assert lengths_N[first].min() >= lengths_N[second].max(), "sorted by length, so little is padded"
            assert (len(first) + 1) * lengths_N[first].max() > budget_tokens, "no batch is smaller than it must be"


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100, 1000, 5003])
def test_all_numbers_of_ranks_have_the_same_batches(count: int) -> None:
    lengths_N = made_up_lengths(count, 40, count)
    plans = []
    for ranks in range(1, 6):
        shares = [share_of(count, rank, ranks) for rank in range(ranks)]
        assert shares[0][0] == 0 and shares[-1][1] == count
        assert all(first[1] == second[0] for first, second in pairwise(shares)), "contiguous, in rank order"
        batches = (batch for start, stop in shares for batch in plan_batches(lengths_N, start, stop, 300))
        plans.append([batch.tolist() for batch in batches])
        if count >= 1000:
            sizes = [stop - start for start, stop in shares]
            assert max(sizes) - min(sizes) <= 2 * block_size(count)
    assert all(plan == plans[0] for plan in plans)


def test_blocks_are_neither_too_small_nor_too_large() -> None:
    assert block_size(3) == block_size(500) == 32
    assert block_size(64_000) == 1000
    assert block_size(8_841_823) == LARGEST_BLOCK


def test_sorting_saves_most_of_the_padding() -> None:
    lengths_N = made_up_lengths(20_000, 128, 1)
    sorted_batches = plan_batches(lengths_N, 0, 20_000, 128 * 32)
    in_file_order = np.split(np.arange(20_000), 20_000 // 32)
    padded, unsorted = (
        sum(len(batch) * int(lengths_N[batch].max()) for batch in batches)
        for batches in (sorted_batches, in_file_order)
    )
    tokens = lengths_N.sum()
    assert padded - tokens < 0.25 * (unsorted - tokens)


def test_the_mask_is_one_for_tokens() -> None:
    mask_BL = attention_mask(torch.zeros(3, 4, dtype=torch.int64), torch.tensor([2, 4, 1]))
    assert mask_BL.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]


def made_up_texts(count: int) -> tuple[list[list[int]], np.ndarray, Gather]:
    rng = np.random.default_rng(2)
    texts = [[0, *rng.integers(3, 60, rng.integers(0, 20)).tolist(), 2] for _ in range(count)]

    def gather(rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lengths_B = np.array([len(texts[row]) for row in rows_B])
        ids_BL = np.full((len(rows_B), lengths_B.max()), PAD, np.int64)
        for i, row in enumerate(rows_B):
            ids_BL[i, : lengths_B[i]] = texts[row]
        return ids_BL, lengths_B

    return texts, np.array([len(text) for text in texts], np.int32), gather


def make_encoder(kind: str) -> RobertaDot | StaticEncoder:
    torch.manual_seed(0)
    if kind == "static":
        return StaticEncoder({"vocab_size": 60, "embedding_size": 8})
    config = RobertaConfig(
        vocab_size=60,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
        pad_token_id=PAD,
        pooling="mean" if kind == "mean" else "first",
    )
    return RobertaDot(config)


@pytest.mark.parametrize("kind", ["static", "first", "mean"])
@pytest.mark.parametrize("budget_tokens", [1, 100])
def test_batches_give_what_single_texts_give_in_the_collection_s_order(kind: str, budget_tokens: int) -> None:
    texts, lengths_N, gather = made_up_texts(70)
    encoder = make_encoder(kind)
    encoder.train()  # encode must switch dropout off
    found_MD = np.full((70, 8), np.nan, np.float32)
    counts: list[int] = []
    encode(encoder, lengths_N, gather, (0, 70), found_MD, budget_tokens, CPU, None, counts.append)
    assert sum(counts) == 70
    with torch.no_grad():
        for text, found_D in zip(texts, found_MD, strict=True):
            alone_D = encoder(torch.tensor([text]), torch.ones(1, len(text), dtype=torch.int64))[0]
            np.testing.assert_allclose(found_D, alone_D.numpy(), atol=1e-5)


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_together_compute_the_same_numbers(ranks: int) -> None:
    _, lengths_N, gather = made_up_texts(150)
    encoder = make_encoder("first")
    whole_MD = np.empty((150, 8), np.float32)
    encode(encoder, lengths_N, gather, (0, 150), whole_MD, 200, CPU, None)
    parts = []
    for rank in range(ranks):
        start, stop = share_of(150, rank, ranks)
        parts.append(np.empty((stop - start, 8), np.float32))
        encode(encoder, lengths_N, gather, (start, stop), parts[-1], 200, CPU, None)
    assert np.array_equal(np.concatenate(parts), whole_MD)


def test_bfloat16_is_close_and_stored_as_float32() -> None:
    _, lengths_N, gather = made_up_texts(40)
    encoder = make_encoder("first")
    exact_MD, rounded_MD = np.empty((2, 40, 8), np.float32)
    encode(encoder, lengths_N, gather, (0, 40), exact_MD, 100, CPU, None)
    encode(encoder, lengths_N, gather, (0, 40), rounded_MD, 100, CPU, torch.bfloat16)
    assert not np.array_equal(exact_MD, rounded_MD)
    assert abs(exact_MD - rounded_MD).max() < 0.1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite_are_refused(value: float) -> None:
    _, lengths_N, gather = made_up_texts(40)
    encoder = make_encoder("static")
    with torch.no_grad():
        encoder.norm.bias[3] = value
    with pytest.raises(UserError, match="not finite"):
        encode(encoder, lengths_N, gather, (0, 40), np.empty((40, 8), np.float32), 100, CPU, None)
