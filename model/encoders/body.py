"""The body of an encoder: a transformer of Hugging Face's, opened by its config, which gives one pooled row for a text.

An encoder makes a `Body` around a model that it has as a module of its own, or that `load_model` or `new_model` gives,
calls ``pooled``, and hands on what the body can do beside that: packing, casting, prepacking, gradient checkpointing.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

from model.encoders.base import Encoder
from model.encoders.pooling import pool_packed, pool_padded
from model.encoders.spec import EncoderSpec, positive_number
from model.kernels.cpu_dropout import BY_DEVICE, make_dropout_quick
from model.kernels.cpu_linear import prepack_products
from model.kernels.deberta import lower_biases
from model.kernels.families import family_of
from model.kernels.packed_attention import PACKED, PACKED_ON_CPU, hidden_of_packed
from model.token_batch import TokenBatch
from utils.declared.positions import begins_behind_pad_id, position_padding, usable_positions
from utils.errors import UserError, one_line
from utils.exchange.model_files import body_directory

POOLER = "pooler."  # of BERT and RoBERTa: made for their second training task, and of no use to an encoder
LAYER_GROUPS = ((r"\bembeddings", "embeddings"), (r"\.layers?\.(\d+)\.", r"layer_\1"))

if not sys.stderr.isatty():
    disable_progress_bar()  # transformers' own, while it reads and writes weights: an .out has no carriage returns


class Body:
    """A transformer, and how its last layer's states are pooled. No module: its owner has the model as one.

    Args:
        model: whose last layer's states are pooled. It keeps its weights; layers may compute in another way.
        pooling: first, mean or last.
        pooled_from: the first position that a mean is of; TCT-ColBERT's is 4.
    """

    def __init__(self, model: PreTrainedModel, pooling: str, pooled_from: int = 0) -> None:
        self.model, self.pooling, self.pooled_from = model, pooling, pooled_from
        self.family = family_of(model)
        if self.family is not None and pooling == "first":
            self.family.compute_first_alone(self.family.layers(model)[-1])
        make_dropout_quick(model)
        lower_biases(model)
        self.is_packed, self.attention = False, ""
        self.pack_texts(False)

    @property
    def pad_id(self) -> int:
        pad_id = self.model.config.pad_token_id
        return 0 if pad_id is None else int(pad_id)

    def pooled(self, tokens: TokenBatch) -> torch.Tensor:
        """One row for each text: [B, H]."""
        if self.is_packed:
            return self.pooled_packed(tokens)
        return self.pooled_padded(*tokens.padded(self.pad_id))

    def pooled_padded(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        hidden_BLH: torch.Tensor = self.model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        return pool_padded(hidden_BLH, mask_BL, self.pooling, self.pooled_from)

    def pooled_packed(self, tokens: TokenBatch) -> torch.Tensor:
        assert self.family is not None
        kind = self.model.config.model_type
        behind = position_padding(kind, self.pad_id) if begins_behind_pad_id(kind) else None
        hidden = hidden_of_packed(self.model, tokens, self.attention, behind)
        return pool_packed(hidden, tokens, self.pooling, self.pooled_from)

    @property
    def cpu_batch_tokens(self) -> int:
        """What a layer makes of so many is still in the cache when the next needs it.

        Times at base width on 2 cores, packed, as parts of those of 2,048: in float32 of 512 tokens encoding 1.12, of
        1,024 encoding 1.05 and training 1.0 to 1.09, of 4,096 training 1.03; in bfloat16 encoding 1.0 of 1,024 and
        0.99 of 4,096. Padded, texts of more tokens differ too much in length: training takes 1.06 to 1.18 times as long
        with 2,048.
        """
        return 2048 if self.is_packed else 1024

    def pack_texts(self, packed: bool, attention: str = "") -> None:
        """Whether texts stand without padding, and by which attention of `packed_attention`: the device's own."""
        own = PACKED_ON_CPU if self.model.device.type == "cpu" else PACKED
        self.is_packed, self.attention = packed, (attention or own) if packed else ""
        if self.family is not None and self.family.takes_attention:
            self.model.set_attn_implementation(self.attention or BY_DEVICE)

    def enable_gradient_checkpointing(self) -> None:
        """Gradient checkpointing: only a layer's input is kept for the gradient. UserError where a family cannot."""
        if not self.model.supports_gradient_checkpointing:
            raise UserError(
                f"--gradient_checkpointing is given, transformers' {self.model.config.model_type} model cannot do it; "
                "omit it, and use --grad_cache_tokens to save memory"
            )
        # Newer transformers say "activation", and warn of the older name.
        enable: Any = getattr(self.model, "activation_checkpointing_enable", None)
        (enable or self.model.gradient_checkpointing_enable)({"use_reentrant": False})

    def cast_linear_weights(self, dtype: torch.dtype) -> None:
        """For encoding alone: the matrices in ``dtype``, to which autocast would cast them again for each batch.

        What is added up from layer to layer stays in float32, as under autocast: in bfloat16 throughout, the
        embeddings were ten times as far from float32's, and 0.8% of the top 200 others (0.1% this way).
        """
        for module in self.model.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)

    def prepack_weights(self) -> None:
        """For encoding alone, on the device where it is: a CPU keeps lowered matrices as its products read them, too.

        Those take the memory of the matrices once more, and cannot be copied. Nothing happens where there is nothing to
        gain.
        """
        prepack_products(self.model, self.cpu_batch_tokens)


