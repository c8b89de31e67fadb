"""RoBERTa with ANCE's head as ANCE, Pyserini and DRhard store it: one pytorch_model.bin, the names of ANCE's classes.

FirstP and MaxP have the same names; how a document is cut into chunks is no part of the weights. What these classes
have and never use (a classifier, a pooler, a language model's head, a constant) is dropped: they draw it at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.formats.loaded import BODY, HEAD, POSITION_IDS, LoadedModel, ReadSettings, body_names, check_names, layers_of
from model.formats.tokenizers import write_byte_level
from model.formats.weights import TORCH_WEIGHTS, read_weights, write_torch
from utils.declared.layouts import ANCE
from utils.errors import UserError
from utils.exchange.atomic import read_json
from utils.exchange.model_files import CONFIG
from utils.json_text import json_text

UNUSED = ("classifier.", f"{BODY}pooler.", "lm_head.", BODY + POSITION_IDS)
WRAPPED = "ance_encoder."  # begins all names where a class of Pyserini's holds the encoder
WIDTH = 768  # of ANCE's embeddings, whatever the body's
CONFIG_TYPE = "roberta"
WHAT = "a RoBERTa body (roberta.*) with ANCE's head (embeddingHead.*, norm.*)"


def read(paths: Sequence[Path], settings: ReadSettings) -> LoadedModel:
    """ANCE's, Pyserini's, DRhard's, and ours of that type.

    Args:
        paths: the directory alone.
        settings: of a config and a tokenizer that are elsewhere.

    Raises:
        UserError: files are missing or damaged, or of another model.
    """
    (directory,) = paths
    config, weights = read_stored(directory, settings, CONFIG_TYPE, WRAPPED)
    return LoadedModel(
        ANCE, *checked(config, weights, str(directory)), settings.tokenizer_in(directory), str(directory)
    )


def read_stored(
    directory: Path, settings: ReadSettings, expected: str, prefix: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The config and the weights of one encoder.

    Args:
        directory: that holds them.
        settings: of a config that is elsewhere.
        expected: the config's type.
        prefix: is dropped from the names that begin with it.

    Raises:
        UserError: files are missing or damaged, or of another type.
    """
    config = read_body_config(Path(settings.config_name or directory), expected)
    return config, {name.removeprefix(prefix): tensor for name, tensor in read_weights(directory).items()}


def read_body_config(place: Path, expected: str) -> dict[str, Any]:
    """A config in a directory or file; one without a type is taken to be of ``expected``, as before transformers 2.4.

    UserError where it is missing, damaged, or of another type.
    """
    path = place / CONFIG if place.is_dir() else place
    config = {"model_type": expected, **read_json(path)}
    if config["model_type"] != expected:
        raise UserError(f"{path} is of a {config['model_type']!r} model, expected {expected!r}; give its own layout")
    return config


def checked(
    config: dict[str, Any], weights: dict[str, torch.Tensor], source: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The config of our encoder, and the weights that it has.

    Args:
        config: as read.
        weights: as read, with names that begin with `BODY`.
        source: for messages.

    Raises:
        UserError: weights are missing, unknown, or the head is not as wide as the body.
    """
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(UNUSED)}
    names = [BODY + name for name in body_names(max(1, layers_of(kept, BODY)))]
    check_names(kept, [*names, *HEAD], source, WHAT)
    width, hidden_size = kept["embeddingHead.weight"].shape
    table_VH = kept[f"{BODY}embeddings.word_embeddings.weight"]
    found = {"vocab_size": len(table_VH), "num_hidden_layers": layers_of(kept, BODY)}
    if table_VH.shape[1] != hidden_size or any(config.get(key, value) != value for key, value in found.items()):
        raise UserError(f"{source}: the weights are of other sizes than {CONFIG} says; give the config they are of")
    is_default = width == min(hidden_size, WIDTH)
    return {**config, **found, **({} if is_default else {"embedding_size": width})}, kept


def write_ance(loaded: LoadedModel, directory: Path) -> None:
    """As ANCE's programs read it: the files of transformers 2.3.

    Args:
        loaded: of the type ``rdot_nll``.
        directory: empty.

    Raises:
        UserError: ANCE's class cannot be what the model is, or its tokenizer is none of RoBERTa's.
    """
    write(loaded, directory, {})


def write_with_positions(loaded: LoadedModel, directory: Path) -> None:
    """As Pyserini and DRhard store it: transformers 3 to 4.30 have a constant among the weights.

    Args, and what it raises: those of `write_ance`.
    """
    longest = len(loaded.weights[f"{BODY}embeddings.position_embeddings.weight"])
    write(loaded, directory, {BODY + POSITION_IDS: torch.arange(longest)[None]})


def write(loaded: LoadedModel, directory: Path, constants: dict[str, torch.Tensor]) -> None:
    """Weights, config and tokenizer.

    Args:
        loaded, directory: those of `write_ance`.
        constants: stored next to the weights.

    Raises:
        UserError: as in `write_ance`.
    """
    config, weights = expressible(loaded)
    write_byte_level(loaded, directory)
    text = json_text(config, indent=2, sort_keys=True)
    (directory / CONFIG).write_text(f"{text}\n", encoding="utf-8")
    write_torch(directory / TORCH_WEIGHTS, {**weights, **constants})


def expressible(loaded: LoadedModel) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The config and the weights with which ANCE's class gives the same embeddings: a scale goes into the norm.

    UserError where there are none: it pools the first token, and its embeddings are 768 wide.
    """
    config, weights = dict(loaded.config), dict(loaded.weights)
    pooling, width = config.pop("pooling", "first"), len(weights["norm.weight"])
    if pooling not in ("first", "cls"):
        raise UserError(
            f"{loaded.source} pools by {pooling!r}, ANCE's class by the first token alone; choose another --to"
        )
    if width != WIDTH:
        raise UserError(f"{loaded.source} has embeddings of {width} numbers, ANCE's class {WIDTH}; choose another --to")
    config.pop("embedding_size", None)
    root = float(config.pop("score_scale", 1.0)) ** 0.5
    if root != 1.0:
        weights |= {name: weights[name] * root for name in ("norm.weight", "norm.bias")}
    named = {"architectures": ["RobertaForSequenceClassification"], "model_type": CONFIG_TYPE}
    return {**config, **named}, weights
