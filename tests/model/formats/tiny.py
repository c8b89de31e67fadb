"""Tiny models with tokenizers of their own kinds: byte-level BPE for RoBERTa, WordPiece for BERT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, RobertaConfig

from data.wordpiece import tokenizer_config, train_tokenizer
from model.encoders.roberta_dot import RobertaDot

LENGTHS = {"max_seq_length": 12, "max_query_length": 6}
SENTENCE = "the rank of its negatives changes how a dense retriever converges and what it finally knows"
TEXTS = [
    "the rank of its negatives",
    "",
    "What a Dense retriever knows, and how the rank of the negatives changes it: "
    "the rank of the negatives changes how it converges",
    "zebra!",
]
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}


def write_roberta_tokenizer(directory: Path) -> int:
    """vocab.json and merges.txt alone, as ANCE's checkpoints have them; the number of tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SENTENCE] * 9, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(directory))
    (directory / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "max_len": 512}))
    return tokenizer.get_vocab_size()


def write_bert_tokenizer(directory: Path) -> int:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(lambda: iter([SENTENCE] * 9), 120)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({**tokenizer_config(), "model_max_length": 512}))
    return tokenizer.get_vocab_size()


def with_body_in_a_folder(directory: Path) -> Path:
    """What sentence-transformers wrote before version 2: the transformer and its tokenizer are in 0_Transformer."""
    folder = directory / "0_Transformer"
    folder.mkdir()
    of_all = ("modules.json", "config_sentence_transformers.json")
    for path in [path for path in directory.iterdir() if path.is_file() and path.name not in of_all]:
        path.rename(folder / path.name)
    modules = json.loads((directory / "modules.json").read_text())
    modules[0]["path"] = folder.name
    (directory / "modules.json").write_text(json.dumps(modules))
    return directory


def roberta_config(vocab_size: int, **changes: Any) -> RobertaConfig:
    return RobertaConfig(**{**SIZES, "vocab_size": vocab_size, "type_vocab_size": 1, **LENGTHS, **changes})


def bert_config(vocab_size: int, **changes: Any) -> BertConfig:
    return BertConfig(**{**SIZES, "vocab_size": vocab_size, "pad_token_id": 0, **changes})


def roughen(module: torch.nn.Module, seed: int = 3) -> None:
    """Weights of a trained model's kind: no bias is 0, no norm's scale is 1."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)


def tiny_ance(vocab_size: int, **changes: Any) -> RobertaDot:
    torch.manual_seed(0)
    encoder = RobertaDot(roberta_config(vocab_size, **changes)).eval()
    roughen(encoder)
    return encoder


def token_ids(directory: Path, texts: list[str], max_length: int) -> list[list[int]]:
    """By transformers' own call of the tokenizer in a directory."""
    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    found: list[list[int]] = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    return found
