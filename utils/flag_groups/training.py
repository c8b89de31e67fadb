"""Flags of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from utils.declared.losses import DEFAULT_LOSS, LOSSES
from utils.declared.words import words_help
from utils.flag_groups.common import SeedFlags
from utils.flag_groups.model import ComputeFlags
from utils.flag_groups.trained_parts import TrainedPartsFlags
from utils.flag_values import LARGEST_INTEGER, Group, flag

SMALLEST_EPSILON = 1e-30  # in float32 it is not 0: by 0 a weight without a gradient would become nan
LARGEST_TEMPERATURE = 1e6


@dataclass(frozen=True, kw_only=True)
class TrainingFlags(SeedFlags, ComputeFlags, TrainedPartsFlags):
    GROUP: ClassVar[Group] = "optimisation"

    output_dir: str = flag(help="where checkpoints and logs are written", is_path=True, group="job")
    task_name: str = flag("msmarco", "ignored: --data_dir decides the task", decides="nothing")
    do_lower_case: bool = flag(False, "ignored: --text_profile of data.msmarco_data decides", decides="nothing")
    log_dir: str = flag("", "TensorBoard directory; default OUTPUT_DIR/tensorboard", is_path=True, group="job")
    optimizer: Literal["lamb", "adamW", "apex_fused_lamb"] = flag("lamb", "optimiser")
    learning_rate: float = flag(5e-5, "peak learning rate", above=0)
    weight_decay: float = flag(0.0, "weight decay", at_least=0)
    adam_epsilon: float = flag(1e-8, "epsilon of Adam and LAMB", at_least=SMALLEST_EPSILON)
    max_grad_norm: float = flag(1.0, "gradients are clipped to this norm; 0 leaves them", at_least=0)
    max_steps: int = flag(1_000_000, "optimiser steps to train", at_least=1, at_most=LARGEST_INTEGER)
    warmup_steps: int = flag(0, "steps of linear learning-rate warmup", at_least=0, at_most=LARGEST_INTEGER)
    per_gpu_train_batch_size: int = flag(
        8, "triples (run_ann) or queries (run_warmup) per process and micro-batch", at_least=1, decides="step"
    )
    gradient_accumulation_steps: int = flag(1, "micro-batches per optimiser step", at_least=1, decides="step")
    grad_cache_tokens: int = flag(
        0,
        "GradCache: a batch of any size in micro-batches of so many tokens, each encoded twice; 0: at once",
        at_least=0,
        decides="bytes",
    )
    gradient_checkpointing: bool = flag(
        False, "less memory: compute each layer's activations a second time", decides="bytes"
    )
    logging_steps: int = flag(
        500, "steps between log lines", at_least=1, at_most=LARGEST_INTEGER, decides="nothing", group="job"
    )
    save_steps: int = flag(
        500, "steps between checkpoints", at_least=1, at_most=LARGEST_INTEGER, decides="nothing", group="job"
    )
    load_optimizer_scheduler: bool = flag(False, "resume the optimiser and schedule stored with the checkpoint")
    overwrite_output_dir: bool = flag(
        False, "remove the run that --output_dir holds, and start again", decides="nothing", group="job"
    )
    temperature: float | None = flag(
        None,
        "the loss divides scores by this, which are stored as they are; default: 0.05 where embeddings have length 1, "
        "else 1",
        above=0,
        at_most=LARGEST_TEMPERATURE,
        decides="nothing",
    )
    loss: str = flag(DEFAULT_LOSS, partial(words_help, LOSSES), choices=LOSSES)

    IGNORED: ClassVar[dict[str, str]] = {
        "task_name": "--data_dir decides the task",
        "do_lower_case": "data.msmarco_data --text_profile ance lower-cases, ance-warmup does not",
    }
