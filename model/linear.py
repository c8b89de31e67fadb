"""A RoBERTa's products on a CPU in bfloat16, for encoding alone.

torch arranges a matrix for the CPU anew for each batch; here that is done once, by the two operations its own compiler
does it with.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.roberta.modeling_roberta import RobertaIntermediate

from model.dropout import is_for_cpu
from model.precision import is_quick_at_bfloat16

OPERATIONS = ("_linear_pointwise", "_reorder_linear_weight")  # of torch's own compiler
ROWS = 2048  # of a batch: for so many a matrix is arranged, and right for any number


class ArrangedLinear(nn.Linear):
    """The same function of the same parameters, without a gradient; on a GPU and in a compiled model the plain layer.

    Whoever changes the weight calls `arrange_products` again.
    """

    arranged: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.product(input) if is_for_cpu(input) else super().forward(input)

    def product(self, input: torch.Tensor, activation: str = "none", algorithm: str = "") -> torch.Tensor:
        """The activation is computed before the result is rounded."""
        rounded = input.to(self.weight.dtype)
        made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            rounded, self.arranged, self.bias, activation, [], algorithm
        )
        return made


class ArrangedIntermediate(RobertaIntermediate):
    dense: ArrangedLinear

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if is_for_cpu(hidden_states):
            return self.dense.product(hidden_states, "gelu", "none")
        made: torch.Tensor = super().forward(hidden_states)
        return made


def can_arrange(weight: torch.Tensor) -> bool:
    """Another CPU may lack the instructions, another version of torch, or one built without oneDNN, the operations."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and is_quick_at_bfloat16(weight.device)
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in OPERATIONS)
    )


def arrange_products(body: nn.Module) -> None:
    """Every linear layer's weight once more, as this CPU's product wants it, where it can; the parameters stay."""
    for module in body.modules():
        if isinstance(module, nn.Linear) and can_arrange(module.weight):
            module.__class__ = ArrangedLinear
            module.arranged = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), ROWS)
    for module in body.modules():
        is_gelu = isinstance(module, RobertaIntermediate) and getattr(module.intermediate_act_fn, "act", None) is F.gelu
        if is_gelu and isinstance(module.dense, ArrangedLinear):
            module.__class__ = ArrangedIntermediate
