"""Small models of a collection's vocabulary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import RobertaConfig

from model.encoders.static import StaticEncoder


def config_of_random_roberta(data_dir: Path, **sizes: Any) -> RobertaConfig:
    """For texts of up to 32 tokens, inner layers twice as wide; the random weights made next are always the same.

    Args:
        data_dir: the preprocessed collection.
        sizes: hidden_size, num_hidden_layers, num_attention_heads, and whatever else a `RobertaConfig` takes.
    """
    manifest = json.loads((data_dir / "manifest.json").read_text())
    tokens = {name: manifest[name] for name in ("vocab_size", "pad_token_id")}
    inner = {"intermediate_size": 2 * sizes["hidden_size"]}
    torch.manual_seed(3)
    return RobertaConfig(**{**tokens, **inner, "max_position_embeddings": 40, **sizes})


def save_random_static(data_dir: Path, tokenizer: Path, directory: Path) -> Path:
    """A static encoder of random weights, with the tokenizer, as a new directory."""
    shutil.copytree(tokenizer, directory)
    vocab_size = json.loads((data_dir / "manifest.json").read_text())["vocab_size"]
    StaticEncoder.new({"vocab_size": vocab_size, "embedding_size": 8}).save_pretrained(directory)
    return directory
