"""Optimiser steps on queries with a positive and 8 negatives: ours, sentence-transformers' loss, ANCE's triples."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks import baselines, common
from data.training.batches import Batch, Triples, make_batch
from drivers.job.encoder_setup import enable_packing
from model.kernels.precision import quickest_dtype
from model.train.optim import make_optimizer
from model.train.step import make_state, train_step
from utils.distributed.world import World

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from model.encoders.roberta_dot import RobertaDot

NEGATIVES = 8
# With 8 negatives each, the 64 triples of ANCE's published step (8 on each of 4 GPUs, twice); and 8 is what
# sentence-transformers' trainer gives a step where nothing is said.
QUERIES = 8
LEARNING_RATE = 1e-6
FORWARD_AND_BACKWARD = 3  # times the operations of a forward pass


def gather_from(ids: list[np.ndarray]) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    def gather(rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chosen = [ids[row] for row in rows_B.tolist()]
        return np.concatenate(chosen), np.cumsum([0, *map(len, chosen)])

    return gather


def triples_of(queries: int) -> Triples:
    """Query q has passage 9q as its positive and the eight after it as negatives; its triples follow each other."""
    query_T = np.repeat(np.arange(queries), NEGATIVES)
    positive_T = query_T * (NEGATIVES + 1)
    return Triples(query_T, positive_T, positive_T + 1 + np.tile(np.arange(NEGATIVES), queries))


def our_batch(query_ids: list[np.ndarray], passage_ids: list[np.ndarray], in_batch: bool) -> Batch:
    triples = triples_of(len(query_ids))
    positives = (np.arange(len(query_ids)), np.arange(len(query_ids)) * (NEGATIVES + 1)) if in_batch else None
    return make_batch(triples, 0, 1, gather_from(query_ids), gather_from(passage_ids), positives)


def our_step(
    encoder: RobertaDot, loss: str, dtype: torch.dtype | None, device: torch.device, batch: Batch
) -> Callable[[], float | None]:
    world = World(0, 1, device)
    enable_packing(encoder, dtype, world, trains=True)
    optimizer = make_optimizer("adamW", encoder, LEARNING_RATE, 1e-8, 0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    state = make_state(encoder, loss, optimizer, scheduler, world, dtype, 0.0)
    return lambda: train_step(state, [batch])


def their_step(
    model: SentenceTransformer,
    query_texts: list[str],
    passage_texts: list[str],
    dtype: torch.dtype | None,
    device: torch.device,
) -> Callable[[], float]:
    """One step of MultipleNegativesRankingLoss, tokenizing and padding included, as its trainer's collator does it."""
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss_of = MultipleNegativesRankingLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    columns = [query_texts] + [passage_texts[place :: NEGATIVES + 1] for place in range(NEGATIVES + 1)]

    def step() -> float:
        model.train()
        features = [
            {name: tensor.to(device) for name, tensor in model.preprocess(column).items() if torch.is_tensor(tensor)}
            for column in columns
        ]
        with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            loss = loss_of(features, None)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def main() -> None:
    flags = common.parser("train", __doc__ or "", layers=12, width=768, queries=QUERIES, repeats=3).parse_args()
    device, rng = common.own_device(), np.random.default_rng(2)
    dtype = quickest_dtype(device)
    query_lengths_Q = common.query_lengths(flags.queries, rng)
    passage_lengths_M = common.passage_lengths(flags.queries * (NEGATIVES + 1), rng)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        common.write_tokenizer(directory)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory)
        texts = [common.texts_of_lengths(lengths, rng) for lengths in (query_lengths_Q, passage_lengths_M)]
        query_ids, passage_ids = ([np.array(row) for row in tokenizer(column)["input_ids"]] for column in texts)
        encoder = common.make_encoder(flags.layers, flags.width, device=device)
        types = {"st_default": None, "st_equal_dtype": dtype} if dtype else {"st_default": None}
        theirs = {name: baselines.sentence_transformer(encoder, directory, torch.float32, device) for name in types}
    ance = baselines.ance_model(encoder)
    optimizer = torch.optim.AdamW(ance.parameters(), lr=LEARNING_RATE)
    grouped = [passage_ids[first : first + NEGATIVES + 1] for first in range(0, len(passage_ids), NEGATIVES + 1)]
    step = partial(our_step, dtype=dtype, device=device)
    works: dict[str, Callable[[], Any]] = {
        "ours_pairwise": step(encoder, "pairwise", batch=our_batch(query_ids, passage_ids, False)),
        "ours_in_batch": step(copy.deepcopy(encoder), "in_batch", batch=our_batch(query_ids, passage_ids, True)),
        **{name: their_step(theirs[name], texts[0], texts[1], types[name], device) for name in types},
        "ance_padded": lambda: baselines.ance_step(
            ance, optimizer, query_ids, [group[0] for group in grouped], [group[1:] for group in grouped], device
        ),
    }

    product = common.encoders_product(encoder, device, dtype)  # of its passes, which packing makes larger

    def prepare(name: str) -> None:
        """Each timed step comes after one that is not: the memory has gone back in between, and optimisers make their
        averages in their first. ANCE's has none before it: it is a batch for each query, each longer than our step.
        """
        baselines.allocate_as(name, device)
        if name != "ance_padded":
            works[name]()

    seconds = common.side_by_side(works, flags.repeats, device, product, prepare)
    seconds.setdefault("st_equal_dtype", seconds["st_default"])  # where ours is float32 too, they are the same step
    lengths_N = np.concatenate([query_lengths_Q, passage_lengths_M])
    flops = FORWARD_AND_BACKWARD * common.encoder_flops(lengths_N, flags.layers, flags.width)
    common.report(
        flags.json,
        device,
        {
            **{f"{name}_seconds_per_step": taken for name, taken in seconds.items()},
            "gemm_gflops": product.flops_per_second / 1e9,
        },
        {
            "vs_ance_padded": seconds["ance_padded"] / seconds["ours_pairwise"],
            "vs_st_default": seconds["st_default"] / seconds["ours_in_batch"],
            "vs_st_equal_dtype": seconds["st_equal_dtype"] / seconds["ours_in_batch"],
            "of_gemm_limit": flops / seconds["ours_pairwise"] / product.flops_per_second,
        },
    )


if __name__ == "__main__":
    main()
