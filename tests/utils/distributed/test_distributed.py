"""Collectives: what they raise, what is measured, gradients through them; and the end of a process group."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests import REPO
from utils.distributed import collectives, process_group
from utils.distributed import world as world_module
from utils.distributed.process_group import RAISING_NCCL
from utils.distributed.world import Waits, World, collective
from utils.errors import EXIT_CODE_FILE, ProcessGone, collective_mark

GROUPS, LIMIT_SECONDS = 60, 120


def one_process(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    # gloo's thread asks for the GIL as a collective ends: it is not given up to it in between, as on a busy machine.
    sys.setswitchinterval(LIMIT_SECONDS)
    for turn in range(GROUPS):
        dist.init_process_group("gloo", init_method=f"file://{directory}/store-{turn}", rank=rank, world_size=2)
        model = DistributedDataParallel(torch.nn.Linear(2, 2))
        world = World(rank, 2, torch.device("cpu"))
        assert collectives.sum_rows(world, [[1.0]]) == [[2.0]]
        process_group.stop(world)
        del model


def test_a_model_that_outlives_its_process_group_ends(tmp_path: Path) -> None:
    ranks = torch.multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2, join=False)
    latest = time.monotonic() + LIMIT_SECONDS
    try:
        while not ranks.join(timeout=1):
            assert time.monotonic() < latest, "a rank hangs"
    finally:
        for process in ranks.processes:
            process.kill()


# What a collective raises


def pair() -> World:
    return World(0, 2, torch.device("cpu"), Waits(30.0))


NCCL_MEMORY = (  # nccl's own words: its memory is taken next to torch's
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error (run with "
    "NCCL_DEBUG=INFO for details), NCCL version 2.27.5\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
)
GONE = [
    dist.DistBackendError("[Process 0] Work WorkNCCL(SeqNum=7, OpType=ALLREDUCE) timed out in blocking wait."),
    dist.DistBackendError("NCCL error: remote process exited or there was a network error, ncclRemoteError"),
    dist.DistStoreError("Timed out after 31 seconds waiting for clients. 1/2 clients joined."),
    RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"),
    RuntimeError("[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 2000ms for recv"),
]
OWN = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 44.34 GiB"),
    dist.DistBackendError(NCCL_MEMORY + "Cuda failure 2 'out of memory'"),
    dist.DistBackendError(NCCL_MEMORY + "Failed to CUDA calloc async 608 bytes"),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("shape '[4]' is invalid for input of size 3"),
]


@pytest.mark.parametrize("error", GONE, ids=[type(error).__name__ for error in GONE])
def test_what_a_collective_raises_for_a_lost_rank(error: RuntimeError) -> None:
    with pytest.raises(ProcessGone, match="another process of this job is gone"), collective(pair()):
        raise error


@pytest.mark.parametrize("error", OWN, ids=[type(error).__name__ for error in OWN])
def test_other_errors_inside_a_collective_are_raised_as_they_are(error: RuntimeError) -> None:
    with pytest.raises(type(error)) as caught, collective(pair()):
        raise error
    assert caught.value is error


def test_what_torch_s_own_gloo_raises_is_known(tmp_path: Path) -> None:
    """The other rank joins the group and no collective."""
    code = (
        "import sys, time, torch.distributed as dist; from datetime import timedelta\n"
        "dist.init_process_group('gloo', init_method='file://' + sys.argv[1], rank=1, world_size=2)\n"
        "time.sleep(float(sys.argv[2]))"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "store"), "60"])
    try:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=2)
        other.kill()
        with pytest.raises(ProcessGone, match="gloo"):
            collectives.gather_rows(pair(), np.ones((3, 2)))
    finally:
        other.kill()
        dist.destroy_process_group()


# What is measured


class LateStream:
    """nccl's way: a call returns at once, and its result is there when the device has done it."""

    def __init__(self, seconds: float, error: RuntimeError | None = None) -> None:
        self.seconds, self.error, self.under_way = seconds, error, list[threading.Thread]()

    def later(self, work: Callable[[], Any]) -> None:
        def run() -> None:
            time.sleep(self.seconds)
            work()

        self.under_way.append(threading.Thread(target=run))
        self.under_way[-1].start()

    def all_gather(self, parts: list[torch.Tensor], own: torch.Tensor) -> None:
        if own.numel() == 1:  # a count, which is read at once: a device is waited for then
            for part in parts:
                part.copy_(own)
        else:
            self.later(lambda: [part.copy_(own) for part in parts])

    def synchronize(self) -> None:
        for thread in self.under_way:
            thread.join()
        if self.error is not None:
            raise self.error


def on_late_stream(stream: LateStream, patch: pytest.MonkeyPatch) -> World:
    """A rank whose device is a GPU to `collective`, and holds its tensors in plain memory."""
    world = pair()
    patch.setattr(dist, "all_gather", stream.all_gather)
    patch.setattr(world_module, "wait_for_device", lambda world: stream.synchronize(), raising=False)
    return world


