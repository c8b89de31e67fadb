"""utils.search.faiss_index: what faiss asks for, against faiss itself; its GPU by a stand-in that refuses the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from drivers.embeddings.distributed_search import check_index_fits, retrieve
from drivers.embeddings.encode import PassageShare
from drivers.job.progress import StopEncoding
from drivers.job.settings import search_settings
from tests.processes_as_threads import on_processes
from utils.distributed.world import World
from utils.errors import ProcessFailed, UserError
from utils.flag_groups.search import SearchFlags
from utils.search import exact_torch, faiss_backend
from utils.search.faiss_backend import FaissBackend, FlatIndex
from utils.search.faiss_index import check_index, lasting_gpu_refusal, make_index, training_points
from utils.search.index import Index
from utils.search.settings import GpuSearchFailed, SearchSettings
from utils.search.source import Passages, in_memory

DIMS = 16
GPU = torch.device("cuda", 0)


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, DIMS)).astype(np.float32)


def search(queries_QD: np.ndarray, passages: Passages, k: int, options: SearchSettings, *more: Any) -> Any:
    with contextlib.closing(Index(passages, options)) as index:
        return index.search(queries_QD, k, *more)


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
    check_index(faiss_index, DIMS, 0, points)
    assert max(1, training_points(make_index(faiss_index, DIMS, 0))) == points
    if points > 1:
        assert refusal_of(faiss_index, points - 1)
        with pytest.raises(UserError, match=rf"has {points} cells, one|trained on {points} embeddings at least, one"):
            check_index(faiss_index, DIMS, 0, points - 1)
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
        self.has_memory = True
        lasting_gpu_refusal.cache_clear()
        patch.setattr(faiss, "StandardGpuResources", self.resources, raising=False)
        patch.setattr(faiss, "index_cpu_to_gpu", self.moved, raising=False)
        patch.setattr(torch.cuda, "empty_cache", lambda: self.done.append("emptied"))

    def resources(self) -> Any:
        self.done.append("resources")
        return SimpleNamespace(setTempMemory=lambda size: None)

    def moved(self, resources: Any, device: int, index: Any) -> Any:
        if not self.has_memory:
            raise RuntimeError(NO_MEMORY)
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

    class Full:
        """An index on a GPU whose memory is used up by the passages."""

        is_trained, reset, train = True, staticmethod(lambda: None), staticmethod(lambda passages_ND: None)

        def __init__(self, index: Any) -> None: ...

        def add(self, block_MD: np.ndarray) -> None:
            raise RuntimeError(NO_MEMORY)

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
    lasting_gpu_refusal.cache_clear()


def fits(faiss_index: str, dims: int, patch: pytest.MonkeyPatch, nprobe: int = 0, passages: int = 100_000) -> None:
    check_index_fits(SearchSettings("faiss", faiss_index, nprobe, GPU), passages, (dims,))


@pytest.mark.parametrize(
    ("faiss_index", "nprobe", "reason"),
    [
        ("IVF65536,PQ64", 64, "64 sub-quantizers requires 65536 bytes"),
        ("HNSW32", 0, "This index type is not implemented on GPU."),
        ("PQ16", 0, "This index type is not implemented on GPU."),
        ("IVF4096,PQ32", 4096, "only supports nprobe selection up to 2048"),
        ("OPQ64,IVF1024,PQ64", 0, "64 sub-quantizers requires 65536 bytes"),
        ("IVF4096,PQ32", 64, ""),
        ("IVF65536,PQ48", 64, ""),  # as docs/scale.md recommends
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
    options = SearchSettings("faiss", faiss_index, nprobe, GPU)
    passages = Passages(100_000, 768, lambda rows: iter(()))
    where = Index(passages, options).describe(200)
    if reason:
        assert len(said) == 1 and reason in said[0]
        assert said[0].startswith(f"search: faiss has no {faiss_index} on cuda:0 (")
        assert said[0].endswith("): the CPU will search")
        assert where.endswith(", on cpu")
    else:
        assert not said and where.endswith(", on cuda:0")
        assert Index(passages, options).describe(4096).endswith(", on cpu"), "no GPU index returns so many"
    assert gpu.done[:2] == ["emptied", "resources"], "torch's memory is given back first"


def test_a_search_that_the_gpu_refuses_is_the_cpu_s(gpu: StandInGpu, capsys: pytest.CaptureFixture[str]) -> None:
    passages_ND, queries_QD = vectors(300), vectors(7, 1)
    found = search(queries_QD, in_memory(passages_ND), 5, SearchSettings("faiss", "HNSW8", 0, GPU))
    expected = search(queries_QD, in_memory(passages_ND), 5, SearchSettings("faiss", "HNSW8"))
    assert np.array_equal(found[1], expected[1])
    assert 0 not in gpu.done, "nothing was moved"
    on_gpu = search(queries_QD, in_memory(passages_ND), 5, SearchSettings("faiss", "IVF4,Flat", 4, GPU))
    assert 0 in gpu.done
    on_cpu = search(queries_QD, in_memory(passages_ND), 5, SearchSettings("faiss", "IVF4,Flat", 4))
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
    """Also after some queries. `Index` raises it: the processes decide together who searches where."""
    monkeypatch.setattr(faiss_backend, "QUERIES_PER_FAISS_CALL", 10)
    passages_ND, queries_QD = vectors(300), vectors(40, 1)
    gpu.fails_after = calls
    options = SearchSettings("faiss", faiss_index, 4 if faiss_index != "Flat" else 0, GPU)
    with pytest.raises(GpuSearchFailed, match=r"^cuda:0 cannot \(.*out of memory"):
        search(queries_QD, in_memory(passages_ND), 5, options)
    gpu.fails_after = calls
    share = PassageShare(in_memory(passages_ND), 0)
    found = retrieve(World(0, 1, torch.device("cpu")), queries_QD, share, 300, 5, options)
    assert found is not None
    assert np.array_equal(found[1], best(queries_QD, passages_ND))
    on_gpu, refused, on_cpu = capsys.readouterr().out.splitlines()
    assert ", on cuda:0; 40 queries" in on_gpu and ", on cpu; 40 queries" in on_cpu
    assert refused.startswith("search: cuda:0 cannot (") and "out of memory" in refused
    assert refused.endswith("; the CPU searches in its place")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 39.49 GiB of which 1.06 GiB "
            "is free. Including non-PyTorch memory, this process has 38.43 GiB memory in use."
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_memory_that_runs_out_in_torch_leaves_the_search_to_the_cpu(
    backend: str,
    error: Exception,
    gpu: StandInGpu,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In torch's own search, and in that of faiss, which searches by torch where lists are longer than its GPU's."""
    to_device = exact_torch.to_device

    def full(array: np.ndarray, device: torch.device) -> torch.Tensor:
        if device.type == "cuda":
            raise error
        return to_device(array, device)

    monkeypatch.setattr(exact_torch, "to_device", full)
    passages_ND, queries_QD, k = vectors(2100), vectors(3, 1), 2050
    share, settings = PassageShare(in_memory(passages_ND), 0), SearchSettings(backend, device=GPU)
    found = retrieve(World(0, 1, torch.device("cpu")), queries_QD, share, 2100, k, settings)
    assert found is not None
    products_QN = queries_QD.astype(np.float64) @ passages_ND.T
    assert (found[1] == np.argsort(-products_QN, axis=1)[:, :k]).mean() > 0.999
    on_gpu, refused, on_cpu = capsys.readouterr().out.splitlines()
    assert on_gpu.startswith(f"search: {backend}, exact, on cuda:0; ") and ", on cpu; " in on_cpu
    reason = str(error).partition(". GPU")[0].partition("\n")[0]
    assert refused == f"search: cuda:0 cannot ({reason}); the CPU searches in its place"


