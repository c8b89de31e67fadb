"""What training minimises: the embeddings of a batch in, its loss and what is logged of each triple out.

A word of --loss is declared in utils/declared/losses.py, `LOSSES`, where it says what it needs of a batch; what it
computes is here, in `OBJECTIVES`. All of it is in float32, on the scores of `model.similarity`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from model.similarity import all_scores, mean_rows, pair_scores


@dataclass(frozen=True)
class EncodedBatch:
    """The embeddings of this process's T triples, row t of each tensor those of triple t.

    The others are there for an objective that is declared to be over the batch: the passages of all processes and, as
    `data.training.batches.Batch` has them, which of them triple t is scored against, and its positive's place there.
    Where passages have several rows, ``positive_TD`` and ``negative_TD`` are those that are best for the triple's
    query, and ``passages_GD`` is [G, R, D].
    """

    query_TD: torch.Tensor
    positive_TD: torch.Tensor
    negative_TD: torch.Tensor
    passages_GD: torch.Tensor | None = None
    allowed_TG: torch.Tensor | None = None
    target_T: torch.Tensor | None = None

    def margins(self) -> torch.Tensor:
        """float32 [T]: the score of the positive over that of the negative."""
        return pair_scores(self.query_TD.float(), self.positive_TD.float() - self.negative_TD.float())

    def whole(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """passages_GD, allowed_TG and target_T, which are there."""
        assert self.passages_GD is not None and self.allowed_TG is not None and self.target_T is not None, (
            "the batch was not made for an objective over the whole batch"
        )
        return self.passages_GD, self.allowed_TG, self.target_T


@dataclass(frozen=True)
class Objective:
    """``loss``: a mean over the triples. ``measure``: float32 [T, 3], see utils.ir.rank_buckets.MEASURED; no graph."""

    loss: Callable[[EncodedBatch], torch.Tensor]
    measure: Callable[[EncodedBatch], torch.Tensor]


@torch.no_grad()
def measure_by_margin(batch: EncodedBatch, loss_T: torch.Tensor, slope_T: torch.Tensor) -> torch.Tensor:
    """What is logged of each triple where its loss depends on its margin alone: float32 [T, 3].

    Args:
        loss_T: the loss of each triple.
        slope_T: how fast that falls with the margin, at least 0: the gradients are slope(n - p), -slope q and slope q.
    """
    query_TD, positive_TD, negative_TD = batch.query_TD.float(), batch.positive_TD.float(), batch.negative_TD.float()
    lengths_T = (negative_TD - positive_TD).square().sum(-1) + 2 * query_TD.square().sum(-1)
    return torch.stack([loss_T, slope_T * lengths_T.sqrt(), (batch.margins() > 0).float()], dim=1)


# pairwise


def pairwise_losses(batch: EncodedBatch) -> torch.Tensor:
    """[T]: -log softmax over (positive, negative), taken at the positive, as softplus(s_negative - s_positive).

    ANCE's loss (paper section 3; model/models.py, class NLL).
    """
    query_TD = batch.query_TD.float()  # once, so that the gradients of its two scores are added up in float32
    positive_T, negative_T = pair_scores(query_TD, batch.positive_TD), pair_scores(query_TD, batch.negative_TD)
    return F.softplus(negative_T - positive_T)


def pairwise_nll(batch: EncodedBatch) -> torch.Tensor:
    return pairwise_losses(batch).mean()


@torch.no_grad()
def measure_pairwise(batch: EncodedBatch) -> torch.Tensor:
    """The slope is the negative's share of the softmax."""
    return measure_by_margin(batch, pairwise_losses(batch), torch.sigmoid(-batch.margins()))


# in_batch


def in_batch_scores(batch: EncodedBatch) -> torch.Tensor:
    """float32 [T, G], -inf where a passage is not allowed."""
    passages_GD, allowed_TG, _ = batch.whole()
    return all_scores(batch.query_TD, passages_GD).masked_fill(~allowed_TG, float("-inf"))


def in_batch_nll(batch: EncodedBatch) -> torch.Tensor:
    """Mean over triples of the softmax loss over all passages of the batch that are allowed."""
    return F.cross_entropy(in_batch_scores(batch), batch.whole()[2])


@torch.no_grad()
def measure_in_batch(batch: EncodedBatch) -> torch.Tensor:
    """Of the softmax over all allowed passages, of which the triple's own are two."""
    query_TD, positive_TD, negative_TD = batch.query_TD.float(), batch.positive_TD.float(), batch.negative_TD.float()
    passages_GD, _, target_T = batch.whole()
    log_share_TG = torch.log_softmax(in_batch_scores(batch), dim=1)
    share_TG, loss_T = log_share_TG.exp(), -log_share_TG.gather(1, target_T[:, None])[:, 0]
    own_T, other_T = pair_scores(query_TD, positive_TD), pair_scores(query_TD, negative_TD)
    positive_share_T = torch.exp(-loss_T)
    negative_share_T = torch.exp(other_T - own_T - loss_T)
    to_query_TD = mean_rows(share_TG, query_TD, passages_GD) - positive_TD
    squares_T = to_query_TD.square().sum(-1)
    squares_T += ((1 - positive_share_T).square() + negative_share_T.square()) * query_TD.square().sum(-1)
    return torch.stack([loss_T, squares_T.sqrt(), (own_T > other_T).float()], dim=1)


OBJECTIVES = {
    "pairwise": Objective(pairwise_nll, measure_pairwise),
    "in_batch": Objective(in_batch_nll, measure_in_batch),
}
