"""This process among those of its program: its device, and what its collectives cost it.

`torchrun` sets the environment; without it there is one process.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from utils.errors import ProcessGone, one_line

OF_GLOO = re.compile(r"\bgloo/")  # its errors have no type of their own, and begin with the file that raises them
# What a collective raises for a reason in this process: nccl's memory, which it takes next to torch's, a wrong call.
OWN_FAULTS = re.compile(r"out of memory|cuda c?alloc|invalid ?usage|invalid ?argument|EADDRINUSE", re.IGNORECASE)


@dataclass
class Waits:
    """What collectives have cost: each waits for the slowest process, and none for longer than ``limit_seconds``."""

    limit_seconds: float
    longest_seconds: float = 0.0
    inside: bytearray | mmap.mmap = field(default_factory=lambda: bytearray(1))  # 1 while a collective runs

    def __str__(self) -> str:
        return f"longest collective wait {self.longest_seconds:.1f} s (limit {self.limit_seconds:.0f} s)"


@dataclass(frozen=True)
class World:
    """This process among its peers. ``device`` is where its model lives."""

    process: int
    size: int
    device: torch.device
    waits: Waits = field(default_factory=lambda: Waits(0.0))

    @property
    def is_first(self) -> bool:
        return self.process == 0


def own_device(no_cuda: bool) -> torch.device:
    """This process's GPU, or the CPU."""
    if no_cuda or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def has_launcher() -> bool:
    """Whether the environment says how many processes there are: torchrun's, or a --dry_run's of utils.launch."""
    return "WORLD_SIZE" in os.environ


def processes_of_launcher() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def device_names(world: World) -> list[str]:
    if world.device.type == "cuda":
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [f"cpu ({torch.get_num_threads()} threads)"]


@contextlib.contextmanager
def collective(world: World) -> Iterator[None]:
    """Measures the wait for the other processes; ProcessGone where one of them did not come.

    At its end what the block has started is done. Any other error, as of memory that runs out, is raised as it is.
    """
    started = time.monotonic()
    world.waits.inside[0] = 1
    try:
        yield
        wait_for_device(world)
    except RuntimeError as error:
        if is_of_a_collective(error):
            raise process_gone(world, error) from None
        raise
    finally:
        world.waits.inside[0] = 0
        world.waits.longest_seconds = max(world.waits.longest_seconds, time.monotonic() - started)


def wait_for_device(world: World) -> None:
    """Until a GPU has done what was asked of it: a call of nccl returns before that."""
    if world.device.type == "cuda":
        torch.cuda.current_stream(world.device).synchronize()


def is_of_a_collective(error: RuntimeError) -> bool:
    """Whether it says that another process is gone or late: torch's types for that, or gloo's words."""
    if isinstance(error, dist.DistError):
        return not OWN_FAULTS.search(str(error))
    return bool(OF_GLOO.search(str(error)))


def process_gone(world: World, error: Exception) -> ProcessGone:
    return ProcessGone(
        f"process {world.process} of {world.size}: another process of this job is gone, or has not answered for "
        f"{world.waits.limit_seconds:.0f} s ({one_line(error)[:200]}); see its messages, and start again to resume"
    )
