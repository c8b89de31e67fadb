"""The files that decide what a model computes, and the sha256 by which one model is known from another.

A model is its weights (`weights_sha256`) and its config (`config_sha256`: pooling, score_scale, sizes). The tokenizer
is known by its fingerprint (`data.tokens.tokenizer`), which has to be the collection's. A checkpoint of LoRA holds
adapters in place of weights, and names the base that they are of (`base_of`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.declared.text_settings import INITIAL_PROFILE, TEXT_KEYS
from utils.errors import UserError
from utils.exchange.atomic import read_bytes, read_json, sha256_of, sha256_of_json
from utils.exchange.layout import TOKENIZER_FILE

CONFIG = "config.json"
INDEX = ".index.json"  # ends the name of a file that lists the shards of weights in several files
SAFETENSORS = "model.safetensors"
ADAPTERS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # peft's names
ADAPTER_BASE = "adapter_base.json"  # of which weights they are
MODULES = "modules.json"  # of sentence-transformers
CARD = "README.md"  # for people and the hub
# Any of these makes a directory a tokenizer's; those that are there are recorded in a collection's manifest.
TOKENIZER_FILES = (TOKENIZER_FILE, "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
TOKENIZER_OPTIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
# In the order in which transformers' loader takes them.
WEIGHTS = (SAFETENSORS, f"{SAFETENSORS}{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
HEAD_WEIGHTS = (SAFETENSORS, "pytorch_model.bin")  # of a module of sentence-transformers, in its folder
WITH_OWN_HEAD = ("RobertaDot", "StaticEncoder")  # architectures whose weights hold the head, too
POOLED_FROM = "pooled_from"  # a config's key: where a mean begins that is not of all tokens
LENGTHS = ("max_seq_length", "max_query_length")  # a config records with which the model was trained
LONGEST_NAMES = 8 * 2**20  # bytes in which a file of weights has named all its tensors
# Keys of a config that change nothing a model of the same weights computes; those that begin with "_" neither.
# How texts became tokens is in the tokens, which are known by the collection's fingerprint.
WITHOUT_EFFECT = frozenset(
    {"architectures", "transformers_version", "dtype", "torch_dtype", *LENGTHS, *TEXT_KEYS, INITIAL_PROFILE}
)


def shards_of(index: Path) -> list[str]:
    """The names of the files that an index lists, sorted. UserError where it lists none."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{index} lists no weights, expected a weight_map of names and files: it is damaged")
    return sorted({str(name) for name in listed.values()})


@dataclass(frozen=True)
class AdapterBase:
    """The model that LoRA's adapters are of: its directory or hub name, and its `weights_sha256`."""

    name_or_path: str
    weights_sha256: str


def base_of(directory: Path) -> AdapterBase | None:
    """What the adapters in ``directory`` are of; None where it holds none. UserError where that is not recorded."""
    if not (directory / ADAPTER_CONFIG).is_file():
        return None
    try:
        return AdapterBase(**read_json(directory / ADAPTER_BASE))
    except (UserError, TypeError):
        raise UserError(
            f"{directory} holds adapters without an {ADAPTER_BASE}, expected those of run_warmup or run_ann; "
            "merge them into their base with peft, and give that"
        ) from None


def weight_files(directory: Path) -> list[str]:
    """The names of the files that the weights in ``directory`` are read from, an index before its shards.

    UserError where there are none, or a shard is missing.
    """
    if (directory / ADAPTER_CONFIG).is_file():
        if not (directory / ADAPTERS).is_file():
            raise UserError(f"{directory / ADAPTERS} is missing, next to {ADAPTER_CONFIG}; the checkpoint is damaged")
        return [ADAPTERS, ADAPTER_CONFIG]
    folder = body_folder(directory)
    config = directory / folder / CONFIG
    explicit = read_json(config).get("transformers_weights") if config.is_file() else None
    for file in [str(explicit)] if explicit else WEIGHTS:
        if not (directory / folder / file).is_file():
            continue
        shards = shards_of(directory / folder / file) if file.endswith(INDEX) else []
        name, *_ = names = [(Path(folder) / found).as_posix() for found in (file, *shards)]
        missing = [shard for shard in names if not (directory / shard).is_file()]
        if missing:
            raise UserError(f"{directory / missing[0]} is missing, {name} lists it; the checkpoint is damaged")
        return names + head_files(directory)
    place = directory / folder
    raise UserError(f"{place} holds no weights, expected one of {', '.join(WEIGHTS)}; give a checkpoint directory")


