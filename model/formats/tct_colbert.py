"""TCT-ColBERT (Lin et al. 2021, arXiv 2010.11386): a BERT, read as an encoder to train from.

Its own embeddings are means of the last layer's states from position 4 on, of ``[CLS] [D] text`` without an end mark,
and of ``[CLS] [Q] query`` filled up with [MASK] to 36 tokens (Pyserini's TctColBert encoders). No encoder here pools
so: the weights are those, the vectors are a plain mean's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model.formats.ance import read_stored
from model.formats.held import POSITION_IDS, HeldModel, ReadSettings, body_names, check_names, layers_of
from utils.declared.layouts import ENCODER

PREFIX = "bert."  # of those that were saved with the heads of BERT's first training
UNUSED = ("cls.", "pooler.", POSITION_IDS)
TEXTS = {"query_prefix": "[Q] ", "passage_prefix": "[D] "}
NOTE = (
    "note: TCT-ColBERT pools from position 4 on and fills queries up with [MASK], which no encoder here does: the "
    "weights are a start for training, and their vectors are not those that were published"
)


def read(paths: Sequence[Path], settings: ReadSettings) -> HeldModel:
    """As an encoder that pools the mean of all tokens; args, and what it raises: those of `model.formats.ance.read`."""
    source = paths[0]
    config, stored = read_stored(source, settings, "bert", PREFIX)
    weights = {name: tensor for name, tensor in stored.items() if not name.startswith(UNUSED)}
    check_names(weights, body_names(max(1, layers_of(weights, ""))), str(source), "a BERT alone")
    named = {f"model.{name}": tensor for name, tensor in weights.items()}
    described = {**TEXTS, **config, "pooling": "mean"}
    return HeldModel(ENCODER, described, named, settings.tokenizer_in(source), str(source), note=NOTE)
