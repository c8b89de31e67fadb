"""Whether this device can encode, and train, texts that are packed without padding."""

from __future__ import annotations

import contextlib
from typing import get_args

import torch

from model.encoders.base import Encoder, PacksTexts
from model.encoders.spec import EncoderSpec, Side
from model.kernels.packed_attention import PACKED
from model.kernels.precision import autocast
from model.token_batch import TokenBatch
from utils.errors import one_line

TRIED_LENGTHS = (5, 2, 150, 17, 64, 9)  # of the texts that both ways are tried on; a kernel's tiles are of 64 or 128
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}  # relative; another attention is 0.3 off


def tried_batch(spec: EncoderSpec) -> TokenBatch:
    """Made-up texts that fit the model."""
    most, pad_id, vocab_size = spec.max_passage_length or max(TRIED_LENGTHS), spec.pad_id or 0, spec.vocab_size or 2
    lengths_B = torch.tensor([0, *(min(length, most) for length in TRIED_LENGTHS)])
    offsets_B1 = lengths_B.cumsum(0)
    draw = torch.Generator().manual_seed(0)  # the global one stays as it is
    others_T = torch.randint(vocab_size - 1, (int(offsets_B1[-1]),), generator=draw)
    return TokenBatch.of((pad_id + 1 + others_T) % vocab_size, offsets_B1)


def embeddings_and_gradient(
    encoder: Encoder, batch: TokenBatch, dtype: torch.dtype | None, trains: bool
) -> list[torch.Tensor]:
    """What one way to encode makes of a batch.

    Args:
        encoder: in the mode, and by the attention, that are tried; its gradients are removed.
        batch: on the encoder's device.
        dtype: to autocast to, or None.
        trains: whether the gradient is wanted, too.

    Returns:
        float32: the embeddings of both sides, and with ``trains`` the gradient of a random sum of them, flat.
    """
    device = batch.tokens_T.device
    with contextlib.nullcontext() if trains else torch.inference_mode(), autocast(device, dtype):
        rows = torch.cat([encoder.encode(batch, side).rows.float().flatten() for side in get_args(Side)])
    if not trains:
        return [rows]
    draw = torch.Generator().manual_seed(1)
    (rows * torch.randn(rows.shape, generator=draw).to(device)).sum().backward()
    gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in encoder.parameters())
    found = [gradient.flatten().float() for gradient in gradients]
    encoder.zero_grad(set_to_none=True)
    return [rows.detach(), torch.cat(found)]


def packing_problem(encoder: Encoder, device: torch.device, dtype: torch.dtype | None, trains: bool) -> str:
    """Why this device cannot encode, or train, packed texts as it does padded ones: "" where it can.

    Another version of torch or another GPU may lack a kernel.

    Args:
        encoder: on ``device``; it stays as it is, padded, and so do the random states.
        device, dtype: where, and the type to autocast to or None.
        trains: whether gradients are compared, too.
    """
    assert isinstance(encoder, PacksTexts)
    was_training, batch = encoder.training, tried_batch(encoder.spec).to(device)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            encoder.eval()
            encoder.pack_texts(False)  # a copy of one that is packed
            padded = embeddings_and_gradient(encoder, batch, dtype, trains)
            encoder.pack_texts(True, PACKED)
            packed = embeddings_and_gradient(encoder, batch, dtype, trains)
            encoder.train(trains)  # once more with dropout
            dropped = embeddings_and_gradient(encoder, batch, dtype, trains)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # torch raises many types for a kernel that is not there
        return f"{type(error).__name__}: {one_line(error)[:200]}"
    finally:
        encoder.pack_texts(False)
        encoder.train(was_training)
    for what, ours, theirs in zip(("embeddings", "gradients"), packed, padded, strict=False):
        off = float((ours - theirs).norm() / theirs.norm())
        if not off < TOLERANCE[dtype or torch.float32]:  # nan is not
            return f"the {what} differ by {off:.2g} of their norm"
    if not all(bool(tensor.isfinite().all()) for tensor in dropped):
        return "with dropout they are not finite"
    return ""
