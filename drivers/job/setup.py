"""What every program begins with: its processes, the collection, and flags that fit together."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.sources.atomic_dir import check_can_write
from data.tokens.collection import Preprocessed, check_tokenizer, open_preprocessed
from data.tokens.verify import check_inputs
from drivers.cli import AnnFlags, EvalFlags, GenerateFlags, NeighbourhoodFlags, WarmupFlags
from drivers.job.encoder_setup import check_compiler
from model.encoders.registry import encoder_type
from model.hub import is_path
from model.kernels.precision import compute_dtype, quickest_dtype
from utils.distributed import collectives, process_group
from utils.distributed.world import World, device_names, own_device, processes_of_launcher
from utils.errors import UserError
from utils.flag_groups import ComputeFlags
from utils.flags import flags_json
from utils.run_log import header, say

# Starting


# The programs that open a model and a collection.
Opening = AnnFlags | EvalFlags | GenerateFlags | NeighbourhoodFlags | WarmupFlags


def start_program(program: str, flags: ComputeFlags, **resolved: Any) -> tuple[World, str]:
    """Join the other processes, write the `.out` header (flags and what was ``resolved``), give the run its id."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    world = process_group.start(flags.no_cuda, flags.collective_timeout_seconds)
    run_id = collectives.broadcast_json(world, secrets.token_hex(6))
    if world.is_first:
        for line in header(program, run_id, flags_json(flags, **resolved), device_names(world)):
            say(line)
    return world, run_id


def open_collection(flags: Opening, tokenizer_dir: str) -> Preprocessed:
    """The preprocessed directory, checked against the tokenizer that the model comes with.

    A --dry_run fetches no tokenizer from the hub, and reads the directory's files here: a job does it later, saying so.
    """
    assert flags.max_seq_length and flags.max_query_length, "with_lengths has found them"
    collection = open_preprocessed(flags.data_dir, flags.max_seq_length, flags.max_query_length)
    if flags.dry_run:
        check_inputs(collection)
    if tokenizer_dir and (is_path(tokenizer_dir) or not flags.dry_run):
        check_tokenizer(collection, tokenizer_dir)
    return collection


def check_compute_flags(flags: Opening, default_dtype: str = "auto") -> torch.dtype | None:
    """Refuse what cannot be computed; the type to compute in, None for float32."""
    kind = encoder_type(flags.model_type)
    device = own_device(flags.no_cuda)
    if flags.compile:
        check_compiler(device.type == "cuda")
    quickest = quickest_dtype(device) if kind.has_layers else None
    return compute_dtype(flags.dtype, flags.fp16, flags.bf16, flags.fp16_opt_level, default_dtype, quickest)


def is_dtype_automatic(flags: ComputeFlags, default_dtype: str = "auto") -> bool:
    """Whether --dtype auto holds: on another machine the program may compute in another type."""
    word = flags.dtype or ("given" if flags.fp16 or flags.bf16 else default_dtype)
    return word == "auto"


def check_exchange_flags(flags: AnnFlags | GenerateFlags | WarmupFlags) -> None:
    if flags.lease_seconds < 3 * flags.heartbeat_seconds:
        raise UserError(
            f"--lease_seconds is {flags.lease_seconds:g} with --heartbeat_seconds {flags.heartbeat_seconds:g}, "
            "expected at least three heartbeats in a lease's life"
        )

    if processes_of_launcher() > 1 and flags.lease_seconds >= flags.collective_timeout_seconds:
        raise UserError(
            f"--lease_seconds is {flags.lease_seconds:g}, expected less than --collective_timeout_seconds, "
            f"{flags.collective_timeout_seconds:g}: the other processes wait while the first takes a lease over"
        )


def check_refresh_flags(flags: AnnFlags | GenerateFlags) -> None:
    check_exchange_flags(flags)
    if flags.refresh_mode == "lockstep" and not flags.steps_per_refresh:
        raise UserError("--refresh_mode lockstep needs --steps_per_refresh above 0; how many steps between refreshes?")


def check_output_dirs(*directories: str) -> None:
    """UserError where one of them could not be written in; makes nothing."""
    for directory in directories:
        check_can_write(Path(directory))


def seed_everything(seed: int, process: int, step: int = 0) -> None:
    """torch's global generator drives initial weights and dropout; all else takes its generator as an argument.

    Process 0 has torch's own stream of ``seed``. The others' are of the pair: seed + process would give process 1 of
    one seed what process 0 of the next one draws. ``step``, of the checkpoint that is resumed, is for a process whose
    state it does not hold: one that an earlier job did not have.
    """
    if process:
        numbers = [seed, process, step] if step else [seed, process]
        seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    torch.manual_seed(seed)
