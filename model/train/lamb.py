"""LAMB (You et al., arXiv 1904.00962, version 3's Algorithm 2), the optimiser ANCE trains with.

As in ANCE (utils/lamb.py there): one trust ratio per parameter tensor, the weight norm clamped to
[0, 10], no bias correction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

LARGEST_WEIGHT_NORM = 10.0


class Lamb(torch.optim.Optimizer):
    """``betas``, ``eps`` and ``weight_decay`` as in Adam; ``lr`` times the trust ratio is the step's length."""

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, list[nn.Parameter]]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self.update(parameters, group)
        return loss

    def update(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        """One step of one group; the arithmetic runs over all its tensors at once."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        means = [self.state[p]["exp_avg"] for p in parameters]
        squares = [self.state[p]["exp_avg_sq"] for p in parameters]
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(means, denominators)
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        weight_norms = torch.stack(torch._foreach_norm(parameters)).clamp(max=LARGEST_WEIGHT_NORM)
        update_norms = torch.stack(torch._foreach_norm(updates))
        # A tensor of zeros, or an update of zeros, moves at the plain learning rate.
        both = (weight_norms > 0) & (update_norms > 0)
        ratios = torch.where(both, weight_norms / update_norms, torch.ones_like(weight_norms))
        torch._foreach_mul_(updates, list((ratios * -group["lr"]).unbind()))
        torch._foreach_add_(parameters, updates)
