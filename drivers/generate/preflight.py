"""What a generator finds wrong before it begins, in the first minute, and what it is to do."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from data.mining.candidates import read_bm25
from data.mining.select import Selection
from data.mining.strategy import NO_FLAG, resolve_strategy
from data.tokens.collection import Preprocessed
from data.tokens.text_agreement import TextUse, check_texts
from drivers.cli.generate import GenerateFlags
from drivers.embeddings import store
from drivers.embeddings.distributed_search import check_index_fits_model
from drivers.generate.encode_corpus import RefreshSettings
from drivers.generate.next_checkpoint import RequestSettings, check_last_checkpoint, step_said_used
from drivers.job.encoder_setup import EncoderSettings, check_model_directory
from drivers.job.model_identity import ModelSettings, identity_of
from drivers.job.resume import dev_split_record
from drivers.job.run_config import check_in_dry_run, run_config
from drivers.job.settings import (
    ModelJob,
    check_refresh_flags,
    compute_settings,
    lease_timeouts,
    lengths_of,
    model_job,
    model_settings,
    search_settings,
    selection_of,
    text_use,
)
from drivers.job.setup import ComputeSettings, check_output_dirs, open_collection
from drivers.job.text_lengths import TextLengths, check_made_with
from model.kernels.precision import name_of
from utils.errors import UserError
from utils.exchange.atomic import numbered
from utils.exchange.evaluations import TRAIN
from utils.exchange.layout import CHECKPOINT_PATTERN, JobLayout
from utils.exchange.lease.record import LeaseTimeouts
from utils.search.settings import SearchSettings

OWN_SERIES = "give each series of negatives an --output_dir of its own"


@dataclass(frozen=True)
class GeneratorJob(ModelJob):
    """What preflight resolved.

    Args:
        refresh: how each refresh is made.
        requests: which refreshes, and of which checkpoints.
        timeouts: of its lease, and of the trainer's.
        strategy_from: the flag that says the strategy.
        last_checkpoint_dir: --last_checkpoint_dir, for what is said of it.
    """

    refresh: RefreshSettings
    requests: RequestSettings
    timeouts: LeaseTimeouts
    strategy_from: str
    last_checkpoint_dir: str

    @property
    def strategy(self) -> str:
        """As the user wrote it."""
        return self.refresh.selection.strategy.text

    @property
    def collection(self) -> Preprocessed:
        return self.refresh.collection

    def at(self, lengths: TextLengths) -> GeneratorJob:
        """The same for texts of other lengths."""
        at_lengths = super().at(lengths)
        return replace(at_lengths, refresh=replace(self.refresh, encoder=at_lengths.encoder))


def places_of_lengths(flags: GenerateFlags) -> list[str]:
    if flags.load_gen:
        with contextlib.suppress(UserError):  # which the preflight tells
            return [str(store.newest_embeddings(JobLayout(Path(flags.output_dir)).embeddings))]
    return [*map(str, newest_checkpoints(flags)), flags.init_model_dir, flags.config_name]


def newest_checkpoints(flags: GenerateFlags) -> list[Path]:
    """The trainer's newest, or none."""
    training_dir = Path(flags.training_dir)
    return [JobLayout(training_dir).checkpoint(step) for step in numbered(training_dir, CHECKPOINT_PATTERN)[-1:]]


def texts_of(flags: GenerateFlags, common: ModelJob) -> TextUse:
    """Those of the initial model; of what --inference encodes with, where the trainer has published one."""
    newest = newest_checkpoints(flags) if flags.inference else []
    return text_use(flags, str(newest[0]), "encode") if newest else common.texts


def preflight(flags: GenerateFlags) -> GeneratorJob:
    """Find what would fail later, in the first minute. UserError for anything that would."""
    lengths = lengths_of(flags, places_of_lengths(flags))
    strategy, strategy_from = resolve_strategy(
        flags.negative_strategy, flags.ann_measure_topk_mrr, flags.bottom_neg, flags.bottom_only
    )
    common = model_job(flags, lengths, model_settings(flags, flags.init_model_dir), check_flags(flags))
    search = search_settings(flags, common.compute.device)
    check_directories(flags, common.model)
    collection = open_inputs(flags, lengths, common.model, search)
    common = replace(common, texts=texts_of(flags, common))
    check_texts(collection, common.texts)
    selection = selection_of(flags, strategy, len(collection.passages))
    if not len(collection.qrels(TRAIN).queries_with_positive()):
        raise UserError(f"{flags.data_dir}: no train query has a positive, expected some; check its qrels")
    job = GeneratorJob(
        **vars(common),
        refresh=refresh_settings(flags, collection, common.encoder, search, selection),
        requests=request_settings(flags),
        timeouts=lease_timeouts(flags),
        strategy_from=strategy_from,
        last_checkpoint_dir=flags.last_checkpoint_dir,
    )
    if flags.dry_run:
        unknown = ["encoded_in"] if common.compute.is_dtype_automatic else []
        check_in_dry_run(job.refresh.ann_dir, partial(config_of_job, job), OWN_SERIES, unknown)
    if strategy_from.startswith(NO_FLAG):
        sys.stderr.write(f"run_ann_data_gen: warning: negatives are {job.strategy}: {strategy_from}\n")
    return job


