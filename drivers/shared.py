"""What the drivers have in common: opening their inputs, agreeing between ranks, the training loop's bookkeeping."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from data.preprocessed import Preprocessed, check_tokenizer, open_preprocessed
from data.staging import check_can_write
from data.token_cache import TokenCache
from data.tokenizing import load_tokenizer, tokenizer_files
from data.training_data import Batch, NegativeLists, batches_of_triples, make_batch
from model.encoder import check_fits, check_model_type, load_encoder, read_config
from model.precision import autocast_dtype
from model.training import (
    TrainingState,
    linear_schedule,
    load_optimizer_scheduler,
    make_optimizer,
    make_state,
    save_state,
    train_step,
)
from utils import distributed, exchange, publishing
from utils.distributed import World
from utils.errors import Disagreement, PeerGone, UserError
from utils.exchange import Peer
from utils.flags import RefreshFlags, TrainingFlags, check_positive
from utils.run_log import RunLog, git_state, header, progress_line, say

Found = TypeVar("Found")


# Starting


def start_program(program: str, flags_as_json: str, no_cuda: bool) -> tuple[World, str]:
    """Join the other ranks, write the `.out` header, and give the run its id."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    world = distributed.start(no_cuda)
    run_id = distributed.broadcast_json(world, secrets.token_hex(6))
    if world.is_first:
        for line in header(program, run_id, flags_as_json, distributed.device_names(world)):
            say(line)
    return world, run_id


def open_collection(flags: Any, tokenizer_dir: str) -> Preprocessed:
    """The preprocessed directory, checked against the tokenizer that the model comes with.

    A tokenizer of the hub is looked at unless this is a --dry_run, which fetches nothing.
    """
    collection = open_preprocessed(flags.data_dir, flags.max_seq_length, flags.max_query_length)
    is_path = Path(tokenizer_dir).is_dir() or tokenizer_dir.startswith((".", "/", "~"))
    if tokenizer_dir and (is_path or not flags.dry_run):
        check_tokenizer(collection, tokenizer_dir)
    return collection


def check_compute_flags(flags: Any) -> torch.dtype | None:
    """Refuse what cannot be computed; the type to autocast to."""
    check_positive(flags, "per_gpu_eval_batch_size", "max_seq_length", "max_query_length")
    if getattr(flags, "seed", 0) < 0:
        raise UserError(f"--seed is {flags.seed}, expected 0 or more")
    check_model_type(flags.model_type)
    return autocast_dtype(flags.fp16, flags.bf16, flags.fp16_opt_level)


def check_refresh_flags(flags: RefreshFlags) -> None:
    if flags.refresh_mode == "lockstep" and flags.steps_per_refresh <= 0:
        raise UserError("--refresh_mode lockstep needs --steps_per_refresh above 0; how many steps between refreshes?")


def check_training_flags(flags: TrainingFlags) -> torch.dtype | None:
    check_positive(
        flags,
        "per_gpu_train_batch_size",
        "gradient_accumulation_steps",
        "logging_steps",
        "save_steps",
        "learning_rate",
    )
    if flags.optimizer == "apex_fused_lamb":
        make_optimizer("apex_fused_lamb", torch.nn.Linear(1, 1), 1.0, 1e-6, 0.0)
    return check_compute_flags(flags)


def open_encoder(
    flags: Any,
    model_dir: str,
    collection: Preprocessed,
    new_head: bool = False,
    changes: dict[str, Any] | None = None,
) -> Any:
    """The model in ``model_dir``, checked to have a place for every token of the collection."""
    encoder = load_encoder(flags.model_type, model_dir, flags.config_name, new_head, changes)
    longest = max(flags.max_seq_length, flags.max_query_length)
    check_fits(encoder, collection.manifest["vocab_size"], collection.pad_token_id, longest)
    return encoder


def check_output_dirs(*directories: str) -> None:
    """UserError where one of them could not be written in; makes nothing."""
    for directory in directories:
        check_can_write(Path(directory))


