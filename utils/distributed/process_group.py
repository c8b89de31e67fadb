"""Joining the process group that torchrun describes, and leaving it."""

from __future__ import annotations

import atexit
import gc
import mmap
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from utils.distributed.collectives import barrier
from utils.distributed.world import Waits, World, collective, own_device, processes_of_launcher
from utils.errors import EXIT_CODE_FILE, collective_mark

# nccl then raises in the process what its own thread would abort the process for: a collective that is not joined in
# time, a process that is gone. Such a thread cannot tell the program, and another exit code than 4 would be the end.
RAISING_NCCL = ("TORCH_NCCL_BLOCKING_WAIT", "1")


def start(no_cuda: bool, timeout_seconds: float) -> World:
    """Join the process group torchrun describes: nccl on GPUs, gloo on the CPU.

    A collective that another process does not join within ``timeout_seconds`` ends this one: see `collective`.
    ProcessGone where one does not join the group.
    """
    process, size = int(os.environ.get("RANK", "0")), processes_of_launcher()
    device = own_device(no_cuda)
    use_cuda = device.type == "cuda"
    if use_cuda:
        torch.cuda.set_device(device)
    world = World(process, size, device, Waits(timeout_seconds, inside=shared_mark(process)))
    if size > 1:
        if use_cuda:
            os.environ.setdefault(*RAISING_NCCL)
        with collective(world):
            dist.init_process_group(
                "nccl" if use_cuda else "gloo",
                timeout=timedelta(seconds=timeout_seconds),
                device_id=device if use_cuda else None,
            )
    return world


def shared_mark(process: int) -> bytearray | mmap.mmap:
    """`Waits.inside` where utils.launch reads it once this process is no more, if that started it."""
    code_file = os.environ.get(EXIT_CODE_FILE)
    if not code_file or not Path(code_file).parent.is_dir():
        return bytearray(1)
    path = collective_mark(Path(code_file), process)
    path.write_bytes(b"\0")
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 1)


def stop(world: World) -> None:
    if world.size > 1 and dist.is_initialized():
        if world.device.type == "cpu":
            barrier(world)  # no connection ends while another process waits for an answer
            _stopped.append(dist.group.WORLD)
        dist.destroy_process_group()


# gloo's threads need the GIL to let go of a collective's tensors, and the end of a process group waits for these
# threads: with the GIL held, and for ever, where DistributedDataParallel was the last to refer to the group; with the
# GIL released where Python was, as here when the program ends.
_stopped: list[Any] = []


@atexit.register
def let_go_of_stopped_groups() -> None:
    if _stopped:
        gc.collect()  # of models in cycles
        _stopped.clear()