def refresh_settings(
    flags: GenerateFlags,
    collection: Preprocessed,
    encoder: EncoderSettings,
    search: SearchSettings,
    selection: Selection,
) -> RefreshSettings:
    """How each refresh is made.

    Args:
        flags: the generator's.
        collection: what is encoded and searched.
        encoder, search, selection: what they say of each.

    Raises:
        UserError: --bm25_dir holds nothing that can be used.
    """
    return RefreshSettings(
        collection=collection,
        ann_dir=Path(flags.output_dir),
        dev_split=collection.dev_split(flags.dev_split),
        encoder=encoder,
        search=search,
        selection=selection,
        bm25=read_bm25(flags.bm25_dir, collection) if selection.strategy.needs_bm25 else None,
        seed=flags.seed,
        topk_training=flags.topk_training,
        # --inference keeps all queries: a later --load_gen takes its chunk of them.
        chunk_factor=1 if flags.inference else flags.ann_chunk_factor,
        embedding_dtype=flags.embedding_dtype,
        only_encodes=flags.inference,
        loads_embeddings=flags.load_gen,
        keeps_candidates=flags.keep_candidates,
        only_latest_embeddings=flags.only_keep_latest_embedding_file,
    )


def request_settings(flags: GenerateFlags) -> RequestSettings:
    """Which refreshes, and of which checkpoints."""
    last, training_dir = flags.end_output_num, Path(flags.training_dir)
    return RequestSettings(
        ann_dir=Path(flags.output_dir),
        training_dir=training_dir,
        init_model_dir=Path(flags.init_model_dir),
        is_lockstep=flags.refresh_mode == "lockstep",
        steps_per_refresh=flags.steps_per_refresh,
        refresh_lag=flags.refresh_lag,
        most_refreshes=flags.limit_total_number,
        last_refresh=last if last >= 0 else None,
        step_used=step_said_used(flags.last_checkpoint_dir, training_dir),
        only_encodes=flags.inference,
        loads_embeddings=flags.load_gen,
    )


def check_flags(flags: GenerateFlags) -> ComputeSettings:
    """What it computes on. UserError for flags that do not fit together."""
    compute = compute_settings(flags)
    check_refresh_flags(flags)
    if flags.inference and flags.load_gen:
        raise UserError("--inference writes embeddings and --load_gen reads them; give one of the two")
    return compute


def check_directories(flags: GenerateFlags, model: ModelSettings) -> None:
    """UserError where one that is read is not what its flag says, or one cannot be written in."""
    if not Path(flags.init_model_dir).is_dir():
        raise UserError(f"--init_model_dir {flags.init_model_dir} is not a directory, expected the warmup checkpoint")
    check_model_directory(model, flags.dry_run)
    check_last_checkpoint(flags.last_checkpoint_dir, Path(flags.training_dir), Path(flags.init_model_dir))
    check_output_dirs(flags.output_dir)
    check_same_file_system(Path(flags.output_dir))


def check_same_file_system(ann_dir: Path) -> None:
    """UserError where the embeddings have been put on another disk: they are renamed from the lease's staging."""
    embeddings = JobLayout(ann_dir).embeddings
    if embeddings.exists() and embeddings.stat().st_dev != ann_dir.stat().st_dev:
        raise UserError(
            f"{embeddings} is on another file system than {ann_dir}, expected the same one: put both on the larger disk"
        )


def open_inputs(
    flags: GenerateFlags, lengths: TextLengths, model: ModelSettings, search: SearchSettings
) -> Preprocessed:
    """The collection, which fits the flags.

    Args:
        flags: the generator's.
        lengths: of texts, as it was preprocessed.
        model: which encoder.
        search: which index.

    Raises:
        UserError: its splits, the index or stored embeddings (--load_gen) do not fit the flags.
    """
    collection = open_collection(flags.data_dir, lengths, model.tokenizer, flags.dry_run)
    collection.dev_split(flags.dev_split)
    check_index_fits_model(search, len(collection.passages), model)
    if flags.load_gen:
        stored = store.newest_embeddings(JobLayout(Path(flags.output_dir)).embeddings)
        check_made_with(lengths, stored, store.read_embeddings_record(stored, collection))
    return collection


def config_of_job(job: GeneratorJob) -> dict[str, object]:
    """What decides the negatives, as it is recorded with them."""
    bm25 = job.refresh.bm25
    return run_config(
        job.deciding_values,
        job.collection,
        strategy=job.strategy,
        encoded_in=name_of(job.compute.dtype),
        **({"bm25_sha256": bm25.sha256} if bm25 is not None else {}),
        **dev_split_record(job.refresh.dev_split),
        **identity_of(job.model),
    )


def resolved_of(job: GeneratorJob) -> dict[str, str]:
    """What the header and a --dry_run say next to the flags."""
    return {"resolved_strategy": job.strategy, "strategy_from": job.strategy_from}
