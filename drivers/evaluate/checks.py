"""What an evaluation looks at in its first minute."""

from __future__ import annotations

import math
from pathlib import Path

from data.tokens.collection import Preprocessed
from data.tokens.token_cache import TokenCache, cache_files
from drivers.job.disk_budget import Item, run_item
from utils.errors import UserError
from utils.exchange.evaluations import check_as_published
from utils.text_files import check_ends


def ranking_item(collection: Preprocessed, split: str, depth: int) -> Item:
    """Of the disk: the run of a split's queries with a positive, ``depth`` passages each."""
    queries, passages = collection.queries(split), collection.passages
    lists = len(collection.qrels(split).queries_with_positive())
    return run_item(lists, min(depth, len(passages)), sum(mean_id_bytes(cache) for cache in (queries, passages)))


def check_candidates(path: Path) -> None:
    """UserError where ``path`` is not there to be reranked, is not what an evaluation published, or ends wrongly."""
    if not path.is_file():
        raise UserError(
            f"{path} is missing, expected candidates to rerank (top1000.dev or a TREC run of drivers.run_bm25); "
            "give the file that has them, or omit it"
        )
    check_as_published(path)
    check_ends(path)


def mean_id_bytes(cache: TokenCache) -> int:
    ids_path = cache.directory / cache_files(cache.name)[2]
    return math.ceil(ids_path.stat().st_size / max(len(cache), 1))
