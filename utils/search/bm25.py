"""BM25 over texts: an index made by the bm25s library, and exact top-k lists from it.

The library (Lù 2024, arXiv 2407.03618) stores what each word adds to each text's score, so that a query's scores are a
sum of columns. Its own top-k lists break ties at random and are filled up with texts that share no word with the
query; the lists made here hold matches only, and ties keep the order of the texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import UserError
from utils.run_log import Progress

if TYPE_CHECKING:
    from bm25s import BM25

STOPWORDS = "en"
QUERIES_PER_BLOCK = 256
SCORES_WORTH_PROCESSES = 2_000_000_000  # about 15 s of one core

Words = list[str]
Stem = Callable[[str], str]
WordIds = list[int]


def words_of(texts: Iterable[str], stem: Stem | None = None) -> list[Words]:
    """Lower-cased words of at least two characters without English stopwords (bm25s's tokenizer), each by its stem."""
    import bm25s

    stemmer = stem and partial(stems_of, stem=stem)
    return bm25s.tokenize(texts, stopwords=STOPWORDS, stemmer=stemmer, return_ids=False, show_progress=False)


def stems_of(words: Words, stem: Stem) -> Words:
    return [stem(word) for word in words]


def build_index(texts: Iterable[str], k1: float, b: float, stem: Stem | None = None) -> BM25:
    """The index of ``texts`` in Lucene's variant: a word that f of a text's d words are, and n of N texts have, adds
    log(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + k1 * (1 - b + b * d / mean d)). Words are those of `words_of`.

    Args:
        texts: in the order of their rows.
        k1, b: BM25's own.
        stem: what makes a word its stem; None: nothing.
    Raises:
        UserError: no text has a word.
    """
    import bm25s

    stemmer = stem and partial(stems_of, stem=stem)
    words = bm25s.tokenize(texts, stopwords=STOPWORDS, stemmer=stemmer, show_progress=False)
    if not words.vocab:
        raise UserError("no passage has a word that BM25 counts (two letters or more, not a stopword); check the texts")
    index = bm25s.BM25(k1=k1, b=b, method="lucene")
    index.index(words, show_progress=False)
    return index


def best_matches(scores_N: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the k largest scores above 0 and these scores, best first, ties by row. Fewer where fewer match."""
    rows_M = np.flatnonzero(scores_N > 0)
    scores_M = scores_N[rows_M]
    if len(rows_M) > k:
        last = np.partition(scores_M, -k)[-k]
        above = np.flatnonzero(scores_M > last)
        tied = np.flatnonzero(scores_M == last)[: k - len(above)]
        kept = np.sort(np.concatenate([above, tied]))
        rows_M, scores_M = rows_M[kept], scores_M[kept]
    order = np.argsort(-scores_M, kind="stable")
    return rows_M[order], scores_M[order]


def search_block(index: BM25, queries: list[WordIds], k: int) -> tuple[np.ndarray, np.ndarray]:
    """``search`` of a few queries, in this process."""
    scores_QK = np.full((len(queries), k), -np.inf, np.float32)
    rows_QK = np.full((len(queries), k), -1, np.int64)
    for i, query in enumerate(queries):
        rows, scores = best_matches(index.get_scores_from_ids(query), k)
        rows_QK[i, : len(rows)], scores_QK[i, : len(rows)] = rows, scores
    return scores_QK, rows_QK


@lru_cache(maxsize=1)
def open_index(directory: Path) -> BM25:
    """A saved index, memory-mapped: the processes of a pool share one copy. Without its words: queries are ids."""
    import bm25s

    index = bm25s.BM25.load(directory, mmap=True, load_vocab=False, show_progress=False)
    # A plain view of the maps: indexing np.memmap itself costs a new memmap object each time.
    index.scores |= {name: np.asarray(index.scores[name]) for name in ("data", "indices", "indptr")}
    return index


def search_saved(directory: Path, queries: list[WordIds], k: int) -> tuple[np.ndarray, np.ndarray]:
    return search_block(open_index(directory), queries, k)


def search_in_processes(
    index: BM25, blocks: list[list[WordIds]], k: int, workers: int, scratch: Path
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`search_block` of each block, in order.

    Args:
        index: of all texts.
        blocks: the queries' word ids, some queries in each.
        k: the length of the lists.
        workers: processes.
        scratch: a directory of our own, through which the index reaches them.

    Yields:
        scores_QK and rows_QK of a block.
    """
    index.save(scratch, show_progress=False)
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(search_saved, repeat(scratch), blocks, repeat(k))


def search(
    index: BM25, queries: list[Words], k: int, workers: int, scratch: Path, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """The k best matches of each query, best first, ties by row.

    Args:
        index: of all texts.
        queries: their words; one counts as often as the query has it.
        k: the length of the lists.
        workers: processes that share much work; little of it is done in this one.
        scratch: a directory of our own, through which the index reaches them.
        what: the name of the queries in the progress line.

    Returns:
        scores_QK float32 and rows_QK int64, filled up with -inf and -1 where fewer texts share a word with the query.
    """
    ids = [index.get_tokens_ids(words) for words in queries]
    blocks = [ids[start : start + QUERIES_PER_BLOCK] for start in range(0, len(ids), QUERIES_PER_BLOCK)]
    if workers > 1 and len(ids) * index.scores["num_docs"] > SCORES_WORTH_PROCESSES:
        found = search_in_processes(index, blocks, k, workers, scratch)
    else:
        found = (search_block(index, block, k) for block in blocks)
    scores_QK, rows_QK = np.empty((len(ids), k), np.float32), np.empty((len(ids), k), np.int64)
    progress = Progress(len(ids), what)
    start = 0
    for scores, rows in found:
        scores_QK[start : start + len(rows)], rows_QK[start : start + len(rows)] = scores, rows
        start += len(rows)
        progress.advance(len(rows))
    progress.close()
    return scores_QK, rows_QK
