"""Tokens per second of a model of --model_type hf: ours, sentence-transformers' encode, and a RoBERTa of its size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks import baselines, common
from data.docstrings import installed_sources, read_pairs
from drivers.job.encoder_setup import prepare_encoder
from model.encode import TextSource, encode_blocks
from model.encoders.base import CastsWeights, Encoder
from model.encoders.hf import HfEncoder
from model.kernels.precision import name_of, quickest_dtype
from utils.distributed.world import World

SHAPE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
LARGEST_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 0.02}  # of a norm of the longest embedding


def docstrings(count: int) -> list[str]:
    """Real texts: passages of data/docstrings.py, in the order of the installed packages' files."""
    texts: list[str] = []
    for path in (path for source in installed_sources() for path in source.files()):
        texts += [pair.passage for pair in read_pairs(path) or []]
        if len(texts) >= count:
            break
    return texts[:count]


def our_encoder(encoder: Encoder, device: torch.device, dtype: torch.dtype | None) -> Encoder:
    """As run_eval has it."""
    encoder = encoder.eval().to(device)
    if dtype is not None and isinstance(encoder, CastsWeights):
        encoder.cast_linear_weights(dtype)
    return prepare_encoder(encoder, dtype, World(0, 1, device))


def roberta_of_size(encoder: HfEncoder) -> HfEncoder:
    """A RoBERTa with as many layers, heads and numbers as the body of ``encoder``, and with random weights."""
    config = encoder.model.config
    shape = {name: getattr(config, name) for name in SHAPE}
    inner = getattr(config, "intermediate_size", 4 * config.hidden_size)  # not every family names it so
    positions = common.LONGEST + 2  # RoBERTa counts from 2
    return HfEncoder.new(
        {
            "model_type": "roberta",
            **shape,
            "intermediate_size": inner,
            "type_vocab_size": 1,
            "max_position_embeddings": positions,
        }
    )


def check_close(found_ND: np.ndarray, expected_ND: np.ndarray, dtype: torch.dtype) -> None:
    """AssertionError where the two programs' embeddings differ by more than ``dtype`` rounds."""
    worst = float(np.linalg.norm(found_ND - expected_ND, axis=1).max() / np.linalg.norm(expected_ND, axis=1).max())
    assert worst < LARGEST_DIFFERENCE[dtype], f"embeddings differ by {worst} of their norm"


def measure(model: Path, texts: list[str], source: TextSource, repeats: int, json_path: Path | None) -> None:
    """Report the three rates, the median of so many turns, and how they compare.

    Args:
        model: a directory that sentence-transformers opens.
        texts: what it encodes; without tokens it makes them itself.
        source: the same as token ids.
        repeats: turns of each.
        json_path: where the report is written, too.
    """
    from sentence_transformers import SentenceTransformer

    device = common.own_device()
    dtype = quickest_dtype(device)
    loaded = HfEncoder.load(str(model), "", False, {})
    roberta, ours = (our_encoder(encoder, device, dtype) for encoder in (roberta_of_size(loaded), loaded))
    theirs = SentenceTransformer(str(model), device=str(device))
    tokens_of_a_batch = 128 * int(theirs.max_seq_length or common.LONGEST)

    def encode_by(encoder: Encoder) -> np.ndarray:
        blocks = encode_blocks(encoder, source, (0, source.count), tokens_of_a_batch, device, dtype)
        return np.concatenate(list(blocks))

    works = {
        "ours": lambda: encode_by(ours),
        "roberta": lambda: encode_by(roberta),
        "st_default": lambda: theirs.encode(texts, show_progress_bar=False),
    }
    check_close(works["ours"](), works["st_default"](), dtype or torch.float32)
    seconds = common.side_by_side(works, repeats, device, prepare=lambda name: baselines.allocate_as(name, device))
    tokens = int(source.lengths(0, source.count).sum())
    rates = {name: tokens / taken for name, taken in seconds.items()}
    common.report(
        json_path,
        device,
        {
            **{f"{name}_tokens_per_second": rate for name, rate in rates.items()},
            f"mean_tokens_in_{name_of(dtype)}": tokens / source.count,
        },
        {f"vs_{name}": rates["ours"] / rates[name] for name in ("st_default", "roberta")},
    )
