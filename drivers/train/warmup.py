"""The warmup: which data the first checkpoint is trained, and how it is evaluated meanwhile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from data.mining.negative_lists import NegativeLists
from data.tokens.collection import Preprocessed
from data.training.batches import batches_from_lists
from data.training.text_triples import (
    batches_from_text,
    check_triples,
)
from drivers.cli import WarmupFlags
from drivers.embeddings.distributed_search import check_index_fits_model
from drivers.job.disk_budget import publishing_steps
from drivers.job.encoder_setup import check_model_directory, open_encoder
from drivers.job.model_identity import ModelSettings, check_checkpoint
from drivers.job.preflight import Check, Preflight, check_collection, check_publishing, say_dev_split
from drivers.job.resume import dev_split_record
from drivers.job.run_config import (
    OWN_RUN,
    check_holds_no_other_run,
    check_in_dry_run,
    run_config,
)
from drivers.job.settings import (
    deciding_flags,
    encoder_settings,
    lease_timeouts,
    lengths_of,
    search_settings,
    with_lengths,
    with_lengths_of_process0,
)
from drivers.job.setup import ComputeSettings, check_output_dirs, open_collection, seed_everything, start_program
from drivers.job.text_lengths import describe_lengths
from drivers.train import loop
from drivers.train.loop import Hooks, TrainingProgram
from drivers.train.settings import trained_model, training_compute, training_settings
from drivers.train.trainer import Trainer
from drivers.train.warmup_evaluation import (
    Evaluations,
    EvaluationSettings,
    candidates_to_rerank,
    evaluate_checkpoints,
    say_of_short_lists,
)
from drivers.train.warmup_source import say_of_size, size_of_triples, source_record, training_source
from model.encoders.base import Encoder
from model.encoders.registry import encoder_type, new_encoder, read_config
from model.kernels.precision import name_of
from utils.declared import MODEL_TYPES
from utils.distributed import process_group
from utils.distributed.world import World, has_launcher, processes_of_launcher
from utils.errors import UserError
from utils.exchange.checkpoints import Checkpoint
from utils.exchange.layout import CHECKPOINT_PATTERN, JobLayout, numbered
from utils.flags import flags_json
from utils.run_log import say
from utils.search.settings import SearchSettings


@dataclass(frozen=True)
class WarmupJob:
    """What preflight resolved. Negatives come from ``lists`` or, where it is None, from ``triples``."""

    flags: WarmupFlags
    collection: Preprocessed
    model: ModelSettings
    compute: ComputeSettings
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
        encoding = encoder_settings(self.flags, self.compute.dtype).encoding
        return EvaluationSettings(self.collection, self.dev_split, self.candidates_QK, encoding, self.search)

    @property
    def output_dir(self) -> Path:
        return Path(self.flags.output_dir)


def to_evaluate(flags: WarmupFlags) -> list[Path]:
    """Of --do_eval: the last checkpoint trained, all of them, or the model given; none at all."""
    directory = Path(flags.output_dir)
    if not flags.do_train and not flags.eval_all_checkpoints and flags.model_name_or_path:
        return [Path(flags.model_name_or_path)]
    steps = numbered(directory, CHECKPOINT_PATTERN)
    return [JobLayout(directory).checkpoint(step) for step in (steps if flags.eval_all_checkpoints else steps[-1:])]


def places_of_lengths(flags: WarmupFlags) -> list[str]:
    evaluated = [] if flags.do_train else to_evaluate(flags)[-1:]
    return [*map(str, evaluated), flags.model_name_or_path, flags.config_name]


def preflight(flags: WarmupFlags) -> WarmupJob:
    """Find what would fail later, in the first minute. UserError for anything that would."""
    if not (flags.do_train or flags.do_eval):
        raise UserError("neither --do_train nor --do_eval is given; there is nothing to do")
    flags = with_lengths(flags, places_of_lengths(flags))
    model, compute = trained_model(flags), training_compute(flags)
    lease_timeouts(flags)
    search = search_settings(flags, compute.device)
    check_start(flags, model)
    collection = open_collection(flags.data_dir, lengths_of(flags), model.tokenizer, flags.dry_run)
    given = (flags.bm25_dir, flags.triples, flags.dry_run)
    lists, triples = training_source(collection, *given) if flags.do_train else (None, None)
    check_index_fits_model(search, len(collection.passages), model)
    check_output_dirs(flags.output_dir)
    if flags.do_train:
        check_holds_no_other_run(Path(flags.output_dir), flags.resume, flags.overwrite_output_dir)
    candidates_QK = None
    if flags.do_eval or flags.evaluate_during_training:
        split = collection.dev_split(flags.dev_split)
        candidates_QK = candidates_to_rerank(collection, split, flags.rerank_file, flags.bm25_dir)
    job = WarmupJob(flags, collection, model, compute, lists, triples, candidates_QK, search)
    if flags.dry_run and flags.do_train:
        check_own_run(job)
    return job


def check_start(flags: WarmupFlags, model: ModelSettings) -> None:
    """UserError where the first encoder could not be made."""
    if flags.pooling and not encoder_type(flags.model_type).has_pooling:
        pooled = ", ".join(word for word, kind in MODEL_TYPES.items() if kind.has_pooling)
        raise UserError(f"--pooling is for {pooled}, --model_type {flags.model_type} has its own; omit it")
    if model.name_or_path:
        check_model_directory(model, flags.dry_run)
    elif not (flags.config_name and flags.tokenizer_name):
        raise UserError("no --model_name_or_path; to start from random weights give --config_name and --tokenizer_name")
    else:
        read_config(flags.config_name, flags.model_type)


def config_of_job(job: WarmupJob, processes: int) -> dict[str, object]:
    flags, triples = job.flags, job.triples
    size = size_of_triples(triples, job.output_dir, flags.overwrite_output_dir) if triples is not None else None
    source = source_record(job.model, Path(flags.bm25_dir), size)
    resolved = {"processes": processes, "trained_in": name_of(job.compute.dtype), **source}
    resolved |= dev_split_record(job.dev_split) if job.evaluates else {}
    return run_config(deciding_flags(flags), job.collection, **resolved) | {"max_steps": steps_to_train(job, processes)}


def check_own_run(job: WarmupJob) -> None:
    """A --dry_run's look at what the start would compare this job with. Disagreement as there."""
    unknown = ["max_steps"] if job.flags.max_steps <= 0 and not has_launcher() else []
    make_config = partial(config_of_job, job, processes_of_launcher())
    unknown += ["trained_in"] if job.compute.is_dtype_automatic else []
    check_in_dry_run(job.output_dir, make_config, OWN_RUN, unknown, job.flags.overwrite_output_dir)


