"""The end of a process group: no rank waits for its own threads for ever."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from utils import distributed
from utils.distributed import World

GROUPS, LIMIT_SECONDS = 60, 120


def one_rank(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    # gloo's thread asks for the GIL as a collective ends: it is not given up to it in between, as on a busy machine.
    sys.setswitchinterval(LIMIT_SECONDS)
    for turn in range(GROUPS):
        dist.init_process_group("gloo", init_method=f"file://{directory}/store-{turn}", rank=rank, world_size=2)
        model = DistributedDataParallel(torch.nn.Linear(2, 2))
        world = World(rank, 2, torch.device("cpu"))
        assert distributed.sum_rows(world, [[1.0]]) == [[2.0]]
        distributed.stop(world)
        del model


def test_a_model_that_outlives_its_process_group_ends(tmp_path: Path) -> None:
    ranks = torch.multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=2, join=False)
    latest = time.monotonic() + LIMIT_SECONDS
    try:
        while not ranks.join(timeout=1):
            assert time.monotonic() < latest, "a rank hangs"
    finally:
        for process in ranks.processes:
            process.kill()
