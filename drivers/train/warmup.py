"""The warmup: which data the first checkpoint is trained, and how it is evaluated meanwhile."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.mining.negative_lists import NegativeLists
from data.tokens.collection import Preprocessed
from data.training.batches import batches_from_lists
from data.training.text_triples import (
    batches_from_text,
    check_triples,
)
from drivers.cli import WarmupFlags
from drivers.embeddings.distributed_search import check_index_fits_model, search_settings
from drivers.embeddings.text_lengths import describe_lengths, lengths_of_process0, to_evaluate, with_lengths
from drivers.evaluate.checks import check_candidates
from drivers.evaluate.ranking import rerank_lists
from drivers.job.disk_budget import publishing_steps
from drivers.job.encoder_setup import check_model_directory, encoder_settings, open_encoder, open_to_encode
from drivers.job.model_identity import check_checkpoint
from drivers.job.preflight import Preflight, check_collection, check_publishing, say_dev_split
from drivers.job.resume import dev_split_record
from drivers.job.run_config import (
    OWN_RUN,
    check_holds_no_other_run,
    check_in_dry_run,
    run_config,
)
from drivers.job.setup import check_exchange_flags, check_output_dirs, open_collection, seed_everything, start_program
from drivers.train import loop
from drivers.train.checks import check_training_flags
from drivers.train.loop import Hooks, TrainingProgram
from drivers.train.settings import training_settings
from drivers.train.trainer import Trainer
from drivers.train.warmup_evaluation import EVALUATION_DEPTH, Evaluations, EvaluationSettings, evaluate_mrr
from drivers.train.warmup_source import say_of_size, source_record, training_source
from model.encoders.base import Encoder
from model.encoders.registry import MODEL_TYPES, encoder_type, new_encoder, read_config
from model.kernels.precision import name_of
from utils.distributed import agreement, process_group
from utils.distributed.world import World, has_launcher, own_device, processes_of_launcher
from utils.errors import UserError
from utils.exchange.checkpoints import Checkpoint
from utils.exchange.layout import EvaluationLayout
from utils.exchange.lease.record import LeaseTimeouts
from utils.ir.metrics import reach
from utils.run_log import say
from utils.search.settings import SearchSettings


@dataclass(frozen=True)
class Job:
    """What preflight resolved. Negatives come from ``lists`` or, where it is None, from ``triples``."""

    flags: WarmupFlags
    collection: Preprocessed
    dtype: torch.dtype | None
    tokenizer: str
    lists: NegativeLists | None
    triples: Path | None
    candidates_QK: np.ndarray | None
    search: SearchSettings

    @property
    def evaluates(self) -> bool:
        return self.flags.do_eval or self.flags.evaluate_during_training

    @property
    def dev_split(self) -> str:
        return self.collection.dev_split(self.flags.dev_split)

    @property
    def evaluation(self) -> EvaluationSettings:
        encoding = encoder_settings(self.flags, self.dtype).encoding
        return EvaluationSettings(self.collection, self.dev_split, self.candidates_QK, encoding, self.search)

    @property
    def output_dir(self) -> Path:
        return Path(self.flags.output_dir)


def preflight(flags: WarmupFlags) -> Job:
    """Find what would fail later, in the first minute. UserError for anything that would."""
    if not (flags.do_train or flags.do_eval):
        raise UserError("neither --do_train nor --do_eval is given; there is nothing to do")
    flags = with_lengths(flags)
    dtype = check_training_flags(flags)
    check_exchange_flags(flags)
    search = search_settings(flags, own_device(flags.no_cuda))
    model = flags.model_name_or_path
    if flags.pooling and not encoder_type(flags.model_type).poolings:
        pooled = ", ".join(word for word, kind in MODEL_TYPES.items() if kind.poolings)
        raise UserError(f"--pooling is for {pooled}, --model_type {flags.model_type} has its own; leave it out")
    if model:
        check_model_directory(flags, model)
    elif not (flags.config_name and flags.tokenizer_name):
        raise UserError("no --model_name_or_path; to start from random weights give --config_name and --tokenizer_name")
    else:
        read_config(flags.config_name, flags.model_type)
    tokenizer = flags.tokenizer_name or model
    collection = open_collection(flags, tokenizer)
    lists, triples = training_source(flags, collection) if flags.do_train else (None, None)
    check_index_fits_model(search, len(collection.passages), model, flags.model_type, flags.config_name)
    check_output_dirs(flags.output_dir)
    if flags.do_train:
        check_holds_no_other_run(Path(flags.output_dir), flags)
    job = Job(flags, collection, dtype, tokenizer, lists, triples, candidates_to_rerank(flags, collection), search)
    if flags.dry_run and flags.do_train:
        check_own_run(job)
    return job


def science_of_job(job: Job, processes: int) -> dict[str, Any]:
    resolved = {"processes": processes, "trained_in": name_of(job.dtype), **source_record(job.flags, job.triples)}
    resolved |= dev_split_record(job.dev_split) if job.evaluates else {}
    return run_config(job.flags, job.collection, **resolved) | {"max_steps": steps_to_train(job, processes)}


def check_own_run(job: Job) -> None:
    """A --dry_run's look at what the start would compare this job with. Disagreement as there."""
    unknown = ["max_steps"] if job.flags.max_steps <= 0 and not has_launcher() else []
    make_science = partial(science_of_job, job, processes_of_launcher())
    check_in_dry_run(job.output_dir, job.flags, make_science, OWN_RUN, "trained_in", "fp32", unknown)


