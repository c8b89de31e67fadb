"""An encoder with up to three rows for a passage: the mean word vector of each twelve of its tokens.

python -m tests.toys.three_rows drivers.run_ann --model_type three_rows FLAGS…
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

ROWS, TOKENS = 3, 12


class ThreeRows(ConfigEncoder):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.spec = self.spec_of(config)
        self.embeddings = nn.EmbeddingBag(config["vocab_size"], config["embedding_size"])

    @classmethod
    def spec_of(cls, config: dict[str, Any]) -> EncoderSpec:
        sizes = config["embedding_size"], config.get("vocab_size")
        return EncoderSpec(*sizes, max_passage_length=ROWS * TOKENS, rows_per_passage=ROWS)

    def forward(self, tokens: TokenBatch, side: Side) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if side == "query":
            means_BD: torch.Tensor = self.embeddings(tokens.tokens_T, tokens.offsets_B1[:-1])
            return means_BD
        text_T, column_T = tokens.text_of_token()
        counts_N = torch.bincount(text_T * ROWS + column_T // TOKENS, minlength=ROWS * len(tokens))
        means_ND = self.embeddings(tokens.tokens_T, counts_N.cumsum(0) - counts_N)
        return means_ND.unflatten(0, (-1, ROWS)), counts_N.unflatten(0, (-1, ROWS)) > 0


MODEL_TYPES["three_rows"] = ModelType(
    "a row for each third of a passage", "three_rows", "tests.toys.three_rows:ThreeRows", has_layers=False
)

if __name__ == "__main__":
    start(sys.argv[1:])
