"""Passages that are queries of their own collection, as all of ArguAna's are: found while the passages go by.

Such a passage is the best match of its query and no answer to it. BEIR's evaluation drops from a query's list the
passage of the same id, whatever its text. Here the texts are compared too: in collections that number both, a query and
a passage have one id by chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from data.sources.base import Passage

OwnPassages = dict[tuple[str, str], int]  # (query_id, text of the query) -> offset of the passage


class PassageScan:
    """What is found out of the passages that go through `scanned`: those that are queries, and how many are blank."""

    def __init__(self, queries: Iterable[tuple[str, str]]) -> None:
        self.own: OwnPassages = {}
        self.without_text = 0
        self.texts_of: dict[str, list[str]] = {}
        for query_id, text in queries:
            self.texts_of.setdefault(query_id, []).append(text)

    def scanned(self, passages: Iterable[Passage]) -> Iterator[Passage]:
        for offset, passage in enumerate(passages):
            fields = (passage.url, passage.title, passage.text)
            if not any(field and not field.isspace() for field in fields):
                self.without_text += 1
            for text in self.texts_of.get(passage.passage_id, ()):
                if is_own_text(text, passage):
                    self.own[passage.passage_id, text] = offset
            yield passage


def is_own_text(query: str, passage: Passage) -> bool:
    """Whether they are one text, but for case, blanks and the passage's title. A blank text is nobody's.

    A text that holds the query is not: a short query is a part of many an answer to it.
    """
    query, text = normalized_text(query), normalized_text(passage.text)
    return bool(text) and query in (text, normalized_text(f"{passage.title or ''} {text}"))


def normalized_text(text: str) -> str:
    """Without case, and with one blank between words."""
    return " ".join(text.casefold().split())


def own_passage_of(queries: dict[str, str], own: OwnPassages, positives: set[tuple[int, int]]) -> dict[int, int]:
    """{query: passage} by offset, of the queries that are a passage which is none of their ``positives``.

    Args:
        queries: {query_id: text} in the order of their offsets.
        own: What `PassageScan` has found.
        positives: (query, passage) by offset.
    """
    found = ((row, own.get(query)) for row, query in enumerate(queries.items()))
    return {row: offset for row, offset in found if offset is not None and (row, offset) not in positives}
