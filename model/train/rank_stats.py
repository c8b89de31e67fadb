"""What each rank's negatives do in training: loss, gradient and correctly ranked triples by rank bucket."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from utils.ir.rank_buckets import FIRST_RANKS, MEASURED, NAMES, TRIPLES, logged_name


class PerRankStats:
    """Sums over triples, by the bucket of their negative's rank; ``sums_B4`` float64: a count, then MEASURED.

    The loss is the triple's own. The gradient is the norm of its loss's gradient with respect to the triple's
    three embeddings together, in closed form. A triple counts as ranked correctly ("satisfied" in logs) where
    its positive scores above its negative.
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

    def load(self, sums: Sequence[Sequence[float | None]]) -> None:
        """What `state` gave; of another shape, from another version, it is omitted."""
        stored = torch.from_numpy(np.array(sums, np.float64))  # null is NaN
        if stored.shape == self.sums_B4.shape:
            self.sums_B4.copy_(stored)


def means_by_rank(sums: list[list[float]]) -> dict[str, float]:
    """``rank_1-5_triples``, ``rank_1-5_loss``, … of each bucket that has triples; ``sums`` are `PerRankStats`'s."""
    means: dict[str, float] = {}
    for bucket, (count, *totals) in zip(NAMES, sums, strict=True):
        if count:
            means[logged_name(bucket, TRIPLES)] = int(count)
            means |= {logged_name(bucket, what): total / count for what, total in zip(MEASURED, totals, strict=True)}
    return means
