"""A batch in several passes, and GradCache, against one pass over the whole padded batch."""

from __future__ import annotations

import copy
import math
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.passes import plan_passes
from model.roberta_dot import RobertaDot
from model.training import TrainingState, TrainingStep, make_state, tensors_of, train_step
from tests.test_training import ALONE, ENCODERS, LOSSES, constant, flat_weights, made_up_batches, roberta_encoder
from utils.distributed import World

CPU = torch.device("cpu")


def gradient_of(
    encoder: Any, loss: str, grad_cache_tokens: int = 0, world: World = ALONE
) -> tuple[float, torch.Tensor]:
    """The loss of a step of two micro-batches of 24 triples, and its gradient."""
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0)
    state: TrainingState = make_state(
        encoder, loss, optimizer, constant(optimizer), world, None, 0.0, grad_cache_tokens
    )
    before = flat_weights(encoder)
    found = train_step(state, made_up_batches(loss, 24, 2, world.rank, world.size))
    return found, before - flat_weights(encoder)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), budget_tokens=st.integers(1, 200))
@settings(deadline=None)
def test_passes_hold_every_row_once_within_the_budget(lengths: list[int], budget_tokens: int) -> None:
    passes = [rows_P.tolist() for rows_P in plan_passes(torch.tensor(lengths), budget_tokens)]
    assert sorted(chain.from_iterable(passes)) == list(range(len(lengths)))
    for rows in passes:
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


def with_dropout(encoder: RobertaDot, p: float) -> RobertaDot:
    encoder.config.hidden_dropout_prob = encoder.config.attention_probs_dropout_prob = p
    return RobertaDot(encoder.config)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_checkpointing_gives_the_same_gradient(loss: str, p: float) -> None:
    encoder = with_dropout(roberta_encoder(), p)
    torch.manual_seed(7)
    whole_loss, whole = gradient_of(copy.deepcopy(encoder), loss)
    encoder.make_activations_twice()
    torch.manual_seed(7)
    again_loss, again = gradient_of(encoder, loss)
    assert again_loss == whole_loss
    assert torch.allclose(again, whole, rtol=1e-5, atol=1e-7)


def test_dropout_is_the_same_in_both_of_grad_cache_s_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = with_dropout(roberta_encoder(), 0.3)
    seen: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    forward = RobertaDot.forward

    def noting(self: RobertaDot, *arguments: torch.Tensor) -> torch.Tensor:
        embeddings = forward(self, *arguments)
        seen[torch.is_grad_enabled()].append(embeddings.detach().clone())
        return embeddings

    monkeypatch.setattr(RobertaDot, "forward", noting)
    torch.manual_seed(8)
    gradient_of(encoder, "in_batch", grad_cache_tokens=40)
    assert len(seen[False]) > 6
    assert all(torch.equal(first, second) for first, second in zip(seen[False], seen[True], strict=True))


def test_a_step_takes_one_pass_where_the_batch_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    forward = RobertaDot.forward

    def noting(self: RobertaDot, *arguments: torch.Tensor) -> torch.Tensor:
        calls.append(len(arguments[0]))
        return forward(self, *arguments)

    monkeypatch.setattr(RobertaDot, "forward", noting)
    batch = made_up_batches("pairwise", 8, 1)[0]
    loss = TrainingStep(roberta_encoder(), "pairwise")(**tensors_of(batch, CPU))
    assert calls == [len(batch.query_lengths_B), len(batch.passage_lengths_M)]
    assert math.isfinite(float(loss.detach()))
