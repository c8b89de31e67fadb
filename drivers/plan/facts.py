"""What a plan is made from: what was found of a collection, of a model and of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lengths:
    """Tokens of some texts, [T] ascending."""

    tokens_T: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.tokens_T.mean())

    def within(self, share: float) -> int:
        """So many tokens that this share of the texts has no more."""
        return int(self.tokens_T[min(len(self.tokens_T) - 1, int(share * len(self.tokens_T)))])

    def cut_mean(self, most: int) -> float:
        """The mean where none has more than ``most``."""
        return float(np.minimum(self.tokens_T, most).mean())

    def share_above(self, most: int) -> float:
        return float((self.tokens_T > most).mean())


@dataclass(frozen=True)
class CollectionFacts:
    """A raw collection.

    Args:
        source: which format it is in, for people.
        passages: about how many.
        queries: of each split that is judged, how many queries have a judgement.
        positives: known positives of a train query, on average; 0 without a train split.
        passage_lengths, query_lengths: of a sample.
    """

    source: str
    passages: int
    queries: Mapping[str, int]
    positives: float
    passage_lengths: Lengths
    query_lengths: Lengths


@dataclass(frozen=True)
class ModelFacts:
    """A model; or one that is trained from nothing, ``model_type`` static with a tokenizer of the collection's own.

    ``max_seq_length`` and ``max_query_length`` are what it was trained for, ``positions`` all it has places for; None
    where nothing says it. ``layers`` of ``width`` are 0 where it has none. ``query_tokens``: of every query, 0 where
    they differ in length.
    """

    model_type: str
    max_seq_length: int | None = None
    positions: int | None = None
    layers: int = 0
    width: int = 0
    query_tokens: int = 0
    max_query_length: int | None = None

    def flops_of(self, tokens: float, text_tokens: float) -> float:
        """Of encoding ``tokens`` in texts of ``text_tokens``: products with weights, 12 width^2 of a layer, and
        attention's."""
        return tokens * self.layers * (24 * self.width**2 + 4 * text_tokens * self.width)


CORE_FLOPS, GPU_FLOPS = 8e10, 3e13  # of operations that a core and a GPU reach: rough values


@dataclass(frozen=True)
class MachineFacts:
    cores: int
    gpus: int

    def __str__(self) -> str:
        return "a GPU" if self.gpus else f"{self.cores} core{'s' if self.cores > 1 else ''}"

    @property
    def flops(self) -> float:
        """That encoding and training reach in a second, for an estimate of the time."""
        return GPU_FLOPS if self.gpus else self.cores * CORE_FLOPS
