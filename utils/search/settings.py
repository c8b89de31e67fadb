"""What a search is asked for: the backend, its options, the device, and how much memory it may take."""

from __future__ import annotations

from dataclasses import dataclass

import torch

MEMORY_BYTES = {"cpu": 512 * 2**20, "cuda": 4 * 2**30}  # of a search next to queries and lists, where nobody says
SMALLEST_MEMORY_BYTES = 16 * 2**20
OPTIONS = ("faiss_index", "nprobe")  # of `SearchSettings`, what not every backend reads


@dataclass(frozen=True)
class SearchSettings:
    """How to search. ``backend`` is a word of `registry.BACKENDS`; ``device`` is where it searches, if it can."""

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
    def passages_bytes(self) -> int:
        """Of a block of rows that is read, and of what is made of some queries' lists at a time."""
        return self.budget_bytes // 8

    def options_given(self) -> list[str]:
        """The names of the `OPTIONS` that differ from their defaults."""
        return [name for name in OPTIONS if getattr(self, name) != getattr(SearchSettings, name)]


class GpuSearchFailed(Exception):
    """A search, or a build, has failed on a GPU, for the reason in the message. The CPU can search in its place."""
