"""What every program begins with: its processes, the collection, its random generator."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.sources.atomic_dir import check_can_write
from data.tokens.collection import Preprocessed, check_tokenizer, open_preprocessed
from data.tokens.text_profile import check_not_shortened
from data.tokens.verify import check_inputs
from drivers.job.text_lengths import TextLengths
from utils.distributed import collectives, process_group
from utils.distributed.world import World, device_names
from utils.hub import is_path
from utils.run_log import header, say

# Starting


@dataclass(frozen=True)
class ComputeSettings:
    """What a program computes on, and in what type.

    Args:
        no_cuda: it stays on the CPU.
        device: this process's own.
        dtype: the type to autocast to; None is float32.
        is_dtype_automatic: another machine may compute in another type.
        collective_timeout_seconds: a process that the others have waited for so long ends the job.
    """

    no_cuda: bool
    device: torch.device
    dtype: torch.dtype | None
    is_dtype_automatic: bool
    collective_timeout_seconds: float


def start_program(program: str, compute: ComputeSettings, flags_as_json: str) -> tuple[World, str]:
    """Join the other processes, write the `.out` header, give the run its id."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    world = process_group.start(compute.no_cuda, compute.collective_timeout_seconds)
    run_id = collectives.broadcast_json(world, secrets.token_hex(6))
    if world.is_first:
        for line in header(program, run_id, flags_as_json, device_names(world)):
            say(line)
    return world, run_id


def open_collection(data_dir: str, lengths: TextLengths, tokenizer_dir: str, is_dry_run: bool) -> Preprocessed:
    """The preprocessed directory, checked against the tokenizer that the model comes with.

    Args:
        data_dir: written by data.msmarco_data.
        lengths: at which its texts are cut.
        tokenizer_dir: a directory or hub name; "" for none.
        is_dry_run: fetches no tokenizer from the hub, and reads the directory's files: a job does it later, saying so.

    Raises:
        UserError: where it is damaged, or of another tokenizer.
    """
    collection = open_preprocessed(data_dir, lengths.max_seq_length, lengths.max_query_length)
    check_not_shortened(collection.text_settings, lengths.by_name, collection.manifest)
    if is_dry_run:
        check_inputs(collection)
    check_tokenizer_of_model(collection, tokenizer_dir, is_dry_run)
    return collection


def check_tokenizer_of_model(collection: Preprocessed, tokenizer_dir: str, is_dry_run: bool) -> None:
    """UserError where it is not the collection's.

    Args:
        collection: what is opened.
        tokenizer_dir, is_dry_run: `open_collection`'s.
    """
    if tokenizer_dir and (is_path(tokenizer_dir) or not is_dry_run):
        check_tokenizer(collection, tokenizer_dir)


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
