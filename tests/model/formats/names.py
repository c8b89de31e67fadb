"""The names that published checkpoints have, of two layers: BertModel's and RobertaModel's as of 2020."""

from __future__ import annotations

LAYER = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
BODY = {
    "embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight",
    "embeddings.LayerNorm.weight",
    "embeddings.LayerNorm.bias",
    *(f"encoder.layer.{layer}.{part}.{kind}" for layer in (0, 1) for part in LAYER for kind in ("weight", "bias")),
}
POOLER = {"pooler.dense.weight", "pooler.dense.bias"}
OLD_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # of torch's files before 1.6
ZIP_MAGIC = b"PK\x03\x04"
