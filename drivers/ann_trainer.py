"""The trainer: which negatives are in use, and the loop of steps over them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from data.preprocessed import Preprocessed
from data.training_data import Batch, NegativeLists, check_offsets, read_negative_lists
from drivers.flags import AnnFlags
from drivers.shared import (
    Trainer,
    agree,
    batches_from_lists,
    check_agreement,
    check_holds_no_run,
    check_model_directory,
    check_output_dirs,
    check_refresh_flags,
    check_training_flags,
    make_trainer,
    open_collection,
    open_encoder,
    prepare_output_dir,
    provenance,
    seed_everything,
    start_program,
)
from utils import distributed, exchange
from utils.distributed import World
from utils.errors import Disagreement, UserError
from utils.exchange import Peer, Refresh
from utils.flags import check_positive
from utils.run_log import say


@dataclass(frozen=True)
class Job:
    """What preflight resolved."""

    flags: AnnFlags
    collection: Preprocessed
    dtype: torch.dtype | None

    @property
    def ann_dir(self) -> Path:
        return Path(self.flags.ann_dir)

    @property
    def output_dir(self) -> Path:
        return Path(self.flags.output_dir)


@dataclass
class InUse:
    """The negatives being trained on, and where in them the next batch is."""

    refresh: Refresh
    lists: NegativeLists
    batches: Iterator[Batch]


def preflight(flags: AnnFlags) -> Job:
    """Find what would fail later, in the first minute. UserError for anything that would."""
    dtype = check_training_flags(flags)
    check_refresh_flags(flags)
    check_positive(flags, "max_steps")
    if flags.refresh_mode == "lockstep" and flags.max_steps % flags.steps_per_refresh:
        raise UserError(
            f"--max_steps {flags.max_steps} is not a multiple of --steps_per_refresh {flags.steps_per_refresh}; "
            "in lockstep a run is made of whole windows"
        )
    if not flags.model_name_or_path:
        raise UserError(
            "--model_name_or_path is missing, expected the warmup checkpoint that the generator starts from"
        )
    check_model_directory(flags, flags.model_name_or_path)
    check_output_dirs(flags.output_dir)
    check_holds_no_run(Path(flags.output_dir), flags.overwrite_output_dir)
    collection = open_collection(flags, flags.tokenizer_name or flags.model_name_or_path)
    return Job(flags, collection, dtype)


def train(job: Job, resolved_flags: str) -> None:
    """Train to --max_steps; then say so to the generator."""
    flags = job.flags
    world, run_id = start_program("run_ann", resolved_flags, flags.no_cuda)
    if world.is_first:
        prepare_output_dir(job.output_dir, flags.overwrite_output_dir)
    distributed.barrier(world)
    started = time.monotonic()
    with exchange.role_held(job.output_dir, "trainer") if world.is_first else nullcontext():
        seed_everything(flags.seed, world.rank)
        encoder = open_encoder(flags, flags.model_name_or_path, job.collection)
        record = {**provenance(run_id, flags, job.collection), "max_steps": flags.max_steps}
        trainer = make_trainer(flags, world, encoder, job.dtype, flags.max_steps, record)
        taken = run_steps(job, trainer)
        if world.is_first:
            seconds = round(time.monotonic() - started, 3)
            exchange.mark_done(
                job.output_dir, step=trainer.state.step, seconds=seconds, refreshes=len(taken), taken=taken
            )
            say(f"finished step={trainer.state.step} refreshes={len(taken)} seconds={seconds:.1f}")
    distributed.stop(world)


def run_steps(job: Job, trainer: Trainer) -> list[dict[str, int]]:
    """The loop; returns which refreshes were taken up, and at which step."""
    flags, state = job.flags, trainer.state
    peer = exchange.watch_peer(job.ann_dir)
    # The weights that negatives may have been made from: this run's own.
    model_of_step = {0: exchange.model_sha256(Path(flags.model_name_or_path))}
    taken: list[dict[str, int]] = []
    in_use: InUse | None = None
    while state.step < flags.max_steps:
        refresh = refresh_for_step(job, state.world, peer, state.step, in_use.refresh if in_use else None)
        if in_use is None or refresh.number != in_use.refresh.number:
            agree(state.world, partial(check_origin, job, trainer.record, refresh, model_of_step))
            in_use = take_up(job, trainer, refresh)
            taken.append({"refresh": refresh.number, "made_from_step": refresh.step, "taken_at_step": state.step})
        trainer.step(list(islice(in_use.batches, flags.gradient_accumulation_steps)))
        if is_publishing_step(flags, state.step):
            trainer.publish(job.output_dir, refresh=refresh.number)
            if state.world.is_first:
                model_of_step[state.step] = exchange.model_sha256(exchange.checkpoint_path(job.output_dir, state.step))
                exchange.remove_old_checkpoints(job.output_dir, job.ann_dir, flags.refresh_mode == "lockstep")
    return taken


def is_publishing_step(flags: AnnFlags, step: int) -> bool:
    """Every --save_steps, at the end, and in lockstep wherever a refresh is made from."""
    if step % flags.save_steps == 0 or step == flags.max_steps:
        return True
    return flags.refresh_mode == "lockstep" and step % flags.steps_per_refresh == 0


def refresh_for_step(job: Job, world: World, peer: Peer, step: int, current: Refresh | None) -> Refresh:
    """The negatives that the step after ``step`` is trained on, waited for where they must be."""
    flags = job.flags
    if flags.refresh_mode == "lockstep":
        needed = max(step // flags.steps_per_refresh - flags.refresh_lag, 0)
        if current is not None and current.number == needed:
            return current
        return wait_for_refresh(job, world, peer, number=needed)
    if current is None:
        return wait_for_refresh(job, world, peer)
    if step % flags.logging_steps:
        return current
    number = agree(world, partial(newest_number, job, current.number), peer)
    return current if number is None else exchange.read_visible_refresh(job.ann_dir, number)


def newest_number(job: Job, above: int = -1, number: int | None = None) -> int | None:
    """Rank 0's look at the directory: the newest valid refresh, or the one of ``number``."""
    refresh = exchange.newest_refresh(job.ann_dir, number, above)
    return None if refresh is None else refresh.number


