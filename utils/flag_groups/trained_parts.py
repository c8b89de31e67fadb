"""Which of an encoder's weights are trained; a run records what is resolved of these (`model.train.trained_parts`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from utils.flag_values import Group, flag


@dataclass(frozen=True, kw_only=True)
class TrainedPartsFlags:
    GROUP: ClassVar[Group] = "model"

    freeze: Literal["query", "passage"] | None = flag(
        None, "dpr: the tower that stays as it is, without dropout; default: none", decides="nothing"
    )
    lora_r: int = flag(
        0,
        "LoRA: the rank of adapters that are trained while the weights stay; 0: the weights are trained",
        at_least=0,
        decides="nothing",
    )
    lora_alpha: float = flag(
        16.0, "LoRA: what an adapter adds is multiplied by this over --lora_r", above=0, decides="nothing"
    )
    lora_dropout: float = flag(
        0.0, "LoRA: share of what an adapter reads that is dropped", at_least=0, at_most=0.99, decides="nothing"
    )
