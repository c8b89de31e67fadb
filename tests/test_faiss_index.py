"""utils.faiss_index: what faiss asks for, against faiss itself; its GPU by a stand-in with the real one's refusals."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from drivers import retrieval
from utils import search as search_module
from utils.errors import UserError
from utils.faiss_index import check_index, gpu_refusal, make_index, training_points
from utils.search import SearchOptions, describe_search, in_memory, search

DIMS = 16
GPU = torch.device("cuda", 0)


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, DIMS)).astype(np.float32)


# How many passages it is trained on


TRAINED = {
    "PQ4x4": 16,
    "PQ4": 256,
    "PQ2x9": 512,
    "IVF20,PQ4x4": 20,
    "IVF10,PQ4x5": 32,
    "IVF9,Flat": 9,
    "IVF16_HNSW8,Flat": 16,
    "OPQ4,PQ4x4": 256,
    "PCA8,IVF9,PQ2x6": 64,
    "PCA8,Flat": 8,
    "HNSW8_PQ4x4": 16,
    "PQ4x4,RFlat": 16,
    "PQ4x4,Refine(PQ4x5)": 32,
    "L2norm,PQ4x4": 16,
    "RQ2x6": 64,
    "IVF8,RQ2x5": 32,
    "PRQ2x2x5": 32,
    "IVF10,PQ4x4fs": 16,
    "IVF8,RaBitQ": 8,
    "SQ8": 1,
    "HNSW8": 1,
}


def refusal_of(faiss_index: str, passages: int) -> str:
    """What faiss itself says of training on so many; "" where it does it."""
    try:
        make_index(faiss_index, DIMS, 0).train(vectors(passages))
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("faiss_index", "points"), TRAINED.items())
def test_what_faiss_cannot_train_is_refused_before_encoding(faiss_index: str, points: int) -> None:
    check_index(faiss_index, DIMS, passages=points)
    assert max(1, training_points(make_index(faiss_index, DIMS, 0))) == points
    if points > 1:
        assert refusal_of(faiss_index, points - 1)
        with pytest.raises(UserError, match=rf"has {points} cells, one|trained on {points} passages at least, one"):
            check_index(faiss_index, DIMS, passages=points - 1)
    if points < 256:
        assert not refusal_of(faiss_index, points)


# A GPU


SMALL_MEMORY = (
    "Error in void faiss::gpu::GpuIndexIVFPQ::verifyPQSettings_() const at /faiss/gpu/GpuIndexIVFPQ.cu:454: Error: "
    "'requiredSmemSize <= getMaxSharedMemPerBlock(config_.device)' failed: Device 0 has 49152 bytes of shared memory, "
    "while 8 bits per code and 64 sub-quantizers requires 65536 bytes. "
    "Consider useFloat16LookupTables and/or reduce parameters"
)
NOT_THERE = (
    "Error in virtual faiss::Index *faiss::gpu::ToGpuCloner::clone_Index(const Index *) at "
    "/faiss/gpu/GpuCloner.cpp:287: This index type is not implemented on GPU."
)
MANY_PROBES = (
    "Error in void faiss::gpu::validateNProbe(size_t, bool) at /faiss/gpu/impl/IndexUtils.cu:41: Error: "
    "'nprobe > 0 && nprobe <= (size_t)getMaxKSelection(use_cuvs)' failed: "
    "GPU IVF index only supports nprobe selection up to 2048 (requested 4096)"
)
NO_MEMORY = (
    "Error in virtual void *faiss::gpu::StandardGpuResourcesImpl::allocMemory(const AllocRequest &) at "
    "/faiss/gpu/StandardGpuResources.cpp:530: Error: 'err == cudaSuccess' failed: StandardGpuResources: alloc fail "
    "type IVFLists dev 0 space Device stream 0x0 size 4294967296 bytes (cudaMalloc error out of memory [2])\n"
)


class StandInGpu:
    """faiss's GPU functions as GpuCloner.cpp and the indexes' checks have them; an index on it searches as before."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.done: list[Any] = []
        self.fails_after: int | None = None  # so many calls of search, then there is no memory
        gpu_refusal.cache_clear()
        patch.setattr(faiss, "StandardGpuResources", self.resources, raising=False)
        patch.setattr(faiss, "index_cpu_to_gpu", self.moved, raising=False)
        patch.setattr(torch.cuda, "empty_cache", lambda: self.done.append("emptied"))

    def resources(self) -> Any:
        self.done.append("resources")
        return SimpleNamespace(setTempMemory=lambda size: None)

    def moved(self, resources: Any, device: int, index: Any) -> Any:
        part = index
        while isinstance(part, (faiss.IndexPreTransform, faiss.IndexIDMap)):
            part = faiss.downcast_index(part.index)
        if not isinstance(part, (faiss.IndexFlat, faiss.IndexIVFFlat, faiss.IndexIVFPQ)):
            raise RuntimeError(NOT_THERE)
        if isinstance(part, faiss.IndexIVFPQ) and 4 * part.pq.M * part.pq.ksub > 49152:
            raise RuntimeError(SMALL_MEMORY)
        if isinstance(part, faiss.IndexIVF) and part.nprobe > 2048:
            raise RuntimeError(MANY_PROBES)
        self.done.append(device)
        return self if self.fails_after is not None else index

    is_trained, ntotal = True, 0

    def reset(self) -> None: ...

    def add(self, block_MD: np.ndarray) -> None:
        self.block_MD = block_MD

    def search(self, queries_QD: np.ndarray, k: int) -> Any:
        assert self.fails_after is not None
        self.fails_after -= 1
        if self.fails_after < 0:
            raise RuntimeError(NO_MEMORY)
        return faiss.knn(queries_QD, self.block_MD, k, metric=faiss.METRIC_INNER_PRODUCT)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInGpu]:
    yield StandInGpu(monkeypatch)
    gpu_refusal.cache_clear()