def candidates_to_rerank(flags: WarmupFlags, collection: Preprocessed) -> np.ndarray | None:
    """--rerank_file, or BM25's run of the dev split; read before training, so that a bad line is found before it."""
    if not (flags.do_eval or flags.evaluate_during_training):
        return None
    split = collection.dev_split(flags.dev_split)
    if not (flags.rerank_file or flags.bm25_dir):
        return None
    path = Path(flags.rerank_file) if flags.rerank_file else EvaluationLayout(Path(flags.bm25_dir)).ranking(split)
    check_candidates(path)
    return rerank_lists(path, collection, split)


def run(job: Job) -> None:
    world, run_id = start_program("run_warmup", job.flags)
    job = replace(job, flags=lengths_of_process0(world, job.flags))
    flags = job.flags
    checks = Preflight(world)
    splits = ["train"] if flags.do_train else []
    splits += [job.dev_split] if job.evaluates else []
    inputs = check_collection(job.collection, job.tokenizer, splits)
    if flags.model_name_or_path:
        inputs.insert(0, partial(check_checkpoint, flags, flags.model_name_or_path))
    inputs += [partial(check_triples, job.triples)] if job.triples is not None else []
    inputs += [partial(describe_lengths, flags, job.collection), partial(check_publishing, job.output_dir)]
    checks.on_process0(*inputs)
    if world.is_first and job.evaluates:
        say_dev_split(job.dev_split)
    if world.is_first and job.candidates_QK is not None:
        longest, passages = job.candidates_QK.shape[1], len(job.collection.passages)
        if reach(longest, passages) < EVALUATION_DEPTH:
            say(f"warning: no list of candidates is longer than {longest}: there is no reranking MRR@10, nan is logged")
    if flags.do_train:
        loop.train(program_of(job), world, run_id, checks)
    else:
        checks.end()
    if flags.do_eval:
        evaluate_stored(job, world)
    process_group.stop(world)


def program_of(job: Job) -> TrainingProgram:
    flags = job.flags
    return TrainingProgram(
        role="warmup",
        timeouts=LeaseTimeouts(flags.heartbeat_seconds, flags.lease_seconds),
        overwrites=flags.overwrite_output_dir,
        settings=training_settings(flags, job.dtype, (flags.save_steps,)),
        collection=job.collection,
        run_config=partial(config_of_run, job),
        open_encoder=partial(encoder_at, job),
        checkpoints_kept=lambda total_steps: publishing_steps(total_steps, flags.save_steps),  # all of them stay
        begin=partial(begin, job),
    )


