"""The raw texts of a preprocessed collection, by offset: read again from its source, and checked to be the same."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from data.sources.base import Passage, Source
from data.tokens.collection import Preprocessed
from utils.errors import UserError
from utils.run_log import Progress


def passages_in_order(source: Source, preprocessed: Preprocessed) -> Iterator[Passage]:
    """The passages in collection order. UserError at the first that is another in ``preprocessed``."""
    progress = Progress(len(preprocessed.passages), "passages read")
    both = zip_longest(source.passages(), preprocessed.passages.stored_ids())
    for offset, (passage, expected_id) in enumerate(both):
        if passage is None or passage.passage_id != expected_id:
            found_id = passage.passage_id if passage is not None else None
            found, expected = (repr(an_id) if an_id is not None else "the end" for an_id in (found_id, expected_id))
            raise UserError(
                f"passage {offset}: {source.passages_file} has {found}, {preprocessed.directory} has {expected}: they "
                "are different collections; give the raw directory it was made from, or preprocess this one"
            )
        progress.advance()
        yield passage
    progress.close()


def query_texts(source: Source, preprocessed: Preprocessed, split: str) -> list[str]:
    """The texts of the preprocessed queries, by offset. UserError where the raw file lacks one."""
    ids = preprocessed.queries(split).original_ids()
    wanted = set(ids)
    texts = {query_id: text for query_id, text in source.queries(split) if query_id in wanted}
    missing = next((query_id for query_id in ids if query_id not in texts), None)
    if missing is not None:
        raise UserError(
            f"{source.split_files[split].queries} has no query {missing}, {preprocessed.directory} has: they are "
            "different collections; give the raw directory it was made from, or preprocess this one"
        )
    return [texts[query_id] for query_id in ids]
