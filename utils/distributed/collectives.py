"""The few collectives that the programs need: between processes travel tensors and JSON, never pickles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from utils.distributed.world import World, collective


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
