"""The words of --model_type: here encoders are chosen, loaded and made.

Nothing heavy is imported before an encoder, or what a config says of one, is asked for: the words are known without
torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from model.adapter_base import base_directory, check_base
from model.encoders.spec import DOT, EncoderSpec, Side, read_config_file, settings_directory
from utils.declared.model_types import MODEL_TYPES, ModelType
from utils.errors import UserError, one_line
from utils.exchange.model_files import ADAPTER_CONFIG, holds_tensor
from utils.hub import model_directory

if TYPE_CHECKING:
    from model.encoders.base import Encoder


def encoder_class(kind: ModelType) -> type[Encoder]:
    found: type[Encoder] = resolve_name(kind.implementation)
    return found


def encoder_type(model_type: str) -> ModelType:
    """UserError for a word that is none of `MODEL_TYPES`."""
    if model_type not in MODEL_TYPES:
        raise UserError(f"--model_type is {model_type!r}, expected one of {', '.join(MODEL_TYPES)}")
    return MODEL_TYPES[model_type]


def read_config(directory: str, model_type: str, config_name: str = "") -> dict[str, Any]:
    """The config.json that a model in ``directory`` will use, with what files next to it say of the encoder.

    UserError where it is of another type.
    """
    kind = encoder_type(model_type)
    config, path = read_config_file(directory, config_name)
    found, expected = config.get("model_type"), kind.config_type
    if not expected:
        return encoder_class(kind).complete_config(config, settings_directory(directory, config_name))
    if found != expected and not (kind.is_older_than_types and "model_type" not in config):
        raise UserError(f"{path} is of a {found!r} model, --model_type {model_type} needs {expected!r}; give the other")
    return config


def read_spec(directory: str, model_type: str, config_name: str = "") -> EncoderSpec:
    """Of a model that is not loaded; UserError where its config is missing, damaged or of another type."""
    config = read_config(directory, model_type, config_name)
    return encoder_class(encoder_type(model_type)).spec_of(config)


def load_encoder(
    model_type: str,
    name_or_path: str,
    config_name: str = "",
    new_head: bool = False,
    changes: dict[str, Any] | None = None,
) -> Encoder:
    """The encoder stored in a directory (ours, ANCE's, Pyserini's, sentence-transformers') or under a hub name.

    Args:
        model_type: a word of `MODEL_TYPES`.
        name_or_path: the directory, or the name, which its `ModelType.from_hub` allows.
        config_name: a config in place of the directory's, "" for its own.
        new_head: let a body without the head in (rdot_nll's, or that of ``head_dim``), which then starts from random
            weights (torch's global seed).
        changes: replace what the config says: pooling, score_scale, and of ``hf`` normalize and head_dim; of ``dpr``
            tied, and query_model, the directory or hub name that the queries' tower begins as.

    Raises:
        UserError: files are missing, of another model type, or without the head.
    """
    kind = encoder_type(model_type)
    if (Path(name_or_path) / ADAPTER_CONFIG).is_file():
        from model.encoders.lora import put_adapters

        base = check_base(Path(name_or_path))
        encoder = load_encoder(model_type, str(base), config_name or name_or_path, changes=changes)
        return put_adapters(encoder, Path(name_or_path))
    if Path(name_or_path).is_dir() or config_name or not kind.from_hub:
        read_config(name_or_path, model_type, config_name)
    return encoder_class(kind).load(name_or_path, config_name, new_head, changes or {})


def encoder_without_weights(
    model_type: str, name_or_path: str, config_name: str, new_head: bool, changes: dict[str, Any]
) -> Encoder:
    """The encoder that `load_encoder` gives, on torch's meta device: its modules and its spec, without numbers.

    Args: those of `load_encoder`. The adapters that a directory holds are not put in.

    Raises:
        UserError: files are missing, of another model type, without the head, or describe no encoder.
    """
    base = base_directory(Path(name_or_path))
    if base is not None:
        return encoder_without_weights(model_type, str(base), config_name or name_or_path, False, changes)
    kind = encoder_type(model_type)
    config = encoder_class(kind).config_to_load(name_or_path, config_name, changes)
    head = "" if kind.has_towers else kind.own_tensor  # towers begin as a body, too
    if head and not new_head and not holds_tensor(model_directory(name_or_path), head):
        raise UserError(f"{name_or_path} has no {head}: a checkpoint without its head; train with run_warmup")
    return on_meta(lambda: made_of(model_type, config, name_or_path))


def on_meta(make: Callable[[], Encoder]) -> Encoder:
    """What is made without numbers."""
    import torch

    with torch.device("meta"):
        return make()


def new_encoder(model_type: str, config_name: str, changes: dict[str, Any]) -> Encoder:
    """An encoder with random weights (torch's global seed) of the shape that a config file describes.

    ``changes`` replace what the file says: vocab_size, pad_token_id, and those of `load_encoder` but query_model.
    UserError where it describes no such encoder.
    """
    return made_of(model_type, {**read_config(config_name, model_type), **changes}, config_name)


def made_of(model_type: str, config: dict[str, Any], place: str) -> Encoder:
    """A new encoder of a config that was read at ``place``. UserError where it describes none."""
    try:
        return encoder_class(encoder_type(model_type)).new(config)
    except Exception as error:  # transformers raises many types for sizes that are missing or do not fit
        raise UserError(
            f"{place} describes no {model_type} model ({type(error).__name__}: {one_line(error)[:300]})"
        ) from None


def check_fits(spec: EncoderSpec, vocab_size: int, pad_token_id: int, max_length: dict[Side, int]) -> None:
    """UserError where a token cache holds what the encoder has no place for, or rows are compared as no index does.

    Args:
        spec: the encoder's.
        vocab_size, pad_token_id: the tokenizer's.
        max_length: of each side's texts, in tokens.
    """
    if spec.similarity != DOT:
        raise UserError(f"the model compares rows by {spec.similarity!r}, expected {DOT!r}; scale its rows to fit")
    if spec.vocab_size is not None and vocab_size > spec.vocab_size:
        raise UserError(
            f"the tokenizer has {vocab_size} tokens, the model {spec.vocab_size}; preprocess with its tokenizer"
        )
    if spec.pad_id is not None and spec.pad_id != pad_token_id:
        raise UserError(
            f"the tokenizer pads with {pad_token_id}, the model's config says {spec.pad_id}; "
            "preprocess with the model's own tokenizer"
        )
    for side, tokens in max_length.items():
        positions = spec.max_length(side)
        if positions is not None and tokens > positions:
            raise UserError(f"texts have up to {tokens} tokens, the model {positions} positions; pass fewer")
