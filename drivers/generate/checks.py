"""What a generator looks at in its first minute, next to what every program does."""

from __future__ import annotations

from functools import partial

from data.sources.qrels import query_name
from drivers.embeddings.shards import DTYPES
from drivers.embeddings.store import describe_embeddings, newest_embeddings
from drivers.generate.encode_corpus import RefreshSettings, query_rows
from drivers.job.disk_budget import Item, candidates_item, check_space, embeddings_item, negatives_item
from drivers.job.encoder_setup import open_to_encode
from drivers.job.preflight import Preflight
from drivers.job.sanity_batch import check_encoding
from model.encoders.base import Encoder
from utils.exchange.evaluations import TRAIN
from utils.system import disk_used


def check_refreshes(checks: Preflight, settings: RefreshSettings, model_dir: str, refreshes: int) -> None:
    """Whether refreshes can be made; the last checks, all processes together.

    Args:
        checks: says each, and ends them.
        settings: how every refresh of the run is made.
        model_dir: the model that is tried out.
        refreshes: how many, for the disk.
    """
    if settings.loads_embeddings:
        checks.on_process0(lambda: describe_embeddings(newest_embeddings(settings.embeddings_dir)))
    items, reusable_bytes, rows = [], 0, query_rows(settings, 0)
    if not settings.only_encodes:
        items += published_items(settings, len(rows[query_name(TRAIN)]), refreshes)
    if not settings.loads_embeddings:
        collection, encoding = settings.collection, settings.encoder.encoding
        encoder = open_to_encode(settings.encoder, model_dir, collection, checks.world)
        items.append(encoded_item(settings, encoder, sum(map(len, rows.values())), refreshes))
        reusable_bytes = disk_used(settings.embeddings_dir) if settings.only_latest_embeddings else 0
        trial = partial(check_encoding, encoder, collection, TRAIN, encoding, checks.world.device)
        checks.on_every_process(trial)
    checks.on_process0(partial(check_space, settings.ann_dir, items, reusable_bytes))
    checks.end()


def published_items(settings: RefreshSettings, queries: int, refreshes: int) -> list[Item]:
    """Of the disk: what refreshes publish, each of so many train queries."""
    items = [negatives_item(queries, settings.selection.strategy.most, refreshes)]
    if settings.keeps_candidates:
        items.append(candidates_item(queries, settings.topk_training, refreshes))
    return items


def encoded_item(settings: RefreshSettings, encoder: Encoder, queries: int, refreshes: int) -> Item:
    """Of the disk: the embeddings of the passages, and of a refresh's train and dev queries.

    Args:
        settings: how each refresh is made.
        encoder: what encodes.
        queries: how many there are of both.
        refreshes: how many are to be made.
    """
    collection, spec = settings.collection, encoder.spec
    rows = spec.rows_per_passage * len(collection.passages) + queries
    value_bytes = DTYPES[settings.embedding_dtype].itemsize
    return embeddings_item(rows, spec.embedding_dim, value_bytes, refreshes, settings.only_latest_embeddings)
