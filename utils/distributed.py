"""One process or several: processes, devices, and the few collectives the drivers need.

`torchrun` sets the environment; without it there is one process. Between processes travel tensors and JSON,
never pickles. Process 0 decides what all do; the others are told.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import itertools
import json
import mmap
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from utils.errors import EXIT_CODE_FILE, ProcessGone, collective_mark, error_of, failure_of, one_line

Result = TypeVar("Result")

# nccl then raises in the process what its own thread would abort the process for: a collective that is not joined in
# time, a process that is gone. Such a thread cannot tell the program, and another exit code than 4 would be the end.
RAISING_NCCL = ("TORCH_NCCL_BLOCKING_WAIT", "1")
OF_GLOO = re.compile(r"\bgloo/")  # its errors have no type of their own, and begin with the file that raises them
# What a collective raises for a reason in this process: nccl's memory, which it takes next to torch's, a wrong call.
OWN_FAULTS = re.compile(r"out of memory|cuda c?alloc|invalid ?usage|invalid ?argument|EADDRINUSE", re.IGNORECASE)

LOOK_EVERY_SECONDS = 2.0  # for a notice of another process


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
        f"rank {world.process} of {world.size}: another process of this job is gone, or has not answered for "
        f"{world.waits.limit_seconds:.0f} s ({one_line(error)[:200]}); see its messages, and start again to resume"
    )


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


def device_names(world: World) -> list[str]:
    if world.device.type == "cuda":
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [f"cpu ({torch.get_num_threads()} threads)"]


def barrier(world: World) -> None:
    if world.size > 1:
        with collective(world):
            dist.barrier()


def broadcast_json(world: World, value: Any = None) -> Any:
    """Process 0's JSON value on every process; the others' argument is not looked at."""
    if world.size == 1:
        return value
    text = json.dumps(value).encode() if world.is_first else b""
    length = torch.tensor([len(text)], device=world.device)
    with collective(world):
        dist.broadcast(length, 0)
        buffer = torch.zeros(int(length), dtype=torch.uint8, device=world.device)
        if world.is_first:
            buffer.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        dist.broadcast(buffer, 0)
        return json.loads(bytes(buffer.cpu().numpy()))


def decide_on_process0(world: World, decide: Callable[[], Any]) -> Any:
    """The first process's JSON answer, on every process.

    Where ``decide`` fails every process raises, and none waits in a collective for one that has ended: a UserError or
    an OSError is the same everywhere, of anything else the others raise ProcessFailed.
    """
    told, fault = {}, None
    if world.is_first:
        try:
            told = {"found": decide()}
        except Exception as error:
            told, fault = {"failure": failure_of(error)}, error
    told = broadcast_json(world, told)
    if fault is not None:
        raise fault
    if "failure" in told:
        raise error_of(told["failure"])
    return told["found"]


def on_process0(world: World, work: Callable[[], Result]) -> Result | None:
    """The first process works while the others wait: its result there, None on the others. Fails on all, as above."""
    results: list[Result] = []
    decide_on_process0(world, lambda: results.append(work()))
    return results[0] if results else None


def on_every_process(world: World, work: Callable[[], Result]) -> Result:
    """Each process works for itself, without collectives; where one fails all of them raise, as above.

    For short work: who fails waits for the others to end theirs.
    """
    if world.size == 1:
        return work()
    results: list[Result] = []
    fault = None
    try:
        results.append(work())
    except Exception as error:
        fault = error
    text = json.dumps(None if fault is None else failure_of(fault)).encode()
    try:
        rows = gather_rows(world, np.frombuffer(text, np.uint8))
    except ProcessGone:
        if fault is None:
            raise
        raise fault from None  # a device that is lost fails here too
    if fault is not None:
        raise fault
    for row in rows:
        if (failure := json.loads(row.tobytes())) is not None:
            raise error_of(failure)
    return results[0]


def gather_rows(world: World, rows_RX: np.ndarray) -> list[np.ndarray]:
    """Every process's array (first dimensions may differ), in process order, on every process."""
    if world.size == 1:
        return [rows_RX]
    count = torch.tensor([len(rows_RX)], device=world.device)
    counts = [torch.zeros_like(count) for _ in range(world.size)]
    with collective(world):
        dist.all_gather(counts, count)
        lengths = torch.cat(counts).tolist()
    padded = torch.zeros((max(lengths), *rows_RX.shape[1:]), dtype=torch.from_numpy(rows_RX[:0]).dtype)
    padded[: len(rows_RX)] = torch.from_numpy(np.ascontiguousarray(rows_RX))
    padded = padded.to(world.device)
    gathered = [torch.empty_like(padded) for _ in range(world.size)]
    with collective(world):
        dist.all_gather(gathered, padded)
        return [part[:length].cpu().numpy() for part, length in zip(gathered, lengths, strict=True)]


