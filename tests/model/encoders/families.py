"""A tiny config of each family of encoders that is named in the documentation."""

from __future__ import annotations

from typing import Any

PAD = 1
POSITIONS = 66
WIDTH = 32
BERT: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": PAD,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DISTILBERT: dict[str, Any] = {
    "vocab_size": 60,
    "dim": WIDTH,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": PAD,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
SPECIAL_TOKENS = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
PACKED: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "electra": {**BERT, "embedding_size": 16},
    "distilbert": DISTILBERT,
    "mpnet": BERT,
}
PADDED: dict[str, dict[str, Any]] = {
    "deberta": {**BERT, **DISENTANGLED},
    "deberta-v2": {**BERT, **DISENTANGLED, "position_biased_input": False},
    "modernbert": {**BERT, **SPECIAL_TOKENS},
}
FAMILIES = PACKED | PADDED


def config_of_family(kind: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": kind, **FAMILIES[kind], **changes}
