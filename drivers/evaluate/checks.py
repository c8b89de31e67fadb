"""What an evaluation looks at in its first minute."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from data.tokens.collection import Preprocessed
from data.tokens.token_cache import TokenCache, cache_files
from drivers.cli import EvalFlags
from drivers.embeddings.store import describe_embeddings
from drivers.embeddings.text_lengths import describe_lengths
from drivers.job.disk_budget import (
    check_space,
    run_item,
)
from drivers.job.model_identity import check_checkpoint
from drivers.job.preflight import Preflight, check_collection, check_publishing
from utils.errors import UserError
from utils.exchange.evaluations import check_as_published
from utils.text_files import check_ends


def check_evaluation(checks: Preflight, collection: Preprocessed, flags: EvalFlags, tokenizer_dir: str) -> None:
    """The checks of an evaluation, but for what its model computes."""
    output_dir, queries, passages = Path(flags.output_dir), collection.queries(flags.split), collection.passages
    lists = len(collection.qrels(flags.split).queries_with_positive())
    id_bytes = sum(mean_id_bytes(cache) for cache in (queries, passages))
    items = [run_item(lists, min(flags.topk, len(passages)), id_bytes)]
    model = [partial(check_checkpoint, flags, flags.model_name_or_path)] if flags.model_name_or_path else []
    stored = [partial(describe_embeddings, Path(flags.embedding_dir))] if flags.embedding_dir else []
    checks.on_process0(
        *model,
        *stored,
        *check_collection(collection, tokenizer_dir, (flags.split,)),
        partial(describe_lengths, flags, collection),
        partial(check_publishing, output_dir),
        partial(check_space, output_dir, items),
    )


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
