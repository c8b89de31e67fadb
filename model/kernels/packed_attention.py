"""Texts one after the other in place of rows padded to the longest: only a CPU's attention is computed for padding.

Attention stays within each text: on a GPU by torch's nested tensors, which call its kernels for sequences of several
lengths, on a CPU by padding for the attention alone. Layers of any other kind treat each token alone.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

from model.kernels.cpu_dropout import MAX_EAGER_LENGTH, cpu_eager_or_sdpa
from model.kernels.precision import autocast, encodes_in_bfloat16_on_cpu
from model.token_batch import attention_mask
from utils.errors import one_line

PACKED, PACKED_ON_CPU = "packed", "packed_on_cpu"  # transformers' words for the attentions below
# oneDNN, which multiplies bfloat16 on a CPU, keeps a program for each shape: a refresh of 80,000 passages with a small
# model held 1.2 GiB, with shapes rounded up so 0.5. An attention's length and rows, the products' tokens, and texts.
ROUNDED_LENGTH, ROUNDED_ROWS, ROUNDED_TOKENS, ROUNDED_TEXTS = 8, 4, 32, 8
TRIED_LENGTHS = (5, 2, 150, 17, 64, 9)  # of the texts that both ways are tried on; a kernel's tiles are of 64 or 128
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}  # relative; another attention is 0.3 off
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]  # the other goes over the texts one by one

# Of nested tensors being young, and of a check within their constructor: once in every log, and nothing to do about.
warnings.filterwarnings("ignore", "The PyTorch API of nested tensors is in prototype stage")
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def packed_attention(
    module: torch.nn.Module,
    query_1HTD: torch.Tensor,
    key_1HTD: torch.Tensor,
    value_1HTD: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    offsets_B: torch.Tensor,
    longest: int,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_others: Any,
) -> tuple[torch.Tensor, None]:
    """H heads of T tokens; text b has tokens [offsets_B[b], offsets_B[b + 1]). Returns [1, T, H, D]."""

    def nested(heads_1HTD: torch.Tensor) -> torch.Tensor:
        tokens_THD = heads_1HTD[0].transpose(0, 1)
        return torch.nested.nested_tensor_from_jagged(
            tokens_THD, offsets_B, min_seqlen=1, max_seqlen=longest
        ).transpose(1, 2)

    attended = F.scaled_dot_product_attention(
        nested(query_1HTD), nested(key_1HTD), nested(value_1HTD), dropout_p=dropout, scale=scaling
    )
    return attended.transpose(1, 2).values()[None], None


def packed_attention_on_cpu(
    module: torch.nn.Module,
    query_1HTD: torch.Tensor,
    key_1HTD: torch.Tensor,
    value_1HTD: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    is_token_BL: torch.Tensor,
    place_T: torch.Tensor,
    tokens: int,
    **words: Any,
) -> tuple[torch.Tensor, None]:
    """As `packed_attention`, by `cpu_eager_or_sdpa` on padded rows; ``place_T`` is each token's in B rows of L.

    Behind the first ``tokens`` stand those that round up the products' rows: they belong to no text, and get what is
    found at their place. Attention is a layer's smallest part, and torch's own of nested tensors goes over the texts
    one by one on a CPU.
    """
    is_padded, is_rounded = tokens < is_token_BL.numel(), tokens < len(place_T)

    def padded(heads_1HTD: torch.Tensor) -> torch.Tensor:
        tokens_THD = heads_1HTD[0].transpose(0, 1)[:tokens]
        if is_padded:
            rows = tokens_THD.new_zeros((is_token_BL.numel(), *tokens_THD.shape[1:]))
            tokens_THD = rows.index_copy_(0, place_T[:tokens], tokens_THD)
        return tokens_THD.unflatten(0, is_token_BL.shape).transpose(1, 2)

    mask_B11L = is_token_BL[:, None, None] if is_padded else None
    attended, _ = cpu_eager_or_sdpa(
        module, padded(query_1HTD), padded(key_1HTD), padded(value_1HTD), mask_B11L, **words
    )
    rows = attended.flatten(0, 1)
    return (rows.index_select(0, place_T) if is_padded or is_rounded else rows)[None], None


AttentionInterface.register(PACKED, packed_attention)
AttentionInterface.register(PACKED_ON_CPU, packed_attention_on_cpu)


def rounds_shapes(roberta: Any) -> bool:
    """Where oneDNN's programs are many: encoding in bfloat16 on a CPU."""
    return roberta.config._attn_implementation == PACKED_ON_CPU and encodes_in_bfloat16_on_cpu()


