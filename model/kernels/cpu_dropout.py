"""Dropout and attention on a CPU.

torch draws a mask number by number on one core there, has no attention kernel with dropout, and a slow one in bfloat16.

Here four elements share one draw of torch's own generator, whose seed and state repeat them. On a GPU, and in a
compiled model, torch's kernels do it, and so they do in the attention of texts packed for a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BY_DEVICE = "by_device"  # transformers' word for the attention below
MAX_EAGER_LENGTH = 160  # tokens of a text
DRAWS = 2**16  # that 16 bits can make


def is_for_cpu(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def dropped(tensor: torch.Tensor, p: float) -> torch.Tensor:
    """The tensor with each element 0 with probability ``p``, to the nearest 1/65,536; the others as much larger."""
    dropping = round(p * DRAWS)
    if dropping >= DRAWS:
        return tensor * 0.0
    # From the lowest to the highest number: without the two, the sign of every fourth element's draw would be fixed.
    words = torch.empty((tensor.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    draws = words.view(torch.int16)[: tensor.numel()].view(tensor.shape)  # from -32,768
    return tensor * (draws >= dropping - DRAWS // 2).to(tensor.dtype).mul_(DRAWS / (DRAWS - dropping))


def is_quicker_by_products(query_BHQD: torch.Tensor) -> bool:
    """Of an attention without dropout.

    On 2 cores with avx512_bf16 torch's kernel took 1.3 to 1.6 times as long for texts of 47 to 141 tokens, 0.7 to 1.2
    times with 221. The scores are rounded here, as queries and keys were before: embeddings are 1.02 to 1.1 times as
    far from float32's as the kernel's, the most where scores are spread out as far as 20.
    """
    return query_BHQD.dtype == torch.bfloat16 and query_BHQD.shape[2] <= MAX_EAGER_LENGTH


class Dropout(nn.Dropout):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training and self.p > 0 and is_for_cpu(input):
            return dropped(input, self.p)
        return super().forward(input)


def cpu_eager_or_sdpa(
    module: nn.Module,
    query_BHQD: torch.Tensor,
    key_BHLD: torch.Tensor,
    value_BHLD: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    bias_1HLL: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' ``sdpa``, or on a CPU the products themselves, where it has no kernel or a slow one.

    Args:
        module: the attention layer, as transformers gives it.
        query_BHQD, key_BHLD, value_BHLD: of H heads.
        mask: True where attended to, [B, 1, Q or 1, L]; None where nothing is padded.
        dropout: the share of weights that become 0.
        scaling: of the scores; None for 1/√D.
        bias_1HLL: added to the scores, as MPNet's of distances.

    Returns:
        [B, Q, H, D], and None in place of the weights.
    """
    if not is_for_cpu(query_BHQD) or (dropout == 0 and not is_quicker_by_products(query_BHQD)):
        if bias_1HLL is not None:
            bias_1HLL = bias_1HLL.to(query_BHQD.dtype)
            mask = bias_1HLL if mask is None else bias_1HLL.masked_fill(~mask, torch.finfo(bias_1HLL.dtype).min)
        attended: torch.Tensor = sdpa_attention_forward(
            module, query_BHQD, key_BHLD, value_BHLD, mask, dropout=dropout, scaling=scaling, **kwargs
        )[0]
        return attended, None
    # Otherwise the products would copy them, the keys transposed.
    query_BHQD, key_BHLD, value_BHLD = (heads.contiguous() for heads in (query_BHQD, key_BHLD, value_BHLD))
    factor = query_BHQD.shape[-1] ** -0.5 if scaling is None else scaling
    scores_BHQL = (query_BHQD * factor) @ key_BHLD.transpose(2, 3)
    if bias_1HLL is not None:
        scores_BHQL = scores_BHQL + bias_1HLL
    if mask is not None:
        scores_BHQL.masked_fill_(~mask, torch.finfo(scores_BHQL.dtype).min)
    weights_BHQL = scores_BHQL.softmax(-1, dtype=torch.float32).to(value_BHLD.dtype)
    if dropout > 0:
        weights_BHQL = dropped(weights_BHQL, dropout)
    return (weights_BHQL @ value_BHLD).transpose(1, 2).contiguous(), None


AttentionInterface.register(BY_DEVICE, cpu_eager_or_sdpa)
AttentionMaskInterface.register(BY_DEVICE, sdpa_mask)


def make_dropout_quick(model: nn.Module) -> None:
    """Every dropout that is a module; that of the attention is the attention's own."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Dropout:
            model.set_submodule(name, Dropout(module.p).train(module.training))
