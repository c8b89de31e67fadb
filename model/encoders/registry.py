"""Encoders: a text's token ids in, one vector out. Here they are chosen, loaded and saved.

Every encoder is a module called with ``(input_ids_BL, attention_mask_BL)`` that returns ``embeddings_BD``,
with ``query_emb`` and ``body_emb`` as ANCE names them, ``dims``, ``config``, ``save_pretrained(directory)``,
``cpu_batch_tokens`` (in batches of more it encodes no faster on a CPU), ``cast_linear_weights(dtype)`` for encoding
alone, and ``is_packed``, whether its texts stand one after the other without padding; if not, it can ``pack_texts``
(`model.kernels.packed_attention`), and ``prepack_weights()`` for encoding alone (`model.kernels.cpu_linear`).
Training may also ask for ``enable_gradient_checkpointing()`` of one that has layers.
Another model type takes three lines: its word in MODEL_TYPES and CONFIG_TYPE_OF, and a branch in `load_encoder`
and `new_encoder`. The modules are imported when asked for: the static one does without transformers' models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utils.errors import UserError, one_line

MODEL_TYPES = ("rdot_nll", "static")
CONFIG_TYPE_OF = {"rdot_nll": "roberta", "static": "static"}  # config.json's model_type


def check_model_type(model_type: str) -> None:
    if model_type not in MODEL_TYPES:
        raise UserError(f"--model_type is {model_type!r}, expected one of {', '.join(MODEL_TYPES)}")


def read_config(directory: str, model_type: str, config_name: str = "") -> dict[str, Any]:
    """The config.json that a model in ``directory`` will use; UserError where it is of another type."""
    place = Path(config_name or directory)
    path = place / "config.json" if place.is_dir() else place
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is missing, expected a model's config.json; give a checkpoint directory") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}); the checkpoint is damaged") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no JSON object, expected a model's config; the checkpoint is damaged")
    found, expected = config.get("model_type"), CONFIG_TYPE_OF[model_type]
    if found != expected:
        raise UserError(f"{path} is of a {found!r} model, --model_type {model_type} needs {expected!r}; give the other")
    return config


def dims_of_config(config: dict[str, Any]) -> int:
    """The width of the embeddings of a model of this config, without making it. UserError where it says none."""
    try:
        if "embedding_size" in config or config.get("model_type") == "static":
            dims = int(config["embedding_size"])
        else:
            dims = min(int(config.get("hidden_size", 768)), 768)  # RoBERTa's default width, ANCE's largest
    except (KeyError, TypeError, ValueError):
        dims = 0
    if dims <= 0:
        raise UserError(
            "the model's config.json has no usable embedding_size or hidden_size; the checkpoint is damaged"
        )
    return dims


def load_encoder(
    model_type: str,
    name_or_path: str,
    config_name: str = "",
    new_head: bool = False,
    changes: dict[str, Any] | None = None,
) -> Any:
    """The encoder stored in a directory (ours, ANCE's, Pyserini's) or, for rdot_nll, under a hub name.

    ``changes`` (pooling, score_scale) replace what its config says.
    ``new_head`` lets a plain RoBERTa in, whose head then starts from random weights (torch's global seed).
    UserError where files are missing, of another model type, or without the head.
    """
    check_model_type(model_type)
    if model_type == "static":
        from model.encoders.static import StaticEncoder

        config = {**read_config(name_or_path, model_type, config_name), **(changes or {})}
        return StaticEncoder.from_pretrained(Path(name_or_path), config)
    if Path(name_or_path).is_dir() or config_name:
        read_config(name_or_path, model_type, config_name)
    from model.encoders.roberta_dot import load_roberta_dot

    return load_roberta_dot(name_or_path, config_name, new_head, changes or {})


def new_encoder(model_type: str, config_name: str, changes: dict[str, Any]) -> Any:
    """An encoder with random weights (torch's global seed) of the shape that a config file describes.

    ``changes`` (vocab_size, pad_token_id, pooling, score_scale) replace what the file says.
    UserError where it describes no such encoder.
    """
    check_model_type(model_type)
    config = {**read_config(config_name, model_type), **changes}
    try:
        if model_type == "static":
            from model.encoders.static import StaticEncoder

            return StaticEncoder(config)
        from model.encoders.roberta_dot import new_roberta_dot

        return new_roberta_dot(config)
    except Exception as error:  # transformers raises many types for sizes that are missing or do not fit
        raise UserError(
            f"{config_name} describes no {model_type} model ({type(error).__name__}: {one_line(error)[:300]})"
        ) from None


def check_fits(encoder: Any, vocab_size: int, pad_token_id: int, max_tokens: int) -> None:
    """UserError where the token cache holds what the encoder has no place for."""
    config = encoder.config if isinstance(encoder.config, dict) else encoder.config.to_dict()
    if vocab_size > config["vocab_size"]:
        raise UserError(
            f"the tokenizer has {vocab_size} tokens, the model {config['vocab_size']}; preprocess with its tokenizer"
        )
    if "max_position_embeddings" in config:
        if config["pad_token_id"] != pad_token_id:
            raise UserError(
                f"the tokenizer pads with {pad_token_id}, the model's config says {config['pad_token_id']}; "
                "preprocess with the model's own tokenizer"
            )
        positions = config["max_position_embeddings"] - pad_token_id - 1
        if max_tokens > positions:
            raise UserError(f"texts have up to {max_tokens} tokens, the model {positions} positions; pass fewer")
