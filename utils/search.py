"""Maximum inner product search: exact by faiss or by torch, approximate by any faiss index.

Ties break by passage order, whatever the backend. faiss does not promise that, and neither does
``torch.topk``: a list whose last place is tied with a passage left out is searched again by
`torch_top_k`, which sees the ties.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from utils.errors import UserError

BLOCK_BYTES = 256 * 2**20  # of scores held at once
QUERIES_PER_BLOCK = 1024


@dataclass(frozen=True)
class SearchOptions:
    """How to search. ``backend`` is ``faiss`` or ``torch``; ``device`` is where torch computes."""

    backend: str
    faiss_index: str = "Flat"
    nprobe: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable


def choose_backend(wanted: str, faiss_index: str) -> str:
    """``auto`` takes faiss where it is installed. UserError where what is asked for is not there."""
    has_faiss = importlib.util.find_spec("faiss") is not None
    if not has_faiss and (wanted == "faiss" or faiss_index != "Flat"):
        raise UserError("faiss is not installed, expected it for this search; pip install -r requirements.txt")
    if wanted == "torch" and faiss_index != "Flat":
        raise UserError(f"--faiss_index {faiss_index} needs faiss, but --search_backend is torch; leave one out")
    if wanted == "auto":
        return "faiss" if has_faiss else "torch"
    return wanted


def check_index(faiss_index: str, dims: int, nprobe: int = 0) -> None:
    """UserError where faiss cannot build the index_factory string, or the index has no cells to probe."""
    if faiss_index != "Flat":
        with faiss_refusal(f"{faiss_index} with --nprobe {nprobe}" if nprobe else faiss_index):
            make_index(faiss_index, dims, nprobe)
    elif nprobe:
        raise UserError(f"--nprobe {nprobe} is for IVF indexes, but --faiss_index is Flat; leave it out")


def make_index(faiss_index: str, dims: int, nprobe: int):  # type: ignore[no-untyped-def]  # faiss has no types
    import faiss

    index = faiss.index_factory(dims, faiss_index, faiss.METRIC_INNER_PRODUCT)
    if nprobe:
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", nprobe)
    return index


@contextlib.contextmanager
def faiss_refusal(faiss_index: str) -> Iterator[None]:
    """faiss's RuntimeError as a UserError, without the C++ function and file that stand before its reason."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].rpartition(": ")[2]
        raise UserError(f"--faiss_index {faiss_index} does not work here ({reason}); choose another, or Flat") from None


def search(
    queries_QD: np.ndarray, passages_ND: np.ndarray, k: int, options: SearchOptions
) -> tuple[np.ndarray, np.ndarray]:
    """The k passages of largest inner product of each query, best first.

    Returns scores_QK float32 and rows_QK int64 (rows of ``passages_ND``; -1 and -inf where an
    approximate index found fewer than k). K is k, or N where the collection is smaller.
    UserError where an embedding is not finite: no order is defined then, and each backend makes up its own.
    """
    for embeddings_XD in (queries_QD, passages_ND):
        check_finite(embeddings_XD)
    k = min(k, len(passages_ND))
    if k == 0 or not len(queries_QD):
        return np.zeros((len(queries_QD), k), np.float32), np.zeros((len(queries_QD), k), np.int64)
    if options.backend == "torch":
        return torch_top_k(queries_QD, passages_ND, k, options.device)
    if options.faiss_index == "Flat":
        return faiss_top_k(queries_QD, passages_ND, k, options)
    return faiss_index_top_k(queries_QD, passages_ND, k, options)


def check_finite(embeddings_XD: np.ndarray, block: int = 65536) -> None:
    for start in range(0, len(embeddings_XD), block):
        if not np.isfinite(embeddings_XD[start : start + block]).all():
            raise UserError("embeddings hold NaN or infinity: the model has diverged; go on from an earlier checkpoint")


