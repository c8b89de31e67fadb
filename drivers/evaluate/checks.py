"""What an evaluation looks at in its first minute."""

from __future__ import annotations

import math
from pathlib import Path

from data.tokens.token_cache import TokenCache, cache_files
from drivers.evaluate.splits import RankedSplit
from drivers.job.disk_budget import Item, run_item
from utils.errors import UserError
from utils.exchange.evaluations import check_as_published
from utils.text_files import check_ends


def ranking_item(split: RankedSplit, depth: int) -> Item:
    """Of the disk: the run of a split's ranked queries, ``depth`` passages each."""
    queries, passages = split.collection.queries(split.name), split.collection.passages
    id_bytes = sum(mean_id_bytes(cache) for cache in (queries, passages))
    return run_item(len(split.query_Q), min(depth, len(passages)), id_bytes)


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
