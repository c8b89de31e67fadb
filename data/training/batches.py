"""From negatives to training batches: triples in their order, each query and positive encoded once.

They are made in a thread, ahead of the step that takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from typing import TYPE_CHECKING

import numpy as np

from data.mining.negative_lists import NegativeLists, is_positive
from data.tokens.collection import Preprocessed
from data.tokens.token_cache import gather_from
from data.training.triple_order import queries_in_order, triple_order, triples_of_a_round
from utils.errors import UserError
from utils.exchange.evaluations import TRAIN
from utils.prefetch import prefetched
from utils.seen import SeenQueries

if TYPE_CHECKING:
    from utils.distributed.world import World


@dataclass(frozen=True)
class BatchSettings:
    """The batches of a process. ``triples`` are a micro-batch's; lengths are in tokens.

    ``group_size`` triples of a query follow each other; 0: all of its negatives once. ``is_over_batch`` is the loss's.
    """

    triples: int
    group_size: int
    max_query_length: int
    max_seq_length: int
    is_over_batch: bool
    seed: int


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

    Args:
        settings: The size of a process's batch, and how long its texts may be.
        collection: The tokens, and the train qrels.
        world: How many processes share a global batch, and which of them this is.
        lists: The negatives.
        stream: The refresh's number: with the seed it decides the order.
        start: So many batches have been trained on already, and are omitted.
        seen: Notes the queries of those, and of each batch that is taken; None where nobody asks.
    Returns:
        The batches, made in a thread ahead of their use.
    Raises:
        UserError: there is no triple at all, at the first batch.
    """
    queries = gather_from(collection.queries(TRAIN), settings.max_query_length)
    passages = gather_from(collection.passages, settings.max_seq_length)
    excluded = collection.excluded_pairs() if settings.is_over_batch else None
    batch_triples, group_size = settings.triples * world.size, settings.group_size
    if seen is not None:
        for query_T in queries_in_order(lists, group_size, settings.seed, stream, start * batch_triples):
            seen.add(query_T)
    made = prefetched(
        (triples.query_T, make_batch(triples, world.process, world.size, queries, passages, excluded))
        for triples in batches_of_triples(lists, group_size, batch_triples, settings.seed, stream, start)
    )
    return as_taken(made, seen)


def as_taken(made: Iterator[tuple[np.ndarray, Batch]], seen: SeenQueries | None) -> Iterator[Batch]:
    """The batches; the queries of one are noted when it is asked for, not when it is made beforehand."""
    for query_T, batch in made:
        if seen is not None:
            seen.add(query_T)
        yield batch


@dataclass(frozen=True)
class Triples:
    """The (query, positive, negative) offsets of one batch, all processes' together: int64 [T] each.

    ``rank_T`` are the negatives' ranks in the search that found them, 0 where they are unknown.
    """

    query_T: np.ndarray
    positive_T: np.ndarray
    negative_T: np.ndarray
    rank_T: np.ndarray | None = None

    def part(self, process: int, processes: int) -> Triples:
        """The process's equal, contiguous share."""
        size = len(self.query_T) // processes
        mine = slice(process * size, (process + 1) * size)
        rank_T = None if self.rank_T is None else self.rank_T[mine]
        return Triples(self.query_T[mine], self.positive_T[mine], self.negative_T[mine], rank_T)


def batches_of_triples(
    lists: NegativeLists, group_size: int, batch_triples: int, seed: int, stream: int, start: int = 0
) -> Iterator[Triples]:
    """Endless batches of all processes together, one round of `triple_order` after another; one may span several.

    The order depends on (seed, stream, query, round) alone.

    Args:
        lists: The negatives.
        group_size: So many triples of a query follow each other; 0: all of its negatives once.
        batch_triples: The triples of a batch.
        seed: Of the run.
        stream: The refresh's number.
        start: So many batches are omitted, to resume where an interrupted run was.
    Raises:
        UserError: there is no triple at all.
    """
    if lists.triples == 0:
        raise UserError("the negatives file holds no negative at all; use a larger --topk_training or collection")
    first, skip = divmod(start * batch_triples, triples_of_a_round(lists, group_size))
    rounds = (
        triple_order(lists, group_size, seed, stream, number, skip if number == first else 0) for number in count(first)
    )
    left: list[tuple[np.ndarray, np.ndarray]] = []
    available = 0
    for part in chain.from_iterable(rounds):
        left.append(part)
        available += len(part[0])
        if available < batch_triples:
            continue
        row_T, column_T = (np.concatenate(parts) for parts in zip(*left, strict=True))
        used = 0
        while available - used >= batch_triples:
            row, column = row_T[used : used + batch_triples], column_T[used : used + batch_triples]
            yield Triples(
                lists.query_Q[row], lists.positive_Q[row], lists.negative_QN[row, column], lists.rank_QN[row, column]
            )
            used += batch_triples
        left, available = [(row_T[used:], column_T[used:])], available - used


