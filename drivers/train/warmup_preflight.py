"""What a warmup finds wrong before it begins, in the first minute, and what it is to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.mining.negative_lists import NegativeLists
from data.tokens.collection import Preprocessed
from data.tokens.text_agreement import TextUse, check_texts, keys_of, text_record
from drivers.cli.train import WarmupFlags
from drivers.embeddings.distributed_search import check_index_fits_model
from drivers.job.model_identity import ModelSettings
from drivers.job.resume import NOTHING_MEASURED, dev_split_record
from drivers.job.run_config import OWN_RUN, check_holds_no_other_run, check_in_dry_run, run_config
from drivers.job.settings import (
    ModelJob,
    head_changes,
    lease_timeouts,
    places_of_model,
    search_settings,
    text_use,
    use_of,
)
from drivers.job.setup import check_output_dirs, check_tokenizer_of_model, open_collection
from drivers.job.text_lengths import TextLengths
from drivers.train.settings import (
    TrainingSettings,
    check_first_encoder,
    check_start,
    training_job,
    training_settings,
)
from drivers.train.warmup_evaluation import EvaluationSettings, candidates_to_rerank
from drivers.train.warmup_source import size_of_triples, source_record, training_source
from model.encoders.spec import pooling_of
from model.kernels.precision import name_of
from utils.distributed.world import has_launcher, processes_of_launcher
from utils.errors import UserError
from utils.exchange.atomic import numbered
from utils.exchange.layout import CHECKPOINT_PATTERN, JobLayout
from utils.exchange.lease.record import LeaseTimeouts
from utils.search.settings import SearchSettings


@dataclass(frozen=True)
class WarmupSettings:
    """What a warmup is to do, next to how it trains.

    Args:
        trains: it trains.
        evaluates_after: then it evaluates: the last checkpoint or, where it does not train, the model given.
        evaluates_all: of these all checkpoints.
        evaluates_meanwhile: and it does so every ``evaluation_steps`` steps.
        overwrites: it removes the run that another job has left in its directory.
        bm25_dir: where its negatives are from; "" for triples.
        max_steps: the last step; 0 or less: it is found from ``epochs``.
        epochs: passes over the training data.
        expected_triples: in a file of triples, whose number is not known.
        changes: to the first model's config.
    """

    trains: bool
    evaluates_after: bool
    evaluates_all: bool
    evaluates_meanwhile: bool
    evaluation_steps: int
    overwrites: bool
    bm25_dir: str
    max_steps: int
    epochs: float
    expected_triples: int
    changes: Mapping[str, object]

    @property
    def evaluates(self) -> bool:
        return self.evaluates_after or self.evaluates_meanwhile


@dataclass(frozen=True)
class WarmupJob(ModelJob):
    """What preflight resolved.

    Args:
        settings: what is to be done.
        collection: what is trained on.
        training: how it trains.
        lists: the negatives; None where they come from ``triples``.
        triples: that file, or None.
        query_texts: of what the queries' tower begins as, where that is another model.
        dev_split: the split that is evaluated; "" where nothing is.
        candidates_QK: int64 [queries, candidates], to be reranked; None without any.
        search: how the collection is searched in an evaluation.
        timeouts: of its lease.
    """

    settings: WarmupSettings
    collection: Preprocessed
    training: TrainingSettings
    lists: NegativeLists | None
    triples: Path | None
    query_texts: TextUse | None
    dev_split: str
    candidates_QK: np.ndarray | None
    search: SearchSettings
    timeouts: LeaseTimeouts

    @property
    def evaluation(self) -> EvaluationSettings:
        encoding = self.encoder.encoding
        return EvaluationSettings(self.collection, self.dev_split, self.candidates_QK, encoding, self.search)

    @property
    def output_dir(self) -> Path:
        return self.training.output_dir

    def at(self, lengths: TextLengths) -> WarmupJob:
        """The same for texts of other lengths."""
        return replace(super().at(lengths), training=self.training.at(lengths))


def warmup_settings(flags: WarmupFlags) -> WarmupSettings:
    """UserError where there is nothing to do."""
    if not (flags.do_train or flags.do_eval):
        raise UserError("neither --do_train nor --do_eval is given; there is nothing to do")
    changes: dict[str, object] = {
        "pooling": pooling_of(flags.pooling) if flags.pooling else None,
        "score_scale": flags.score_scale,
        "tied": flags.tied or None,
        "query_model": flags.query_model_name_or_path or None,
        **head_changes(flags),
    }
    return WarmupSettings(
        trains=flags.do_train,
        evaluates_after=flags.do_eval,
        evaluates_all=flags.eval_all_checkpoints,
        evaluates_meanwhile=flags.evaluate_during_training,
        evaluation_steps=flags.logging_steps * flags.logging_steps_per_eval,
        overwrites=flags.overwrite_output_dir,
        bm25_dir=flags.bm25_dir,
        max_steps=flags.max_steps,
        epochs=flags.num_train_epochs,
        expected_triples=flags.expected_train_size,
        changes={name: value for name, value in changes.items() if value is not None},
    )


def first_changes(settings: WarmupSettings, common: ModelJob, collection: Preprocessed) -> dict[str, Any]:
    """What replaces what the first model's config says; random weights are of the collection's vocabulary."""
    changes: dict[str, Any] = {**common.encoder.changes, **settings.changes}
    if not common.model.name_or_path:
        changes |= {"vocab_size": collection.manifest["vocab_size"], "pad_token_id": collection.pad_token_id}
    return changes


def to_evaluate(settings: WarmupSettings, output_dir: Path, model: str) -> list[Path]:
    """Of --do_eval: the last checkpoint trained, all of them, or the model given; none at all."""
    if not settings.trains and not settings.evaluates_all and model:
        return [Path(model)]
    steps = numbered(output_dir, CHECKPOINT_PATTERN)
    return [JobLayout(output_dir).checkpoint(step) for step in (steps if settings.evaluates_all else steps[-1:])]


def places_of_lengths(flags: WarmupFlags) -> list[str]:
    if flags.do_train:
        return places_of_model(flags)
    evaluated = to_evaluate(warmup_settings(flags), Path(flags.output_dir), flags.model_name_or_path)[-1:]
    return [*map(str, evaluated), *places_of_model(flags)]


def texts_evaluated(flags: WarmupFlags, settings: WarmupSettings) -> list[TextUse]:
    """Those of the checkpoints that are evaluated and not trained by this job."""
    if settings.trains:
        return []
    models = to_evaluate(settings, Path(flags.output_dir), flags.model_name_or_path)
    return [text_use(flags, str(model), "encode") for model in models]


def preflight(flags: WarmupFlags) -> WarmupJob:
    """Find what would fail later, in the first minute. UserError for anything that would."""
    settings = warmup_settings(flags)
    common = training_job(flags, places_of_lengths(flags))
    model = replace(common.model, query_name_or_path=flags.query_model_name_or_path)
    common = replace(common, model=model)
    timeouts, search = lease_timeouts(flags), search_settings(flags, common.compute.device)
    check_start(flags, common.model)
    collection = open_collection(flags.data_dir, common.lengths, common.model.tokenizer, flags.dry_run)
    query_texts = texts_of_queries(flags, common.model.query_model, collection)
    if query_texts is not None:
        common = replace(common, texts=replace(common.texts, keys=keys_of("passage")))
    if settings.trains:
        check_first_encoder(flags, common, collection, first_changes(settings, common, collection), not flags.lora_r)
    for texts in [common.texts, *filter(None, [query_texts]), *texts_evaluated(flags, settings)]:
        check_texts(collection, texts)
    given = (flags.bm25_dir, flags.triples, flags.dry_run)
    lists, triples = training_source(collection, *given) if settings.trains else (None, None)
    check_index_fits_model(search, len(collection.passages), common.model)
    check_output_dir(flags)
    split, candidates_QK = evaluated_on(flags, collection) if settings.evaluates else (NOTHING_MEASURED, None)
    job = WarmupJob(
        **vars(common),
        settings=settings,
        collection=collection,
        training=training_settings(
            flags, common, text_record(collection, common.texts, query_texts), (flags.save_steps,)
        ),
        lists=lists,
        triples=triples,
        query_texts=query_texts,
        dev_split=split,
        candidates_QK=candidates_QK,
        search=search,
        timeouts=timeouts,
    )
    if flags.dry_run and settings.trains:
        check_own_run(job)
    return job


def texts_of_queries(flags: WarmupFlags, model: ModelSettings | None, collection: Preprocessed) -> TextUse | None:
    """What is known of the texts of what the queries' tower begins as; None where it is no model of its own.

    Args:
        flags: the warmup's.
        model: which it begins as.
        collection: whose queries it must be able to read.

    Raises:
        UserError: its tokenizer is not the collection's.
    """
    if model is None:
        return None
    check_tokenizer_of_model(collection, model.tokenizer, flags.dry_run)
    return replace(text_use(flags, model.name_or_path, use_of(flags)), keys=keys_of("query"))


def check_output_dir(flags: WarmupFlags) -> None:
    """UserError where it could not be written in, or holds another run."""
    check_output_dirs(flags.output_dir)
    if flags.do_train:
        check_holds_no_other_run(Path(flags.output_dir), flags.resume, flags.overwrite_output_dir)


def evaluated_on(flags: WarmupFlags, collection: Preprocessed) -> tuple[str, np.ndarray | None]:
    """The split, and its candidates to be reranked, if any."""
    split = collection.dev_split(flags.dev_split)
    return split, candidates_to_rerank(collection, split, flags.rerank_file, flags.bm25_dir)


def config_of_job(job: WarmupJob, processes: int) -> dict[str, object]:
    settings, triples = job.settings, job.triples
    size = size_of_triples(triples, job.output_dir, settings.overwrites) if triples is not None else None
    source = source_record(job.model, Path(settings.bm25_dir), size)
    resolved = {"processes": processes, "trained_in": name_of(job.compute.dtype), **source}
    resolved |= job.training.parts.record() | ({"tied": True} if settings.changes.get("tied") else {})
    resolved |= {"pooling": settings.changes.get("pooling"), **job.training.loss_record}
    resolved |= dev_split_record(job.dev_split)
    return run_config(job.deciding_values, job.collection, **resolved) | {"max_steps": steps_to_train(job, processes)}


def check_own_run(job: WarmupJob) -> None:
    """A --dry_run's look at what the start would compare this job with. Disagreement as there."""
    unknown = ["max_steps"] if job.settings.max_steps <= 0 and not has_launcher() else []
    make_config = partial(config_of_job, job, processes_of_launcher())
    unknown += ["trained_in"] if job.compute.is_dtype_automatic else []
    check_in_dry_run(job.output_dir, make_config, OWN_RUN, unknown, job.settings.overwrites)


def steps_to_train(job: WarmupJob, processes: int) -> int:
    """--max_steps, or --num_train_epochs over what is known or said of the data's size."""
    settings, training = job.settings, job.training
    if settings.max_steps > 0:
        return settings.max_steps
    size = job.lists.triples if job.lists is not None else settings.expected_triples
    per_step = training.batch.triples * processes * training.micro_batches
    return max(1, math.ceil(size / per_step * settings.epochs))
