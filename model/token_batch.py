"""Texts as token ids: what an encoder is given."""

from __future__ import annotations

import torch


def attention_mask(ids_BL: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """1 for tokens, 0 for padding: int64 [B, L]."""
    return (torch.arange(ids_BL.shape[1], device=ids_BL.device) < lengths_B[:, None]).to(torch.int64)