class BodyEncoder(Encoder):
    """An encoder of one body or of several: what they can do, it can."""

    @property
    def bodies(self) -> tuple[Body, ...]:
        """Its own, each once."""
        raise NotImplementedError

    @property
    def is_packed(self) -> bool:
        return all(body.is_packed for body in self.bodies)

    @property
    def can_pack(self) -> bool:
        return all(body.family is not None for body in self.bodies)

    @property
    def padding_costs(self) -> bool:
        return not self.is_packed

    @property
    def cpu_batch_tokens(self) -> int:  # type: ignore[override]
        return min(body.cpu_batch_tokens for body in self.bodies)

    def pack_texts(self, packed: bool, attention: str = "") -> None:
        for body in self.bodies:
            body.pack_texts(packed, attention)

    def enable_gradient_checkpointing(self) -> None:
        for body in self.bodies:
            body.enable_gradient_checkpointing()

    def cast_linear_weights(self, dtype: torch.dtype) -> None:
        for body in self.bodies:
            body.cast_linear_weights(dtype)

    def prepack_weights(self) -> None:
        for body in self.bodies:
            body.prepack_weights()


# What is known of a body before it is made


def config_of(values: Mapping[str, Any], where: str) -> PretrainedConfig:
    """transformers' config with these values, its defaults in place of those that are not there.

    ``where`` is what an error names. UserError for an architecture that transformers does not know, or damaged values.
    """
    kind = values.get("model_type")
    if kind == "dpr":
        raise UserError(
            f"{where} is of a dpr model, expected one encoder: give --model_type dpr, and convert transformers' own "
            "DPR encoders to it by python -m model.convert first"
        )
    if kind not in CONFIG_MAPPING_NAMES:
        raise UserError(f"{where} is of a {kind!r} model, which transformers does not know; take another model")
    try:
        config: PretrainedConfig = AutoConfig.for_model(**values)
    except Exception as error:  # transformers raises many types for values that do not fit
        raise UserError(f"{where} describes no {kind} model ({one_line(error)[:300]})") from None
    if config.is_encoder_decoder:
        raise UserError(f"{where} is of a {kind} model, an encoder with a decoder; expected an encoder alone")
    if not hasattr(config, "vocab_size"):
        raise UserError(f"{where} is of a {kind} model without a vocab_size, expected an encoder of texts")
    if begins_behind_pad_id(str(kind)) and kind != "mpnet" and config.pad_token_id is None:
        raise UserError(f"{where} has no pad_token_id, behind which a {kind} model's positions begin: it is damaged")
    return config


def spec_of_body(config: PretrainedConfig) -> EncoderSpec:
    """Of rows that are pooled as they are. UserError where the config does not say how wide they are."""
    values: dict[str, Any] = {"hidden_size": getattr(config, "hidden_size", None), "vocab_size": config.vocab_size}
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        positions = usable_positions(config.model_type, positions, config.pad_token_id)
    return EncoderSpec(
        embedding_dim=positive_number(values, ["hidden_size"]),
        vocab_size=positive_number(values, ["vocab_size"]),
        pad_id=config.pad_token_id,
        max_query_length=positions,
        max_passage_length=positions,
        layer_groups=LAYER_GROUPS,
    )


# Making one


def class_of(config: PretrainedConfig) -> tuple[Any, dict[str, Any]]:
    """AutoModel's class for a config, and what it is told: not to make the pooler that some families have."""
    found: Any = AutoModel._model_mapping[type(config)]
    model_class = found[0] if isinstance(found, tuple) else found  # of several, the plain model is the first
    has_pooler = "add_pooling_layer" in model_class.__init__.__code__.co_varnames
    return model_class, {"add_pooling_layer": False} if has_pooler else {}


def new_model(config: PretrainedConfig) -> PreTrainedModel:
    """Random weights, drawn from torch's global seed."""
    model_class, options = class_of(config)
    made: PreTrainedModel = model_class(config, **options)
    return made


def load_model(directory: str | Path, config: PretrainedConfig) -> PreTrainedModel:
    """The weights of a model's directory, in float32; those of a task's own head next to them are passed over.

    UserError where files are missing or damaged, or lack weights of the body.
    """
    model_class, options = class_of(config)
    options |= {"config": config, "output_loading_info": True, "dtype": torch.float32}
    options |= {"ignore_mismatched_sizes": True}  # `check_loaded` says which
    try:
        with quiet_loading():
            model, info = model_class.from_pretrained(str(body_directory(Path(directory))), **options)
    except Exception as error:  # transformers raises many types for files that are missing or damaged
        what = f"{directory} does not load as a {config.model_type} checkpoint"
        raise UserError(f"{what}: {one_line(error)[:300]}") from None
    check_loaded(directory, info, config.model_type)
    made: PreTrainedModel = model
    return made


def check_loaded(
    name_or_path: str | Path, info: Mapping[str, Any], kind: str, omissible: tuple[str, ...] = (POOLER,)
) -> list[str]:
    """Hold what transformers tells of a loaded model against what it should have had.

    Args:
        name_or_path, kind: what was loaded, and as what.
        info: transformers' own.
        omissible: beginnings of names of weights that may be missing.

    Returns:
        Those that are.

    Raises:
        UserError: others are missing, or have another shape.
    """
    missing = sorted(info["missing_keys"])
    of_body = [key for key in missing if not key.startswith(omissible)]
    if of_body:
        raise UserError(
            f"{name_or_path} lacks {len(of_body)} of {kind}'s weights, {of_body[0]} first: another model's?"
        )
    if info["mismatched_keys"]:
        raise UserError(f"{name_or_path}: {sorted(info['mismatched_keys'])[0]} has another shape than its config says")
    return missing


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' table of weights that are missing or unknown: `check_loaded` says what matters."""
    log = logging.getLogger("transformers")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
