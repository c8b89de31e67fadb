"""The last layer where only a text's first token is pooled: after the attention that token alone is computed.

Of a layer's 12 products this omits 9, or 8 where a family's attention has its output's product within it, which no
embedding and no gradient depends on. The other tokens' queries are not needed either, but transformers' attention makes
them together with keys and values.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer


class FirstTokenLayer(GradientCheckpointingLayer):
    """Of BERT, whose modules RoBERTa, XLM-R and ELECTRA have, too."""

    attention: Any
    feed_forward_chunk: Any

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *_cross: Any, **kwargs: Any
    ) -> torch.Tensor:
        """[B, L, H] to [B, 1, H]; where texts are packed, with the places ``first_B``, [1, T, H] to [1, B, H]."""
        first: Any = kwargs.get("first_B", slice(1))
        attended, _ = self.attention.self(hidden_states, attention_mask, **kwargs)
        kept: torch.Tensor = self.attention.output(attended[:, first], hidden_states[:, first])
        made: torch.Tensor = self.feed_forward_chunk(kept)
        return made


class FirstTokenBlock(GradientCheckpointingLayer):
    """Of DistilBERT."""

    attention: Any
    sa_layer_norm: Any
    ffn: Any
    output_layer_norm: Any

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """As `FirstTokenLayer.forward`."""
        first: Any = kwargs.get("first_B", slice(1))
        attended, _ = self.attention(hidden_states, attention_mask=attention_mask, **kwargs)
        kept = self.sa_layer_norm(attended[:, first] + hidden_states[:, first])
        made: torch.Tensor = self.output_layer_norm(self.ffn(kept) + kept)
        return made
