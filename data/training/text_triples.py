"""triples.train.small.tsv: lines of query, positive and negative text, tokenized as training goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.tokens.text_profile import TextPreparer, text_preparer
from data.tokens.tokenizer import encoder_at, load_tokenizer
from data.training.batches import Batch, BatchSettings, Triples, make_batch
from utils.errors import UserError
from utils.prefetch import prefetched
from utils.text_files import check_end, numbered_lines

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from data.tokens.collection import Preprocessed
    from utils.distributed.world import World

TextTriple = tuple[str, str, str]


def read_text_triples(path: Path) -> Iterator[TextTriple]:
    """The file's triples as they stand, once. UserError names a line without three columns, or with a blank one."""
    for number, line in numbered_lines(path):
        columns = line.split("\t")
        if len(columns) != 3:
            raise UserError(f"{path}, line {number}: {len(columns)} columns, expected query, positive, negative text")
        if not all(map(str.strip, columns)):
            raise UserError(f"{path}, line {number}: a text is blank, expected query, positive, negative text")
        query, positive, negative = columns
        yield query, positive, negative


def prepared_triples(path: Path, preparer: TextPreparer) -> Iterator[TextTriple]:
    """The same as the tokenizer is given them, which is as it is given a collection's texts."""
    for query, positive, negative in read_text_triples(path):
        yield preparer.query(query), preparer.passage_text(positive), preparer.passage_text(negative)


def check_triples(path: Path) -> str:
    """What a look at the file's end says. UserError where its last line has no end, or is blank."""
    if check_end(path):
        return f"triples: {path} ends with a whole line"
    return f"triples: {path} is large and gzipped: its end is not looked at before it is reached"


def batches_of_text_triples(
    path: Path, batch_triples: int, preparer: TextPreparer, start: int = 0
) -> Iterator[list[TextTriple]]:
    """Batches in file order, endlessly; the file is shuffled already (MS MARCO's is).

    Args:
        path: The file.
        batch_triples: The triples of a batch, all processes' together.
        preparer: What the tokenizer is given of a text.
        start: So many batches are omitted, to resume where an interrupted run was.
    Raises:
        UserError: as `read_text_triples`, when the line is reached.
    """
    yield from islice(endless_batches(path, batch_triples, preparer), start, None)


def endless_batches(path: Path, batch_triples: int, preparer: TextPreparer) -> Iterator[list[TextTriple]]:
    batch: list[TextTriple] = []
    while True:
        for triple in prepared_triples(path, preparer):
            batch.append(triple)
            if len(batch) == batch_triples:
                yield batch
                batch = []


def text_tokenizer(backend: Tokenizer) -> Callable[[list[str], int], tuple[np.ndarray, np.ndarray]]:
    """texts, max_length -> (tokens_T, offsets_B1), int64, as `data.tokens.token_cache.TokenCache.gather`."""

    def tokenize(texts: list[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        rows = encoder_at(backend, max_length)(texts)
        offsets_B1 = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return np.concatenate(rows).astype(np.int64), offsets_B1

    return tokenize


def batches_from_text(
    settings: BatchSettings, collection: Preprocessed, world: World, triples: Path, tokenizer: str, start: int
) -> Iterator[Batch]:
    """This process's training batches of a file of text triples, in its order, endlessly.

    Args:
        settings: The size of a process's batch, and how long its texts may be.
        collection: Says how its texts were made into tokens; these are in the same way.
        world: How many processes share a global batch, and which of them this is.
        triples: The file.
        tokenizer: Its directory.
        start: So many batches have been trained on already, and are omitted.
    Returns:
        The batches, made in a thread ahead of their use.
    Raises:
        UserError: there is no tokenizer; or as `read_text_triples`, when the line is reached.
    """
    max_doc_character = collection.manifest["max_doc_character"]
    preparer = text_preparer(collection.text_settings, load_tokenizer(tokenizer), max_doc_character)
    tokenize = text_tokenizer(preparer.backend)
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
        for texts in batches_of_text_triples(triples, settings.triples * world.size, preparer, start)
    )
    return prefetched(made)


def make_text_batch(
    batch: list[TextTriple],
    process: int,
    processes: int,
    tokenize: Callable[[list[str], int], tuple[np.ndarray, np.ndarray]],
    max_query_length: int,
    max_seq_length: int,
    is_over_batch: bool,
) -> Batch:
    """The process's part of a batch. Equal texts are one query or passage; the batch's own pairs are its positives.

    Args:
        batch: The global batch.
        process: Which share, from 0.
        processes: How many shares there are.
        tokenize: Of `text_tokenizer`.
        max_query_length: In tokens.
        max_seq_length: Of a passage, in tokens.
        is_over_batch: Whether the loss scores a query against all passages of the batch.
    """
    queries = sorted({query for query, _, _ in batch})
    passages = sorted({text for _, positive, negative in batch for text in (positive, negative)})
    query_at, passage_at = ({text: i for i, text in enumerate(texts)} for texts in (queries, passages))
    triples = Triples(
        np.array([query_at[query] for query, _, _ in batch]),
        np.array([passage_at[positive] for _, positive, _ in batch]),
        np.array([passage_at[negative] for _, _, negative in batch]),
    )
    pairs = np.unique(np.stack([triples.query_T, triples.positive_T], 1), axis=0)
    return make_batch(
        triples,
        process,
        processes,
        lambda rows: tokenize([queries[row] for row in rows], max_query_length),
        lambda rows: tokenize([passages[row] for row in rows], max_seq_length),
        (pairs[:, 0], pairs[:, 1]) if is_over_batch else None,
    )
