"""Optimisers, learning-rate schedules, and how an encoder's parameters fall into groups."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from model.encoders.base import Encoder
from model.train.lamb import Lamb
from utils.errors import UserError

INSTALL_APEX = (
    "--optimizer apex_fused_lamb needs NVIDIA apex, which is not installed: build it from github.com/NVIDIA/apex "
    "with --cpp_ext and --cuda_ext (PyPI's package called apex is another program), or use --optimizer lamb"
)


def named_groups(encoder: Encoder) -> dict[str, list[nn.Parameter]]:
    """The parameters of each layer that are trained, as the encoder's spec groups them."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(encoder.spec.layer_of(name), []).append(parameter)
    return groups


def parameter_groups(encoder: Encoder) -> list[dict[str, list[nn.Parameter]]]:
    return [{"params": parameters} for parameters in named_groups(encoder).values()]


def layer_gradient_norms(encoder: Encoder) -> dict[str, float]:
    """The norm of each group's gradient (the ANCE paper's figure 4)."""
    gradients = {
        name: [parameter.grad for parameter in parameters if parameter.grad is not None]
        for name, parameters in named_groups(encoder).items()
    }
    return {name: float(torch.nn.utils.get_total_norm(found)) for name, found in gradients.items() if found}


def make_optimizer(
    name: str, encoder: Encoder, learning_rate: float, epsilon: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimiser of the encoder's parameters, in the groups of its layers.

    Args:
        name: lamb (ANCE's default), adamW, or apex_fused_lamb, NVIDIA's.
        encoder: on the device where it is trained.
        learning_rate: the peak.
        epsilon: of Adam and LAMB, added to the root of the second moment.
        weight_decay: decoupled from the gradient.

    Raises:
        UserError: where apex is not installed.
    """
    groups = parameter_groups(encoder)
    if name == "lamb":
        return Lamb(groups, lr=learning_rate, eps=epsilon, weight_decay=weight_decay)
    if name == "adamW":
        # Fused: one pass over the memory in place of one for each operation.
        return torch.optim.AdamW(groups, lr=learning_rate, eps=epsilon, weight_decay=weight_decay, fused=True)
    # use_nvlamb: the trust ratio also where weight decay is 0, as ours and ANCE's. Clipping is the trainer's.
    return apex_fused_lamb()(
        groups,
        lr=learning_rate,
        eps=epsilon,
        weight_decay=weight_decay,
        bias_correction=False,
        use_nvlamb=True,
        max_grad_norm=1e9,
    )


def apex_fused_lamb() -> Callable[..., torch.optim.Optimizer]:
    """NVIDIA's class. UserError where apex is not installed."""
    try:
        from apex.optimizers import FusedLAMB
    except ImportError:
        raise UserError(INSTALL_APEX) from None
    fused: Callable[..., torch.optim.Optimizer] = FusedLAMB
    return fused


def linear_schedule(
    optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Up from 0 in ``warmup_steps``, then linearly down to 0 at ``total_steps``."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / max(1, warmup_steps)
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
