"""Which bodies compute packed texts, and what of each differs from the others; all others are padded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from model.kernels.compute_as import compute_as
from model.kernels.first_token import FirstTokenBlock, FirstTokenLayer
from model.kernels.mpnet import compute_first_alone, make_packable


@dataclass(frozen=True)
class Family:
    """A kind of body whose attention can be given to `model.kernels.packed_attention`.

    Args:
        layers: of a model of it.
        compute_first_alone: what is done with the last layer where a text's first token alone is pooled.
        takes_attention: whether the model takes the attention that its config names, padded or packed; else it has
            been made to compute packed texts.
    """

    layers: Callable[[Any], nn.ModuleList]
    compute_first_alone: Callable[[nn.Module], None]
    takes_attention: bool = True


def layers_of_encoder(model: Any) -> nn.ModuleList:
    layers: nn.ModuleList = model.encoder.layer
    return layers


def compute_first_token(layer: nn.Module) -> None:
    compute_as(FirstTokenLayer, layer)


def compute_first_token_of_block(layer: nn.Module) -> None:
    compute_as(FirstTokenBlock, layer)


BERT = Family(layers_of_encoder, compute_first_token)

# By the ``model_type`` of transformers' config.
FAMILIES = {
    "bert": BERT,
    "electra": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "distilbert": Family(lambda model: model.transformer.layer, compute_first_token_of_block),
    "mpnet": Family(layers_of_encoder, compute_first_alone, takes_attention=False),
}


def family_of(model: Any) -> Family | None:
    """None where texts have to be padded. An MPNet is made to compute packed texts, too."""
    family = FAMILIES.get(model.config.model_type)
    if family is not None and not family.takes_attention:
        make_packable(model)
    return family
