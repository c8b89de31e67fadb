"""MPNet's attention for packed texts: it adds a bias by distance, one for all layers, to the scores.

transformers' own knows no packed texts, and is what computes padded ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mpnet.modeling_mpnet import MPNetLayer, MPNetModel

from model.kernels.compute_as import compute_as
from model.kernels.packed_attention import packed_attention_on_cpu


class PackableLayer(MPNetLayer):
    """With what `model.kernels.packed_attention` gives, packed texts."""

    computes_first_alone = False

    def forward(self, hidden_states: torch.Tensor, *own: Any, **packing: Any) -> Any:
        """transformers' own, or [1, T, H] to [1, T, H]; to [1, B, H] where each text's first token alone is kept."""
        if "first_B" not in packing:
            return super().forward(hidden_states, *own, **packing)
        attention = self.attention.attn
        query, key, value = (
            product(hidden_states).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
            for product in (attention.q, attention.k, attention.v)
        )
        dropout = attention.dropout.p if self.training else 0.0
        attended, _ = packed_attention_on_cpu(attention, query, key, value, None, dropout=dropout, **packing)
        attended = attended.flatten(2)
        if self.computes_first_alone:
            attended, hidden_states = (states[:, packing["first_B"]] for states in (attended, hidden_states))
        kept = self.attention.LayerNorm(self.attention.dropout(attention.o(attended)) + hidden_states)
        made: torch.Tensor = self.output(self.intermediate(kept), kept)
        return made


class PackableMPNet(MPNetModel):
    def forward(self, **inputs: Any) -> Any:
        """transformers' own, or the states of packed texts."""
        if "first_B" not in inputs:
            return super().forward(**inputs)
        if "is_token_BL" not in inputs:
            raise NotImplementedError("torch has no attention over texts of several lengths with a bias by distance")
        states = self.embeddings(input_ids=inputs.pop("input_ids"), position_ids=inputs.pop("position_ids"))
        of_length = states.new_empty((1, inputs["is_token_BL"].shape[1], 0))
        bias_1HLL = self.encoder.compute_position_bias(of_length)
        for layer in self.encoder.layer:
            states = layer(states, bias_1HLL=bias_1HLL, **inputs)
        return BaseModelOutput(last_hidden_state=states)


def compute_first_alone(layer: nn.Module) -> None:
    """Of packed texts, of which this last layer's first tokens alone are pooled."""
    assert isinstance(layer, PackableLayer)
    layer.computes_first_alone = True


def make_packable(model: nn.Module) -> None:
    """Let an MPNet compute packed texts, too."""
    assert isinstance(model, MPNetModel)
    compute_as(PackableMPNet, model)
    for layer in model.encoder.layer:
        compute_as(PackableLayer, layer)
