"""The two losses, both on the scores of `model.similarity` and always in float32."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from model.similarity import all_scores, pair_scores


def pairwise_nll(
    query_TD: torch.Tensor, positive_TD: torch.Tensor, negative_TD: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    """Mean over triples (or "none": each triple's) of -log softmax over (positive, negative), taken at the positive.

    ANCE's loss (paper section 3; model/models.py, class NLL), as softplus(s_negative - s_positive).
    """
    query_TD = query_TD.float()  # once, so that the gradients of its two scores are added up in float32
    positive_T, negative_T = pair_scores(query_TD, positive_TD), pair_scores(query_TD, negative_TD)
    loss_T = F.softplus(negative_T - positive_T)
    return loss_T.mean() if reduction == "mean" else loss_T


def in_batch_scores(query_TD: torch.Tensor, passages_GD: torch.Tensor, allowed_TG: torch.Tensor) -> torch.Tensor:
    """float32 [T, G], -inf where ``allowed_TG`` does not let a passage in."""
    return all_scores(query_TD, passages_GD).masked_fill(~allowed_TG, float("-inf"))


def in_batch_nll(
    query_TD: torch.Tensor, passages_GD: torch.Tensor, allowed_TG: torch.Tensor, target_T: torch.Tensor
) -> torch.Tensor:
    """Mean over queries of the softmax loss over all passages of the batch that ``allowed_TG`` lets in."""
    return F.cross_entropy(in_batch_scores(query_TD, passages_GD, allowed_TG), target_T)
