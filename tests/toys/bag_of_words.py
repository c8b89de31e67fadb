"""A bag of words with two towers: a table of word vectors for queries, and one of its own for passages.

python -m tests.toys.bag_of_words drivers.run_ann --model_type bag_of_words FLAGS…
"""

import sys
from typing import Any

import torch
from torch import nn

from model.encoders.base import ConfigEncoder
from model.encoders.spec import EncoderSpec, Side
from model.token_batch import TokenBatch
from utils.declared.model_types import MODEL_TYPES, ModelType
from utils.program import start


class BagOfWords(ConfigEncoder):
    """The mean of a text's word vectors, which are its side's own."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.spec = self.spec_of(config)
        self.query, self.passage = (nn.EmbeddingBag(config["vocab_size"], config["embedding_size"]) for _ in range(2))

    @classmethod
    def spec_of(cls, config: dict[str, Any]) -> EncoderSpec:
        return EncoderSpec(config["embedding_size"], config.get("vocab_size"), layer_groups=((r"^(\w+)\.", r"\1"),))

    def forward(self, tokens: TokenBatch, side: Side) -> torch.Tensor:
        tower = self.query if side == "query" else self.passage
        means_BD: torch.Tensor = tower(tokens.tokens_T, tokens.offsets_B1[:-1])
        return means_BD


MODEL_TYPES["bag_of_words"] = ModelType(
    "two towers of word vectors", "bag_of_words", "tests.toys.bag_of_words:BagOfWords", has_layers=False
)

if __name__ == "__main__":
    start(sys.argv[1:])
