"""drivers.embeddings.distributed_search: shares of several processes."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from drivers.embeddings import distributed_search
from drivers.embeddings.distributed_search import (
    ShardedIndex,
    check_index_fits,
    check_index_fits_model,
    retrieve,
    score_candidates,
)
from drivers.embeddings.encode import PassageShare, share_of_texts
from drivers.embeddings.shards import PASSAGE_SHARDS, rows_of_shard
from drivers.job import progress
from drivers.job.model_identity import ModelSettings
from drivers.job.progress import UNMONITORED, Monitor, StopEncoding
from drivers.job.settings import search_settings
from model.encoders.registry import encoder_class, encoder_type, new_encoder, read_spec
from model.encoders.static import StaticEncoder
from tests import REPO
from tests.forked import spawn
from tests.processes_as_threads import ALONE, CPU, on_processes
from utils.distributed import agreement, collectives, process_group
from utils.distributed.world import Waits, World
from utils.errors import UserError
from utils.flag_groups.search import SearchFlags
from utils.search import scores
from utils.search.faiss_backend import FaissBackend
from utils.search.index import Index
from utils.search.settings import GpuSearchFailed, SearchSettings
from utils.search.source import Passages, in_memory

DIMS = 8


# Searching


def retrieve_on_processes(
    queries_QD: np.ndarray,
    passages_ND: np.ndarray,
    cuts: list[int],
    k: int,
    patch: pytest.MonkeyPatch,
    monitors: list[Monitor] | None = None,
) -> list[Any]:
    """`retrieve` on as many processes as there are shares; their results."""

    def work(world: World) -> Any:
        share = PassageShare(in_memory(passages_ND[cuts[world.process] : cuts[world.process + 1]]), cuts[world.process])
        monitor = monitors[world.process] if monitors else UNMONITORED
        return retrieve(world, queries_QD, share, len(passages_ND), k, SearchSettings("torch"), monitor)

    return on_processes(len(cuts) - 1, work, patch)


@pytest.mark.parametrize("cuts", [[0, 40], [0, 25, 40], [0, 0, 3, 40]])
@pytest.mark.parametrize("queries", [0, 1, 7])
def test_shares_merged_in_blocks_are_one_search(
    cuts: list[int], queries: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    queries_QD, passages_ND = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (queries, 40))
    exchanged_bytes = 3 * 10 * (len(cuts) - 1) * (4 + 8)  # three queries' lists of ten at a time
    monkeypatch.setattr(distributed_search, "EXCHANGE_BYTES", exchanged_bytes)
    searches: list[int] = []
    search = Index.search

    def counted(index: Index, queries_QD: np.ndarray, *others: Any) -> Any:
        searches.append(len(queries_QD))
        return search(index, queries_QD, *others)

    monkeypatch.setattr(Index, "search", counted)
    products_QN = queries_QD @ passages_ND.T
    expected = [sorted(range(40), key=lambda row: (-products_N[row], row))[:10] for products_N in products_QN]
    for scores_QK, offsets_QK in retrieve_on_processes(queries_QD, passages_ND, cuts, 10, monkeypatch):
        assert offsets_QK.shape == (queries, 10)
        assert offsets_QK.tolist() == expected
        np.testing.assert_array_equal(scores_QK, np.take_along_axis(products_QN, offsets_QK, 1))
    assert searches == [queries] * (len(cuts) - 1), "each process builds its index once"
    said = capsys.readouterr().out
    assert said == f"search: torch, exact, on cpu; {queries} queries, 40 passages, top 10\n"


@pytest.mark.parametrize(("faiss_index", "nprobe"), [("Flat", 0), ("IVF2,Flat", 2)])
def test_an_index_is_built_once_for_many_searches(
    faiss_index: str, nprobe: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes, each with its share; also where a search is left. What is closed is built again."""
    rng = np.random.default_rng(2)
    passages_ND, first_QD, other_QD = (rng.integers(-9, 10, (n, 4)).astype(np.float32) for n in (300, 7, 5))
    cuts = [0, 90, 200, 300]
    built: list[int] = []
    build = FaissBackend.build

    def counted(backend: FaissBackend, passages: Passages, *others: Any) -> Any:
        built.append(passages.rows)
        return build(backend, passages, *others)

    monkeypatch.setattr(FaissBackend, "build", counted)

    def work(world: World) -> Any:
        first, stop = cuts[world.process : world.process + 2]
        share = PassageShare(in_memory(passages_ND[first:stop]), first)
        index = ShardedIndex(world, share, 300, SearchSettings("faiss", faiss_index, nprobe))
        found = [index.search(first_QD, 10), index.search(other_QD, 300)]
        left = index.search(first_QD, 10, Monitor(lambda: world.process == 1))
        found.append(index.search(first_QD, 10))
        index.close()
        return left, [*found, index.search(first_QD, 10)]

    for left, found in on_processes(3, work, monkeypatch):
        assert left is None
        for lists, queries_QD, k in zip(
            found, (first_QD, other_QD, first_QD, first_QD), (10, 300, 10, 10), strict=True
        ):
            products_QN = queries_QD @ passages_ND.T
            best = [sorted(range(300), key=lambda row: (-products_N[row], row))[:k] for products_N in products_QN]
            if faiss_index == "Flat":
                assert lists[1].tolist() == best
            np.testing.assert_array_equal(lists[0], np.take_along_axis(products_QN, np.array(best), 1))
    assert sorted(built) == [90, 90, 100, 100, 110, 110], "once, and once more after it was closed"