class Notice:
    """Tells the others, without a collective, that what they work at is not needed any more; they look while they work.

    Each process makes its notices in the same order. They go through the store by which the processes met.
    """

    _made = itertools.count()

    def __init__(self, world: World, clock: Callable[[], float] = time.monotonic) -> None:
        self.world, self.clock, self.looked = world, clock, clock()
        self.key = f"notice_{next(self._made)}"
        self.store: Any = None
        if world.size > 1 and dist.is_initialized():
            self.store = dist.distributed_c10d._get_default_store()

    def give(self) -> None:
        if self.store is not None:
            with contextlib.suppress(dist.DistError):  # the next collective says that the store is gone
                self.store.set(self.key, "1")

    def is_given(self) -> bool:
        """Looks every LOOK_EVERY_SECONDS, and answers False in between. ProcessGone where the store is gone."""
        if self.store is None or self.clock() - self.looked < LOOK_EVERY_SECONDS:
            return False
        self.looked = self.clock()
        try:
            return bool(self.store.check([self.key]))
        except dist.DistError as error:
            raise process_gone(self.world, error) from None


def any_process(world: World, flag: bool) -> bool:
    """Whether it holds on any process: the same answer on all of them."""
    if world.size == 1:
        return flag
    answer = torch.tensor([int(flag)], device=world.device)
    with collective(world):
        dist.all_reduce(answer, dist.ReduceOp.MAX)
        return bool(answer.item())


def mean_over_processes(world: World, value: float | torch.Tensor) -> float:
    """A tensor is looked at in the collective: until it is there, it may be this process that the others wait for."""
    return sum_over_processes(world, value) / world.size


def sum_over_processes(world: World, value: float | torch.Tensor) -> float:
    if world.size == 1:
        return float(value)
    with collective(world):
        total = torch.as_tensor(value, dtype=torch.float64, device=world.device).reshape(1).clone()
        dist.all_reduce(total)
        return float(total)


def sum_rows(world: World, rows: list[list[float]]) -> list[list[float]]:
    """A table of numbers added up over the processes, on every process."""
    parts = gather_rows(world, np.array(rows, np.float64))
    total: list[list[float]] = np.sum(parts, axis=0).tolist()
    return total


def average_gradients(world: World, parameters: Sequence[torch.nn.Parameter]) -> None:
    """Every process's gradients become their mean; what has none counts as zero, as DistributedDataParallel has it."""
    if world.size == 1:
        return
    with collective(world):
        under_way = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad /= world.size
            under_way.append(dist.all_reduce(parameter.grad, async_op=True))
        for work in under_way:
            work.wait()


class _GatherWithGradient(torch.autograd.Function):
    """All processes' rows, concatenated; the gradient of a row goes back to the process it came from."""

    @staticmethod
    def forward(ctx: Any, rows_RX: torch.Tensor, counts: Sequence[int], process: int) -> torch.Tensor:
        ctx.counts, ctx.process = list(counts), process
        padded = rows_RX.new_zeros((max(counts), *rows_RX.shape[1:]))
        padded[: len(rows_RX)] = rows_RX
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        # A copy: the same tensor may be the gradient of something else.
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        start = sum(ctx.counts[: ctx.process])
        return total[start : start + ctx.counts[ctx.process]], None, None


def gather_with_gradient(rows_RX: torch.Tensor) -> torch.Tensor:
    """Concatenation of all processes' rows, through which gradients flow; the identity on one process.

    With the loss of a process averaged over its own rows and gradients averaged over processes
    (DistributedDataParallel), the result is the gradient of one process with the whole batch.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows_RX
    count = torch.tensor([len(rows_RX)], device=rows_RX.device)
    counts = [torch.zeros_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    return _GatherWithGradient.apply(rows_RX, [int(c) for c in counts], dist.get_rank())
