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
        behind_pad_id: whether positions begin behind the padding's id, and not at 0.
        takes_attention: whether the model takes the attention that its config names, padded or packed; else it has
            been made to compute packed texts.
    """

    layers: Callable[[Any], nn.ModuleList]
    compute_first_alone: Callable[[nn.Module], None]
    behind_pad_id: bool = False
    takes_attention: bool = True


def layers_of_encoder(model: Any) -> nn.ModuleList:
    layers: nn.ModuleList = model.encoder.layer
    return layers


def compute_first_token(layer: nn.Module) -> None:
    compute_as(FirstTokenLayer, layer)


def compute_first_token_of_block(layer: nn.Module) -> None:
    compute_as(FirstTokenBlock, layer)


BERT = Family(layers_of_encoder, compute_first_token)
ROBERTA = Family(layers_of_encoder, compute_first_token, behind_pad_id=True)

# By the ``model_type`` of transformers' config.
FAMILIES = {
    "bert": BERT,
    "electra": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "distilbert": Family(lambda model: model.transformer.layer, compute_first_token_of_block),
    "mpnet": Family(layers_of_encoder, compute_first_alone, behind_pad_id=True, takes_attention=False),
}
# Of those whose texts have to be padded, whose positions begin as RoBERTa's do (transformers' padding_idx + 1).
PADDED_BEHIND_PAD_ID = frozenset(
    ("data2vec-text", "ibert", "longformer", "luke", "markuplm", "roberta-prelayernorm", "xlm-roberta-xl", "xmod")
)


def family_of(model: Any) -> Family | None:
    """None where texts have to be padded. An MPNet is made to compute packed texts, too."""
    family = FAMILIES.get(model.config.model_type)
    if family is not None and not family.takes_attention:
        make_packable(model)
    return family


def begins_behind_pad_id(kind: str) -> bool:
    """Whether a ``model_type``'s positions begin behind the padding's id, and are fewer by so many."""
    return kind in PADDED_BEHIND_PAD_ID or (kind in FAMILIES and FAMILIES[kind].behind_pad_id)


def position_padding(config: Any) -> int:
    """The id behind which positions begin: RoBERTa's is the padding's, MPNet's is written in its code."""
    return 1 if config.model_type == "mpnet" else int(config.pad_token_id)
