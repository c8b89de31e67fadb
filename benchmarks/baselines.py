"""How else it is done: ANCE's loops, written from its description, and sentence-transformers with the same weights."""

from __future__ import annotations

import copy
import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from utils.system import M_MMAP_MAX, M_TRIM_THRESHOLD, keep_freed_memory

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from model.encoders.roberta_dot import RobertaDot

ANCE_PASSAGE_TOKENS, ANCE_QUERY_TOKENS = 512, 64
ANCE_ENCODING_BATCH, ANCE_TRAINING_BATCH = 16, 8
PAD = 1
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def give_freed_memory_back() -> None:
    """glibc as it comes, and all that was kept goes back.

    Its thresholds adapt to what a process frees until they are set by hand; these are the highest that they reach, with
    which it gives back the least. Addresses that the heap has grown to may be used again, and are kept then: the other
    loops have that advantage.
    """
    libc = ctypes.CDLL(None)
    settings = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 * 2**20, M_TRIM_THRESHOLD: 64 * 2**20}
    for setting in settings.items():
        if not libc.mallopt(*setting):
            raise OSError(f"mallopt{setting} is refused")
    libc.malloc_trim(0)


def allocate_as(name: str, device: torch.device) -> None:
    """Before a work is timed: ours keep a batch's memory for the next, as the programs do; others have glibc's ways."""
    if device.type == "cpu":
        (keep_freed_memory if name.startswith("ours") else give_freed_memory_back)()


def padded(ids: list[np.ndarray], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every text at the full width, as ANCE has them on disk, and its mask."""
    ids_NL = torch.full((len(ids), width), PAD)
    mask_NL = torch.zeros((len(ids), width), dtype=torch.int64)
    for row, tokens in enumerate(ids):
        ids_NL[row, : len(tokens)] = torch.from_numpy(tokens)
        mask_NL[row, : len(tokens)] = 1
    return ids_NL, mask_NL


def ance_model(encoder: RobertaDot) -> RobertaDot:
    """With the weights of ours, and transformers' own RoBERTa: every layer for all tokens, torch's dropout."""
    from transformers.models.roberta.modeling_roberta import RobertaModel

    made = copy.deepcopy(encoder)
    body = RobertaModel(made.config, add_pooling_layer=False)
    made.roberta = torch.nn.Module.to(body, encoder.device)
    made.roberta.load_state_dict(encoder.roberta.state_dict())
    made.roberta.set_attn_implementation("sdpa")
    made.body.model, made.body.is_packed = made.roberta, False
    return made.train(encoder.training)


def ance_encode(
    encoder: RobertaDot, ids: list[np.ndarray], device: torch.device, width: int = ANCE_PASSAGE_TOKENS
) -> np.ndarray:
    """Batches in the order of the collection, every passage as long as the longest may be, float32."""
    encoder.eval()
    parts = []
    for start in range(0, len(ids), ANCE_ENCODING_BATCH):
        batch = padded(ids[start : start + ANCE_ENCODING_BATCH], width)
        with torch.no_grad():
            parts.append(encoder.body_emb(*(tensor.to(device) for tensor in batch)).cpu().numpy())
    return np.concatenate(parts)


def ance_step(
    encoder: RobertaDot,
    optimizer: torch.optim.Optimizer,
    query_ids: list[np.ndarray],
    positive_ids: list[np.ndarray],
    negative_ids: list[list[np.ndarray]],
    device: torch.device,
    query_tokens: int = ANCE_QUERY_TOKENS,
    passage_tokens: int = ANCE_PASSAGE_TOKENS,
) -> float:
    """One optimiser step on triples, for each of which query and positive are encoded again, 8 triples at a time."""
    encoder.train()
    triples = [
        (query, positive, negative)
        for query, positive, negatives in zip(query_ids, positive_ids, negative_ids, strict=True)
        for negative in negatives
    ]
    widths = (query_tokens, passage_tokens, passage_tokens)
    total = 0.0
    for start in range(0, len(triples), ANCE_TRAINING_BATCH):
        part = triples[start : start + ANCE_TRAINING_BATCH]
        query_TD, positive_TD, negative_TD = (
            encoder.body_emb(*(tensor.to(device) for tensor in padded([triple[place] for triple in part], width)))
            for place, width in enumerate(widths)
        )
        scores_T2 = torch.stack([(query_TD * positive_TD).sum(-1), (query_TD * negative_TD).sum(-1)], 1)
        loss = -F.log_softmax(scores_T2, 1)[:, 0].sum() / len(triples)
        loss.backward()
        total += float(loss.detach())
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def sentence_transformer(
    encoder: RobertaDot, directory: Path, dtype: torch.dtype, device: torch.device
) -> SentenceTransformer:
    """sentence-transformers' model with the encoder's weights; ``directory`` holds the tokenizer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Pooling, Transformer

    body = directory / "body"
    encoder.roberta.save_pretrained(body)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (body / name).write_bytes((directory / name).read_bytes())
    width = encoder.config.hidden_size
    transformer = Transformer(str(body), max_seq_length=ANCE_PASSAGE_TOKENS)
    head = Dense(width, encoder.spec.embedding_dim, activation_function=torch.nn.Identity())
    head.linear.load_state_dict(encoder.embeddingHead.state_dict())
    norm = LayerNorm(encoder.spec.embedding_dim)
    norm.norm.load_state_dict(encoder.norm.state_dict())
    pooling = Pooling(width, pooling_mode="cls")
    made = SentenceTransformer(modules=[transformer, pooling, head, norm], device=str(device))
    return made.to(dtype)