def wait_for_refresh(job: Job, world: World, peer: Peer, number: int | None = None) -> Refresh:
    what = f"negatives{'' if number is None else f' of refresh {number}'} in {job.ann_dir}"

    def look() -> int | None:
        found = agree(world, partial(newest_number, job, -1, number), peer)
        return None if found is None else int(found)

    found = exchange.wait_for(look, what, quiet=not world.is_first)
    return exchange.read_visible_refresh(job.ann_dir, found)


def check_origin(job: Job, ours: dict[str, Any], refresh: Refresh, model_of_step: dict[int, str]) -> None:
    """Disagreement (exit 3) where the negatives are another run's, or made on another schedule."""
    flags, record = job.flags, refresh.record
    check_agreement(ours, record, f"refresh {refresh.number}")
    expected_step = refresh.number * flags.steps_per_refresh
    if flags.refresh_mode == "lockstep" and refresh.step != expected_step:
        raise Disagreement(
            f"refresh {refresh.number} was made from step {refresh.step}, in lockstep it is of step {expected_step}; "
            "start the generator with the same --steps_per_refresh"
        )
    made_by = record.get("model_sha256")
    if made_by and made_by != model_of_step.get(refresh.step):
        raise Disagreement(
            f"refresh {refresh.number} in {job.ann_dir} was not made from this run's model of step {refresh.step}: "
            "another run left it; give both programs an empty --ann_dir and generate the initial data again"
        )


def take_up(job: Job, trainer: Trainer, refresh: Refresh) -> InUse:
    """Read the negatives, say so, and start their batches."""
    flags, state = job.flags, trainer.state
    lists = read_negative_lists(refresh.path)
    check_offsets(lists, len(job.collection.queries("train")), len(job.collection.passages), refresh.path)
    if trainer.log is not None:
        say(
            f"refresh {refresh.number} from step {refresh.step}: {len(lists.query_Q):,} lists, {lists.triples:,} "
            f"triples, {refresh.record.get('strategy', 'unknown strategy')}, taken up at step {state.step}"
        )
        trainer.log.dev_ndcg(refresh.record["ndcg"], refresh.step)
    goes_on = flags.load_optimizer_scheduler and state.step == 0
    if not flags.single_warmup and not goes_on:
        # Down to zero only at the end of the run: nobody knows how long these negatives will have to serve.
        state.restart_schedule(flags.learning_rate, flags.warmup_steps, flags.max_steps - state.step)
    return InUse(refresh, lists, batches_from_lists(flags, job.collection, state.world, lists, refresh.number))
