"""What would end a job after hours, looked for in its first minute: inputs, qrels, tokenizer, disk, model, memory.

Each check answers with the line it says, or raises the UserError that ends the program. The checks of the files of
--data_dir are in data/tokens/verify.py, of the model and its memory in drivers/trial.py, of the space in
drivers/space.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.sources.msmarco import Split
from data.tokens.collection import Preprocessed, check_tokenizer
from data.tokens.token_cache import TokenCache, cache_files
from data.tokens.verify import check_inputs
from drivers.embedding_shards import DTYPES
from drivers.model_identity import check_checkpoint
from drivers.opened_models import describe_lengths
from drivers.shared import check_compute_flags, encoding_settings, open_to_encode
from drivers.space import (
    candidates_term,
    check_space,
    checkpoint_term,
    embeddings_term,
    held_by_trainer,
    negatives_term,
    run_term,
)
from drivers.stored_embeddings import describe_embeddings, newest_embeddings
from drivers.trainer import Trainer
from drivers.trial import TrialSize, check_encoding, check_training
from drivers.vectors import Job, embeddings_dir, train_rows
from model.train.optim import make_optimizer
from utils import distributed
from utils.distributed import World
from utils.errors import UserError
from utils.exchange import atomic
from utils.run_log import say
from utils.system import disk_used

Check = Callable[[], str]


@dataclass
class Preflight:
    """Says one line per check on rank 0; a check that fails ends every rank with its error."""

    world: World
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.started = self.clock()

    def first(self, *checks: Check) -> None:
        """Checks of files: rank 0 looks for all, and its error is theirs."""
        for check in checks:
            self.say(distributed.decide_on_process0(self.world, check))

    def each(self, *checks: Check) -> None:
        """Checks of this rank's own device, without collectives; all ranks end where one fails."""
        for check in checks:
            self.say(distributed.on_every_process(self.world, check))

    def end(self) -> None:
        self.say(f"all well in {self.clock() - self.started:.1f} s")

    def say(self, line: str) -> None:
        if self.world.is_first:
            say(f"preflight: {line}")


def check_collection(collection: Preprocessed, tokenizer_dir: str, splits: Sequence[Split]) -> list[Check]:
    """The checks of the inputs, for every program. ``tokenizer_dir`` is empty where no tokenizer takes part."""
    checks: list[Check] = [partial(check_inputs, collection), partial(check_judgements, collection, splits)]
    return [*checks, partial(check_fingerprint, collection, tokenizer_dir)] if tokenizer_dir else checks


def check_fingerprint(collection: Preprocessed, tokenizer_dir: str) -> str:
    check_tokenizer(collection, tokenizer_dir)
    return f"tokenizer: {tokenizer_dir} is the manifest's, {collection.manifest['tokenizer']['fingerprint'][:12]}"


def check_judgements(collection: Preprocessed, splits: Sequence[Split]) -> str:
    """How many queries have a positive in the collection.

    UserError where none of a split has one, or where qrels name what is not there.
    """
    told = []
    for split in splits:
        held, qrels = len(collection.queries(split)), collection.qrels(split)
        judged = len(qrels.queries_with_positive())
        if not judged:
            raise UserError(f"{collection.directory}: no {split} query has a positive, expected some; check its qrels")
        share = f"{judged:,} of {held:,} queries ({100 * judged / held:.1f}%)"
        told.append(f"{share} of {split} have a positive, {len(qrels.query_R):,} judgements")
    return f"qrels: {'; '.join(told)}"


def check_publishing(directory: Path) -> str:
    """Try in ``directory`` what publishing needs. UserError where it cannot be done."""
    atomic.check_writable(directory)
    return f"disk: writing, syncing, linking and renaming work in {directory}"


# What the programs check