def check_model_directory(flags: Any, model_dir: str) -> None:
    """What can be known of a model before it is loaded."""
    if Path(model_dir).is_dir() or flags.config_name:
        read_config(model_dir, flags.model_type, flags.config_name)
    elif model_dir.startswith((".", "/", "~")):
        raise UserError(f"{model_dir} is not a directory, expected a checkpoint (config.json and weights)")


def gather_from(
    cache: TokenCache, max_length: int, pad_id: int, rows: np.ndarray | None = None
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Row numbers to padded token ids: rows of the cache, or of the selection ``rows`` of it."""
    if rows is None:
        return lambda wanted: cache.gather(wanted, max_length, pad_id)
    return lambda wanted: cache.gather(rows[wanted], max_length, pad_id)


def batches_from_lists(
    flags: Any, collection: Preprocessed, world: World, lists: NegativeLists, stream: int
) -> Iterator[Batch]:
    """This rank's training batches, endlessly; each of the global batch's equal parts goes to one rank.

    ``stream`` (the refresh number) and --seed decide their order.
    """
    pad_id = collection.pad_token_id
    queries = gather_from(collection.queries("train"), flags.max_query_length, pad_id)
    passages = gather_from(collection.passages, flags.max_seq_length, pad_id)
    positives = collection.qrels("train").positives() if flags.loss == "in_batch" else None
    batch_triples = flags.per_gpu_train_batch_size * world.size
    for triples in batches_of_triples(lists, flags.group_size, batch_triples, flags.seed, stream):
        yield make_batch(triples, world.rank, world.size, queries, passages, positives)


# Agreeing


ERRORS = {kind.exit_code: kind for kind in (UserError, Disagreement, PeerGone)}


def agree(world: World, look: Callable[[], Any], peer: Peer | None = None) -> Any:
    """Rank 0 looks, all ranks get its answer or its error; PeerGone on all of them where the peer has failed.

    The others never wait long in a collective: each look is one short exchange, waiting is done between them.
    """
    answer: dict[str, Any] = {}
    if world.is_first:
        try:
            answer["found"] = look()
            if answer["found"] is None and peer is not None:
                exchange.check_peer(peer)
        except UserError as error:
            answer = {"error": str(error), "code": error.exit_code}
    answer = distributed.broadcast_json(world, answer)
    if "error" in answer:
        raise ERRORS[answer["code"]](answer["error"])
    return answer["found"]


# What two jobs of one run must have in common; a record made before a name existed does not have it.
COMMON = (
    "collection_fingerprint",
    "tokenizer_fingerprint",
    "model_type",
    "max_seq_length",
    "max_query_length",
    "refresh_mode",
    "steps_per_refresh",
)


def check_agreement(ours: dict[str, Any], theirs: dict[str, Any], what: str, names: tuple[str, ...] = COMMON) -> None:
    """Disagreement (exit 3) names what differs between this job and the one that made ``what``, with both values."""
    for name in names:
        if name in ours and theirs.get(name) is not None and theirs[name] != ours[name]:
            raise Disagreement(
                f"{name}: {what} was made with {theirs[name]}, this job has {ours[name]}; "
                "start both with the same flags, in directories of their own"
            )


# Training


def provenance(run_id: str, flags: Any, collection: Preprocessed) -> dict[str, Any]:
    """What every published version says of where it comes from."""
    record = {
        "run_id": run_id,
        "model_type": flags.model_type,
        "seed": flags.seed,
        "collection_fingerprint": collection.manifest["collection_fingerprint"],
        "tokenizer_fingerprint": collection.manifest["tokenizer"]["fingerprint"],
        "max_seq_length": flags.max_seq_length,
        "max_query_length": flags.max_query_length,
        "git": git_state(),
    }
    if hasattr(flags, "refresh_mode"):
        record |= {"refresh_mode": flags.refresh_mode, "steps_per_refresh": flags.steps_per_refresh}
    return record


def prepare_output_dir(directory: Path, overwrite: bool) -> None:
    """Refuse a directory that holds another run; with ``overwrite``, remove that run's own files."""
    publishing.check_writable(directory)
    check_holds_no_run(directory, overwrite)
    if overwrite:
        exchange.remove_run(directory)


def check_holds_no_run(directory: Path, overwrite: bool) -> None:
    steps = exchange.numbered(directory, exchange.CHECKPOINT_PATTERN)
    if (steps or exchange.read_done(directory) is not None) and not overwrite:
        raise UserError(
            f"{directory} holds a run already ({len(steps)} checkpoints, the last of step {max(steps, default=0)}); "
            "choose another --output_dir, or --overwrite_output_dir to remove it"
        )


@dataclass
class Trainer:
    """The bookkeeping around training steps. ``log`` is None except on rank 0."""

    flags: Any
    state: TrainingState
    total_steps: int
    tokenizer: list[Path]
    record: dict[str, Any]
    log: RunLog | None
    clock: Callable[[], float] = time.monotonic
    losses: list[float] = field(default_factory=list)
    started: float | None = None  # when the first step began: waiting for the first negatives is not training

    def step(self, micro_batches: list[Any]) -> None:
        """One optimiser step; at logging steps write the line."""
        if self.started is None:
            self.started = self.clock()
        self.losses.append(train_step(self.state, micro_batches))
        step = self.state.step
        if step % self.flags.logging_steps and step != self.total_steps:
            return
        mean = sum(self.losses) / len(self.losses)
        self.losses.clear()
        if self.log is not None:
            seconds = self.clock() - self.started
            self.log.training(step, self.state.learning_rate, mean, steps_per_second=step / seconds)
            say(progress_line("step", step, self.total_steps, seconds))

    def publish(self, output_dir: Path, **trainer_state: Any) -> None:
        """Publish the state as ``checkpoint-<step>``; the ranks go on together."""
        if self.state.world.is_first:
            final = self.state.step == self.total_steps
            record = {**self.record, "final": final}
            with exchange.publish_checkpoint(output_dir, self.state.step, record) as staging:
                save_state(self.state, staging, self.tokenizer, trainer_state)
            say(f"published {exchange.checkpoint_path(output_dir, self.state.step)}")
        distributed.barrier(self.state.world)


def local_tokenizer(world: World, name: str, output_dir: Path) -> list[Path]:
    """The tokenizer's files, which every checkpoint takes along; one from the hub is stored in ``output_dir``."""
    directory = Path(name)
    if not directory.is_dir():
        directory = output_dir / "tokenizer"
        if world.is_first:
            load_tokenizer(name).save_pretrained(str(directory))
    return [directory / file for file in tokenizer_files(directory)] if world.is_first else []


def make_trainer(
    flags: Any,
    world: World,
    encoder: Any,
    dtype: torch.dtype | None,
    total_steps: int,
    record: dict[str, Any],
) -> Trainer:
    """Optimiser, schedule, logs and the tokenizer's files around an encoder."""
    encoder.to(world.device)
    optimizer = make_optimizer(flags.optimizer, encoder, flags.learning_rate, flags.adam_epsilon, flags.weight_decay)
    scheduler = linear_schedule(optimizer, flags.warmup_steps, total_steps)
    state = make_state(encoder, flags.loss, optimizer, scheduler, world, dtype, flags.max_grad_norm)
    if flags.load_optimizer_scheduler:
        load_optimizer_scheduler(state, Path(flags.model_name_or_path))
    log = None
    if world.is_first:
        output_dir = Path(flags.output_dir)
        log = RunLog(output_dir, Path(flags.log_dir) if flags.log_dir else output_dir / "tensorboard")
    tokenizer = local_tokenizer(world, flags.tokenizer_name or flags.model_name_or_path, Path(flags.output_dir))
    return Trainer(flags, state, total_steps, tokenizer, record, log)


def seed_everything(seed: int, rank: int) -> None:
    """torch's global generator drives initial weights and dropout; all else takes its generator as an argument."""
    torch.manual_seed(seed + rank)
