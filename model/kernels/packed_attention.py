"""Texts one after the other in place of rows padded to the longest: only a CPU's attention is computed for padding.

Attention stays within each text: on a GPU by torch's kernels for sequences of several lengths, on a CPU by padding for
the attention alone. Layers of any other kind treat each token alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface

from model.kernels.cpu_dropout import MAX_EAGER_LENGTH, cpu_eager_or_sdpa
from model.kernels.precision import encodes_in_bfloat16_on_cpu
from model.token_batch import TokenBatch

PACKED, PACKED_ON_CPU = "packed", "packed_on_cpu"  # transformers' words for the attentions below
# oneDNN, which multiplies bfloat16 on a CPU, keeps a program for each shape: a refresh of 80,000 passages with a small
# model held 1.2 GiB, with shapes rounded up so 0.5. An attention's length and rows, the products' tokens, and texts.
ROUNDED_LENGTH, ROUNDED_ROWS, ROUNDED_TOKENS, ROUNDED_TEXTS = 8, 4, 32, 8

HEAD_MULTIPLE = 8  # numbers of a head, 16 bytes in half precision, which the kernels read at once
FIRST_GPU_WITH_FLASH = (8, 0)  # compute capability: A100
NO_MASK = 0  # the memory-efficient kernel's word


def flash_attention(
    heads: list[torch.Tensor], offsets_B: torch.Tensor, longest: int, dropout: float, scaling: float
) -> torch.Tensor:
    """FlashAttention-2, which computes in half precision alone; `torch.nn.attention.varlen`'s has no dropout.

    Args:
        heads: queries, keys and values of T tokens, [T, H, D] each; D is a multiple of `HEAD_MULTIPLE`.
        offsets_B: int32, where each text begins, and where the last ends.
        longest: tokens of the longest text.
        dropout: the share of weights that become 0.
        scaling: of the scores.

    Returns:
        [T, H, D].
    """
    places = (offsets_B, offsets_B, longest, longest)
    is_causal = returns_mask = False
    made = torch.ops.aten._flash_attention_forward(*heads, *places, dropout, is_causal, returns_mask, scale=scaling)
    attended_THD: torch.Tensor = made[0]
    return attended_THD


def memory_efficient_attention(
    heads: list[torch.Tensor], offsets_B: torch.Tensor, longest: int, dropout: float, scaling: float
) -> torch.Tensor:
    """xFormers' kernel, which computes in float32, too, and on older GPUs.

    Args: those of `flash_attention`.
    """
    keeps_sums = torch.is_grad_enabled() and any(heads_THD.requires_grad for heads_THD in heads)  # for the gradient
    places = (offsets_B, offsets_B, longest, longest)
    rows = [heads_THD[None] for heads_THD in heads]
    made = torch.ops.aten._efficient_attention_forward(
        *rows, None, *places, dropout, NO_MASK, keeps_sums, scale=scaling
    )
    attended_1THD: torch.Tensor = made[0]
    return attended_1THD[0]


def quickest_kernel(
    dtype: torch.dtype, device: torch.device
) -> Callable[[list[torch.Tensor], torch.Tensor, int, float, float], torch.Tensor]:
    """Of the two above, on a GPU."""
    is_half = dtype in (torch.float16, torch.bfloat16)
    if is_half and torch.cuda.get_device_capability(device) >= FIRST_GPU_WITH_FLASH:
        return flash_attention
    return memory_efficient_attention


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
    """Attention within each of B texts that stand one after the other, by a kernel of the GPU's.

    torch's nested tensors call the same kernels, and took the host 60 ms for each batch of 12 layers.

    Args:
        module: the attention layer, as transformers gives it.
        query_1HTD, key_1HTD, value_1HTD: H heads of T tokens.
        mask: transformers' own, not looked at.
        offsets_B: int32, text b has the tokens [offsets_B[b], offsets_B[b + 1]).
        longest: tokens of the longest text.
        dropout: the share of weights that become 0.
        scaling: of the scores; None for 1/√D.

    Returns:
        [1, T, H, D], and None in place of the weights.
    """
    device, dtype, dims = query_1HTD.device, query_1HTD.dtype, query_1HTD.shape[-1]
    if torch.is_autocast_enabled(device.type):  # which knows torch's scaled_dot_product_attention, and not its kernels
        dtype = torch.get_autocast_dtype(device.type)
    heads = [heads_1HTD[0].transpose(0, 1).to(dtype) for heads_1HTD in (query_1HTD, key_1HTD, value_1HTD)]
    if dims % HEAD_MULTIPLE:  # by zeros, which add nothing to a score
        heads = [F.pad(heads_THD, (0, -dims % HEAD_MULTIPLE)) for heads_THD in heads]
    attend = quickest_kernel(dtype, device)
    attended_THD = attend(heads, offsets_B, longest, dropout, dims**-0.5 if scaling is None else scaling)
    return attended_THD[None, ..., :dims], None


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
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As `packed_attention`, by `cpu_eager_or_sdpa` on padded rows.

    Attention is a layer's smallest part, and torch's kernels for several lengths are a GPU's.

    Args:
        module: the attention layer, as transformers gives it.
        query_1HTD, key_1HTD, value_1HTD: H heads of T tokens.
        mask: transformers' own, not looked at.
        is_token_BL: bool, True where a row of the padded B x L has a token.
        place_T: int64, each token's place among the B x L.
        tokens: how many of the T are the texts'; those behind round up the products' rows, and belong to no text.
        **kwargs: dropout and scaling, as of `packed_attention`, and what else transformers gives.
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
        module, padded(query_1HTD), padded(key_1HTD), padded(value_1HTD), mask_B11L, **kwargs
    )
    rows = attended.flatten(0, 1)
    return (rows.index_select(0, place_T) if is_padded or is_rounded else rows)[None], None


AttentionInterface.register(PACKED, packed_attention)
AttentionInterface.register(PACKED_ON_CPU, packed_attention_on_cpu)


def rounds_shapes() -> bool:
    """Where oneDNN's programs are many: encoding in bfloat16 on a CPU."""
    return encodes_in_bfloat16_on_cpu()


