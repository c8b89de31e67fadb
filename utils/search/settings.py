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
from utils.search.registry import BACKENDS

MEMORY_BYTES = {"cpu": 512 * 2**20, "cuda": 4 * 2**30}  # of a search next to queries and lists, where nobody says
SMALLEST_MEMORY_BYTES = 16 * 2**20


@dataclass(frozen=True)
class SearchSettings:
    """How to search. ``backend`` is a word of `BACKENDS`; ``device`` is where it searches, if it can."""

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
    if wanted not in ("auto", "faiss") and faiss_index != "Flat":
        raise UserError(f"--faiss_index {faiss_index} needs faiss, but --search_backend is {wanted}; leave one out")
    if wanted != "auto":
        return wanted
    return "faiss" if has_faiss and (faiss_index != "Flat" or not use_cuda or faiss_has_gpu_support()) else "torch"


def describe_search(settings: SearchSettings, embedding_dim: int = 0, k: int = 1) -> str:
    """What searches where, for the log; ``embedding_dim`` and ``k`` where they are known."""
    device = with_search_device(settings, embedding_dim, k).device
    if settings.backend != "faiss":
        return f"{settings.backend}, exact, on {device}"
    kind = "exact" if settings.faiss_index == "Flat" else settings.faiss_index
    probing = f", nprobe {settings.nprobe}" if settings.nprobe else ""
    return f"faiss, {kind}{probing}, on {device}"


def with_search_device(settings: SearchSettings, embedding_dim: int = 0, k: int = 1) -> SearchSettings:
    """The same with the device that will search: the CPU where the backend cannot on the GPU; see `is_on_gpu`."""
    if settings.backend == "faiss":
        can_search = is_on_gpu(settings, embedding_dim, k)
    else:
        can_search = settings.device.type in BACKENDS[settings.backend].devices
    return settings if can_search else on_cpu(settings)


def largest_depth(settings: SearchSettings, rows: int) -> int:
    """How many rows a list may have: all, or what faiss has on a GPU; an exact search there goes deeper by torch."""
    is_bounded = settings.backend == "faiss" and settings.faiss_index != "Flat" and settings.device.type == "cuda"
    return min(rows, LARGEST_GPU_K) if is_bounded else rows


def on_cpu(settings: SearchSettings) -> SearchSettings:
    return replace(settings, device=torch.device("cpu"))


def is_on_gpu(settings: SearchSettings, embedding_dim: int = 0, k: int = 1) -> bool:
    """Whether faiss searches on a GPU: one is in use, and this faiss can; with ``embedding_dim``, this index and k."""
    if settings.device.type != "cuda" or settings.backend != "faiss" or not faiss_has_gpu_support():
        return False
    if not embedding_dim or settings.faiss_index == "Flat":
        return True
    return k <= LARGEST_GPU_K and not gpu_refusal(settings.faiss_index, embedding_dim, settings.nprobe, settings.device)
