"""LoRA (Hu et al. 2021, arXiv 2106.09685): its settings, and where adapters stand in each family of transformers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoraSettings:
    """``r`` is each adapter's rank, and ``alpha`` / r the factor on its product; ``dropout`` is of what it reads."""

    r: int
    alpha: float
    dropout: float


# By a body's ``model_type``, the names of its linear layers: queries and values of the attention, as in the paper's
# section 7.1; where a body has them in one layer with the keys, that layer.
LORA_TARGETS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), ("query", "value")),
    "mpnet": ("q", "v"),
    "distilbert": ("q_lin", "v_lin"),
    "deberta": ("in_proj",),
    "deberta-v2": ("query_proj", "value_proj"),
    "modernbert": ("Wqkv",),
}