def test_all_processes_leave_a_search_that_one_is_told_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.ones((40, 3), np.float32)
    monitors = [Monitor(), Monitor(should_stop=lambda: True), Monitor()]
    assert retrieve_on_processes(vectors, vectors, [0, 10, 30, 40], 5, monkeypatch, monitors) == [None] * 3


def one_process(process: int, directory: str) -> None:
    """Of two: the second fails at once, in each of three ways, where the first would search for hours."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=process, world_size=2)
    world, vectors = World(process, 2, CPU, Waits(30.0)), np.ones((40, 3), np.float32)
    search, faults = Index.search, [UserError("of one"), StopEncoding(), GpuSearchFailed("cuda:1 cannot")]
    agreement.LOOK_EVERY_SECONDS = 0.05

    def endless(index: Index, queries_QD: Any, k: int, advance: Any) -> Any:
        if index.settings.device.type == "cpu":
            return search(index, queries_QD, k, advance)
        if process == 1:
            raise faults.pop(0)
        while True:
            advance(0)
            time.sleep(0.01)

    Index.search = endless  # type: ignore[method-assign, assignment]
    Index.device_for = lambda index, k: index.settings.device  # type: ignore[method-assign]
    share, options = (
        PassageShare(in_memory(vectors[:20]), process * 20),
        SearchSettings("faiss", device=torch.device("cuda")),
    )
    with pytest.raises(UserError, match="of one"):
        retrieve(world, vectors, share, 40, 5, options)
    assert retrieve(world, vectors, share, 40, 5, options) is None
    found = retrieve(world, vectors, share, 40, 25, options)
    assert found is not None and found[1].tolist() == [list(range(25))] * 40
    process_group.stop(world)


def test_a_process_that_cannot_search_keeps_none_at_work(tmp_path: Path) -> None:
    spawn(one_process, tmp_path, processes=2)  # which fails where one of them is still searching


def test_the_watch_is_told_in_words() -> None:
    told: list[str] = []
    with (
        pytest.raises(StopEncoding),
        Monitor(lambda: len(told) == 3, told.append).over(
            ALONE, 4000, "encoding passages", "passages encoded"
        ) as advance,
    ):
        for _ in range(9):
            advance(1000)
    for text, expected in zip(told[-2:], ("2,000/4,000 (50%)", "3,000/4,000 (75%)"), strict=True):
        assert re.fullmatch(rf"encoding passages {re.escape(expected)}, [\d.,]+/s, ETA [\d:]+", text)
    with Monitor(set_status=told.append).over(ALONE, 0, "searching pairs", "pairs") as advance:
        advance(0)
    assert told[-1] == "searching pairs 0, 0.0/s"


def test_progress_is_told_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Recorder:
        def __init__(self, total: int, what: str) -> None:
            told.append((total, what))
            self.advance = told.append

        def close(self) -> None:
            told.append("closed")

    monkeypatch.setattr(progress, "Progress", Recorder)
    vectors = np.ones((3000, 2), np.float32)
    share = PassageShare(in_memory(vectors), 0)
    retrieve(ALONE, vectors[:2000], share, 3000, 5, SearchSettings("torch"))
    assert told[0] == (2000 * 3000, "query-passage pairs searched") and told[-1] == "closed"
    assert sum(told[1:-1]) == 2000 * 3000


@pytest.mark.parametrize("cuts", [[0, 40], [0, 25, 40], [0, 0, 3, 40]])
def test_candidates_are_scored_by_who_holds_them(cuts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    queries_QD, passages_ND = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (6, 40))
    passages_QK = np.array([rng.choice(40, 8, replace=False) for _ in queries_QD])
    passages_QK[2, 5:] = -1
    monkeypatch.setattr(scores, "ROWS_AT_ONCE", 7)
    parts = []
    monkeypatch.setattr(collectives, "gather_rows", lambda world, scores_QK: [scores_QK])
    for start, stop in pairwise(cuts):
        share = PassageShare(in_memory(passages_ND[start:stop]), start)
        parts.append(score_candidates(ALONE, queries_QD, share, passages_QK))
    expected_QK = np.take_along_axis(queries_QD @ passages_ND.T, passages_QK, 1)
    np.testing.assert_array_equal(np.max(parts, 0), np.where(passages_QK < 0, -np.inf, expected_QK))


# The index, before anything is encoded


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "static", "vocab_size": 30, "embedding_size": 12},
        {"model_type": "roberta", "hidden_size": 16, "embedding_size": 24},
        {"model_type": "roberta", "hidden_size": 16},
        {"model_type": "roberta", "hidden_size": 800},
        {"model_type": "roberta"},
    ],
)
def test_dims_are_those_of_the_model(config: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"vocab_size": 30, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**sizes, **config}))
    model_type = "static" if config["model_type"] == "static" else "rdot_nll"
    encoder = new_encoder(model_type, str(path), {})
    assert read_spec(str(tmp_path), model_type) == encoder.spec
    assert encoder_class(encoder_type(model_type)).spec_of(config).embedding_dim == encoder.spec.embedding_dim


@pytest.mark.parametrize("size", [None, "wide", 0, -3])
def test_a_config_without_usable_dims(size: Any) -> None:
    with pytest.raises(UserError, match="embedding_size"):
        StaticEncoder.spec_of({"model_type": "static", "embedding_size": size})
    with pytest.raises(UserError, match="embedding_size"):
        StaticEncoder.spec_of({"model_type": "static"})


def test_cells_are_compared_with_the_smallest_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "static", "embedding_size": DIMS}))
    settings = SearchSettings("faiss", "IVF40,Flat", 2)
    check_index_fits_model(settings, 64, ModelSettings(str(tmp_path), "static"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="has 40 cells, one process holds 32 embeddings"):
        check_index_fits_model(settings, 64, ModelSettings(str(tmp_path), "static"))
    check_index_fits(SearchSettings("faiss", "IVF3,Flat"), 3, (DIMS,))  # one has all
    settings = SearchSettings("faiss", "PQ3")
    with pytest.raises(UserError, match="PQ3"):
        check_index_fits_model(settings, 64, ModelSettings(str(tmp_path), "static"))
    check_index_fits_model(settings, 64, ModelSettings("somebody/hub-model", "static"))


def test_rows_are_counted_where_a_passage_has_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares are those of the encoder's shards; what as many rows as there may be could be built of is not refused."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(FaissBackend, "check", lambda backend, settings, dim, rows: asked.append((dim, rows)))
    for text_shape in ((DIMS,), (1, DIMS), (3, DIMS)):
        check_index_fits(SearchSettings("faiss"), 64, text_shape)
    assert asked == [(DIMS, 32), (DIMS, 32), (DIMS, 96)]
    passages, long_shape = 200_000, (64, 768)  # a shard of as few passages as have SHARD_BYTES together
    check_index_fits(SearchSettings("faiss"), passages, long_shape)
    texts = rows_of_shard(passages, 64 * 768, PASSAGE_SHARDS)
    assert texts < rows_of_shard(passages, 768, PASSAGE_SHARDS)
    shares = [share_of_texts(passages, texts, process, 2) for process in range(2)]
    assert asked[-1] == (768, 64 * min(stop - start for start, stop in shares))


# A disk that is full


def test_the_generator_on_a_full_disk(tiny_preprocessed: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    model, disk = tmp_path / "model", tmp_path / "disk"
    model.mkdir()
    vocab_size = json.loads((tiny_preprocessed / "manifest.json").read_text())["vocab_size"]
    StaticEncoder({"vocab_size": vocab_size, "embedding_size": 512}).save_pretrained(model)  # 600 KiB of embeddings
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_tokenizer / name, model / name)
    command = [
        sys.executable, "-m", "drivers.run_ann_data_gen", "--data_dir", tiny_preprocessed, "--training_dir",
        tmp_path / "none", "--init_model_dir", model, "--model_type", "static", "--max_seq_length", "32",
        "--max_query_length", "16", "--output_dir", disk, "--end_output_num", "0", "--topk_training", "50",
        "--negative_strategy", "top",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    largest = 50_000  # bytes: more than the queries' shards take, less than the passages'
    done = subprocess.run(
        list(map(str, command)),
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)),
    )
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert len(done.stderr.splitlines()) == 1 and "no space left writing" in done.stderr
    assert "passages-0000000000.npy" in done.stderr
    (directory,) = (disk / "embeddings").iterdir()
    left = sorted(path.name for path in directory.iterdir())
    assert left == [f"{name}-query-0000000000.{kind}" for name in ("dev", "train") for kind in ("json", "npy")]


def test_too_little_memory_for_a_search_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="--search_memory_mib is 15, expected 0 or at least 16"):
        search_settings(SearchFlags(search_memory_mib=15), CPU)
    for mib, expected in ((0, 512), (16, 16)):
        assert search_settings(SearchFlags(search_memory_mib=mib), CPU).budget_bytes == expected * 2**20
