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

from utils.errors import UserError, one_line
from utils.json_text import json_text

WEIGHTS = "model.safetensors"
INITIAL_STD = 0.1  # torch's 1.0 leaves Adam's steps too small beside the weights: the head alone would learn


class StaticEncoder(nn.Module):
    """config: ``vocab_size``, ``embedding_size``; optional ``score_scale`` and ``pad_token_id``."""

    cpu_batch_tokens = 2**16
    is_packed = True  # it has nothing to pack: a table of embeddings, and their mean

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = {"architectures": ["StaticEncoder"], **config, "model_type": "static"}
        self.dims = int(config["embedding_size"])
        self.embeddings = nn.Embedding(int(config["vocab_size"]), self.dims)
        nn.init.normal_(self.embeddings.weight, std=INITIAL_STD)
        self.embeddingHead = nn.Linear(self.dims, self.dims)
        self.norm = nn.LayerNorm(self.dims)
        self.score_scale = float(config.get("score_scale", 1.0))

    def forward(self, input_ids_BL: torch.Tensor, attention_mask_BL: torch.Tensor) -> torch.Tensor:
        weights_BL = attention_mask_BL / attention_mask_BL.sum(1, keepdim=True)
        mean_BD = F.embedding_bag(
            input_ids_BL, self.embeddings.weight, per_sample_weights=weights_BL.to(self.embeddings.weight), mode="sum"
        )
        return self.norm(self.embeddingHead(mean_BD)) * self.score_scale**0.5

    query_emb = body_emb = forward

    def cast_linear_weights(self, dtype: torch.dtype) -> None:
        """Nothing: autocast has only the head to cast."""

    def save_pretrained(self, directory: Path) -> None:
        from safetensors.torch import save_file

        (directory / "config.json").write_text(json_text(self.config, indent=2, sort_keys=True) + "\n")
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, str(directory / WEIGHTS), metadata={"format": "pt"})

    @staticmethod
    def from_pretrained(directory: Path, config: dict[str, Any]) -> StaticEncoder:
        """The encoder of ``config`` with the weights in ``directory``.

        Raises UserError where the weights are missing, damaged or of another shape.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = directory / WEIGHTS
        if not path.is_file():
            raise UserError(f"{path} is missing, expected the encoder's weights; train with run_warmup first")
        try:
            encoder = StaticEncoder(config)
            weights = load_file(str(path))
            missing = sorted(set(encoder.state_dict()) - set(weights))
            if missing:
                raise UserError(f"{path} has no {missing[0]}: a checkpoint without its head; train with run_warmup")
            encoder.load_state_dict(weights)
        except (SafetensorError, RuntimeError, KeyError) as error:
            raise UserError(f"{path} does not hold this encoder's weights: {one_line(error)[:300]}") from None
        return encoder
