"""A tokenizer's files: copied as they are, or in the form that transformers 2.3 reads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from model.formats.loaded import LoadedModel
from utils.errors import UserError
from utils.exchange.atomic import read_json
from utils.exchange.layout import TOKENIZER_FILE
from utils.exchange.model_files import TOKENIZER_FILES, TOKENIZER_OPTIONS
from utils.exchange.sentence_files import lower_case
from utils.json_text import json_text

VOCABULARY, MERGES, OPTIONS, SPECIAL = "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"
OF_ROBERTA = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
POSITIONS_BEFORE_TEXT = 2  # RoBERTa's positions begin behind the padding's


def has_tokenizer(loaded: LoadedModel) -> bool:
    return loaded.tokenizer is not None and any((loaded.tokenizer / name).is_file() for name in TOKENIZER_FILES)


def copy_tokenizer(loaded: LoadedModel, directory: Path) -> None:
    """Every file of the tokenizer, byte by byte; none where the model has none.

    Where it has to lower-case, tokenizer.json says so then. UserError where there is none.
    """
    if loaded.tokenizer is None:
        return
    for name in (*TOKENIZER_FILES, *TOKENIZER_OPTIONS):
        if (loaded.tokenizer / name).is_file():
            shutil.copyfile(loaded.tokenizer / name, directory / name)
    if loaded.lower_cases:
        from tokenizers import Tokenizer

        path = directory / TOKENIZER_FILE
        if not path.is_file():
            raise UserError(f"{loaded.source} lower-cases texts and has no {TOKENIZER_FILE}, where that could be said")
        backend = Tokenizer.from_file(str(path))
        lower_case(backend)
        backend.save(str(path))


def write_byte_level(loaded: LoadedModel, directory: Path) -> None:
    """RoBERTa's tokenizer as transformers 2.3 reads it: special tokens are strings there, no tokenizer.json.

    UserError where the model has a tokenizer that is none of RoBERTa's. Nothing is written where it has none.
    """
    if loaded.tokenizer is None or not has_tokenizer(loaded):
        return
    vocabulary, merges = read_byte_level(loaded.tokenizer)
    longest = int(loaded.config.get("max_position_embeddings", 514)) - POSITIONS_BEFORE_TEXT
    _write_json(directory / VOCABULARY, vocabulary)
    (directory / MERGES).write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    _write_json(directory / SPECIAL, OF_ROBERTA)
    _write_json(directory / OPTIONS, {"do_lower_case": False, "max_len": longest, "model_max_length": longest})


def read_byte_level(directory: Path) -> tuple[dict[str, int], list[str]]:
    """The vocabulary and the merges of RoBERTa's tokenizer. UserError where it is of another kind."""
    if (directory / TOKENIZER_FILE).is_file():
        state = read_json(directory / TOKENIZER_FILE)
        model: dict[str, Any] = state.get("model", {})
        pairs = model.get("merges", [])
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
        vocabulary = dict(model.get("vocab", {})) if model.get("type") == "BPE" else {}
        vocabulary |= {token["content"]: token["id"] for token in state.get("added_tokens", [])}
    else:
        vocabulary, merges = {}, []
        if (directory / VOCABULARY).is_file() and (directory / MERGES).is_file():
            vocabulary = read_json(directory / VOCABULARY)
            lines = (directory / MERGES).read_text(encoding="utf-8").split("\n")
            merges = [line for line in lines[lines[0].startswith("#version") :] if line]
    if missing := [token for token in OF_ROBERTA.values() if token not in vocabulary]:
        raise UserError(
            f"{directory} holds no tokenizer of RoBERTa's (byte-level BPE with {missing[0]}), which ANCE's programs "
            "need; give --tokenizer_name"
        )
    return vocabulary, merges


def _write_json(path: Path, value: object) -> None:
    path.write_text(json_text(value) + "\n", encoding="utf-8")
