"""The warmup at work: the first checkpoint is trained, and evaluated meanwhile and after."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from data.tokens.text_agreement import check_texts
from data.training.batches import batches_from_lists
from data.training.text_triples import (
    batches_from_text,
    check_triples,
)
from drivers.job.disk_budget import publishing_steps
from drivers.job.encoder_setup import open_encoder
from drivers.job.model_identity import check_checkpoint
from drivers.job.preflight import (
    Check,
    Preflight,
    check_collection,
    check_fingerprint,
    check_publishing,
    say_dev_split,
)
from drivers.job.setup import seed_everything, start_program
from drivers.job.text_lengths import describe_lengths, lengths_of_process0
from drivers.train import loop
from drivers.train.loop import Hooks, TrainingProgram
from drivers.train.trainer import Trainer
from drivers.train.warmup_evaluation import (
    Evaluations,
    evaluate_checkpoints,
    say_of_short_lists,
)
from drivers.train.warmup_preflight import WarmupJob, config_of_job, first_changes, to_evaluate
from drivers.train.warmup_source import say_of_size
from model.encoders.base import Encoder
from model.encoders.registry import new_encoder
from model.train.trained_parts import choose_trained
from utils.distributed import agreement, process_group
from utils.distributed.world import World
from utils.errors import UserError
from utils.exchange.checkpoints import Checkpoint
from utils.exchange.evaluations import TRAIN
from utils.flags import flags_json
from utils.run_log import say


def run(job: WarmupJob) -> None:
    world, run_id = start_program("run_warmup", job.compute, flags_json(job.flag_values))
    job = job.at(lengths_of_process0(world, job.lengths))
    checks = Preflight(world)
    checks.on_process0(*checks_of(job))
    if world.is_first:
        announce(job)
    if job.settings.trains:
        loop.train(program_of(job), world, run_id, checks)
    else:
        checks.end()
    if job.settings.evaluates_after:
        # One process lists them: on a network file system another might see fewer.
        models = agreement.decide_on_process0(world, lambda: [str(path) for path in evaluated(job)])
        evaluate_checkpoints(job.evaluation, job.encoder, job.model, [Path(model) for model in models], world)
    process_group.stop(world)


def checks_of(job: WarmupJob) -> list[Check]:
    """All that process 0 looks at, next to what training itself needs."""
    splits = [TRAIN] if job.settings.trains else []
    splits += [job.dev_split] if job.settings.evaluates else []
    return [
        *([partial(check_checkpoint, job.model)] if job.model.name_or_path else []),
        *checks_of_query_model(job),
        *check_collection(job.collection, job.model.tokenizer, splits),
        *([partial(check_triples, job.triples)] if job.triples is not None else []),
        partial(describe_lengths, job.lengths, job.collection),
        partial(check_texts, job.collection, job.texts),
        partial(check_publishing, job.output_dir),
    ]


def checks_of_query_model(job: WarmupJob) -> list[Check]:
    """Those of the passages', of what the queries' tower begins as; nothing where it is no model of its own."""
    model = job.model.query_model
    if model is None or job.query_texts is None:
        return []
    return [
        partial(check_checkpoint, model),
        partial(check_fingerprint, job.collection, model.tokenizer),
        partial(check_texts, job.collection, job.query_texts),
    ]


def announce(job: WarmupJob) -> None:
    """What is said of the evaluations before they begin."""
    if job.settings.evaluates:
        say_dev_split(job.collection, job.dev_split)
    if job.candidates_QK is not None:
        say_of_short_lists(job.candidates_QK, len(job.collection.passages))


def evaluated(job: WarmupJob) -> list[Path]:
    """The models of --do_eval. UserError where there is none."""
    wanted = to_evaluate(job.settings, job.output_dir, job.model.name_or_path)
    if not wanted:
        raise UserError(f"{job.output_dir} holds no checkpoint, expected one to evaluate; add --do_train")
    return wanted


def program_of(job: WarmupJob) -> TrainingProgram:
    training = job.training
    return TrainingProgram(
        role="warmup",
        timeouts=job.timeouts,
        overwrites=job.settings.overwrites,
        settings=training,
        collection=job.collection,
        run_config=partial(config_of_run, job),
        open_encoder=partial(encoder_at, job),
        checkpoints_kept=lambda total_steps: publishing_steps(total_steps, *training.publish_every),  # all of them stay
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
    seed = job.training.batch.seed
    seed_everything(seed, 0)  # the same random weights on every process
    encoder = open_encoder(job.encoder, str(start.path), job.collection, resumes=True) if start else first_encoder(job)
    model_dir = str(start.path) if start else job.model.name_or_path
    choose_trained(encoder, job.training.parts, model_dir, seed)
    seed_everything(seed, world.process, start.step if start else 0)
    return encoder


def begin(job: WarmupJob, trainer: Trainer, config: Mapping[str, object], start: Checkpoint | None) -> Hooks:
    """The batches of a warmup, at the position of the earlier job, and its evaluations; that may have left one to do.

    Args:
        job: the program's, with its triples and its evaluation.
        trainer: at the step of ``start``.
        config: the `run_config`.
        start: the checkpoint that is resumed, None for a new run.
    """
    settings, state, batch = job.settings, trainer.state, trainer.settings.batch
    if state.world.is_first:
        source = str(job.triples) if job.triples else f"BM25 negatives of {settings.bm25_dir}"
        say(f"warmup: {trainer.total_steps} steps, loss {trainer.settings.loss}, {source}")
    done = state.step * trainer.settings.micro_batches
    if job.lists is not None:
        trainer.resumes_other_order(job.lists, batch.group_size)
        batches = batches_from_lists(batch, job.collection, state.world, job.lists, stream=0, start=done)
    else:
        assert job.triples is not None, "preflight has found one or the other"
        batches = batches_from_text(batch, job.collection, state.world, job.triples, job.model.tokenizer, done)
    measured = job.evaluation if settings.evaluates_meanwhile else None
    is_due = trainer.stored.get("evaluation_due", False)
    evaluations = Evaluations(measured, trainer, settings.evaluation_steps, is_due)
    return Hooks(
        batches=lambda: batches,
        before_steps=evaluations.evaluate_if_due,
        after_step=evaluations.after_step,
        stored_by_stop=lambda: {"evaluation_due": evaluations.is_due},
    )


def first_encoder(job: WarmupJob) -> Encoder:
    """--model_name_or_path, with a new head where it has none; without it, random weights of --config_name."""
    model, collection, changes = job.model, job.collection, first_changes(job.settings, job, job.collection)
    if model.name_or_path:
        new_head = job.training.parts.lora is None  # adapters are of weights that lie on disk
        return open_encoder(job.encoder, model.name_or_path, collection, new_head=new_head, changes=changes)
    return new_encoder(model.model_type, model.config_name, changes)
