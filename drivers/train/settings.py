"""How a program trains, as its flags have it: what the trainer, its batches and its checks are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data.tokens.collection import Preprocessed
from data.tokens.text_agreement import TextRecord
from data.training.batches import BatchSettings
from drivers.cli.train import AnnFlags, WarmupFlags
from drivers.job.encoder_setup import check_model_directory
from drivers.job.model_identity import ModelSettings
from drivers.job.settings import ModelJob, compute_settings, lengths_of, model_job, model_settings
from drivers.job.setup import ComputeSettings
from drivers.job.text_lengths import TextLengths
from model.encoders.base import CheckpointsGradients
from model.encoders.dpr import QUERY_MODEL
from model.encoders.registry import (
    check_fits,
    encoder_type,
    encoder_without_weights,
    new_encoder,
    on_meta,
    read_config,
)
from model.encoders.spec import Side
from model.train.checkpoint import check_has_optimizer
from model.train.optim import apex_fused_lamb
from model.train.trained_parts import TrainedParts, check_trained
from utils.declared.lora import LoraSettings
from utils.declared.losses import LOSSES
from utils.declared.model_types import MODEL_TYPES
from utils.errors import UserError
from utils.exchange.layout import JobLayout
from utils.hub import model_directory


@dataclass(frozen=True)
class OptimizerSettings:
    """``name`` is a word of --optimizer; ``warmup_steps`` and the decay after them are linear."""

    name: str
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    epsilon: float
    max_grad_norm: float


@dataclass(frozen=True)
class TrainingSettings:
    """What training is made of, wherever its batches come from.

    A checkpoint is published at the end, and at each step that one of ``publish_every`` divides.
    ``initial_model`` is the directory or hub name of what the run begins with, "" for random weights.
    ``texts`` is what a checkpoint says of its texts.
    ``optimizer_from`` is the checkpoint whose optimiser and schedule the run begins with, None to begin new ones.
    """

    output_dir: Path
    tensorboard_dir: Path
    initial_model: str
    tokenizer: str  # its directory, or hub name
    texts: TextRecord
    loss: str  # a word of `utils.declared.losses.LOSSES`
    batch: BatchSettings
    micro_batches: int  # of a step
    optimizer: OptimizerSettings
    optimizer_from: Path | None
    dtype: torch.dtype | None  # to autocast to
    grad_cache_tokens: int
    gradient_checkpointing: bool
    compile: bool
    logging_steps: int
    publish_every: tuple[int, ...]
    parts: TrainedParts  # of the encoder
    temperature: float | None  # of the loss; None for the encoder's default

    @property
    def loss_record(self) -> dict[str, float]:
        """What a run records of the loss next to its word: nothing where that is what earlier versions did."""
        return {} if self.temperature is None else {"temperature": self.temperature}

    def at(self, lengths: TextLengths) -> TrainingSettings:
        """The same with texts of other lengths."""
        longest_query, longest_passage = lengths.max_query_length, lengths.max_seq_length
        batch = replace(self.batch, max_query_length=longest_query, max_seq_length=longest_passage)
        return replace(self, batch=batch)


def trained_model(flags: AnnFlags | WarmupFlags) -> ModelSettings:
    """What training starts from."""
    return model_settings(flags, flags.model_name_or_path, flags.load_optimizer_scheduler)


def training_compute(flags: AnnFlags | WarmupFlags, lengths: TextLengths) -> ComputeSettings:
    """What training computes on. UserError for flags that cannot be trained with."""
    longest = max(lengths.by_name.values())
    if flags.grad_cache_tokens != 0 and flags.grad_cache_tokens < longest:
        raise UserError(
            f"--grad_cache_tokens is {flags.grad_cache_tokens}, expected 0 or at least one text's {longest} tokens; "
            "as many as fit into memory make it quickest"
        )
    if flags.gradient_checkpointing and not encoder_type(flags.model_type).has_layers:
        raise UserError(
            f"--gradient_checkpointing is given, the {flags.model_type} model has no layers to make twice; omit it"
        )
    if flags.optimizer == "apex_fused_lamb":
        apex_fused_lamb()
    return compute_settings(flags, default_dtype="fp32")


def training_job(flags: AnnFlags | WarmupFlags, places: Sequence[str]) -> ModelJob:
    """The lengths of texts are looked for in ``places``. UserError as `training_compute`'s."""
    check_parts(flags)
    lengths = lengths_of(flags, places)
    return model_job(flags, lengths, trained_model(flags), training_compute(flags, lengths))


def trained_parts(flags: AnnFlags | WarmupFlags) -> TrainedParts:
    lora = LoraSettings(flags.lora_r, flags.lora_alpha, flags.lora_dropout) if flags.lora_r else None
    return TrainedParts(lora, flags.freeze)


def check_parts(flags: AnnFlags | WarmupFlags) -> None:
    """UserError where the model cannot have the `trained_parts`."""
    if flags.freeze:
        check_has_towers(flags.model_type, "--freeze")
    if flags.lora_r and not encoder_type(flags.model_type).has_layers:
        raise UserError(f"--lora_r is given, the {flags.model_type} model has no layers for adapters; omit it")
    if flags.lora_r and isinstance(flags, WarmupFlags) and flags.head_dim:
        raise UserError(
            "--head_dim is given with --lora_r, which trains adapters alone: train the new head without it first"
        )
    if flags.lora_r and not flags.model_name_or_path:
        raise UserError("--lora_r is given without --model_name_or_path: adapters are of weights on disk; name them")


