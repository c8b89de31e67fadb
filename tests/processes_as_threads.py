"""Several processes as threads of one process: quick, and each can be looked into."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from utils.distributed import collectives
from utils.distributed.world import World

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


def on_processes(processes: int, work: Callable[[World], Any], patch: pytest.MonkeyPatch) -> list[Any]:
    """``work`` on as many threads, which meet in `gather_rows` as processes do; the results by rank."""
    held: list[Any] = [None] * processes
    results: list[Any] = [None] * processes
    meeting = threading.Barrier(processes, timeout=30)

    def gather_rows(world: World, rows_RX: np.ndarray) -> list[np.ndarray]:
        held[world.process] = rows_RX.copy()
        meeting.wait()
        gathered = list(held)
        meeting.wait()
        return gathered

    def any_process(world: World, flag: bool) -> bool:
        return bool(np.concatenate(gather_rows(world, np.array([flag]))).any())

    def run(process: int) -> None:
        results[process] = work(World(process, processes, CPU))

    with patch.context() as inner:
        inner.setattr(collectives, "gather_rows", gather_rows)
        inner.setattr(collectives, "any_process", any_process)
        threads = [threading.Thread(target=run, args=(process,)) for process in range(processes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return results
