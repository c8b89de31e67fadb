"""The raw texts of a preprocessed collection, by offset: read again from its source, and checked to be the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import zip_longest

from data.sources.base import Passage, Source
from data.tokens.collection import QUERIES_SHA256, Preprocessed
from utils.errors import UserError
from utils.run_log import Progress

# How a message ends.
DIFFERENT = "they are different collections; give the raw directory it was made from, or preprocess this one"


def passages_in_order(source: Source, preprocessed: Preprocessed) -> Iterator[Passage]:
    """The passages in collection order. UserError at the first that is another in ``preprocessed``."""
    progress = Progress(len(preprocessed.passages), "passages read")
    both = zip_longest(source.passages(), preprocessed.passages.stored_ids())
    for offset, (passage, expected_id) in enumerate(both):
        if passage is None or passage.passage_id != expected_id:
            found_id = passage.passage_id if passage is not None else None
            found, expected = (repr(an_id) if an_id is not None else "the end" for an_id in (found_id, expected_id))
            raise UserError(
                f"passage {offset}: {source.passages_file} has {found}, {preprocessed.directory} has {expected}: "
                f"{DIFFERENT}"
            )
        progress.advance()
        yield passage
    progress.close()


def query_texts(source: Source, preprocessed: Preprocessed, split: str) -> list[str]:
    """The texts of the preprocessed queries, by offset.

    UserError where the raw collection lacks the split or a query, or has other texts by the same ids, as far as
    ``preprocessed`` records its queries: versions before `QUERIES_SHA256` did not.
    """
    if split not in source.split_files:
        there = ", ".join(source.split_files)
        raise UserError(
            f"{source.passages_file} is next to queries of {there}, {preprocessed.directory} of {split}: {DIFFERENT}"
        )
    ids, path = preprocessed.queries(split).original_ids(), source.split_files[split].queries
    wanted = set(ids)
    texts = {query_id: text for query_id, text in source.queries(split) if query_id in wanted}
    missing = next((query_id for query_id in ids if query_id not in texts), None)
    if missing is not None:
        raise UserError(f"{path} has no query {missing}, {preprocessed.directory} has: {DIFFERENT}")
    recorded = preprocessed.manifest.get(QUERIES_SHA256, {}).get(split)
    if recorded not in (None, hash_of_queries((query_id, texts[query_id]) for query_id in ids)):
        raise UserError(
            f"{path} has other texts by the ids of the {split} queries of {preprocessed.directory}: {DIFFERENT}"
        )
    return [texts[query_id] for query_id in ids]


def hash_of_queries(queries: Iterable[tuple[str, str]]) -> str:
    """sha256 of (query_id, text), in their order."""
    digest = hashlib.sha256()
    for query in queries:
        digest.update(f"{json.dumps(query)}\n".encode())
    return digest.hexdigest()
