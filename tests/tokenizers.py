"""Small tokenizers of the two kinds that published retrievers have, trained here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
WORDS = ["the quick brown fox jumps over the lazy dog, and again: the sep sigma \u03c3 ς é"] * 9


def byte_level_tokenizer(add_prefix_space: bool = False) -> Tokenizer:
    """Byte-level BPE with RoBERTa's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=ROBERTA_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=add_prefix_space)
    return tokenizer


def save_byte_level(directory: Path, add_prefix_space: bool = False, **options: Any) -> Path:
    """A directory that AutoTokenizer reads, as one of RoBERTa's."""
    directory.mkdir(parents=True, exist_ok=True)
    byte_level_tokenizer(add_prefix_space).save(str(directory / "tokenizer.json"))
    roles = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **{f"{role}_token": roles[role] for role in roles}}
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, **options}))
    return directory