def fits(faiss_index: str, dims: int, patch: pytest.MonkeyPatch, nprobe: int = 0, passages: int = 100_000) -> None:
    patch.setattr(retrieval.distributed, "own_device", lambda no_cuda: GPU)
    flags = SimpleNamespace(faiss_index=faiss_index, nprobe=nprobe, no_cuda=False)
    retrieval.check_index_fits(flags, passages, dims)


@pytest.mark.parametrize(
    ("faiss_index", "nprobe", "reason"),
    [
        ("IVF65536,PQ64", 64, "64 sub-quantizers requires 65536 bytes"),
        ("HNSW32", 0, "This index type is not implemented on GPU."),
        ("PQ16", 0, "This index type is not implemented on GPU."),
        ("IVF4096,PQ32", 4096, "only supports nprobe selection up to 2048"),
        ("OPQ64,IVF1024,PQ64", 0, "64 sub-quantizers requires 65536 bytes"),
        ("IVF4096,PQ32", 64, ""),
        ("IVF1024,Flat", 64, ""),
    ],
)
def test_the_empty_index_is_tried_on_the_gpu_before_encoding(
    faiss_index: str,
    nprobe: int,
    reason: str,
    gpu: StandInGpu,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fits(faiss_index, 768, monkeypatch, nprobe)
    said = capsys.readouterr().err.splitlines()
    options = SearchOptions("faiss", faiss_index, nprobe, GPU)
    where = describe_search(options, 768, 200)
    if reason:
        assert len(said) == 1 and reason in said[0]
        assert said[0].startswith(f"search: faiss has no {faiss_index} on cuda:0 (")
        assert said[0].endswith("): the CPU will search")
        assert where.endswith(", on cpu")
    else:
        assert not said and where.endswith(", on cuda:0")
        assert describe_search(options, 768, 4096).endswith(", on cpu"), "no GPU index returns so many"
    assert gpu.done[:2] == ["emptied", "resources"], "torch's memory is given back first"


def test_a_search_that_the_gpu_refuses_is_the_cpu_s(gpu: StandInGpu, capsys: pytest.CaptureFixture[str]) -> None:
    passages_ND, queries_QD = vectors(300), vectors(7, 1)
    found = search(queries_QD, in_memory(passages_ND), 5, SearchOptions("faiss", "HNSW8", 0, GPU))
    expected = search(queries_QD, in_memory(passages_ND), 5, SearchOptions("faiss", "HNSW8"))
    assert np.array_equal(found[1], expected[1])
    assert 0 not in gpu.done, "nothing was moved"
    on_gpu = search(queries_QD, in_memory(passages_ND), 5, SearchOptions("faiss", "IVF4,Flat", 4, GPU))
    assert 0 in gpu.done
    on_cpu = search(queries_QD, in_memory(passages_ND), 5, SearchOptions("faiss", "IVF4,Flat", 4))
    assert np.array_equal(on_gpu[1], on_cpu[1])


@pytest.mark.parametrize("faiss_index", ["Flat", "IVF4,Flat"])
@pytest.mark.parametrize("calls", [0, 1, 2])
def test_memory_that_runs_out_in_faiss_leaves_the_search_to_the_cpu(
    faiss_index: str,
    calls: int,
    gpu: StandInGpu,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also after some queries, which progress counts once."""
    monkeypatch.setattr(search_module, "QUERIES_PER_FAISS_CALL", 10)
    told: list[int] = []
    passages_ND, queries_QD = vectors(300), vectors(40, 1)
    gpu.fails_after = calls
    options = SearchOptions("faiss", faiss_index, 4 if faiss_index != "Flat" else 0, GPU)
    _, rows_QK = search(queries_QD, in_memory(passages_ND), 5, options, told.append)
    products_QN = queries_QD @ passages_ND.T
    assert np.array_equal(rows_QK, np.argsort(-products_QN, axis=1)[:, :5])
    line = capsys.readouterr().out.splitlines()
    assert len(line) == 1 and line[0].startswith("search: cuda:0 cannot (") and "out of memory" in line[0]
    assert line[0].endswith("; the CPU searches in its place")
    if faiss_index == "Flat":
        assert sum(told) == 40 * 300


def test_a_search_that_is_left_on_a_gpu_is_left(gpu: StandInGpu) -> None:
    def leave(pairs: int) -> None:
        raise retrieval.Left

    with pytest.raises(retrieval.Left):
        search(vectors(3), in_memory(vectors(50)), 5, SearchOptions("faiss", "IVF4,Flat", 4, GPU), leave)
