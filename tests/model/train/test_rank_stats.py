"""What is attributed to ranks, against each triple's own loss and gradient by autograd in float64."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from data.mining.negative_lists import NegativeLists
from data.training.batches import Batch, batches_of_triples, make_batch
from model.train.micro_batch import to_device
from model.train.optim import layer_gradient_norms, named_groups
from model.train.rank_stats import PerRankStats, means_by_rank
from model.train.step import make_state, train_step
from tests.forked import spawn
from tests.model.train.test_step import ALONE, ENCODERS, LOSSES, PASSAGES, QUERIES, constant, gather_texts
from utils.declared import losses as declared
from utils.distributed import collectives, process_group
from utils.distributed.world import World
from utils.ir.rank_buckets import FIRST_RANKS, NAMES, bucket_of, counted

RANKS_DRAWN = np.array([0, 1, 5, 6, 20, 21, 50, 51, 100, 101, 200, 201, 1001, 5000])


def ranked_batches(loss: str, count: int, rank: int = 0, ranks: int = 1) -> list[Batch]:
    """Batches of 8 triples, all ranks' together, whose negatives have ranks on both sides of each bucket's bounds."""
    rng = np.random.default_rng(1)
    drawn = np.stack([rng.choice(PASSAGES, 5, replace=False) for _ in range(QUERIES)])
    rank_QN = rng.choice(RANKS_DRAWN, (QUERIES, 4))
    lists = NegativeLists(np.arange(QUERIES), drawn[:, 0], drawn[:, 1:], rank_QN, np.zeros((QUERIES, 4)))
    positives = (lists.query_Q, lists.positive_Q) if declared.LOSSES[loss].is_over_batch else None
    return [
        make_batch(
            triples, rank, ranks, lambda rows: gather_texts(0, rows), lambda rows: gather_texts(1, rows), positives
        )
        for triples in islice(batches_of_triples(lists, 1, 8, 3, 0), count)
    ]


def by_hand(
    encoder: nn.Module, loss: str, batch: Batch, temperature: float
) -> dict[str, list[tuple[float, float, float]]]:
    """{bucket: (loss, gradient norm, satisfied) of each triple}, one triple at a time."""
    with torch.no_grad():
        moved = to_device(batch, ALONE.device)
        queries_BD = encoder.encode(moved.queries, "query").rows.double()
        passages_MD = encoder.encode(moved.passages, "passage").rows.double()
    found: dict[str, list[tuple[float, float, float]]] = {}
    assert batch.negative_rank_T is not None
    for t, rank in enumerate(batch.negative_rank_T.tolist()):
        query_D = queries_BD[batch.query_index_T[t]].clone().requires_grad_()
        passages = passages_MD.clone().requires_grad_()
        own, other = int(batch.positive_index_T[t]), int(batch.negative_index_T[t])
        allowed = [own, other]
        if loss == "in_batch":
            assert batch.allowed_TG is not None
            allowed = np.flatnonzero(batch.allowed_TG[t]).tolist()
        scores = passages[allowed] @ query_D / temperature
        triple_loss = torch.logsumexp(scores, 0) - passages[own] @ query_D / temperature
        triple_loss.backward()
        assert query_D.grad is not None and passages.grad is not None
        norm = math.sqrt(sum(float(g.square().sum()) for g in (query_D.grad, passages.grad[own], passages.grad[other])))
        satisfied = float((passages[own] - passages[other]) @ query_D > 0)
        bucket = next(name for name, first in zip(NAMES[::-1], (*FIRST_RANKS[::-1], 0), strict=True) if rank >= first)
        found.setdefault(bucket, []).append((float(triple_loss.detach()), norm, satisfied))
    return found


def expected_means(encoder: nn.Module, loss: str, batches: list[Batch], temperature: float = 1.0) -> dict[str, float]:
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for batch in batches:
        for bucket, found in by_hand(encoder, loss, batch, temperature).items():
            rows.setdefault(bucket, []).extend(found)
    told: dict[str, float] = {}
    for bucket, found in rows.items():
        told[f"rank_{bucket}_triples"] = len(found)
        for place, name in enumerate(("loss", "gradient", "satisfied")):
            told[f"rank_{bucket}_{name}"] = float(np.mean([row[place] for row in found]))
    return told


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("grad_cache_tokens", [0, 30])
def test_a_step_s_attribution_is_that_of_its_triples_one_by_one(kind: str, loss: str, grad_cache_tokens: int) -> None:
    encoder = ENCODERS[kind]()
    batches = ranked_batches(loss, 3)
    expected = expected_means(encoder, loss, batches)
    assert len(expected) > 4 * 6, "several buckets"
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.0)
    state = make_state(encoder, loss, optimizer, constant(optimizer), ALONE, None, 0.0, grad_cache_tokens)
    train_step(state, batches)
    assert means_by_rank(state.tally.state()) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    state.tally.clear()
    assert means_by_rank(state.tally.state()) == {}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("temperature", [0.05, 4.0])
def test_under_a_temperature_the_gradient_is_that_of_the_encoded_rows(loss: str, temperature: float) -> None:
    encoder, batches = ENCODERS["static"](), ranked_batches(loss, 1)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.0)
    state = make_state(encoder, loss, optimizer, constant(optimizer), ALONE, None, 0.0, temperature=temperature)
    train_step(state, batches)
    expected = expected_means(encoder, loss, batches, temperature)
    assert means_by_rank(state.tally.state()) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def one_process(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    found, world = {}, World(rank, 2, torch.device("cpu"))
    for loss in LOSSES:
        encoder = ENCODERS["static"]()
        optimizer = torch.optim.SGD(encoder.parameters(), lr=0.0)
        state = make_state(encoder, loss, optimizer, constant(optimizer), world, None, 0.0)
        train_step(state, ranked_batches(loss, 3, rank, 2))
        found[loss] = collectives.sum_rows(world, state.tally.state())
    process_group.stop(world)
    torch.save(found, Path(directory) / f"rank-{rank}.pt")


def test_two_ranks_attribute_what_one_process_does(tmp_path: Path) -> None:
    spawn(one_process, tmp_path, processes=2)
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first == second
    for loss in LOSSES:
        expected = expected_means(ENCODERS["static"](), loss, ranked_batches(loss, 3))
        assert means_by_rank(first[loss]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_stored_tally_goes_on_and_one_of_other_buckets_is_left_out() -> None:
    rows_T3 = torch.tensor([[1.0, 2.0, 1.0], [3.0, 4.0, 0.0]])
    whole, first, second = (PerRankStats(torch.device("cpu")) for _ in range(3))
    whole.add(torch.tensor([3, 30]), rows_T3)
    whole.add(torch.tensor([4, 0]), rows_T3)
    first.add(torch.tensor([3, 30]), rows_T3)
    second.load(first.state())
    second.add(torch.tensor([4, 0]), rows_T3)
    assert second.state() == whole.state()
    assert means_by_rank(whole.state())["rank_1-5_gradient"] == 2.0
    third = PerRankStats(torch.device("cpu"))
    third.load([[1.0, 2.0]])
    assert means_by_rank(third.state()) == {}


def test_layer_norms_are_of_ance_s_groups_and_make_up_the_whole() -> None:
    encoder = ENCODERS["rdot_nll"]()
    weights = sum(float(parameter.detach().square().sum()) for parameter in encoder.parameters())
    for parameter in encoder.parameters():
        parameter.grad = parameter.detach().clone()
    norms = layer_gradient_norms(encoder)
    assert set(norms) == {"embeddings", "layer_0", "layer_1", "head"} == set(named_groups(encoder))
    assert sum(norm**2 for norm in norms.values()) == pytest.approx(weights, rel=1e-5)


def test_buckets_hold_each_rank_once() -> None:
    ranks = np.arange(1500)
    names = [NAMES[bucket] for bucket in bucket_of(ranks).tolist()]
    assert names[0] == "none"
    for rank, name in zip(ranks.tolist()[1:], names[1:], strict=True):
        first, _, last = name.partition("-")
        assert int(first) <= rank <= (int(last) if last else rank)
    assert counted(np.array([[0, 1], [5, 6]])) == {"none": 1, "1-5": 2, "6-20": 1}
