"""What a trainer looks at in its first minute."""

from __future__ import annotations

from functools import partial

import torch

from data.tokens.collection import Preprocessed
from drivers.cli import AnnFlags, WarmupFlags
from drivers.job.disk_budget import (
    check_space,
    checkpoint_item,
    held_by_trainer,
)
from drivers.job.preflight import Preflight
from drivers.job.sanity_batch import TrialSize, check_training
from drivers.job.setup import check_compute_flags
from drivers.train.trainer import Trainer
from model.encoders.registry import encoder_type
from model.train.optim import apex_fused_lamb
from utils.errors import UserError


def check_trainer(checks: Preflight, collection: Preprocessed, trainer: Trainer, checkpoints: int) -> None:
    """The checks of a trainer that is ready to begin; ``checkpoints`` of it lie on the disk at once."""
    settings, state = trainer.settings, trainer.state
    item = checkpoint_item(state.encoder, trainer.tokenizer, checkpoints)
    batch = settings.batch
    size = TrialSize(batch.triples, batch.max_seq_length, batch.max_query_length, settings.grad_cache_tokens)
    checks.on_process0(partial(check_space, settings.output_dir, [item], held_by_trainer(settings.output_dir)))
    trial = partial(check_training, state.encoder, collection, settings.loss, size, state.world, settings.dtype)
    checks.on_every_process(trial)
    checks.end()


def check_training_flags(flags: AnnFlags | WarmupFlags) -> torch.dtype | None:
    """The type to compute in, as `check_compute_flags` has it. UserError for flags that cannot be trained with."""
    assert flags.max_seq_length and flags.max_query_length, "with_lengths has found them"
    longest = max(flags.max_seq_length, flags.max_query_length)
    if flags.grad_cache_tokens != 0 and flags.grad_cache_tokens < longest:
        raise UserError(
            f"--grad_cache_tokens is {flags.grad_cache_tokens}, expected 0 or at least one text's {longest} tokens; "
            "as many as fit into memory make it quickest"
        )
    if flags.gradient_checkpointing and not encoder_type(flags.model_type).has_layers:
        raise UserError(
            f"--gradient_checkpointing is given, the {flags.model_type} model has no layers to make twice; leave it out"
        )
    if flags.optimizer == "apex_fused_lamb":
        apex_fused_lamb()
    return check_compute_flags(flags, default_dtype="fp32")
