"""What a trainer looks at in its first minute."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.tokens.collection import Preprocessed
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

# What the programs check


def check_trainer(
    checks: Preflight, collection: Preprocessed, trainer: Trainer, dtype: torch.dtype | None, checkpoints: int
) -> None:
    """The checks of a trainer that is ready to begin; ``checkpoints`` of it lie on the disk at once."""
    flags, encoder, output_dir = trainer.flags, trainer.state.encoder, Path(trainer.flags.output_dir)
    item = checkpoint_item(encoder, trainer.tokenizer, checkpoints)
    size = TrialSize(
        flags.per_gpu_train_batch_size, flags.max_seq_length, flags.max_query_length, flags.grad_cache_tokens
    )
    checks.on_process0(partial(check_space, output_dir, [item], held_by_trainer(output_dir)))
    checks.on_every_process(partial(check_training, encoder, collection, flags.loss, size, trainer.state.world, dtype))
    checks.end()


def check_training_flags(flags: Any) -> torch.dtype | None:
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
