"""TCT-ColBERT (Lin et al. 2021, arXiv 2010.11386): a BERT whose embeddings are means from position 4 on.

The four before are ``[CLS] [D]`` or ``[CLS] [Q]``, which the text profile tct-colbert spells out, as it fills queries
up with [MASK] (Pyserini's TctColBert encoders).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model.formats.ance import read_stored
from model.formats.loaded import POSITION_IDS, LoadedModel, ReadSettings, body_names, check_names, layers_of
from utils.declared.layouts import ENCODER
from utils.declared.text_profiles import TEXT_PROFILES
from utils.declared.text_settings import TextSettings
from utils.exchange.model_files import POOLED_FROM

PREFIX = "bert."  # of those that were saved with the heads of BERT's first training
UNUSED = ("cls.", "pooler.", POSITION_IDS)
PROFILE = "tct-colbert"
FIRST_POOLED = 4  # behind [CLS], [, d or q, and ]
LONGEST_PASSAGE = 512


def read(paths: Sequence[Path], settings: ReadSettings) -> LoadedModel:
    """Args, and what it raises: those of `model.formats.ance.read`."""
    source = paths[0]
    config, stored = read_stored(source, settings, "bert", PREFIX)
    weights = {name: tensor for name, tensor in stored.items() if not name.startswith(UNUSED)}
    check_names(weights, body_names(max(1, layers_of(weights, ""))), str(source), "a BERT alone")
    named = {f"model.{name}": tensor for name, tensor in weights.items()}
    positions = config.get("max_position_embeddings", LONGEST_PASSAGE)
    described = {
        "max_seq_length": min(LONGEST_PASSAGE, positions),
        "max_query_length": TEXT_PROFILES[PROFILE].query_tokens,
        **TextSettings(PROFILE).record(),
        **config,
        "pooling": "mean",
        POOLED_FROM: FIRST_POOLED,
    }
    return LoadedModel(ENCODER, described, named, settings.tokenizer_in(source), str(source))