def modules_of(path: Path) -> list[tuple[str, str]]:
    """The class and the folder of each module that modules.json names, in their order."""
    try:
        listed = json.loads(read_bytes(path).decode("utf-8"))
        named = [(str(module["type"]), str(module["path"])) for module in listed]
    except (ValueError, TypeError, KeyError):  # not JSON, not UTF-8; no list of objects with these keys
        named = []
    if not named:
        raise UserError(f"{path} is damaged: expected a list of modules, each with type and path")
    for type_, folder in named:
        if not type_.startswith("sentence_transformers."):
            raise UserError(f"{path} names {type_}, code of the model's own, which is not run; take another model")
        if Path(folder).is_absolute() or ".." in Path(folder).parts:
            raise UserError(f"{path} names the folder {folder!r}, expected one within the model's directory")
    return [(type_.rpartition(".")[2], folder) for type_, folder in named]


def body_folder(directory: Path) -> str:
    """The folder of a model's config.json, weights and tokenizer: of the first module that modules.json names.

    "" for the directory itself. sentence-transformers before version 2 wrote 0_Transformer. UserError where
    modules.json is damaged.
    """
    modules = directory / MODULES
    return modules_of(modules)[0][1] if modules.is_file() else ""


def body_directory(directory: Path) -> Path:
    """That folder. UserError as `body_folder`."""
    return directory / body_folder(directory)


def has_own_head(config: Mapping[str, Any]) -> bool:
    """Whether the weights hold the head: sentence-transformers' files next to them are that library's copy."""
    named = config.get("architectures") or [""]
    return str(named[0]).startswith(WITH_OWN_HEAD)


def head_files(directory: Path) -> list[str]:
    """The names of the files of a head that stands in folders of its own, as sentence-transformers has it."""
    config, modules = body_directory(directory) / CONFIG, directory / MODULES
    if not modules.is_file() or has_own_head(read_json(config) if config.is_file() else {}):
        return []
    folders = sorted({Path(folder).as_posix() for _, folder in modules_of(modules)[1:]} - {"."})
    names = (next((name for name in HEAD_WEIGHTS if (directory / folder / name).is_file()), None) for folder in folders)
    return [f"{folder}/{name}" for folder, name in zip(folders, names, strict=True) if name is not None]


def holds_tensor(directory: Path, name: str) -> bool:
    """Whether the weights have a tensor whose name begins so. UserError where there are none.

    Every format has the names before the numbers: a safetensors file's header tells its length, and torch's files, old
    and new, begin with the pickled names, which are looked for as bytes.
    """
    for file in weight_files(directory):
        with (directory / file).open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little") if file.endswith(".safetensors") else LONGEST_NAMES
            opened.seek(8 if file.endswith(".safetensors") else 0)
            if name.encode() in opened.read(min(size, LONGEST_NAMES)):
                return True
    return False


def weights_sha256(directory: Path, verified: Mapping[str, Any] | None = None) -> str:
    """What the weights are known by: the file's own sha256; of several files, one over all their names and sha256.

    Of adapters, one over theirs and their base's.

    ``verified``: the ``files`` of a manifest that they have been held against; their sha256 are taken from there.
    UserError as in `weight_files`.
    """
    known = verified or {}
    names = weight_files(directory)
    digests = {name: known[name]["sha256"] if name in known else sha256_of(directory / name) for name in names}
    if (base := base_of(directory)) is not None:
        digests[ADAPTER_BASE] = base.weights_sha256
    return digests[names[0]] if len(names) == 1 else sha256_of_json(digests)


def config_sha256(config: Mapping[str, Any]) -> str:
    """sha256 over all of a model's config that decides what it computes."""
    return sha256_of_json(with_effect(config))


def with_effect(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the keys that decide nothing, also within those of the models that it is made of, as towers."""
    return {
        key: with_effect(value) if isinstance(value, Mapping) and "model_type" in value else value
        for key, value in config.items()
        if not key.startswith("_") and key not in WITHOUT_EFFECT
    }
