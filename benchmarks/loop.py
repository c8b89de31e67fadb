"""Until a result: quickstart's top arm; then its loop with a 2-layer RoBERTa, ours and padded and ungrouped."""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks import baselines, common
from data.mining.candidates import Candidates
from data.mining.negative_lists import NegativeLists
from data.mining.select import Selection, chunk_of_queries, select_negatives
from data.mining.strategy import parse_strategy
from data.tokens.collection import Preprocessed, open_preprocessed, read_manifest
from data.tokens.token_cache import TokenCache, gather_from
from data.training.batches import Triples, batches_of_triples, make_batch
from drivers.embeddings.encode import texts_of
from drivers.job.encoder_setup import enable_packing
from model.encode import EncodingSettings, encode_blocks
from model.train.optim import make_optimizer
from model.train.step import make_state, train_step
from utils.distributed.world import World
from utils.exchange.atomic import numbered
from utils.exchange.layout import RECORD_PATTERN, ArmLayout, RunLayout
from utils.flag_values import path_argument
from utils.ir.metrics import evaluate
from utils.search.index import Index
from utils.search.settings import SearchSettings
from utils.search.source import in_memory

if TYPE_CHECKING:
    from model.encoders.roberta_dot import RobertaDot

REPO = Path(__file__).resolve().parent.parent
ENOUGH = 0.235  # dev MRR@10
PASSAGE_TOKENS, QUERY_TOKENS = 64, 32
GROUP_SIZE = 8  # negatives of a query that follow each other in ours
LEARNING_RATE = 1e-4
CHUNKS, TOPK, NEGATIVES, SEED = 2, 200, 20, 42  # quickstart's

Encode = Callable[[TokenCache, np.ndarray, int], np.ndarray]
Step = Callable[[Triples], object]


def quickstart(run: Path) -> tuple[float, float]:
    """Seconds from the start of the top arm until its negatives' dev MRR@10 is enough, and that MRR."""
    environment = {**os.environ, "PYTHON": sys.executable}
    argv = ["bash", "commands/quickstart.sh", "--strategy", "top", "--run_dir", str(run)]
    subprocess.run(argv, cwd=REPO, env=environment, check=True, stdout=sys.stderr)
    started = (run / ".stages" / "top.begun").stat().st_mtime
    ann_data = ArmLayout(RunLayout(run).arms / "top").ann_data
    for refresh in numbered(ann_data.root, RECORD_PATTERN):
        path = ann_data.record(refresh)
        mrr = float(json.loads(path.read_text())["mrr"])
        if mrr >= ENOUGH:
            return path.stat().st_mtime - started, mrr
    raise SystemExit(f"the top arm never had a dev MRR@10 of {ENOUGH}")


def loop(
    collection: Preprocessed, encode: Encode, step: Step, group_size: int, refreshes: int, steps: int, batch: int
) -> Iterator[float]:
    """The dev MRR@10 of each refresh; after each, so many steps on its negatives."""
    selection = Selection(parse_strategy("top", NEGATIVES, TOPK))
    dev_Q = collection.qrels("dev").queries_with_positive()
    train_qrels = collection.qrels("train")
    for refresh in range(refreshes):
        train_Q = chunk_of_queries(train_qrels.queries_with_positive(), CHUNKS, refresh, SEED)
        everything = np.arange(len(collection.passages))
        passages = in_memory(encode(collection.passages, everything, PASSAGE_TOKENS))
        dev_QD = encode(collection.queries("dev"), dev_Q, QUERY_TOKENS)
        queries_QD = np.concatenate([dev_QD, encode(collection.queries("train"), train_Q, QUERY_TOKENS)])
        with contextlib.closing(Index(passages, SearchSettings("faiss"))) as index:
            scores_QK, passages_QK = index.search(queries_QD, TOPK)
        yield evaluate(collection.qrels("dev").as_dict(), dev_Q, passages_QK[: len(dev_Q)], TOPK)["mrr@10"]
        candidates = Candidates(train_Q, passages_QK[len(dev_Q) :], scores_QK[len(dev_Q) :])
        selected = select_negatives(candidates, train_qrels.positives(), selection, SEED, refresh)
        for triples in first(steps, selected.lists, group_size, batch, refresh):
            step(triples)


def first(steps: int, lists: NegativeLists, group_size: int, batch: int, refresh: int) -> Iterator[Triples]:
    batches = batches_of_triples(lists.with_negatives(), group_size, batch, SEED, refresh)
    return (triples for _, triples in zip(range(steps), batches, strict=False))