def check_trainer(
    checks: Preflight, collection: Preprocessed, trainer: Trainer, dtype: torch.dtype | None, checkpoints: int
) -> None:
    """The checks of a trainer that is ready to begin; ``checkpoints`` of it lie on the disk at once."""
    flags, encoder, output_dir = trainer.flags, trainer.state.encoder, Path(trainer.flags.output_dir)
    term = checkpoint_term(encoder, trainer.tokenizer, checkpoints)
    size = TrialSize(
        flags.per_gpu_train_batch_size, flags.max_seq_length, flags.max_query_length, flags.grad_cache_tokens
    )
    checks.first(partial(check_space, output_dir, [term], held_by_trainer(output_dir)))
    checks.each(partial(check_training, encoder, collection, flags.loss, size, trainer.state.world, dtype))
    checks.end()


def check_generator(checks: Preflight, job: Job, refreshes: int) -> None:
    """All checks of a generator that is to make so many ``refreshes``."""
    flags, collection, device = job.flags, job.collection, checks.world.device
    tokenizer_dir = flags.tokenizer_name or flags.init_model_dir
    inputs = check_collection(collection, tokenizer_dir, ("train", "dev"))
    checks.first(partial(check_checkpoint, flags, flags.init_model_dir), *inputs)
    checks.first(partial(describe_lengths, flags, collection), partial(check_publishing, job.ann_dir))
    if flags.load_gen:
        checks.first(lambda: describe_embeddings(newest_embeddings(embeddings_dir(job))))
    terms, held, queries = [], 0, len(train_rows(job, 0))
    if not flags.inference:
        terms.append(negatives_term(queries, job.selection.strategy.most, refreshes))
        if flags.keep_candidates:
            terms.append(candidates_term(queries, flags.topk_training, refreshes))
    if not flags.load_gen:
        encoder = open_to_encode(flags, flags.init_model_dir, collection, job.dtype, checks.world)
        texts = len(collection.passages) + queries + len(collection.qrels("dev").queries_with_positive())
        value_bytes, only_latest = DTYPES[flags.embedding_dtype].itemsize, flags.only_keep_latest_embedding_file
        terms.append(embeddings_term(texts, encoder.dims, value_bytes, refreshes, only_latest))
        held = disk_used(embeddings_dir(job)) if only_latest else 0
        settings = encoding_settings(flags, collection, job.dtype)
        checks.each(partial(check_encoding, encoder, collection, "train", settings, device))
    checks.first(partial(check_space, job.ann_dir, terms, held))
    checks.end()


def check_evaluation(checks: Preflight, collection: Preprocessed, flags: Any, tokenizer_dir: str) -> None:
    """The checks of an evaluation, but for what its model computes."""
    output_dir, queries, passages = Path(flags.output_dir), collection.queries(flags.split), collection.passages
    lists = len(collection.qrels(flags.split).queries_with_positive())
    id_bytes = sum(mean_id_bytes(cache) for cache in (queries, passages))
    terms = [run_term(lists, min(flags.topk, len(passages)), id_bytes)]
    model = [partial(check_checkpoint, flags, flags.model_name_or_path)] if flags.model_name_or_path else []
    stored = [partial(describe_embeddings, Path(flags.embedding_dir))] if flags.embedding_dir else []
    checks.first(
        *model,
        *stored,
        *check_collection(collection, tokenizer_dir, (flags.split,)),
        partial(describe_lengths, flags, collection),
        partial(check_publishing, output_dir),
        partial(check_space, output_dir, terms),
    )


def mean_id_bytes(cache: TokenCache) -> int:
    ids_path = cache.directory / cache_files(cache.name)[2]
    return math.ceil(ids_path.stat().st_size / max(len(cache), 1))


def check_training_flags(flags: Any) -> torch.dtype | None:
    longest = max(flags.max_seq_length, flags.max_query_length)
    if flags.grad_cache_tokens != 0 and flags.grad_cache_tokens < longest:
        raise UserError(
            f"--grad_cache_tokens is {flags.grad_cache_tokens}, expected 0 or at least one text's {longest} tokens; "
            "as many as fit into memory make it quickest"
        )
    if flags.gradient_checkpointing and flags.model_type == "static":
        raise UserError("--gradient_checkpointing is given, the static model has no layers to make twice; leave it out")
    if flags.optimizer == "apex_fused_lamb":
        make_optimizer("apex_fused_lamb", torch.nn.Linear(1, 1), 1.0, 1e-6, 0.0)
    return check_compute_flags(flags, default_dtype="fp32")