@dataclass(frozen=True)
class Batch:
    """One process's batch as the model takes it: each different query and passage once.

    ``query_index_T`` and the others say which rows make up triple t. For the in-batch loss,
    ``allowed_TG`` marks which passages of all processes (process after process, each process's in its own row order)
    triple t is scored against, and ``target_T`` is its positive's place among them.
    """

    query_tokens_T: np.ndarray
    query_offsets_B1: np.ndarray
    passage_tokens_T: np.ndarray
    passage_offsets_M1: np.ndarray
    query_index_T: np.ndarray
    positive_index_T: np.ndarray
    negative_index_T: np.ndarray
    allowed_TG: np.ndarray | None = None
    target_T: np.ndarray | None = None
    negative_rank_T: np.ndarray | None = None


Gather = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # rows_B -> (tokens_T, offsets_B1)


def make_batch(
    triples: Triples,
    process: int,
    processes: int,
    gather_queries: Gather,
    gather_passages: Gather,
    excluded: tuple[np.ndarray, np.ndarray] | None = None,
) -> Batch:
    """Look up the tokens of the process's share of a global batch.

    Args:
        triples: The global batch.
        process: Which share, from 0.
        processes: How many shares there are.
        gather_queries: The tokens of queries, by their rows.
        gather_passages: The tokens of passages, by their rows.
        excluded: `Preprocessed.excluded_pairs`, int64 (query_P, passage_P), where the batch is for the in-batch loss:
            they are masked out of a query's negatives, and a passage that several processes hold counts once.
    """
    mine = triples.part(process, processes)
    query_B, query_index_T = np.unique(mine.query_T, return_inverse=True)
    passage_M, both_2T = np.unique(np.concatenate([mine.positive_T, mine.negative_T]), return_inverse=True)
    positive_index_T, negative_index_T = np.split(both_2T, 2)
    allowed_TG = target_T = None
    if excluded is not None:
        allowed_TG, target_T = in_batch_mask(triples, process, processes, excluded)
    return Batch(
        *gather_queries(query_B),
        *gather_passages(passage_M),
        query_index_T=query_index_T,
        positive_index_T=positive_index_T,
        negative_index_T=negative_index_T,
        allowed_TG=allowed_TG,
        target_T=target_T,
        negative_rank_T=mine.rank_T,
    )


def in_batch_mask(
    triples: Triples, process: int, processes: int, excluded: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Which passages the process's triples are scored against. Every process knows the whole batch: nothing is sent.

    Args:
        triples: The global batch.
        process: Which share is this process's, from 0.
        processes: How many shares there are.
        excluded: Those of `make_batch`.
    Returns:
        ``allowed_TG`` (bool) and ``target_T`` (int64) of `Batch`.
    """
    parts = [triples.part(r, processes) for r in range(processes)]
    passage_G = np.concatenate([np.unique(np.concatenate([p.positive_T, p.negative_T])) for p in parts])
    different, first_G = np.unique(passage_G, return_index=True)
    counts_once_G = np.zeros(len(passage_G), bool)
    counts_once_G[first_G] = True
    mine = parts[process]
    target_T = first_G[np.searchsorted(different, mine.positive_T)]
    allowed_TG = counts_once_G & ~is_positive(mine.query_T[:, None], passage_G[None, :], excluded)
    allowed_TG[np.arange(len(target_T)), target_T] = True
    return allowed_TG, target_T