def config_of_run(job: Job, world: World) -> dict[str, Any]:
    config = science_of_job(job, world.size)
    if world.is_first and job.triples is not None:
        say_of_size(job.triples, config["triples_bytes"])
    return config


def encoder_at(job: Job, world: World, start: Checkpoint | None) -> Encoder:
    """The encoder of a checkpoint of this run, or its first one."""
    flags = job.flags
    seed_everything(flags.seed, 0)  # the same random weights on every process
    settings = encoder_settings(flags, job.dtype)
    encoder = open_encoder(settings, str(start.path), job.collection, resumes=True) if start else first_encoder(job)
    seed_everything(flags.seed, world.process, start.step if start else 0)
    return encoder


def begin(job: Job, trainer: Trainer, config: dict[str, Any], start: Checkpoint | None) -> Hooks:
    """Its batches, at the position of the earlier job; and its evaluations, of which that may have left one to do."""
    flags, state, batch = job.flags, trainer.state, trainer.settings.batch
    if state.world.is_first:
        source = str(job.triples) if job.triples else f"BM25 negatives of {flags.bm25_dir}"
        say(f"warmup: {trainer.total_steps} steps, loss {flags.loss}, {source}")
    done = state.step * flags.gradient_accumulation_steps
    if job.lists is not None:
        trainer.resumes_other_order(job.lists, flags.group_size)
        batches = batches_from_lists(batch, job.collection, state.world, job.lists, stream=0, start=done)
    else:
        assert job.triples is not None, "preflight has found one or the other"
        batches = batches_from_text(batch, job.collection, state.world, job.triples, job.tokenizer, done)
    measured = job.evaluation if flags.evaluate_during_training else None
    every_steps = flags.logging_steps * flags.logging_steps_per_eval
    evaluations = Evaluations(measured, trainer, every_steps, trainer.stored.get("evaluation_due", False))
    return Hooks(
        batches=lambda: batches,
        before_steps=evaluations.evaluate_if_due,
        after_step=evaluations.after_step,
        stored_by_stop=lambda: {"evaluation_due": evaluations.is_due},
    )


def first_encoder(job: Job) -> Encoder:
    """--model_name_or_path, with a new head where it has none; without it, random weights of --config_name."""
    flags, manifest = job.flags, job.collection.manifest
    given = {"pooling": flags.pooling, "score_scale": flags.score_scale}
    changes = {name: value for name, value in given.items() if value is not None}
    if flags.model_name_or_path:
        settings = encoder_settings(flags, job.dtype)
        return open_encoder(settings, flags.model_name_or_path, job.collection, new_head=True, changes=changes)
    changes |= {"vocab_size": manifest["vocab_size"], "pad_token_id": job.collection.pad_token_id}
    return new_encoder(flags.model_type, flags.config_name, changes)


def steps_to_train(job: Job, processes: int) -> int:
    """--max_steps, or --num_train_epochs over what is known or said of the data's size."""
    flags = job.flags
    if flags.max_steps > 0:
        return flags.max_steps
    size = job.lists.triples if job.lists is not None else flags.expected_train_size
    per_step = flags.per_gpu_train_batch_size * processes * flags.gradient_accumulation_steps
    return max(1, math.ceil(size / per_step * flags.num_train_epochs))


def evaluate_stored(job: Job, world: World) -> None:
    """--do_eval: the last checkpoint trained, or all of them, or the model given."""
    flags = job.flags
    wanted = to_evaluate(flags)
    if not wanted:
        raise UserError(f"{job.output_dir} holds no checkpoint, expected one to evaluate; add --do_train")
    for path in wanted:
        if path != Path(flags.model_name_or_path):  # which preflight has verified
            agreement.decide_on_process0(world, partial(check_checkpoint, flags, str(path)))
        encoder = open_to_encode(encoder_settings(flags, job.dtype), str(path), job.collection, world)
        found = evaluate_mrr(job.evaluation, world, encoder)
        assert found is not None, "nobody was told to leave"
        rerank_mrr, full_mrr = found
        if world.is_first:
            say(f"{path.name} Reranking/Full ranking mrr: {rerank_mrr}/{full_mrr}")
