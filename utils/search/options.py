"""What a search is asked for: the backend, the index, the device, and how much memory it may take."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace

import torch

from utils.errors import UserError
from utils.search.faiss_index import (
    LARGEST_GPU_K,
    faiss_has_gpu_support,
    gpu_refusal,
)

MEMORY_BYTES = {"cpu": 512 * 2**20, "cuda": 4 * 2**30}  # of a search next to queries and lists, where nobody says
SMALLEST_MEMORY_BYTES = 16 * 2**20


@dataclass(frozen=True)
class SearchOptions:
    """How to search. ``backend`` is ``faiss`` or ``torch``; ``device`` is where it searches, if it can."""

    backend: str
    faiss_index: str = "Flat"
    nprobe: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    memory_bytes: int = 0  # next to the queries and their lists; 0: as much as MEMORY_BYTES has for the device

    @property
    def budget_bytes(self) -> int:
        """The same in numbers."""
        return self.memory_bytes or MEMORY_BYTES[self.device.type]

    @property
    def faiss_bytes(self) -> int:
        """Of a block of passages for faiss on the CPU; each block costs a merge of all lists."""
        return self.budget_bytes * 3 // 4

    @property
    def passages_bytes(self) -> int:
        """Of a block of passages for torch, or for faiss on a GPU."""
        return self.budget_bytes // 8

    @property
    def working_bytes(self) -> int:
        """Of what torch makes next to the block."""
        return self.budget_bytes // 2

    @property
    def lists_bytes(self) -> int:
        """Of what faiss makes next to the block."""
        return self.budget_bytes // 4


class GpuSearchFailed(Exception):
    """faiss has failed on a GPU, for the reason in the message. The CPU can search in its place."""


def choose_backend(wanted: str, faiss_index: str, use_cuda: bool = False) -> str:
    """``auto`` takes faiss where it is installed, but torch for an exact search on a GPU that this faiss cannot use.

    UserError where what is asked for is not there.
    """
    has_faiss = importlib.util.find_spec("faiss") is not None
    if not has_faiss and (wanted == "faiss" or faiss_index != "Flat"):
        raise UserError("faiss is not installed, expected it for this search; pip install -r requirements.txt")
    if wanted == "torch" and faiss_index != "Flat":
        raise UserError(f"--faiss_index {faiss_index} needs faiss, but --search_backend is torch; leave one out")
    if wanted != "auto":
        return wanted
    return "faiss" if has_faiss and (faiss_index != "Flat" or not use_cuda or faiss_has_gpu_support()) else "torch"


def describe_search(options: SearchOptions, embedding_dim: int = 0, k: int = 1) -> str:
    """What searches where, for the log; ``embedding_dim`` and ``k`` where they are known."""
    if options.backend == "torch":
        return f"torch, exact, on {options.device}"
    kind = "exact" if options.faiss_index == "Flat" else options.faiss_index
    probing = f", nprobe {options.nprobe}" if options.nprobe else ""
    return f"faiss, {kind}{probing}, on {with_search_device(options, embedding_dim, k).device}"


def with_search_device(options: SearchOptions, embedding_dim: int = 0, k: int = 1) -> SearchOptions:
    """The same with the device that will search: the CPU where faiss cannot on the GPU; see `is_on_gpu`."""
    return options if options.backend == "torch" or is_on_gpu(options, embedding_dim, k) else on_cpu(options)


def largest_depth(options: SearchOptions, rows: int) -> int:
    """How many rows a list may have: all, or what faiss has on a GPU; an exact search there goes deeper by torch."""
    is_bounded = options.backend == "faiss" and options.faiss_index != "Flat" and options.device.type == "cuda"
    return min(rows, LARGEST_GPU_K) if is_bounded else rows


def on_cpu(options: SearchOptions) -> SearchOptions:
    return replace(options, device=torch.device("cpu"))


def is_on_gpu(options: SearchOptions, embedding_dim: int = 0, k: int = 1) -> bool:
    """Whether faiss searches on a GPU: one is in use, and this faiss can; with ``embedding_dim``, this index and k."""
    if options.device.type != "cuda" or options.backend != "faiss" or not faiss_has_gpu_support():
        return False
    if not embedding_dim or options.faiss_index == "Flat":
        return True
    return k <= LARGEST_GPU_K and not gpu_refusal(options.faiss_index, embedding_dim, options.nprobe, options.device)
