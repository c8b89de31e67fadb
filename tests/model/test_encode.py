"""Encoding in batches, against encoding one by one, and the plan of the batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RobertaConfig

from model.encode import LARGEST_BLOCK, TextSource, block_size, encode_blocks, plan_batches, plan_blocks, share_of
from model.encoders.roberta_dot import RobertaDot
from model.encoders.static import StaticEncoder
from tests.processes_as_threads import CPU
from tests.texts import ragged, token_batch
from utils.errors import UserError

PAD = 1
Gather = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def plan(lengths_N: np.ndarray, start: int, stop: int, budget_tokens: int) -> Iterator[np.ndarray]:
    """All batches of the rows [start, stop)."""
    for first, last in plan_blocks(len(lengths_N), start, stop):
        yield from plan_batches(lengths_N[first:last], first, budget_tokens)


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
    batches = list(plan(lengths_N, 0, count, budget_tokens))
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(count))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths_N[batch].max() <= budget_tokens
        assert int(batch.max()) // block_size(count) == int(batch.min()) // block_size(count), "one block"
    for first, second in pairwise(batches):
        if first[0] // block_size(count) == second[0] // block_size(count):
            assert lengths_N[first].min() >= lengths_N[second].max(), "sorted by length, so little is padded"
            assert (len(first) + 1) * lengths_N[first].max() > budget_tokens, "no batch is smaller than it must be"


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100, 1000, 5003])
def test_whole_blocks_have_the_same_batches_alone(count: int) -> None:
    lengths_N = made_up_lengths(count, 40, count)
    whole = [batch.tolist() for batch in plan(lengths_N, 0, count, 300)]
    for blocks in (1, 2, 7):
        size = blocks * block_size(count)
        parts = (plan(lengths_N, first, min(first + size, count), 300) for first in range(0, count, size))
        assert [batch.tolist() for part in parts for batch in part] == whole


@pytest.mark.parametrize("count", [0, 1, 5, 64, 217])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_shares_are_contiguous_and_equal_but_for_one(count: int, ranks: int) -> None:
    shares = [share_of(count, rank, ranks) for rank in range(ranks)]
    assert shares[0][0] == 0 and shares[-1][1] == count
    assert all(first[1] == second[0] for first, second in pairwise(shares))
    sizes = [stop - start for start, stop in shares]
    assert max(sizes) - min(sizes) <= 1


def test_blocks_are_neither_too_small_nor_too_large() -> None:
    assert block_size(3) == block_size(500) == 32
    assert block_size(64_000) == 1000
    assert block_size(8_841_823) == LARGEST_BLOCK


def test_sorting_saves_most_of_the_padding() -> None:
    lengths_N = made_up_lengths(20_000, 128, 1)
    sorted_batches = plan(lengths_N, 0, 20_000, 128 * 32)
    in_file_order = np.split(np.arange(20_000), 20_000 // 32)
    padded, unsorted = (
        sum(len(batch) * int(lengths_N[batch].max()) for batch in batches)
        for batches in (sorted_batches, in_file_order)
    )
    tokens = lengths_N.sum()
    assert padded - tokens < 0.25 * (unsorted - tokens)


def made_up_texts(count: int) -> tuple[list[list[int]], TextSource]:
    rng = np.random.default_rng(2)
    texts = [[0, *rng.integers(3, 60, rng.integers(0, 20)).tolist(), 2] for _ in range(count)]

    def gather(rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return ragged([texts[row] for row in rows_B.tolist()])

    lengths_N = np.array([len(text) for text in texts], np.int32)
    return texts, TextSource(count, lambda start, stop: lengths_N[start:stop], gather, "passage")


def encode(
    encoder: RobertaDot | StaticEncoder, texts: TextSource, rows: tuple[int, int], budget_tokens: int, *more: Any
) -> np.ndarray:
    return np.concatenate(list(encode_blocks(encoder, texts, rows, budget_tokens, CPU, *(more or (None,)))))


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
    texts, known = made_up_texts(70)
    encoder = make_encoder(kind)
    encoder.train()  # encode must switch dropout off
    counts: list[int] = []
    found_MD = encode(encoder, known, (0, 70), budget_tokens, None, counts.append)
    assert sum(counts) == 70
    with torch.no_grad():
        for text, found_D in zip(texts, found_MD, strict=True):
            alone_D = encoder.encode(token_batch([text]), "passage").rows[0]
            np.testing.assert_allclose(found_D, alone_D.numpy(), atol=1e-5)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_parts_of_whole_blocks_compute_the_same_numbers(blocks: int) -> None:
    _, texts = made_up_texts(150)
    encoder = make_encoder("first")
    size = blocks * block_size(150)
    parts = [encode(encoder, texts, (first, min(first + size, 150)), 200) for first in range(0, 150, size)]
    assert np.array_equal(np.concatenate(parts), encode(encoder, texts, (0, 150), 200))


def test_a_block_at_a_time_is_encoded_and_it_can_be_left() -> None:
    """Nothing is computed ahead of who takes the blocks."""
    _, texts = made_up_texts(150)
    counts: list[int] = []
    blocks = encode_blocks(make_encoder("static"), texts, (32, 150), 200, CPU, None, counts.append)
    assert next(blocks).shape == (32, 8) and sum(counts) == 32

    def leave(count: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        next(encode_blocks(make_encoder("static"), texts, (0, 150), 200, CPU, None, leave))


def test_bfloat16_is_close_and_stored_as_float32() -> None:
    _, texts = made_up_texts(40)
    encoder = make_encoder("first")
    exact_MD, rounded_MD = (encode(encoder, texts, (0, 40), 100, dtype) for dtype in (None, torch.bfloat16))
    assert rounded_MD.dtype == np.float32
    assert not np.array_equal(exact_MD, rounded_MD)
    assert abs(exact_MD - rounded_MD).max() < 0.1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "are not finite"),
        (float("inf"), "are not finite"),
        (1e20, r"have norms of up to 1e\+20, expected at most 1e\+18"),
        (1e38, r"have norms of up to 1e\+38"),
    ],
)
def test_embeddings_that_cannot_be_searched_are_refused(value: float, expected: str) -> None:
    _, texts = made_up_texts(40)
    encoder = make_encoder("static")
    with torch.no_grad():
        encoder.norm.bias[3] = value
    with pytest.raises(UserError, match=f"the model's embeddings {expected}"):
        encode(encoder, texts, (0, 40), 100)
