"""A body's products on a CPU in bfloat16, for encoding alone.

torch packs a matrix for the CPU again for each batch; here that is done once, by the two operations its own compiler
does it with. They are no promised part of torch, so they are tried before they are used.
"""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.distilbert.modeling_distilbert import FFN

from model.kernels.compute_as import compute_as
from model.kernels.cpu_dropout import is_for_cpu
from model.kernels.precision import encodes_in_bfloat16_on_cpu, is_quick_at_bfloat16

TRIED_SHAPE = (5, 48, 80)  # rows, and the matrix's two sides
TOLERANCE = 0.02  # between numbers below 2, which are rounded once or twice


class PrepackedLinear(nn.Linear):
    """The same layer with the same parameters, and the weight once more, ``prepacked``, as it was then.

    The plain layer computes wherever a gradient may be asked for, on a GPU, in a compiled model, and in another type.
    """

    prepacked: torch.Tensor

    def is_prepacked_for(self, input: torch.Tensor) -> bool:
        return is_for_cpu(input) and encodes_in_bfloat16_on_cpu()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.is_prepacked_for(input):
            return prepacked_product(input, self.prepacked, self.bias)
        return super().forward(input)


class PrepackedIntermediate(nn.Module):
    """Of BERT and those with its modules: gelu is computed in the product, before its result is rounded."""

    dense: PrepackedLinear

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.dense.is_prepacked_for(hidden_states):
            return gelu_of_product(hidden_states, self.dense)
        made: torch.Tensor = super().forward(hidden_states)
        return made


class PrepackedFFN(FFN):
    """The same of DistilBERT."""

    def ff_chunk(self, input: torch.Tensor) -> torch.Tensor:
        if isinstance(self.lin1, PrepackedLinear) and self.lin1.is_prepacked_for(input):
            made: torch.Tensor = self.dropout(self.lin2(gelu_of_product(input, self.lin1)))
            return made
        made = super().ff_chunk(input)
        return made


def gelu_of_product(input: torch.Tensor, layer: PrepackedLinear) -> torch.Tensor:
    return prepacked_product(input, layer.prepacked, layer.bias, "gelu", "none")


def prepacked_product(
    input: torch.Tensor, prepacked: torch.Tensor, bias: torch.Tensor | None, activation: str = "none", kind: str = ""
) -> torch.Tensor:
    """A linear layer's product, in bfloat16, and what is computed of it before it is rounded.

    Args:
        input: [..., width], of any float type.
        prepacked: the weight, by `prepack`.
        bias: [inner], or None.
        activation: torch's word for oneDNN: none, gelu, …
        kind: of gelu, ``none`` is the exact one and ``tanh`` the approximation; "" for an activation of a single kind.

    Returns:
        bfloat16 [..., inner].
    """
    rounded = input.to(torch.bfloat16)
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rounded, prepacked, bias, activation, [], kind)
    return made


def prepack(weight: torch.Tensor, rows: int) -> torch.Tensor:
    made: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    return made


@functools.cache
def is_prepacking_right() -> bool:
    """Whether this torch has the operations, and they compute what the plain ones do."""
    rows, width, inner = TRIED_SHAPE
    draw = torch.Generator().manual_seed(0)  # the global one stays as it is
    input, weight, bias = (
        torch.randn(shape, generator=draw).div_(width**0.5).to(torch.bfloat16)
        for shape in ((rows, width), (inner, width), (inner,))
    )
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        prepacked = prepack(weight, rows)
        product, activated = (prepacked_product(input, prepacked, bias, *gelu) for gelu in ((), ("gelu", "none")))
    except (AttributeError, RuntimeError, TypeError):  # lacking, without a kernel, or called in another way
        return False
    expected = F.linear(input.float(), weight.float(), bias.float())
    pairs = (product, expected), (activated, F.gelu(expected))
    return all(torch.allclose(found.float(), wanted, rtol=0, atol=TOLERANCE) for found, wanted in pairs)


def can_prepack(weight: torch.Tensor) -> bool:
    """Of a bfloat16 weight, on a CPU known to be quick at it, with oneDNN."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and is_quick_at_bfloat16(weight.device)
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.mkldnn.is_available()
        and is_prepacking_right()
    )


def prepack_products(body: nn.Module, rows: int) -> None:
    """Keep every linear layer's weight once more, as products of so many rows want it: right for any number of them.

    Where that is not possible, the layers stay what they are.
    """
    for module in body.modules():
        if type(module) is nn.Linear and can_prepack(module.weight):
            module.__class__ = PrepackedLinear
            module.prepacked = prepack(module.weight, rows)
    for module in body.modules():
        if isinstance(module, FFN) and is_prepacked_gelu(module.lin1, module.activation):
            compute_as(PrepackedFFN, module)
        elif is_prepacked_gelu(getattr(module, "dense", None), getattr(module, "intermediate_act_fn", None)):
            compute_as(PrepackedIntermediate, module)


def is_prepacked_gelu(layer: object, activation: object) -> bool:
    return type(layer) is PrepackedLinear and getattr(activation, "act", None) is F.gelu
