"""A layer of transformers' that computes in another way, with the modules and the weights that it has."""

from __future__ import annotations

from torch import nn

MADE: dict[tuple[str, str], type[nn.Module]] = {}  # classes, by the names of the two that each is made of


def compute_as(own: type[nn.Module], module: nn.Module) -> None:
    """Have a module compute as ``own``, a class that works on modules of its names.

    Its modules and weights stay: a new one would draw its weights a second time.
    """
    if isinstance(module, own):
        return
    names = own.__qualname__, f"{type(module).__module__}.{type(module).__qualname__}"
    if names not in MADE:
        MADE[names] = type(f"{own.__name__}Of{type(module).__name__}", (own, type(module)), {})
    module.__class__ = MADE[names]