def run(job: WarmupJob) -> None:
    world, run_id = start_program("run_warmup", job.compute, flags_json(job.flags))
    job = replace(job, flags=with_lengths_of_process0(world, job.flags))
    flags = job.flags
    checks = Preflight(world)
    checks.on_process0(*checks_of(job))
    if world.is_first:
        announce(job)
    if flags.do_train:
        loop.train(program_of(job), world, run_id, checks)
    else:
        checks.end()
    if flags.do_eval:
        evaluate_checkpoints(
            job.evaluation, encoder_settings(flags, job.compute.dtype), job.model, evaluated(job), world
        )
    process_group.stop(world)


def checks_of(job: WarmupJob) -> list[Check]:
    """All that process 0 looks at, next to what training itself needs."""
    flags = job.flags
    splits = ["train"] if flags.do_train else []
    splits += [job.dev_split] if job.evaluates else []
    describe = partial(describe_lengths, places_of_lengths(flags), lengths_of(flags), job.collection)
    return [
        *([partial(check_checkpoint, job.model)] if flags.model_name_or_path else []),
        *check_collection(job.collection, job.model.tokenizer, splits),
        *([partial(check_triples, job.triples)] if job.triples is not None else []),
        describe,
        partial(check_publishing, job.output_dir),
    ]


