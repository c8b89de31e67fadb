"""What each rank's negatives do in training: loss, gradient and satisfied triples by rank bucket."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from model.similarity import pair_scores
from model.train.losses import in_batch_scores, pairwise_nll
from utils.ir.rank_buckets import FIRST_RANKS, MEASURED, NAMES, TRIPLES, logged_name


class PerRankStats:
    """Sums over triples, by the bucket of their negative's rank; ``sums_B4`` float64: a count, then MEASURED.

    The loss is the triple's own. The gradient is the norm of its loss's gradient with respect to the triple's
    three embeddings together, in closed form. A triple is satisfied where its positive scores above its negative.
    """

    def __init__(self, device: torch.device) -> None:
        self.first_ranks = torch.tensor(FIRST_RANKS, device=device)
        self.sums_B4 = torch.zeros(len(NAMES), 1 + len(MEASURED), dtype=torch.float64, device=device)

    def add(self, rank_T: torch.Tensor, measured_T3: torch.Tensor) -> None:
        bucket_T = torch.bucketize(rank_T, self.first_ranks, right=True)
        rows_T4 = torch.cat([torch.ones_like(measured_T3[:, :1]), measured_T3], dim=1)
        self.sums_B4.index_add_(0, bucket_T, rows_T4.double())

    def clear(self) -> None:
        self.sums_B4.zero_()

    def state(self) -> list[list[float]]:
        found: list[list[float]] = self.sums_B4.tolist()
        return found

    def load(self, sums: Any) -> None:
        """What `state` gave; of another shape, from another version, it is left out."""
        stored = torch.from_numpy(np.array(sums, np.float64))  # null is NaN
        if stored.shape == self.sums_B4.shape:
            self.sums_B4.copy_(stored)


def means_by_rank(sums: list[list[float]]) -> dict[str, float]:
    """``rank_1-5_triples``, ``rank_1-5_loss``, … of each bucket that has triples; ``sums`` are `PerRankStats`'s."""
    told: dict[str, float] = {}
    for bucket, (count, *totals) in zip(NAMES, sums, strict=True):
        if count:
            told[logged_name(bucket, TRIPLES)] = int(count)
            told |= {logged_name(bucket, what): total / count for what, total in zip(MEASURED, totals, strict=True)}
    return told


@torch.no_grad()
def measure_pairwise(query_TD: torch.Tensor, positive_TD: torch.Tensor, negative_TD: torch.Tensor) -> torch.Tensor:
    """float32 [T, 3], see MEASURED. With p the negative's share, the gradients are p(n - p+), -pq and pq."""
    query_TD, positive_TD, negative_TD = query_TD.float(), positive_TD.float(), negative_TD.float()
    loss_T = pairwise_nll(query_TD, positive_TD, negative_TD, reduction="none")
    margin_T = pair_scores(query_TD, positive_TD - negative_TD)
    share_T = torch.sigmoid(-margin_T)
    lengths_T = (negative_TD - positive_TD).square().sum(-1) + 2 * query_TD.square().sum(-1)
    return torch.stack([loss_T, share_T * lengths_T.sqrt(), (margin_T > 0).float()], dim=1)


@torch.no_grad()
def measure_in_batch(
    query_TD: torch.Tensor,
    positive_TD: torch.Tensor,
    negative_TD: torch.Tensor,
    passages_GD: torch.Tensor,
    allowed_TG: torch.Tensor,
    target_T: torch.Tensor,
) -> torch.Tensor:
    """float32 [T, 3], see MEASURED; of the softmax over all allowed passages, of which the triple's own are two."""
    query_TD, positive_TD, negative_TD = query_TD.float(), positive_TD.float(), negative_TD.float()
    log_share_TG = torch.log_softmax(in_batch_scores(query_TD, passages_GD, allowed_TG), dim=1)
    share_TG, loss_T = log_share_TG.exp(), -log_share_TG.gather(1, target_T[:, None])[:, 0]
    own_T, other_T = pair_scores(query_TD, positive_TD), pair_scores(query_TD, negative_TD)
    positive_share_T = torch.exp(-loss_T)
    negative_share_T = torch.exp(other_T - own_T - loss_T)
    with torch.autocast(query_TD.device.type, enabled=False):
        to_query_TD = share_TG @ passages_GD.float() - positive_TD
    squares_T = to_query_TD.square().sum(-1)
    squares_T += ((1 - positive_share_T).square() + negative_share_T.square()) * query_TD.square().sum(-1)
    return torch.stack([loss_T, squares_T.sqrt(), (own_T > other_T).float()], dim=1)
