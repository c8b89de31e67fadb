"""From the states of a text's tokens to its one row: the first's, the last's, or the mean."""

from __future__ import annotations

import torch

from model.token_batch import TokenBatch


def pool_padded(hidden_BLH: torch.Tensor, mask_BL: torch.Tensor, pooling: str, pooled_from: int = 0) -> torch.Tensor:
    """One row for each text: [B, H].

    Args:
        hidden_BLH: the last layer's states.
        mask_BL: 1 for tokens, 0 for padding behind them.
        pooling: first, mean or last.
        pooled_from: the first position that a mean is of; of a text that ends before it, zeros.
    """
    if pooling == "first":
        return hidden_BLH[:, 0]
    if pooling == "last":
        return hidden_BLH[torch.arange(len(hidden_BLH), device=hidden_BLH.device), mask_BL.sum(1) - 1]
    weights_BL1 = mask_BL[..., None].to(hidden_BLH)
    if pooled_from:
        weights_BL1[:, :pooled_from] = 0
    return (hidden_BLH * weights_BL1).sum(1) / weights_BL1.sum(1).clamp(min=1)


def pool_packed(hidden_TH: torch.Tensor, tokens: TokenBatch, pooling: str, pooled_from: int = 0) -> torch.Tensor:
    """The same of texts without padding.

    Args:
        hidden_TH: the last layer's states, with what the packed batch has behind its tokens; for ``first`` those of
            the first tokens alone, [B, H].
        tokens: the texts.
        pooling, pooled_from: those of `pool_padded`.
    """
    if pooling == "first":
        return hidden_TH[: len(tokens)]
    if pooling == "last":
        return hidden_TH[tokens.offsets_B1[1:] - 1]
    hidden_TH = hidden_TH[: len(tokens.tokens_T)]
    # "unsafe": the lengths are the batch's own; to check them the host would wait for a GPU.
    if not pooled_from:
        return torch.segment_reduce(hidden_TH, "mean", lengths=tokens.lengths_B, unsafe=True)
    starts_T = torch.repeat_interleave(tokens.offsets_B1[:-1], tokens.lengths_B, output_size=len(hidden_TH))
    is_pooled_T = torch.arange(len(hidden_TH), device=hidden_TH.device) - starts_T >= pooled_from
    sums_BH = torch.segment_reduce(hidden_TH * is_pooled_T[:, None], "sum", lengths=tokens.lengths_B, unsafe=True)
    return sums_BH / (tokens.lengths_B - pooled_from).clamp(min=1)[:, None]
