"""sentence-transformers' own layout: the body in a folder of its own, the head as modules, two encoders as a Router."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model.formats.ance import CONFIG_TYPE, checked
from model.formats.dpr import PROJECTION, SIDES, check_scale
from model.formats.loaded import BODY, HEAD, POOLER, QUESTION, LoadedModel, ReadSettings, with_prefix
from model.formats.sentence import (
    DOCUMENT,
    NORMALIZE,
    QUERY,
    WITHOUT_POOLER,
    SentenceModule,
    dense_module,
    head_modules,
    pooling_module,
    route_folder,
    write_router,
    write_sentence_files,
)
from model.formats.tokenizers import copy_tokenizer, has_tokenizer
from model.formats.weights import read_weights
from utils.declared.layouts import ANCE
from utils.declared.text_settings import TEXT_KEYS
from utils.errors import UserError
from utils.exchange.atomic import read_json
from utils.exchange.model_files import CONFIG, LENGTHS, MODULES, SAFETENSORS
from utils.exchange.sentence_files import SentenceFiles, read_sentence_files
from utils.json_text import json_text
from utils.model_texts import from_sentence_files

FOLDER = "0_Transformer"
HEAD_KINDS = ["dense", "layer_norm"]
UNPREFIXED = "pooler."


def is_ance(directory: Path, files: SentenceFiles) -> bool:
    """Whether what sentence-transformers' files describe is a RoBERTa with ANCE's head."""
    body = directory / files.body_folder / CONFIG
    kinds = [module.kind for module in files.head]
    is_roberta = body.is_file() and read_json(body).get("model_type") == CONFIG_TYPE
    return is_roberta and kinds == HEAD_KINDS and files.head[0].has_bias and files.head[0].activation == "identity"


def read_ance(directory: Path, files: SentenceFiles, settings: ReadSettings) -> LoadedModel:
    """RoBERTa with ANCE's head.

    Args:
        directory: of the model.
        files: what its files say, see `is_ance`.
        settings: of a tokenizer that is elsewhere.

    Raises:
        UserError: weights are missing or damaged.
    """
    folder = directory / files.body_folder
    stored = {name.removeprefix(BODY): tensor for name, tensor in read_weights(folder).items()}
    weights = {BODY + name: tensor for name, tensor in stored.items() if not name.startswith((UNPREFIXED, *HEAD))}
    names = {"linear.": "embeddingHead.", "norm.": "norm."}
    for module, (theirs, ours) in zip(files.head, names.items(), strict=True):
        weights |= with_prefix(read_weights(directory / module.folder), theirs, ours)
    config = read_json(folder / CONFIG)
    config = {**recorded(files, config), **config}
    if files.pooling != "first":
        config["pooling"] = files.pooling
    config.pop("score_scale", None)  # it is in the norm's weights
    return LoadedModel(
        ANCE, *checked(config, weights, str(directory)), settings.tokenizer_in(directory), str(directory)
    )


def recorded(files: SentenceFiles, config: dict[str, Any]) -> dict[str, Any]:
    """What of texts is known of a model whose config does not say it: profile, prefixes and lengths."""
    texts = from_sentence_files(files, config)
    found = {name: getattr(texts, name) for name in TEXT_KEYS} | {name: getattr(files, name) for name in LENGTHS}
    return {name: value for name, value in found.items() if value is not None}


def sentence_files(directory: Path) -> SentenceFiles:
    """UserError where there are none."""
    files = read_sentence_files(directory)
    if files is None:
        raise UserError(
            f"{directory / MODULES} is missing, expected a directory of sentence-transformers; give another"
        )
    return files


def write_ance(loaded: LoadedModel, directory: Path) -> None:
    """The modules that its port of ANCE has: 0_Transformer, 1_Pooling, 2_Dense, 3_LayerNorm.

    Args:
        loaded: of the type ``rdot_nll``.
        directory: empty.
    """
    config = {key: value for key, value in loaded.config.items() if key not in ("score_scale", "pooling")}
    write_body(loaded, directory / FOLDER, config, with_prefix(loaded.weights, BODY, ""))
    hidden_size = loaded.weights["embeddingHead.weight"].shape[1]
    pooling, scale = loaded.config.get("pooling", "first"), float(loaded.config.get("score_scale", 1.0))
    modules = head_modules(loaded.weights, hidden_size, pooling, scale)
    write_sentence_files(directory, modules, loaded.config, WITHOUT_POOLER, FOLDER)


def write_towers(loaded: LoadedModel, directory: Path) -> None:
    """A Router with a Transformer, a Pooling and perhaps a projection for each side.

    Args:
        loaded: of the type ``dpr``.
        directory: empty.
    """
    check_scale(loaded)
    config = {name: value for name, value in loaded.config.items() if name not in ("pooling", "normalize")}
    routes: dict[str, list[SentenceModule]] = {}
    for prefix in SIDES:
        route = QUERY if prefix == QUESTION else DOCUMENT
        side = with_prefix(loaded.weights, prefix, "")
        body = {name: tensor for name, tensor in side.items() if name not in (*POOLER, *PROJECTION)}
        write_body(loaded, directory / route_folder(route), config, body)
        width = side["embeddings.word_embeddings.weight"].shape[1]
        routes[route] = [pooling_module(width, loaded.config.get("pooling", "first"))]
        if PROJECTION[0] in side:
            routes[route].append(dense_module(side[PROJECTION[0]], side[PROJECTION[1]]))
        if loaded.config.get("normalize"):
            routes[route].append(NORMALIZE)
    write_router(directory, routes, loaded.config)


def write_body(loaded: LoadedModel, folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """A transformer as AutoModel opens it, with the tokenizer.

    Args:
        loaded: whose tokenizer.
        folder: is made.
        config: of the body.
        weights: without a prefix.
    """
    folder.mkdir()
    (folder / CONFIG).write_text(json_text(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / SAFETENSORS, metadata={"format": "pt"})
    copy_tokenizer(loaded, folder)


def check_tokenizer(loaded: LoadedModel) -> None:
    if not has_tokenizer(loaded):
        raise UserError(f"{loaded.source} has no tokenizer, which sentence-transformers needs; give --tokenizer_name")
