"""The static encoder: mean of token embeddings, a linear head, a layer norm. It trains in seconds on a CPU.

The inner product of two embeddings is the score itself: its scale (``score_scale`` of the
config) is folded into the embeddings, so that training and search see the same numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from model.encoders.base import ConfigEncoder
from model.encoders.spec import EncoderSpec, Side, positive_number
from model.formats.sentence import head_modules, write_sentence_files, write_table_config
from model.token_batch import TokenBatch

INITIAL_STD = 0.1  # torch's 1.0 leaves Adam's steps too small next to the weights: the head alone would learn


class StaticEncoder(ConfigEncoder):
    """config: ``vocab_size``, ``embedding_size``; optional ``score_scale`` and ``pad_token_id``."""

    cpu_batch_tokens = 2**16

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__({"architectures": ["StaticEncoder"], **config, "model_type": "static"})
        self.spec = self.spec_of(self.config)
        dim = self.spec.embedding_dim
        self.embeddings = nn.Embedding(int(config["vocab_size"]), dim)
        nn.init.normal_(self.embeddings.weight, std=INITIAL_STD)
        self.embeddingHead = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.pad_id = int(config.get("pad_token_id", 0))
        self.score_scale = float(config.get("score_scale", 1.0))

    @classmethod
    def spec_of(cls, config: dict[str, Any]) -> EncoderSpec:
        vocab_size = positive_number(config, ["vocab_size"]) if "vocab_size" in config else None
        return EncoderSpec(positive_number(config, ["embedding_size"]), vocab_size)

    def forward(self, tokens: TokenBatch, side: Side) -> torch.Tensor:
        mean_BD = mean_of_tokens(self.embeddings.weight, tokens, self.pad_id)
        return self.norm(self.embeddingHead(mean_BD)) * self.score_scale**0.5

    def save_pretrained(self, directory: Path) -> None:
        """Also what sentence-transformers opens the directory by."""
        super().save_pretrained(directory)
        table_VD = self.embeddings.weight
        modules = head_modules(self.state_dict(), table_VD.shape[1], "mean", self.score_scale)
        settings = write_table_config(directory, "embeddings.weight", table_VD.shape, self.pad_id)
        write_sentence_files(directory, modules, self.config, settings)


def mean_of_tokens(table_VD: torch.Tensor, tokens: TokenBatch, pad_id: int) -> torch.Tensor:
    """Each text's mean of its tokens' rows of a table: [B, D].

    Padded, with weights of 0: ragged texts give the same means, and gradients whose last bits are others.
    """
    ids_BL, mask_BL = tokens.padded(pad_id)
    weights_BL = mask_BL / mask_BL.sum(1, keepdim=True)
    return F.embedding_bag(ids_BL, table_VD, per_sample_weights=weights_BL.to(table_VD), mode="sum")