def our_way(encoder: RobertaDot, collection: Preprocessed, device: torch.device) -> tuple[Encode, Step]:
    world = World(0, 1, device)
    enable_packing(encoder, None, world, trains=True)
    settings = EncodingSettings(PASSAGE_TOKENS, QUERY_TOKENS, 128 * PASSAGE_TOKENS, None)
    optimizer = make_optimizer("adamW", encoder, LEARNING_RATE, 1e-8, 0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    state = make_state(encoder, "pairwise", optimizer, scheduler, world, None, 1.0)
    queries = gather_from(collection.queries("train"), QUERY_TOKENS)
    passages = gather_from(collection.passages, PASSAGE_TOKENS)

    def encode(cache: TokenCache, rows: np.ndarray, tokens: int) -> np.ndarray:
        texts = texts_of(cache, settings, None if tokens == PASSAGE_TOKENS else rows)
        return np.concatenate(list(encode_blocks(encoder, texts, (0, len(rows)), settings.budget_tokens, device, None)))

    return encode, lambda triples: train_step(state, [make_batch(triples, 0, 1, queries, passages)])


def ance_way(encoder: RobertaDot, collection: Preprocessed, device: torch.device) -> tuple[Encode, Step]:
    """Every text padded to the longest there may be; for each triple, query and positive encoded again."""
    encoder = baselines.ance_model(encoder)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=LEARNING_RATE, weight_decay=0.0)

    def ids_of(cache: TokenCache, rows: np.ndarray, tokens: int) -> list[np.ndarray]:
        tokens_T, offsets_B1 = cache.gather(rows, tokens)
        return np.split(tokens_T, offsets_B1[1:-1])

    def encode(cache: TokenCache, rows: np.ndarray, tokens: int) -> np.ndarray:
        return baselines.ance_encode(encoder, ids_of(cache, rows, tokens), device, tokens)

    def step(triples: Triples) -> None:
        negatives = ids_of(collection.passages, triples.negative_T, PASSAGE_TOKENS)
        baselines.ance_step(
            encoder,
            optimizer,
            ids_of(collection.queries("train"), triples.query_T, QUERY_TOKENS),
            ids_of(collection.passages, triples.positive_T, PASSAGE_TOKENS),
            [[negative] for negative in negatives],
            device,
            QUERY_TOKENS,
            PASSAGE_TOKENS,
        )

    return encode, step


def compare(
    flags: argparse.Namespace, preprocessed: Path, device: torch.device
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of the loop, ours and ANCE's way, from the same weights; the dev MRR@10 at its last refresh."""
    manifest = read_manifest(preprocessed)
    lengths = min(PASSAGE_TOKENS, manifest["max_seq_length"]), min(QUERY_TOKENS, manifest["max_query_length"])
    collection = open_preprocessed(preprocessed, *lengths)
    start = common.make_encoder(
        flags.layers,
        flags.width,
        device=device,
        vocab_size=manifest["vocab_size"],
        pad_token_id=collection.pad_token_id,
        pooling="mean",
        score_scale=flags.width**-0.5,
    )

    mrrs: dict[str, float] = {}

    def work(name: str, way: Callable[..., tuple[Encode, Step]], group_size: int) -> None:
        encode, step = way(copy.deepcopy(start), collection, device)
        *_, mrrs[name] = loop(collection, encode, step, group_size, flags.refreshes, flags.steps, flags.batch)

    works = {
        "ours": lambda: work("ours", our_way, GROUP_SIZE),
        "ance_padded": lambda: work("ance_padded", ance_way, 1),
    }
    seconds = common.side_by_side(
        works, flags.repeats, device, prepare=lambda name: baselines.allocate_as(name, device)
    )
    return seconds, mrrs


def main() -> None:
    sizes = {"layers": 2, "width": 128, "refreshes": 2, "steps": 50, "batch": 128, "repeats": 1}
    parser = common.parser("loop", __doc__ or "", **sizes)
    parser.add_argument("--preprocessed", type=path_argument, help="leave quickstart out: its preprocessed directory")
    flags = parser.parse_args()
    device, figures = common.own_device(), {}
    with tempfile.TemporaryDirectory() as temporary:
        preprocessed = flags.preprocessed
        if preprocessed is None:
            figures["quickstart_seconds_until_enough"], figures["quickstart_mrr_then"] = quickstart(Path(temporary))
            preprocessed = Path(temporary) / "preprocessed"
        seconds, mrrs = compare(flags, preprocessed, device)
    common.report(
        flags.json,
        device,
        {
            **figures,
            **{f"{name}_seconds": taken for name, taken in seconds.items()},
            **{f"{name}_mrr_at_last_refresh": mrr for name, mrr in mrrs.items()},
        },
        {"vs_ance_padded": seconds["ance_padded"] / seconds["ours"]},
    )


if __name__ == "__main__":
    main()