def announce(job: WarmupJob) -> None:
    """What is said of the evaluations before they begin."""
    if job.evaluates:
        say_dev_split(job.dev_split)
    if job.candidates_QK is not None:
        say_of_short_lists(job.candidates_QK, len(job.collection.passages))


def evaluated(job: WarmupJob) -> list[Path]:
    """The models of --do_eval. UserError where there is none."""
    wanted = to_evaluate(job.flags)
    if not wanted:
        raise UserError(f"{job.output_dir} holds no checkpoint, expected one to evaluate; add --do_train")
    return wanted


def program_of(job: WarmupJob) -> TrainingProgram:
    flags = job.flags
    return TrainingProgram(
        role="warmup",
        timeouts=lease_timeouts(flags),
        overwrites=flags.overwrite_output_dir,
        settings=training_settings(flags, job.compute.dtype, (flags.save_steps,)),
        collection=job.collection,
        run_config=partial(config_of_run, job),
        open_encoder=partial(encoder_at, job),
        checkpoints_kept=lambda total_steps: publishing_steps(total_steps, flags.save_steps),  # all of them stay
        begin=partial(begin, job),
    )


def config_of_run(job: WarmupJob, world: World) -> dict[str, object]:
    config = config_of_job(job, world.size)
    if world.is_first and job.triples is not None:
        recorded = config["triples_bytes"]
        assert isinstance(recorded, int)
        say_of_size(job.triples, recorded)
    return config


def encoder_at(job: WarmupJob, world: World, start: Checkpoint | None) -> Encoder:
    """The encoder of a checkpoint of this run, or its first one."""
    flags = job.flags
    seed_everything(flags.seed, 0)  # the same random weights on every process
    settings = encoder_settings(flags, job.compute.dtype)
    encoder = open_encoder(settings, str(start.path), job.collection, resumes=True) if start else first_encoder(job)
    seed_everything(flags.seed, world.process, start.step if start else 0)
    return encoder


def begin(job: WarmupJob, trainer: Trainer, config: Mapping[str, object], start: Checkpoint | None) -> Hooks:
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
        batches = batches_from_text(batch, job.collection, state.world, job.triples, job.model.tokenizer, done)
    measured = job.evaluation if flags.evaluate_during_training else None
    every_steps = flags.logging_steps * flags.logging_steps_per_eval
    evaluations = Evaluations(measured, trainer, every_steps, trainer.stored.get("evaluation_due", False))
    return Hooks(
        batches=lambda: batches,
        before_steps=evaluations.evaluate_if_due,
        after_step=evaluations.after_step,
        stored_by_stop=lambda: {"evaluation_due": evaluations.is_due},
    )


def first_encoder(job: WarmupJob) -> Encoder:
    """--model_name_or_path, with a new head where it has none; without it, random weights of --config_name."""
    flags, manifest = job.flags, job.collection.manifest
    given = {"pooling": flags.pooling, "score_scale": flags.score_scale}
    changes = {name: value for name, value in given.items() if value is not None}
    if flags.model_name_or_path:
        settings = encoder_settings(flags, job.compute.dtype)
        return open_encoder(settings, flags.model_name_or_path, job.collection, new_head=True, changes=changes)
    changes |= {"vocab_size": manifest["vocab_size"], "pad_token_id": job.collection.pad_token_id}
    return new_encoder(flags.model_type, flags.config_name, changes)


def steps_to_train(job: WarmupJob, processes: int) -> int:
    """--max_steps, or --num_train_epochs over what is known or said of the data's size."""
    flags = job.flags
    if flags.max_steps > 0:
        return flags.max_steps
    size = job.lists.triples if job.lists is not None else flags.expected_train_size
    per_step = flags.per_gpu_train_batch_size * processes * flags.gradient_accumulation_steps
    return max(1, math.ceil(size / per_step * flags.num_train_epochs))
