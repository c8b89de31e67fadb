"""What a generator looks at in its first minute."""

from __future__ import annotations

from functools import partial

from drivers.embeddings.shards import DTYPES
from drivers.embeddings.store import describe_embeddings, newest_embeddings
from drivers.embeddings.text_lengths import describe_lengths
from drivers.generate.encode_corpus import Job, embeddings_dir, train_rows
from drivers.job.disk_budget import (
    candidates_item,
    check_space,
    embeddings_item,
    negatives_item,
)
from drivers.job.encoder_setup import encoder_settings, open_to_encode
from drivers.job.model_identity import check_checkpoint
from drivers.job.preflight import Preflight, check_collection, check_publishing
from drivers.job.sanity_batch import check_encoding
from utils.system import disk_used


def check_generator(checks: Preflight, job: Job, refreshes: int) -> None:
    """All checks of a generator that is to make so many ``refreshes``."""
    flags, collection, device = job.flags, job.collection, checks.world.device
    tokenizer_dir = flags.tokenizer_name or flags.init_model_dir
    inputs = check_collection(collection, tokenizer_dir, ("train", job.dev_split))
    checks.on_process0(partial(check_checkpoint, flags, flags.init_model_dir), *inputs)
    checks.on_process0(partial(describe_lengths, flags, collection), partial(check_publishing, job.ann_dir))
    if flags.load_gen:
        checks.on_process0(lambda: describe_embeddings(newest_embeddings(embeddings_dir(job))))
    items, held, queries = [], 0, len(train_rows(job, 0))
    if not flags.inference:
        items.append(negatives_item(queries, job.selection.strategy.most, refreshes))
        if flags.keep_candidates:
            items.append(candidates_item(queries, flags.topk_training, refreshes))
    if not flags.load_gen:
        settings = encoder_settings(flags, job.dtype)
        encoder = open_to_encode(settings, flags.init_model_dir, collection, checks.world)
        passages, dev_queries = len(collection.passages), collection.qrels(job.dev_split).queries_with_positive()
        rows = encoder.spec.rows_per_passage * passages + queries + len(dev_queries)
        value_bytes, only_latest = DTYPES[flags.embedding_dtype].itemsize, flags.only_keep_latest_embedding_file
        items.append(embeddings_item(rows, encoder.spec.embedding_dim, value_bytes, refreshes, only_latest))
        held = disk_used(embeddings_dir(job)) if only_latest else 0
        checks.on_every_process(partial(check_encoding, encoder, collection, "train", settings.encoding, device))
    checks.on_process0(partial(check_space, job.ann_dir, items, held))
    checks.end()