def hidden_of_packed(
    roberta: Any, ids_BL: torch.Tensor, mask_BL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The last layer's states of all T tokens that are no padding, or where it keeps those alone of each text's first.

    Behind them may stand others, which round up their number. And the texts' lengths_B, and T.
    """
    lengths_B = mask_BL.sum(1)
    offsets_B = F.pad(lengths_B.cumsum(0), (1, 0))
    first_B, longest = offsets_B[:-1], ids_BL.shape[1]
    is_rounded = rounds_shapes(roberta)
    if is_rounded and longest <= MAX_EAGER_LENGTH:
        more = (0, -longest % ROUNDED_LENGTH, 0, -len(ids_BL) % ROUNDED_ROWS)
        ids_BL, mask_BL = F.pad(ids_BL, more, value=roberta.config.pad_token_id), F.pad(mask_BL, more)
    place_T = mask_BL.flatten().nonzero()[:, 0]
    tokens = len(place_T)
    if is_rounded:
        place_T = F.pad(place_T, (0, -tokens % ROUNDED_TOKENS))
        first_B = F.pad(first_B, (0, -len(first_B) % ROUNDED_TEXTS))
    positions_BL = roberta.embeddings.create_position_ids_from_input_ids(ids_BL, roberta.config.pad_token_id)
    states = roberta(
        input_ids=ids_BL.flatten()[place_T][None],
        position_ids=positions_BL.flatten()[place_T][None],
        offsets_B=offsets_B,
        first_B=first_B,
        longest=longest,
        is_token_BL=mask_BL.bool(),
        place_T=place_T,
        tokens=tokens,
    )
    return states.last_hidden_state[0], lengths_B, tokens


# Whether it works here


def tried_batch(config: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded ids_BL and mask_BL of made-up texts that fit the model."""
    pad_id = config.pad_token_id
    most = config.max_position_embeddings - pad_id - 1
    lengths_B = torch.tensor([min(length, most) for length in TRIED_LENGTHS])
    draw = torch.Generator().manual_seed(0)  # the global one stays as it is
    shape = (len(lengths_B), int(lengths_B.max()))
    ids_BL = (pad_id + 1 + torch.randint(config.vocab_size - 1, shape, generator=draw)) % config.vocab_size
    mask_BL = attention_mask(ids_BL, lengths_B)
    return ids_BL.where(mask_BL.bool(), pad_id).to(device), mask_BL.to(device)


def embeddings_and_gradient(
    encoder: Any, batch: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype | None, trains: bool
) -> list[torch.Tensor]:
    """Of the batch: embeddings, and with ``trains`` the gradient of a random sum of them."""
    device = batch[0].device
    with contextlib.nullcontext() if trains else torch.inference_mode(), autocast(device, dtype):
        embeddings_BD = encoder(*batch).float()
    if not trains:
        return [embeddings_BD]
    draw = torch.Generator().manual_seed(1)
    (embeddings_BD * torch.randn(embeddings_BD.shape, generator=draw).to(device)).sum().backward()
    gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in encoder.parameters())
    found = [gradient.flatten().float() for gradient in gradients]
    encoder.zero_grad(set_to_none=True)
    return [embeddings_BD.detach(), torch.cat(found)]


def packing_problem(encoder: Any, device: torch.device, dtype: torch.dtype | None, trains: bool) -> str:
    """Why this device cannot encode, or with ``trains`` train, packed texts as it does padded ones; "" where it can.

    The encoder stays as it is, and so do the random states. Another version of torch or another GPU may lack a kernel.
    """
    was_training, batch = encoder.training, tried_batch(encoder.config, device)
    on_gpu = device.type == "cuda"
    try:
        with torch.random.fork_rng([device] if on_gpu else []):
            encoder.eval()
            encoder.pack_texts(False)  # a copy of one that is packed
            padded = embeddings_and_gradient(encoder, batch, dtype, trains)
            encoder.pack_texts(True, PACKED)
            with sdpa_kernel(FUSED) if on_gpu else contextlib.nullcontext():
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
