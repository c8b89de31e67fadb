"""A batch in several passes, and GradCache, against one pass over the whole padded batch."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.encoders.base import Embeddings, Encoder
from model.encoders.roberta_dot import RobertaDot
from model.encoders.spec import Side
from model.token_batch import TokenBatch
from model.train import grad_cache
from model.train.grad_cache import plan_micro_batches
from model.train.micro_batch import to_device
from model.train.step import TrainingState, TrainingStep, make_state, train_step
from tests.model.train.test_step import (
    ALONE,
    ENCODERS,
    LOSSES,
    VOCABULARY,
    constant,
    flat_weights,
    made_up_batches,
    roberta_encoder,
)
from tests.processes_as_threads import CPU
from tests.toys.bag_of_words import BagOfWords
from utils.distributed.world import World


def gradient_of(
    encoder: Encoder,
    loss: str,
    grad_cache_tokens: int = 0,
    world: World = ALONE,
    dtype: torch.dtype | None = None,
    micro_batches: int = 2,
) -> tuple[float, torch.Tensor]:
    """The loss of a step of micro-batches of 24 triples, and its gradient."""
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0)
    state: TrainingState = make_state(
        encoder, loss, optimizer, constant(optimizer), world, dtype, 0.0, grad_cache_tokens
    )
    before = flat_weights(encoder)
    found = train_step(state, made_up_batches(loss, 24, micro_batches, world.process, world.size))
    return found, before - flat_weights(encoder)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), budget_tokens=st.integers(1, 200))
@settings(deadline=None)
def test_passes_hold_every_row_once_within_the_budget(lengths: list[int], budget_tokens: int) -> None:
    found = [rows_P.tolist() for rows_P in plan_micro_batches(torch.tensor(lengths), budget_tokens)]
    assert sorted(chain.from_iterable(found)) == list(range(len(lengths)))
    for rows in found:
        longest = max(lengths[row] for row in rows)
        assert lengths[rows[0]] == longest
        assert len(rows) == 1 or longest * len(rows) <= budget_tokens


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("tokens", [1, 20, 90])
def test_passes_give_the_gradient_of_one_pass(
    kind: str, loss: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = ENCODERS[kind]()
    whole_loss, whole = gradient_of(copy.deepcopy(encoder), loss)
    cached_loss, cached = gradient_of(copy.deepcopy(encoder), loss, grad_cache_tokens=tokens)
    monkeypatch.setattr(type(encoder), "cpu_batch_tokens", tokens)
    parts_loss, parts = gradient_of(copy.deepcopy(encoder), loss)
    scale = float(whole.abs().max())
    assert scale > 0
    for found_loss, found in ((cached_loss, cached), (parts_loss, parts)):
        assert found_loss == pytest.approx(whole_loss, rel=1e-5)
        assert float((found - whole).abs().max()) < 1e-5 * max(scale, 1.0)


@pytest.mark.parametrize("side", ["query", "passage"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_frozen_side_is_encoded_once_and_the_other_has_the_gradient_of_one_pass(
    loss: str, side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    encoder = BagOfWords({"vocab_size": VOCABULARY, "embedding_size": 8})
    encoder.get_submodule(side).requires_grad_(False)
    frozen = encoder.get_submodule(side).weight.clone()
    _, whole = gradient_of(copy.deepcopy(encoder), loss, micro_batches=1)
    sides: list[Side] = []
    encode = BagOfWords.encode

    def noting(self: BagOfWords, tokens: TokenBatch, encoded: Side) -> Embeddings:
        sides.append(encoded)
        return encode(self, tokens, encoded)

    monkeypatch.setattr(BagOfWords, "encode", noting)
    _, cached = gradient_of(encoder, loss, grad_cache_tokens=20, micro_batches=1)
    assert float(whole.abs().max()) > 0
    torch.testing.assert_close(cached, whole, rtol=1e-5, atol=1e-6)
    assert torch.equal(encoder.get_submodule(side).weight, frozen)
    other: Side = "passage" if side == "query" else "query"
    assert sides[-1] == other and sides.count(other) % 2 == 0
    again = sides[-sides.count(other) // 2 :]
    assert set(again) == {other}, "the second passes are of the side that is trained"


def with_dropout(encoder: RobertaDot, p: float) -> RobertaDot:
    encoder.config.hidden_dropout_prob = encoder.config.attention_probs_dropout_prob = p
    return RobertaDot(encoder.config)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_checkpointing_gives_the_same_gradient(loss: str, p: float) -> None:
    encoder = with_dropout(roberta_encoder(), p)
    torch.manual_seed(7)
    whole_loss, whole = gradient_of(copy.deepcopy(encoder), loss)
    encoder.enable_gradient_checkpointing()
    torch.manual_seed(7)
    again_loss, again = gradient_of(encoder, loss)
    assert again_loss == whole_loss
    assert torch.allclose(again, whole, rtol=1e-5, atol=1e-7)


@contextlib.contextmanager
def noted_passes() -> Iterator[list[torch.Tensor]]:
    """What each pass of a GradCache step in the block gives, all once and then all again."""
    seen: list[torch.Tensor] = []
    encode_micro_batch = grad_cache.encode_micro_batch

    def noting(*arguments: Any) -> torch.Tensor:
        embeddings = encode_micro_batch(*arguments)
        seen.append(embeddings.detach().clone())
        return embeddings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grad_cache, "encode_micro_batch", noting)
        yield seen


def embeddings_of_passes(
    encoder: RobertaDot, dtype: torch.dtype | None, seed: int
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What each pass gives, and the gradient, which is applied."""
    torch.manual_seed(seed)
    with noted_passes() as seen:
        _, gradient = gradient_of(encoder, "in_batch", 40, dtype=dtype, micro_batches=1)
    return seen, gradient


@pytest.mark.parametrize("checkpoints", [False, True], ids=["", "gradient checkpointing"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_grad_cache_s_second_pass_repeats_the_first_bit_by_bit(
    dtype: torch.dtype | None, packed: bool, checkpoints: bool
) -> None:
    encoder = with_dropout(roberta_encoder(), 0.1)
    encoder.pack_texts(packed)
    _, kept = embeddings_of_passes(copy.deepcopy(encoder), dtype, 8)
    if checkpoints:
        encoder.enable_gradient_checkpointing()
    seen, gradient = embeddings_of_passes(copy.deepcopy(encoder), dtype, 8)
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(first) == len(second) > 3
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert gradient.abs().max() > 0 and torch.equal(gradient, kept), "a layer made again has its dropout again"
    # Dropout was on: another seed gives every pass other embeddings, and another gradient.
    other, other_gradient = embeddings_of_passes(copy.deepcopy(encoder), dtype, 9)
    assert not any(torch.equal(*pair) for pair in zip(seen, other, strict=True))
    assert float((other_gradient - gradient).norm()) > 0.01 * float(gradient.norm())


def test_a_step_takes_one_pass_where_the_batch_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Side, int]] = []
    forward = RobertaDot.forward

    def noting(self: RobertaDot, tokens: TokenBatch, side: Side) -> torch.Tensor:
        calls.append((side, len(tokens)))
        return forward(self, tokens, side)

    monkeypatch.setattr(RobertaDot, "forward", noting)
    batch = made_up_batches("pairwise", 8, 1)[0]
    loss = TrainingStep(roberta_encoder(), "pairwise")(to_device(batch, CPU))
    assert calls == [("query", len(batch.query_offsets_B1) - 1), ("passage", len(batch.passage_offsets_M1) - 1)]
    assert math.isfinite(float(loss.detach()))
