"""Checkpoints of this project and directories of sentence-transformers, as model.convert reads and writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model.adapter_base import check_base
from model.encoders.base import Encoder
from model.encoders.dpr import TOWERS as TOWER_NAMES
from model.encoders.dpr import TwoTowers
from model.encoders.lora import merged
from model.encoders.registry import encoder_class, encoder_type, load_encoder
from model.encoders.spec import read_config_file
from model.formats import sentence_model
from model.formats.card import RECORDED, write_card
from model.formats.loaded import HEAD, POOLER, LoadedModel, ReadSettings
from model.formats.tokenizers import copy_tokenizer
from model.formats.weights import names_of_weights
from model.train.checkpoint import OPTIMIZER, RNG_STATES
from utils.declared.layouts import ANCE, ENCODER, TOWERS
from utils.declared.text_settings import TEXT_KEYS
from utils.errors import UserError, one_line
from utils.exchange.atomic import load_with_checksum, read_json
from utils.exchange.layout import MANIFEST, SCHEDULER, TRAINER_STATE
from utils.exchange.model_files import CARD, POOLED_FROM
from utils.exchange.sentence_files import lower_cases_tokens
from utils.exchange.verify import check_files
from utils.model_texts import read_model_texts

STATIC = "static"
UNREAD = (OPTIMIZER, SCHEDULER, RNG_STATES, TRAINER_STATE, CARD)  # need not be there


def read(paths: Sequence[Path], settings: ReadSettings) -> LoadedModel:
    """A checkpoint of this project; where it has a manifest, its files are held against that.

    Args:
        paths: its directory alone.
        settings: of a config and a tokenizer that are elsewhere.

    Raises:
        UserError: files are missing or damaged, or no other layout holds such a model.
    """
    (directory,) = paths
    config_name = settings.config_name
    model_type = type_of(directory, config_name)
    record = record_of(directory)
    loaded = loaded_of(load_encoder(model_type, str(directory), config_name), model_type, directory, settings)
    texts = read_model_texts(str(directory), config_name)
    said = {name: getattr(texts, name) for name in TEXT_KEYS if getattr(texts, name) is not None}
    return replace(loaded, config={**loaded.config, **said}, record=record)


def record_of(directory: Path) -> dict[str, object]:
    """What its manifest and trainer_state.json say of the run that trained it; UserError where a file is damaged."""
    if not (directory / MANIFEST).is_file():
        return {}
    manifest = load_with_checksum(directory / MANIFEST)
    check_files(directory, manifest, UNREAD)
    state = read_json(directory / TRAINER_STATE) if (directory / TRAINER_STATE).is_file() else {}
    commit = (manifest.get("git") or {}).get("commit")
    return {name: value for name, value in {**state, **manifest, "commit": commit}.items() if name in RECORDED}


def type_of(directory: Path, config_name: str) -> str:
    """The word of --model_type. UserError for a static model."""
    config, path = read_config_file(directory, config_name)
    if config.get("model_type") == STATIC:
        raise UserError(
            f"{path} is of a static model, which no other layout holds; sentence-transformers opens it as it is"
        )
    if config.get("model_type") == TOWERS:  # its adapters' base may be an encoder
        return TOWERS
    names = names_of_weights(check_base(directory) or directory)
    if HEAD[0] in names:
        return ANCE
    return ENCODER


def loaded_of(encoder: Encoder, model_type: str, directory: Path, settings: ReadSettings) -> LoadedModel:
    """What is read of a checkpoint; adapters are merged into the weights.

    Args:
        encoder: with its weights.
        model_type: its word.
        directory: where it was read from.
        settings: of a tokenizer that is elsewhere.
    """
    tokenizer, encoder = settings.tokenizer_in(directory), merged(encoder)
    config, weights = encoder.config_dict(), dict(encoder.state_dict())
    if isinstance(encoder, TwoTowers):
        config, weights = as_two_of_one_kind(encoder, str(directory))
    lower_cases = lower_cases_tokens(directory)
    return LoadedModel(model_type, config, weights, tokenizer, str(directory), lower_cases=lower_cases)


def as_two_of_one_kind(encoder: TwoTowers, where: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The config of a body that both towers have, with what is recorded next to them; and the weights of both.

    So other layouts have two encoders; of tied towers the weights are there twice. `two_towers` takes the config back.
    UserError where the bodies differ; ``where`` they are from.
    """
    config, weights = encoder.config, dict(encoder.state_dict())
    query, passage = (config[tower] for tower in TOWER_NAMES.values())
    if differing := [name for name in sorted({*query, *passage}) if query.get(name) != passage.get(name)]:
        raise UserError(
            f"{where} has two towers whose {differing[0]} differ ({query.get(differing[0])!r} of queries, "
            f"{passage.get(differing[0])!r} of passages), which only --model_type dpr opens; keep it as it is"
        )
    if encoder.is_tied:
        others = {name.removeprefix(TOWER_NAMES["query"]): tensor for name, tensor in weights.items()}
        weights |= {f"{TOWER_NAMES['passage']}{rest}": tensor for rest, tensor in others.items()}
    recorded = {name: value for name, value in config.items() if name not in TOWER_NAMES.values()}
    return {**recorded, **query, "tied": False}, weights


def write(loaded: LoadedModel, directory: Path) -> None:
    """A checkpoint without the state of a training.

    Args:
        loaded: of any type.
        directory: empty.

    Raises:
        UserError: the weights do not fit the config.
    """
    encoder_of(loaded).save_pretrained(directory)
    copy_tokenizer(loaded, directory)
    write_card(directory, loaded.config, loaded.record)


def encoder_of(loaded: LoadedModel) -> Encoder:
    """The encoder with these weights; a pooler that it has no use for is dropped."""
    weights = {name: tensor for name, tensor in loaded.weights.items() if not name.endswith(POOLER)}
    try:
        encoder = encoder_class(encoder_type(loaded.model_type)).new(loaded.config)
        encoder.load_state_dict(weights)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{loaded.source} does not fit its config: {one_line(error)[:300]}") from None
    return encoder


def read_sentence_transformers(paths: Sequence[Path], settings: ReadSettings) -> LoadedModel:
    """A directory with modules.json: RoBERTa with ANCE's head, or any other encoder.

    Args, and what it raises: those of `read`.
    """
    (directory,) = paths
    files = sentence_model.sentence_files(directory)
    if sentence_model.is_ance(directory, files):
        return sentence_model.read_ance(directory, files, settings)
    loaded = loaded_of(load_encoder(ENCODER, str(directory)), ENCODER, directory, settings)
    config = {**sentence_model.recorded(files, loaded.config), **loaded.config}
    return replace(loaded, config=config, source=str(directory))


def write_sentence_transformers(loaded: LoadedModel, directory: Path) -> None:
    """As the library itself lays such a model out, with a card.

    Args:
        loaded: of any type.
        directory: empty.

    Raises:
        UserError: there is no tokenizer, or embeddings are pooled in a way that the library does not have.
    """
    sentence_model.check_tokenizer(loaded)
    if loaded.config.get(POOLED_FROM):
        raise UserError(
            f"{loaded.source} pools the mean from position {loaded.config[POOLED_FROM]} on, which "
            "sentence-transformers does not; --to can be ours"
        )
    writers = {ANCE: sentence_model.write_ance, ENCODER: write, TOWERS: sentence_model.write_towers}
    writers[loaded.model_type](loaded, directory)
    write_card(directory, loaded.config, loaded.record)
