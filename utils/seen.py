"""Which queries training has seen of each refresh, as metrics.jsonl has it: what shows that arms saw the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np

PREFIX = "seen_"  # of the names in metrics.jsonl


@dataclass(frozen=True)
class SeenRefresh:
    """What was seen of one refresh. ``queries`` counts the different ones of ``triples``.

    ``order`` is the sha256 of every triple's query in training order: equal where arms saw the same, step by step.
    """

    refresh: int
    queries: int
    triples: int
    order: str

    def logged(self) -> dict[str, int | str]:
        return {PREFIX + name: value for name, value in asdict(self).items()}


def seen_in(row: Mapping[str, object]) -> SeenRefresh | None:
    """From a row of metrics.jsonl; None where it tells of no refresh."""
    refresh, queries, triples, order = (row.get(PREFIX + field.name) for field in fields(SeenRefresh))
    if not (isinstance(refresh, int) and isinstance(queries, int) and isinstance(triples, int)):
        return None
    return SeenRefresh(refresh, queries, triples, order) if isinstance(order, str) else None


class SeenQueries:
    """Notes the queries of one refresh as they are trained on."""

    def __init__(self) -> None:
        self.triples, self.different = 0, set[int]()
        self.order = hashlib.sha256()

    def add(self, query_T: np.ndarray) -> None:
        """The query of each triple of the next batches, all processes' together: int64 [T], rows of train-query."""
        self.triples += len(query_T)
        begins_T = np.flatnonzero(query_T[1:] != query_T[:-1])  # a turn's triples have one query
        self.different.update(query_T[begins_T].tolist(), query_T[-1:].tolist())
        self.order.update(query_T.astype("<i8").tobytes())

    def of_refresh(self, number: int) -> SeenRefresh:
        return SeenRefresh(number, len(self.different), self.triples, self.order.hexdigest())