def test_another_error_of_torch_on_a_gpu_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(array: np.ndarray, device: torch.device) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(exact_torch, "to_device", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        search(vectors(3), in_memory(vectors(9)), 5, SearchSettings("torch", device=GPU))


def best(queries_QD: np.ndarray, passages_ND: np.ndarray) -> np.ndarray:
    return np.argsort(-(queries_QD @ passages_ND.T), axis=1)[:, :5]


COUNTS = [60, 70, 80, 90]  # passages of each of four processes


def retrieve_on_gpus(
    passages_ND: np.ndarray, queries_QD: np.ndarray, faiss_index: str, patch: pytest.MonkeyPatch
) -> tuple[list[Any], list[list[str]]]:
    """Of four processes, each with its GPU: what `retrieve` returned or raised, and where faiss searched in turn."""
    searched: list[list[str]] = [[] for _ in range(4)]
    starts = [0, *np.cumsum(COUNTS)]
    build = FaissBackend.build

    def recorded(backend: FaissBackend, passages: Passages, options: SearchSettings, advance: Any) -> Any:
        searched[COUNTS.index(passages.count)].append(options.device.type)
        return build(backend, passages, options, advance)

    patch.setattr(FaissBackend, "build", recorded)

    def work(world: World) -> Any:
        first, stop = starts[world.process : world.process + 2]
        share = PassageShare(in_memory(passages_ND[first:stop]), first)
        options = SearchSettings("faiss", faiss_index, device=torch.device("cuda", world.process))
        try:
            return retrieve(world, queries_QD, share, 300, 5, options)
        except Exception as error:
            return error

    return on_processes(4, work, patch), searched


@pytest.mark.parametrize("faiss_index", ["Flat", "IVF1,Flat"])
def test_all_search_on_the_cpu_where_the_gpu_of_one_fails(
    faiss_index: str, gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One alone would search for hours, and the others wait in a collective until they give it up."""
    moved = gpu.moved

    def on_gpu_2(resources: Any, device: int, index: Any) -> Any:
        moved(resources, device, index)
        return StandInGpu.Full(index) if device == 2 else index

    monkeypatch.setattr(faiss, "index_cpu_to_gpu", on_gpu_2, raising=False)
    passages_ND, queries_QD = vectors(300), vectors(40, 1)
    found, searched = retrieve_on_gpus(passages_ND, queries_QD, faiss_index, monkeypatch)
    assert searched == [["cuda", "cpu"]] * 4
    for scores_QK, rows_QK in found:
        assert np.array_equal(rows_QK, best(queries_QD, passages_ND))
        np.testing.assert_allclose(scores_QK, np.sort(queries_QD @ passages_ND.T)[:, ::-1][:, :5], rtol=1e-5)
    said = sorted(capsys.readouterr().out.splitlines())
    assert len(said) == 3 and said[0].startswith("search: cuda:2 cannot (alloc fail type")
    assert ", on cpu; " in said[1] and ", on cuda:0; " in said[2]


def test_all_search_on_the_cpu_where_the_gpu_of_one_has_no_such_index(
    gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cards of several kinds in one job."""
    moved = gpu.moved

    def on_gpus(resources: Any, device: int, index: Any) -> Any:
        if device == 1:
            raise RuntimeError(SMALL_MEMORY)
        return moved(resources, device, index)

    monkeypatch.setattr(faiss, "index_cpu_to_gpu", on_gpus, raising=False)
    passages_ND, queries_QD = vectors(300), vectors(40, 1)
    found, searched = retrieve_on_gpus(passages_ND, queries_QD, "IVF1,Flat", monkeypatch)
    assert searched == [["cpu"]] * 4
    for _, rows_QK in found:
        assert np.array_equal(rows_QK, best(queries_QD, passages_ND))


def test_what_the_search_of_one_raises_all_raise(gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that are not finite in one share, cells that are too many for it, and what is no user's fault."""
    passages_ND, queries_QD = vectors(300), vectors(40, 1)
    damaged_ND = passages_ND.copy()
    damaged_ND[160] = np.finfo(np.float32).max
    found, _ = retrieve_on_gpus(damaged_ND, queries_QD, "Flat", monkeypatch)
    assert [type(error) for error in found] == [UserError] * 4 and len({str(error) for error in found}) == 1
    assert "scores are not finite" in str(found[0])
    monkeypatch.delattr(faiss, "StandardGpuResources")
    found, _ = retrieve_on_gpus(passages_ND, queries_QD, "IVF75,Flat", monkeypatch)
    assert [type(error) for error in found] == [UserError] * 4
    assert all("--faiss_index IVF75,Flat over " in str(error) for error in found)
    search_share = FlatIndex.search

    def broken(index: FlatIndex, *others: Any) -> Any:
        if index.passages.count == COUNTS[1]:
            raise ZeroDivisionError
        return search_share(index, *others)

    monkeypatch.setattr(FlatIndex, "search", broken)
    found, _ = retrieve_on_gpus(passages_ND, queries_QD, "Flat", monkeypatch)
    assert [type(error) for error in found] == [ProcessFailed, ZeroDivisionError, ProcessFailed, ProcessFailed]


@pytest.mark.parametrize(("mib", "cpu_mib", "gpu_mib"), [(0, 512, 4096), (1024, 1024, 1024), (16, 16, 16)])
@pytest.mark.parametrize("faiss_index", ["HNSW8", "IVF4,Flat"])
def test_the_memory_of_a_search_is_that_of_where_it_is(
    mib: int, cpu_mib: int, gpu_mib: int, faiss_index: str, gpu: StandInGpu
) -> None:
    """By the blocks asked for, an eighth of it: HNSW is refused by the GPU."""
    asked: list[int] = []
    passages_ND = vectors(300)

    def blocks(rows: int) -> Iterator[np.ndarray]:
        asked.append(rows)
        yield passages_ND

    options = search_settings(SearchFlags(faiss_index=faiss_index, search_memory_mib=mib), GPU)
    search(vectors(3, 1), Passages(300, DIMS, blocks), 5, options)
    expected_mib = cpu_mib if faiss_index == "HNSW8" else gpu_mib
    assert set(asked) == {expected_mib * 2**20 // 8 // (4 * DIMS)}
    asked.clear()
    search(vectors(3, 1), Passages(300, DIMS, blocks), 5, replace(options, device=torch.device("cpu")))
    assert set(asked) == {cpu_mib * 2**20 // 8 // (4 * DIMS)}


def test_a_refusal_is_said_once(
    gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Preflight, each refresh and each evaluation look again. The first process of a job says it, not its --dry_run."""
    for rank, lines in ((None, 0), ("1", 0), ("0", 1), ("0", 0)):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.delenv("RANK", raising=False)
        if rank is not None:
            monkeypatch.setenv("RANK", rank)
        fits("HNSW32", 768, monkeypatch)
        assert capsys.readouterr().err.count("the CPU will search") == lines, rank


def test_memory_that_another_job_has_for_a_moment_is_no_refusal(
    gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.has_memory = False
    for _ in range(2):
        fits("IVF4,Flat", 16, monkeypatch)
        fits("HNSW8", 16, monkeypatch)
    assert capsys.readouterr().err == ""
    gpu.has_memory = True
    search(vectors(3), in_memory(vectors(50)), 5, SearchSettings("faiss", "IVF4,Flat", 4, GPU))
    assert 0 in gpu.done, "searched on the GPU"
    fits("HNSW8", 16, monkeypatch)
    assert "faiss has no HNSW8 on cuda:0" in capsys.readouterr().err


def test_a_search_that_is_left_on_a_gpu_is_left(gpu: StandInGpu) -> None:
    def leave(pairs: int) -> None:
        raise StopEncoding

    with pytest.raises(StopEncoding):
        search(vectors(3), in_memory(vectors(50)), 5, SearchSettings("faiss", "IVF4,Flat", 4, GPU), leave)
