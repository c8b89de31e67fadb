"""DeBERTa's attention in half precision: its two biases, which are not a linear layer's, are lowered as autocast lowers
a linear layer's.

Otherwise the queries stay in float32 and the scores are in half precision: transformers masks these by the lowest
number of the queries' type, which theirs does not hold.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.deberta.modeling_deberta import DisentangledSelfAttention

from model.kernels.compute_as import compute_as


class LoweredBiases(nn.Module):
    """`DisentangledSelfAttention`, whose weights these are."""

    @property
    def q_bias(self) -> torch.Tensor:
        return lowered(self._parameters["q_bias"])

    @property
    def v_bias(self) -> torch.Tensor:
        return lowered(self._parameters["v_bias"])


def lowered(bias: torch.Tensor | None) -> torch.Tensor:
    """In the type of autocast, where it is on."""
    assert bias is not None
    device = bias.device.type
    return bias.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else bias


def lower_biases(model: nn.Module) -> None:
    """Of all such attentions in a model; other models stay as they are."""
    for module in model.modules():
        if isinstance(module, DisentangledSelfAttention):
            compute_as(LoweredBiases, module)