def test_gathered_rows_are_there_before_the_measured_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    world = on_late_stream(LateStream(0.2), monkeypatch)
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    first, second = collectives.gather_rows(world, rows)
    assert np.array_equal(first, rows) and np.array_equal(second, rows)
    assert world.waits.longest_seconds >= 0.2


def test_an_error_that_comes_with_the_result_is_the_collective_s(monkeypatch: pytest.MonkeyPatch) -> None:
    world = on_late_stream(LateStream(0.0, GONE[0]), monkeypatch)
    with pytest.raises(ProcessGone):
        collectives.gather_rows(world, np.ones((3, 2)))


def test_the_device_is_waited_for_where_it_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, asked = LateStream(0.0), list[Any]()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: asked.append(device) or stream)
    with collective(World(0, 2, torch.device("cuda", 1))):
        assert not asked
    assert asked == [torch.device("cuda", 1)]


def test_nccl_is_asked_to_raise_in_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's ProcessGroupNCCL.hpp names the variable; with it no thread of torch's ends the process."""
    header = Path(torch.__file__).parent / "include/torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp"
    assert f'"{RAISING_NCCL[0]}"' in header.read_text()
    seen: list[str | None] = []
    monkeypatch.setenv(RAISING_NCCL[0], "")  # so that what is set meanwhile is taken back
    monkeypatch.delenv(RAISING_NCCL[0])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(process_group, "own_device", lambda no_cuda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: LateStream(0.0))
    monkeypatch.setattr(dist, "init_process_group", lambda *words, **more: seen.append(os.environ.get(RAISING_NCCL[0])))
    process_group.start(False, 30.0)
    assert seen == ["1"]


def test_a_rank_that_does_not_join_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: Any, **more: Any) -> None:
        raise GONE[2]

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", refuse)
    with pytest.raises(ProcessGone):
        process_group.start(True, 30.0)


# Gradients


def test_a_gradient_that_something_else_has_too_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """all_reduce works in place; autograd gives both parts of a sum the same tensor. The other rank's is as large."""
    monkeypatch.setattr(dist, "all_gather", lambda parts, own: [part.copy_(own) for part in parts])
    monkeypatch.setattr(dist, "all_reduce", lambda total: total.mul_(2))
    weights = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    rows, others = torch.ones(2, 1, requires_grad=True), torch.ones(4, 1, requires_grad=True)
    doubled = others * 1.0
    gathered: torch.Tensor = collectives._GatherWithGradient.apply(rows, [2, 2], 0)
    ((gathered + doubled) * weights).sum().backward()
    assert others.grad is not None and others.grad.tolist() == weights.tolist()
    assert rows.grad is not None and rows.grad.tolist() == [[2.0], [4.0]]


# Aborts


ABORTING = """
import ctypes, os, sys, threading, time
from utils.errors import run_program

def main():
    if "--dry_run" in sys.argv:
        return
    from utils.distributed import collectives, process_group
    world = process_group.start(True, 60.0)
    def as_a_watchdog():  # std::terminate in a thread that is not Python's
        time.sleep(0.5)
        ctypes.CDLL(None).abort()
    if world.process == 0:
        threading.Thread(target=as_a_watchdog).start()
    if world.process == 0 and sys.argv[1] == "inside":
        collectives.barrier(world)
    time.sleep(20)

run_program("program", main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("where", "code"), [("inside", 4), ("outside", 134)])
def test_a_rank_aborted_in_a_collective_misses_another(tmp_path: Path, where: str, code: int) -> None:
    """As nccl's watchdog does it, and threads of gloo's: nothing of the process's own is asked. Elsewhere 134 stays."""
    (tmp_path / "program.py").write_text(ABORTING)
    command = [sys.executable, "-m", "utils.launch", "--processes", "2", "program", where]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == code, ended.stderr
    said = [line for line in ended.stderr.splitlines() if line.startswith("launch: error: ")]
    assert said == (
        ["launch: error: process 0 was aborted in a collective: another process is gone; see its messages"]
        * (code == 4)
    )


def test_the_mark_of_a_collective_is_in_a_file_of_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code_file = tmp_path / "exit_code"
    monkeypatch.setenv(EXIT_CODE_FILE, str(code_file))
    world = World(3, 4, torch.device("cpu"), Waits(1.0, inside=process_group.shared_mark(3)))
    mark = collective_mark(code_file, 3)
    assert mark.read_bytes() == b"\0"
    with collective(world):
        assert mark.read_bytes() == b"\1"
    assert mark.read_bytes() == b"\0"
    monkeypatch.setenv(EXIT_CODE_FILE, str(tmp_path / "gone" / "exit_code"))
    assert process_group.shared_mark(0) == bytearray(1)