def rounded_up(number: int, step: int) -> int:
    return number + -number % step


def positions_of(batch: TokenBatch, text_T: torch.Tensor, pad_id: int) -> torch.Tensor:
    """RoBERTa's positions_T: from ``pad_id`` + 1 on in each text, and ``pad_id`` for a pad token inside a text."""
    is_word_T = batch.tokens_T != pad_id
    words_T = is_word_T.cumsum(0)
    before_B = F.pad(words_T, (1, 0))[batch.offsets_B1[:-1]]
    return (words_T - before_B[text_T]) * is_word_T + pad_id


def hidden_of_packed(body: Any, batch: TokenBatch, attention: str, behind_pad_id: int | None) -> torch.Tensor:
    """The last layer's states [T, H] of all tokens; where it keeps those alone of each text's first, [B, H].

    Behind them may stand others, which round up their number.

    Args:
        body: transformers' model.
        batch: of texts, on its device.
        attention: which of the two above ``body`` computes by: `PACKED` or `PACKED_ON_CPU`.
        behind_pad_id: positions begin behind this one (`positions_of`), None for those that begin at 0.
    """
    text_T, column_T = batch.text_of_token()
    tokens_T = batch.tokens_T
    positions_T = column_T if behind_pad_id is None else positions_of(batch, text_T, behind_pad_id)
    first_B, tokens = batch.offsets_B1[:-1], len(batch.tokens_T)
    packing: dict[str, Any]
    if attention == PACKED:
        packing = {"offsets_B": batch.offsets_B1.to(torch.int32), "longest": batch.longest}
    else:
        is_rounded, rows, length = rounds_shapes(), len(batch), batch.longest
        if is_rounded and length <= MAX_EAGER_LENGTH:
            rows, length = rounded_up(rows, ROUNDED_ROWS), rounded_up(length, ROUNDED_LENGTH)
        place_T = text_T * length + column_T
        if is_rounded:  # by more of the first token
            kept_T = F.pad(torch.arange(tokens, device=place_T.device), (0, -tokens % ROUNDED_TOKENS))
            tokens_T, positions_T, place_T = tokens_T[kept_T], positions_T[kept_T], place_T[kept_T]
            first_B = F.pad(first_B, (0, -len(first_B) % ROUNDED_TEXTS))
        lengths_B = F.pad(batch.lengths_B, (0, rows - len(batch)))
        is_token_BL = torch.arange(length, device=place_T.device) < lengths_B[:, None]
        packing = {"is_token_BL": is_token_BL, "place_T": place_T, "tokens": tokens}
    states = body(input_ids=tokens_T[None], position_ids=positions_T[None], first_B=first_B, **packing)
    hidden: torch.Tensor = states.last_hidden_state[0]
    return hidden
