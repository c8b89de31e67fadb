"""The trainer's batches, from negatives or from text triples, made ahead of the step that takes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.mining.negative_lists import NegativeLists
from data.tokens.collection import Preprocessed
from data.tokens.token_cache import gather_from
from data.training.batches import Batch, batches_of_triples, make_batch
from data.training.text_triples import batches_of_text_triples, make_text_batch, open_text_tokenizer
from data.training.triple_order import queries_in_order
from drivers.train.settings import BatchSettings
from utils.distributed import World
from utils.prefetch import prefetched
from utils.seen import SeenQueries


def batches_from_lists(
    settings: BatchSettings,
    collection: Preprocessed,
    world: World,
    lists: NegativeLists,
    stream: int,
    start: int = 0,
    seen: SeenQueries | None = None,
) -> Iterator[Batch]:
    """This process's training batches, endlessly; each of the global batch's equal parts goes to one process.

    ``stream`` (the refresh number) and the seed decide their order; ``start`` batches have been trained on already.
    ``seen`` notes the queries of those, and of each batch that is taken.
    """
    queries = gather_from(collection.queries("train"), settings.max_query_length)
    passages = gather_from(collection.passages, settings.max_seq_length)
    positives = collection.qrels("train").positives() if settings.is_over_batch else None
    batch_triples, group_size = settings.triples * world.size, settings.group_size
    if seen is not None:
        for query_T in queries_in_order(lists, group_size, settings.seed, stream, start * batch_triples):
            seen.add(query_T)
    made = prefetched(
        (triples.query_T, make_batch(triples, world.process, world.size, queries, passages, positives))
        for triples in batches_of_triples(lists, group_size, batch_triples, settings.seed, stream, start)
    )
    return as_taken(made, seen)


def as_taken(made: Iterator[tuple[np.ndarray, Batch]], seen: SeenQueries | None) -> Iterator[Batch]:
    """The batches; the queries of one are noted when it is asked for, not when it is made beforehand."""
    for query_T, batch in made:
        if seen is not None:
            seen.add(query_T)
        yield batch


def batches_from_text(
    settings: BatchSettings, collection: Preprocessed, world: World, triples: Path, tokenizer: str, start: int
) -> Iterator[Batch]:
    """The same of a file of text triples, in its order."""
    tokenize = open_text_tokenizer(tokenizer)
    max_doc_character = collection.manifest["max_doc_character"]
    made = (
        make_text_batch(
            texts,
            world.process,
            world.size,
            tokenize,
            settings.max_query_length,
            settings.max_seq_length,
            settings.is_over_batch,
        )
        for texts in batches_of_text_triples(triples, settings.triples * world.size, max_doc_character, start)
    )
    return prefetched(made)
