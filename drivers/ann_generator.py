"""The generator: which checkpoint the next refresh is made from, until the trainer is done."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.negatives import resolve_strategy
from data.preprocessed import Preprocessed
from drivers import retrieval
from drivers.flags import GenerateFlags
from drivers.refresh import EMBEDDINGS, Job, Work, embeddings_dir, one_refresh
from drivers.shared import (
    COMMON,
    agree,
    check_agreement,
    check_compute_flags,
    check_model_directory,
    check_output_dirs,
    check_refresh_flags,
    open_collection,
    provenance,
    start_program,
)
from utils import distributed, exchange, publishing
from utils.distributed import World
from utils.errors import UserError
from utils.flags import check_positive
from utils.run_log import RunLog, say
from utils.search import choose_backend


def preflight(flags: GenerateFlags) -> Job:
    """Find what would fail later, in the first minute. UserError for anything that would."""
    strategy, strategy_from = resolve_strategy(
        flags.negative_strategy, flags.ann_measure_topk_mrr, flags.bottom_neg, flags.bottom_only
    )
    dtype = check_compute_flags(flags)
    check_positive(flags, "topk_training", "negative_sample", "limit_total_number")
    check_refresh_flags(flags)
    if flags.inference and flags.load_gen:
        raise UserError("--inference writes embeddings and --load_gen reads them; give one of the two")
    backend = choose_backend(flags.search_backend, flags.faiss_index, torch.cuda.is_available() and not flags.no_cuda)
    if not Path(flags.init_model_dir).is_dir():
        raise UserError(f"--init_model_dir {flags.init_model_dir} is not a directory, expected the warmup checkpoint")
    check_model_directory(flags, flags.init_model_dir)
    check_output_dirs(flags.output_dir)
    collection = open_collection(flags, flags.tokenizer_name or flags.init_model_dir)
    passages = len(collection.passages)
    retrieval.check_index_fits_model(flags, passages, flags.init_model_dir)
    if flags.load_gen:
        retrieval.read_embeddings_record(retrieval.newest_embeddings(Path(flags.output_dir) / EMBEDDINGS), collection)
    if flags.topk_training > passages:
        raise UserError(f"--topk_training is {flags.topk_training}, the collection has {passages} passages; pass less")
    if flags.negative_sample > flags.topk_training:
        raise UserError(f"--negative_sample {flags.negative_sample} exceeds --topk_training {flags.topk_training}")
    if not len(collection.qrels("train").queries_with_positive()):
        raise UserError(f"{flags.data_dir}: no train query has a positive, expected some; check its qrels")
    return Job(flags, collection, strategy, strategy_from, dtype, backend)


def generate(job: Job, resolved_flags: str) -> None:
    """Make refreshes until the trainer is done, or as many as the flags say."""
    flags = job.flags
    world, run_id = start_program("run_ann_data_gen", resolved_flags, flags.no_cuda)
    if world.is_first:
        publishing.check_writable(job.ann_dir)
        say(f"negatives: {job.strategy} ({job.strategy_from})")
        say_coverage(job.collection)
    with exchange.role_held(job.ann_dir, "generator") if world.is_first else nullcontext():
        peer = exchange.watch_peer(job.training_dir)
        ours = provenance(run_id, flags, job.collection) | selection_flags(job)
        agree(world, partial(check_series, job, ours))
        log = RunLog(job.ann_dir, job.ann_dir / "tensorboard") if world.is_first else None
        made = 0
        while True:
            work = next_work(job, world, peer, ours)
            if work is None:
                break
            one_refresh(job, world, work, ours, log)
            made += 1
            if flags.inference or flags.load_gen or made >= flags.limit_total_number:
                break
            if 0 <= flags.end_output_num <= work.refresh:
                break
        if world.is_first:
            say(f"finished refreshes={made}")
    distributed.stop(world)


def selection_flags(job: Job) -> dict[str, Any]:
    """What makes one series of negatives, beside the model and the data."""
    flags = job.flags
    return {
        "strategy": job.strategy,
        "topk_training": flags.topk_training,
        "negative_sample": flags.negative_sample,
        "ann_chunk_factor": flags.ann_chunk_factor,
    }


def check_series(job: Job, ours: dict[str, Any]) -> None:
    """Disagreement where --output_dir already holds refreshes of another strategy, seed or schedule."""
    for record in exchange.read_records(job.ann_dir)[-1:]:
        what = f"refresh {record['refresh']} in {job.ann_dir}"
        check_agreement(ours, record, what, (*COMMON, *selection_flags(job), "seed"))


def say_coverage(collection: Preprocessed) -> None:
    """Queries without a positive are neither encoded nor searched; how many there are."""
    for split in ("train", "dev"):
        held, judged = len(collection.queries(split)), len(collection.qrels(split).queries_with_positive())
        say(f"{split}: {held:,} queries, {judged:,} with a positive in the collection, {held - judged:,} left out")


def next_work(job: Job, world: World, peer: exchange.Peer, ours: dict[str, Any]) -> Work | None:
    """The next refresh, waited for; None once the trainer is done."""

    def look() -> dict[str, Any] | None:
        return agree(world, partial(look_for_work, job, ours), peer)

    answer = exchange.wait_for(look, f"a new checkpoint in {job.training_dir}", quiet=not world.is_first)
    return None if "done" in answer else Work(**answer["work"])


def look_for_work(job: Job, ours: dict[str, Any]) -> dict[str, Any] | None:
    """Rank 0's decision: the work, the end, or None for "not yet". Disagreement where the trainer's flags differ."""
    flags, ann_dir = job.flags, job.ann_dir
    refresh = exchange.next_refresh_number(ann_dir)
    if flags.inference:
        return as_work(refresh, exchange.newest_checkpoint(job.training_dir) or initial_model(job))
    if 0 <= flags.end_output_num < refresh:
        return {"done": f"refresh {flags.end_output_num} exists"}
    if flags.load_gen:
        stored = retrieval.read_embeddings_record(retrieval.newest_embeddings(embeddings_dir(job)), job.collection)
        return {"work": vars(Work(refresh, stored["checkpoint"], stored["step"], stored["model_sha256"]))}
    done = exchange.read_done(job.training_dir) is not None
    checkpoint = lockstep_checkpoint(job, refresh) if flags.refresh_mode == "lockstep" else async_checkpoint(job)
    if checkpoint is not None and not checkpoint.manifest.get("final"):
        if checkpoint.path != Path(flags.init_model_dir):
            check_agreement(ours, checkpoint.manifest, checkpoint.path.name)
        return as_work(refresh, checkpoint)
    return {"done": "the trainer is done"} if done else None


def as_work(refresh: int, checkpoint: exchange.Checkpoint) -> dict[str, Any]:
    work = Work(refresh, str(checkpoint.path), checkpoint.step, exchange.model_sha256(checkpoint.path))
    return {"work": vars(work)}


def initial_model(job: Job) -> exchange.Checkpoint:
    """--init_model_dir, which counts as step 0 of this run."""
    return exchange.read_checkpoint(Path(job.flags.init_model_dir), 0, of_this_run=False)


def lockstep_checkpoint(job: Job, refresh: int) -> exchange.Checkpoint | None:
    """Refresh N is always made from step N * steps_per_refresh."""
    if refresh == 0:
        return initial_model(job)
    return exchange.newest_checkpoint(job.training_dir, refresh * job.flags.steps_per_refresh)


def async_checkpoint(job: Job) -> exchange.Checkpoint | None:
    """The newest checkpoint that no refresh was made from yet; the initial model where there is nothing at all."""
    used = [record["step"] for record in exchange.read_records(job.ann_dir)]
    named = exchange.CHECKPOINT_PATTERN.fullmatch(Path(job.flags.last_checkpoint_dir).name)
    used += [int(named[1])] if named else []
    newest = exchange.newest_checkpoint(job.training_dir, above=max(used, default=-1))
    return initial_model(job) if newest is None and not used else newest
