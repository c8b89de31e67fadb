"""Several ranks as threads of one process: quick, and each can be looked into."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from utils import distributed
from utils.distributed import World


def on_ranks(ranks: int, work: Callable[[World], Any], patch: pytest.MonkeyPatch) -> list[Any]:
    """``work`` on as many threads, which meet in `gather_rows` as processes do; the results by rank."""
    held: list[Any] = [None] * ranks
    results: list[Any] = [None] * ranks
    meeting = threading.Barrier(ranks, timeout=30)

    def gather_rows(world: World, rows_RX: np.ndarray) -> list[np.ndarray]:
        held[world.rank] = rows_RX.copy()
        meeting.wait()
        gathered = list(held)
        meeting.wait()
        return gathered

    def any_rank(world: World, flag: bool) -> bool:
        return bool(np.concatenate(gather_rows(world, np.array([flag]))).any())

    def run(rank: int) -> None:
        results[rank] = work(World(rank, ranks, torch.device("cpu")))

    with patch.context() as inner:
        inner.setattr(distributed, "gather_rows", gather_rows)
        inner.setattr(distributed, "any_rank", any_rank)
        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return results