def check_start(flags: WarmupFlags, model: ModelSettings) -> None:
    """UserError where the first encoder could not be made."""
    if flags.pooling and not encoder_type(flags.model_type).has_pooling:
        pooled = ", ".join(word for word, kind in MODEL_TYPES.items() if kind.has_pooling)
        raise UserError(f"--pooling is for {pooled}, --model_type {flags.model_type} has its own; omit it")
    check_towers(flags, model)
    if flags.score_scale is not None and encoder_type(flags.model_type).has_modules:
        raise UserError("--score_scale is given, embeddings of --model_type hf stay as they are; give --temperature")
    if model.name_or_path:
        check_model_directory(model, flags.dry_run)
    elif not (flags.config_name and flags.tokenizer_name):
        raise UserError("no --model_name_or_path; to start from random weights give --config_name and --tokenizer_name")
    else:
        read_config(flags.config_name, flags.model_type)


def check_towers(flags: WarmupFlags, model: ModelSettings) -> None:
    """UserError where flags of two towers are given to another model type, or the queries' could not be made."""
    for given in [name for name in ("tied", "query_model_name_or_path") if getattr(flags, name)]:
        check_has_towers(flags.model_type, f"--{given}")
    if not model.query_name_or_path:
        return
    if flags.tied:
        raise UserError("--query_model_name_or_path is given with --tied, which is one encoder for both; omit one")
    if flags.lora_r or not model.name_or_path:
        with_lora = "with --lora_r, whose adapters are of one model", "train the two without it first"
        reason, remedy = with_lora if flags.lora_r else ("without --model_name_or_path", "give the passages', too")
        raise UserError(f"--query_model_name_or_path is given {reason}; {remedy}")
    assert model.query_model is not None
    check_model_directory(model.query_model, flags.dry_run)


def check_first_encoder(
    flags: AnnFlags | WarmupFlags,
    common: ModelJob,
    collection: Preprocessed,
    changes: dict[str, Any],
    new_head: bool,
) -> None:
    """Look at the encoder that training begins with as far as that takes no weights, before a run is begun.

    Args:
        flags: the program's.
        common: what is resolved of them.
        collection: what is trained on.
        changes: replace what the model's config says.
        new_head: it may be a body without a head.

    Raises:
        UserError: it could not be made, does not fit the collection, or could not be trained as the flags say.
    """
    model, parts = common.model, trained_parts(flags)
    if model.name_or_path:
        names = [name for name in (model.name_or_path, model.query_name_or_path) if name]
        if flags.dry_run:  # which fetches nothing
            names = [str(model_directory(name, local_only=True)) for name in names]
            if not all(Path(name).is_dir() for name in names):
                return
        first, *of_queries = names
        changes = changes | ({QUERY_MODEL: of_queries[0]} if of_queries else {})
        encoder = encoder_without_weights(model.model_type, first, model.config_name, new_head, changes)
        check_trained(encoder, parts, Path(first))
    else:
        encoder = on_meta(lambda: new_encoder(model.model_type, model.config_name, changes))
        check_trained(encoder, parts, None)
    if flags.load_optimizer_scheduler:
        check_has_optimizer(Path(model.name_or_path))
    encoding = common.encoder.encoding
    longest: dict[Side, int] = {"passage": encoding.max_seq_length, "query": encoding.max_query_length}
    check_fits(encoder.spec, collection.manifest["vocab_size"], collection.pad_token_id, longest)
    if flags.gradient_checkpointing and not isinstance(encoder, CheckpointsGradients):
        raise UserError("--gradient_checkpointing is given, this encoder has no layers to make twice; omit it")


def check_has_towers(model_type: str, given: str) -> None:
    """UserError where the model type has none; ``given`` is the flag that is for them."""
    if not encoder_type(model_type).has_towers:
        words = ", ".join(word for word, kind in MODEL_TYPES.items() if kind.has_towers)
        raise UserError(f"{given} is for two towers ({words}), --model_type {model_type} has one encoder; omit it")


def optimizer_settings(flags: AnnFlags | WarmupFlags) -> OptimizerSettings:
    return OptimizerSettings(
        name=flags.optimizer,
        learning_rate=flags.learning_rate,
        warmup_steps=flags.warmup_steps,
        weight_decay=flags.weight_decay,
        epsilon=flags.adam_epsilon,
        max_grad_norm=flags.max_grad_norm,
    )


def training_settings(
    flags: AnnFlags | WarmupFlags, common: ModelJob, texts: TextRecord, publish_every: tuple[int, ...]
) -> TrainingSettings:
    """How a program trains.

    Args:
        flags: the program's.
        common: what is resolved of them: lengths, the type of mixed precision, the tokenizer.
        texts: what its checkpoints say of their texts.
        publish_every: a checkpoint is published at each step that one of these divides.
    """
    output_dir = Path(flags.output_dir)
    return TrainingSettings(
        output_dir=output_dir,
        tensorboard_dir=Path(flags.log_dir) if flags.log_dir else JobLayout(output_dir).tensorboard,
        initial_model=common.model.name_or_path,
        tokenizer=common.model.tokenizer,
        texts=texts,
        loss=flags.loss,
        batch=BatchSettings(
            triples=flags.per_gpu_train_batch_size,
            group_size=flags.group_size,
            max_query_length=common.lengths.max_query_length,
            max_seq_length=common.lengths.max_seq_length,
            is_over_batch=LOSSES[flags.loss].is_over_batch,
            seed=flags.seed,
        ),
        micro_batches=flags.gradient_accumulation_steps,
        optimizer=optimizer_settings(flags),
        optimizer_from=Path(flags.model_name_or_path) if flags.load_optimizer_scheduler else None,
        dtype=common.compute.dtype,
        grad_cache_tokens=flags.grad_cache_tokens,
        gradient_checkpointing=flags.gradient_checkpointing,
        compile=flags.compile,
        logging_steps=flags.logging_steps,
        publish_every=publish_every,
        parts=trained_parts(flags),
        temperature=flags.temperature,
    )
