"""faiss's other indexes than the exact one: what each asks for is found before hours of encoding, not after."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from typing import Any

import torch

from utils.errors import UserError

FLAT = "Flat"  # the exact one
LARGEST_GPU_K = 2048  # what a GPU index of faiss can return
# Where faiss's indexes, transforms and quantizers hold others that are trained, too.
PARTS = ("index", "quantizer", "base_index", "refine_index", "storage", "pq", "rq", "prq")
OUT_OF_MEMORY = re.compile("out of memory|alloc fail", re.IGNORECASE)  # faiss has no type for it
OPQ_CENTROIDS = 256  # of the codes for which OPQ learns its rotation, where it has no quantizer of its own


def check_index(faiss_index: str, embedding_dim: int, nprobe: int, rows: int) -> None:
    """UserError for an index that faiss cannot build, or that has no cells to probe.

    Args:
        faiss_index: a string of faiss's index_factory.
        embedding_dim: numbers in a row.
        nprobe: how many cells are to be visited; 0 keeps the index's own number.
        rows: the most that one process's share has: they may be too few to train the index on.

    Raises:
        UserError: what faiss says, in one line, or what the index lacks.
    """
    if faiss_index == FLAT:
        if nprobe:
            raise UserError(f"--nprobe {nprobe} is for IVF indexes, but --faiss_index is {FLAT}; omit it")
        return
    import faiss

    with faiss_refusal(f"{faiss_index} with --nprobe {nprobe}" if nprobe else faiss_index):
        index = make_index(faiss_index, embedding_dim, nprobe)
    cells = faiss.try_extract_index_ivf(index)
    if cells is not None and cells.nlist > rows:
        raise UserError(
            f"--faiss_index {faiss_index} has {cells.nlist} cells, one process holds {rows} embeddings "
            f"to train them on; choose fewer cells, or {FLAT}"
        )
    if (points := training_points(index)) > rows:
        raise UserError(
            f"--faiss_index {faiss_index} is trained on {points} embeddings at least, one process holds {rows}; "
            f"choose codes of fewer bits (PQ16x4 in place of PQ16), or {FLAT}"
        )


def training_points(index) -> int:  # type: ignore[no-untyped-def]  # faiss has no types
    """How many rows faiss needs to train the index: k-means is refused fewer points than it has centroids.

    Of an index not trained yet, with all that it is made of.
    """
    import faiss

    needed, parts = 0, [index]
    while parts:
        part = parts.pop()
        if isinstance(part, faiss.Index):
            part = faiss.downcast_index(part)
        needed = max(needed, own_points(part))
        parts += [held for name in PARTS if (held := getattr(part, name, None)) is not None]
        if isinstance(part, faiss.IndexPreTransform):
            chain: Any = part.chain  # a C++ vector, and not the list that faiss's stubs say
            parts += [faiss.downcast_VectorTransform(chain.at(i)) for i in range(chain.size())]
    return needed


def own_points(part) -> int:  # type: ignore[no-untyped-def]
    """The same of one part alone."""
    import faiss

    match part:
        case faiss.IndexIVF():
            return int(part.nlist)
        case faiss.ProductQuantizer():
            return int(part.ksub)
        case faiss.ResidualQuantizer() | faiss.ProductResidualQuantizer():
            return int(2 ** faiss.vector_to_array(part.nbits).max())
        case faiss.OPQMatrix():
            return OPQ_CENTROIDS if part.pq is None else int(part.pq.ksub)
        case faiss.PCAMatrix():
            return int(part.d_out)
    return 0


def make_index(faiss_index: str, embedding_dim: int, nprobe: int):  # type: ignore[no-untyped-def]  # faiss has no types
    import faiss

    index = faiss.index_factory(embedding_dim, faiss_index, faiss.METRIC_INNER_PRODUCT)
    if nprobe:
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", nprobe)
    return index


@contextlib.contextmanager
def faiss_refusal(faiss_index: str) -> Iterator[None]:
    """faiss's RuntimeError as a UserError, without the C++ function and file that stand before its reason."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"--faiss_index {faiss_index} does not work here ({reason_of(error)}); choose another, or {FLAT}"
        ) from None


def reason_of(error: RuntimeError) -> str:
    """faiss's words without those that stand before them."""
    return str(error).strip().splitlines()[-1].rpartition(": ")[2]


def faiss_has_gpu_support() -> bool:
    import faiss

    return hasattr(faiss, "StandardGpuResources")


def on_gpu(index, device: torch.device, temporary_bytes: int):  # type: ignore[no-untyped-def]
    """The index on a GPU, where it has so much for what it computes; torch's free memory is given back first."""
    import faiss

    torch.cuda.empty_cache()  # faiss allocates next to torch, which keeps what it once had
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(temporary_bytes)
    return faiss.index_cpu_to_gpu(resources, device.index or 0, index)


def gpu_refusal(faiss_index: str, embedding_dim: int, nprobe: int, device: torch.device) -> str:
    """Why faiss has no such index on its GPU, as it says itself of an empty one.

    Args:
        faiss_index: a string of faiss's index_factory.
        embedding_dim: numbers in a row.
        nprobe: how many cells are to be visited; 0 keeps the index's own number.
        device: a GPU.

    Returns:
        faiss's reason; "" where it has the index, and where the GPU has no memory now: another job on it may have
        ended when the search begins.
    """
    try:
        return lasting_gpu_refusal(faiss_index, embedding_dim, nprobe, device)
    except RuntimeError as error:
        if not OUT_OF_MEMORY.search(str(error)):
            raise
        return ""


@functools.cache
def lasting_gpu_refusal(faiss_index: str, embedding_dim: int, nprobe: int, device: torch.device) -> str:
    """The same, found once.

    Args:
        faiss_index: in the language of faiss's index factory.
        embedding_dim: numbers in a row.
        nprobe: how many cells are to be visited; 0 keeps the index's own number.
        device: the GPU.

    Returns:
        Why faiss does not take the index to the GPU, "" where it does.

    Raises:
        RuntimeError: faiss's own, memory ran out: it is tried again at the next call.
    """
    try:
        on_gpu(make_index(faiss_index, embedding_dim, nprobe), device, 0)
    except RuntimeError as error:
        if OUT_OF_MEMORY.search(str(error)):
            raise
        return reason_of(error)
    return ""
