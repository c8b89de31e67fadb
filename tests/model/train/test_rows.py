"""Training an encoder whose passages have several rows: the best one of each is learned from."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from model.encoders.base import ConfigEncoder, Embeddings
from model.encoders.spec import EncoderSpec, Side
from model.token_batch import TokenBatch
from model.train.micro_batch import to_device
from model.train.rank_stats import means_by_rank
from model.train.step import TrainingStep, make_state, train_step
from tests.model.train.test_grad_cache import gradient_of
from tests.model.train.test_rank_stats import ranked_batches
from tests.model.train.test_step import ALONE, LOSSES, VOCABULARY, constant, made_up_batches
from tests.texts import listed

ROWS, TOKENS = 3, 4


class Pieces(ConfigEncoder):
    """A passage's rows are the sums of each four of its tokens' vectors."""

    cpu_batch_tokens = 40  # several passes

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.spec = EncoderSpec(8, VOCABULARY, rows_per_passage=ROWS)
        self.embeddings = nn.Embedding(VOCABULARY, 8)

    def forward(self, tokens: TokenBatch, side: Side) -> Any:
        text_T, column_T = tokens.text_of_token()
        piece_T = column_T // TOKENS if side == "passage" else torch.zeros_like(column_T)
        place_T = text_T * ROWS + piece_T
        sums_ND = torch.zeros(len(tokens) * ROWS, 8).index_add(0, place_T, self.embeddings(tokens.tokens_T))
        sums_BRD = sums_ND.unflatten(0, (-1, ROWS))
        if side == "query":
            return sums_BRD[:, 0]
        is_there_BR = torch.bincount(place_T, minlength=len(sums_ND)).unflatten(0, (-1, ROWS)) > 0
        return sums_BRD.where(is_there_BR[..., None], 1e6), is_there_BR  # which nobody may look at


def pieces() -> Pieces:
    torch.manual_seed(2)
    return Pieces({"model_type": "pieces"})


def test_absent_rows_repeat_the_first_or_are_marked() -> None:
    rows = torch.arange(12.0).view(2, 3, 2)
    rows[0, 1, 1] = torch.nan  # the model's own
    made = Embeddings(rows, torch.tensor([[True, True, False], [True, False, False]]))
    assert made.filled()[1].tolist() == [[6, 7]] * 3 and made.filled()[0, 2].tolist() == [0, 1]
    assert made.marked().isnan().all(2).tolist() == [[False, False, True], [False, True, True]]
    assert made.marked()[0, 1].tolist() == [2, np.inf]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_that_of_the_best_rows_found_one_by_one(loss: str) -> None:
    encoder = pieces()
    (batch,) = made_up_batches(loss, 8, 1)
    table = encoder.embeddings.weight.detach().double().numpy()
    queries = [table[text].sum(0) for text in listed(batch.query_tokens_T, batch.query_offsets_B1)]
    passages = listed(batch.passage_tokens_T, batch.passage_offsets_M1)
    assert len({-(-len(passage) // TOKENS) for passage in passages}) > 1

    def score(query_D: np.ndarray, passage: list[int]) -> float:
        return max(query_D @ table[passage[first : first + TOKENS]].sum(0) for first in range(0, len(passage), TOKENS))

    losses = []
    for t in range(8):
        query_D, positive = queries[batch.query_index_T[t]], batch.positive_index_T[t]
        others = [batch.negative_index_T[t]]
        if batch.allowed_TG is not None:
            others = [g for g in np.flatnonzero(batch.allowed_TG[t]) if g != positive]
        scores = np.array([score(query_D, passages[g]) for g in [positive, *others]])
        losses.append(np.logaddexp.reduce(scores) - scores[0])
    found = float(TrainingStep(encoder, loss)(to_device(batch, ALONE.device)).detach())
    assert found == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_grad_cache_gives_the_same_gradient(loss: str) -> None:
    encoder = pieces()
    plain_loss, plain = gradient_of(copy.deepcopy(encoder), loss)
    cached_loss, cached = gradient_of(copy.deepcopy(encoder), loss, grad_cache_tokens=30)
    assert cached_loss == pytest.approx(plain_loss, rel=1e-5) and float(plain.abs().max()) > 0
    torch.testing.assert_close(cached, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_losses_that_are_logged_by_rank_have_the_batch_s_mean(loss: str) -> None:
    encoder = pieces()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.0)
    state = make_state(encoder, loss, optimizer, constant(optimizer), ALONE, None, 0.0)
    for batch in ranked_batches(loss, 2):
        state.tally.clear()
        train_step(state, [batch])
        told = means_by_rank(state.tally.state())
        buckets = {name.removesuffix("_triples") for name in told if name.endswith("_triples")}
        counts = {bucket: told[f"{bucket}_triples"] for bucket in buckets}
        mean = sum(counts[bucket] * told[f"{bucket}_loss"] for bucket in buckets) / sum(counts.values())
        found = float(TrainingStep(encoder, loss)(to_device(batch, ALONE.device)).detach())
        assert mean == pytest.approx(found, rel=1e-4)