def torch_top_k(
    queries_QD: np.ndarray, passages_ND: np.ndarray, k: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Exact top-k by matrix product, in blocks of passages; `search` says what comes back."""
    width = max(k, BLOCK_BYTES // (4 * QUERIES_PER_BLOCK))
    scores_out, rows_out = [], []
    for start in range(0, len(queries_QD), QUERIES_PER_BLOCK):
        block_QD = to_device(queries_QD[start : start + QUERIES_PER_BLOCK], device)
        scores_QK = torch.empty((len(block_QD), 0), device=device)
        rows_QK = torch.empty((len(block_QD), 0), dtype=torch.int64, device=device)
        for first in range(0, len(passages_ND), width):
            passages_MD = to_device(passages_ND[first : first + width], device)
            found_scores, found_rows = top_k_of_block(block_QD @ passages_MD.T, k)
            scores_QK = torch.cat([scores_QK, found_scores], 1)
            rows_QK = torch.cat([rows_QK, found_rows + first], 1)
            # Earlier passages stand first and the sort is stable: ties keep passage order.
            scores_QK, order = torch.sort(scores_QK, dim=1, descending=True, stable=True)
            scores_QK, rows_QK = scores_QK[:, :k], torch.gather(rows_QK, 1, order)[:, :k]
        scores_out.append(scores_QK.cpu().numpy())
        rows_out.append(rows_QK.cpu().numpy())
    return np.concatenate(scores_out), np.concatenate(rows_out)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32)).to(device)


def top_k_of_block(scores_QM: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Top-k of each row by (score descending, column ascending)."""
    k = min(k, scores_QM.shape[1])
    scores_QK, columns_QK = torch.topk(scores_QM, k, dim=1)
    columns_QK, order = torch.sort(columns_QK, dim=1)
    scores_QK, order = torch.sort(torch.gather(scores_QK, 1, order), dim=1, descending=True, stable=True)
    columns_QK = torch.gather(columns_QK, 1, order)
    reached_Q = (scores_QM >= scores_QK[:, -1:]).sum(1)
    for row in torch.nonzero(reached_Q > k).flatten().tolist():
        # More passages reach the last score than there are places: the earliest of them stay.
        sorted_scores, sorted_columns = torch.sort(scores_QM[row], descending=True, stable=True)
        scores_QK[row], columns_QK[row] = sorted_scores[:k], sorted_columns[:k]
    return scores_QK, columns_QK


def faiss_top_k(
    queries_QD: np.ndarray, passages_ND: np.ndarray, k: int, options: SearchOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Exact top-k by faiss; one place more is searched, to see whether the last place is tied."""
    import faiss

    index = faiss.IndexFlatIP(passages_ND.shape[1])
    index = on_gpus(index, options)
    add_in_blocks(index, passages_ND)
    wanted = min(k + 1, len(passages_ND))
    scores_QW, rows_QW = index.search(np.ascontiguousarray(queries_QD, dtype=np.float32), wanted)
    tied_Q = scores_QW[:, k - 1] == scores_QW[:, k] if wanted > k else np.zeros(len(scores_QW), bool)
    scores_QK, rows_QK = in_passage_order(scores_QW[:, :k], rows_QW[:, :k].astype(np.int64))
    if tied_Q.any():
        scores_QK[tied_Q], rows_QK[tied_Q] = torch_top_k(queries_QD[tied_Q], passages_ND, k, options.device)
    return scores_QK, rows_QK


def faiss_index_top_k(
    queries_QD: np.ndarray, passages_ND: np.ndarray, k: int, options: SearchOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Top-k by a faiss index built by ``options.faiss_index``, trained on the passages themselves.

    UserError where faiss refuses, such as more cells than passages to train them on.
    """
    with faiss_refusal(f"{options.faiss_index} over {len(passages_ND)} passages"):
        index = on_gpus(make_index(options.faiss_index, passages_ND.shape[1], options.nprobe), options)
        if not index.is_trained:
            index.train(np.ascontiguousarray(passages_ND, dtype=np.float32))
        add_in_blocks(index, passages_ND)
        scores_QK, rows_QK = index.search(np.ascontiguousarray(queries_QD, dtype=np.float32), k)
    scores_QK[rows_QK < 0] = -np.inf
    return in_passage_order(scores_QK, rows_QK.astype(np.int64))


def on_gpus(index, options: SearchOptions):  # type: ignore[no-untyped-def]  # faiss has no types
    """The index on all GPUs, where this faiss has GPU support and a GPU is in use."""
    import faiss

    if options.device.type != "cuda" or not hasattr(faiss, "StandardGpuResources"):
        return index
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), options.device.index or 0, index)


def add_in_blocks(index, passages_ND: np.ndarray, block: int = 65536) -> None:  # type: ignore[no-untyped-def]
    for start in range(0, len(passages_ND), block):
        index.add(np.ascontiguousarray(passages_ND[start : start + block], dtype=np.float32))


def in_passage_order(scores_QK: np.ndarray, rows_QK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same lists, by score descending, ties by row ascending, missing entries (-1) last."""
    rows_for_order = np.where(rows_QK < 0, np.iinfo(np.int64).max, rows_QK)
    order = np.lexsort((rows_for_order, -scores_QK), axis=1)
    return np.take_along_axis(scores_QK, order, 1), np.take_along_axis(rows_QK, order, 1)


def merge_top_k(scores_parts: list[np.ndarray], rows_parts: list[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """One list of k from the lists of several shares of the collection (rows already global)."""
    scores_QK, rows_QK = in_passage_order(np.concatenate(scores_parts, 1), np.concatenate(rows_parts, 1))
    return scores_QK[:, :k], rows_QK[:, :k]
