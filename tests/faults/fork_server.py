"""A process that has imported the programs, and forks one of them in milliseconds where a start takes seconds.

What is forked is a process like any other: its own pid, files and signals, and killed for real. The server itself runs
no thread and computes nothing, so that a fork of it is clean. One line of JSON asks for a child; its pid and, at its
end, its exit code come back the same way.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tests import REPO
from tests.faults import mutants, stacks, victim

PRELOADED = (
    "drivers.train.ann",
    "drivers.generate.generator",
    "drivers.train.warmup",
    "model.encoders.static",
    "faiss",
    "safetensors.torch",
    "tensorboardX",
    "tokenizers",
    "torch._dynamo",
    "transformers",
    "utils.search",
)
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    **stacks.ENVIRONMENT,
}
LINE_BYTES = 2**20


@dataclass(frozen=True)
class Request:
    """A program to run: ``words`` as after ``python -m``; ``settings`` replaces modules' constants in it."""

    words: tuple[str, ...]
    out: str
    err: str
    plan: victim.Plan | None = None
    environment: dict[str, str] = field(default_factory=dict)
    settings: dict[str, float] = field(default_factory=dict)
    file_bytes_limit: int | None = None
    mutant: str = ""  # what it is broken by


# The server's side


def serve(control: socket.socket) -> Request:
    """Fork for every request; returns only in a child, which then is the program."""
    lines = control.makefile("r")
    children: set[int] = set()
    while True:
        readable, _, _ = select.select([control], [], [], 0.01 if children else None)
        if readable:
            try:
                line = lines.readline()
            except ConnectionError:
                line = ""
            if not line:  # the one who asks has gone
                for pid in children:
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            pid = os.fork()
            if pid == 0:
                control.close()
                return as_request(json.loads(line))
            children.add(pid)
            control.sendall(json.dumps({"pid": pid}).encode() + b"\n")
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            children.discard(pid)
            code = os.waitstatus_to_exitcode(status)
            control.sendall(json.dumps({"ended": pid, "code": code}).encode() + b"\n")


def as_request(fields: dict[str, Any]) -> Request:
    plan = fields.pop("plan")
    if plan is not None:
        plan = victim.Plan(**{k: tuple(v) if isinstance(v, list) else v for k, v in plan.items()})
    return Request(words=tuple(fields.pop("words")), plan=plan, **fields)


def become(request: Request) -> None:
    """Turn this fork into the program that was asked for."""
    for path, descriptor in ((request.out, 1), (request.err, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.update(request.environment)
    for name, value in request.settings.items():
        module, _, constant = name.rpartition(".")
        assert hasattr(importlib.import_module(module), constant), f"there is no {name}"
        setattr(importlib.import_module(module), constant, value)
    if request.mutant:
        mutants.apply(request.mutant)
    if request.file_bytes_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request.file_bytes_limit, request.file_bytes_limit))
    if request.plan is not None:
        victim.install(request.plan)
    leave(request.words)


def leave(words: tuple[str, ...]) -> NoReturn:
    """Run the program and end as an interpreter ends, but for freeing its memory, which takes longer than all else."""
    code: object = 0
    try:
        victim.run_program(list(words))
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    import torch

    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # no child has to copy the pages of what is imported
    control.sendall(b'{"ready": true}\n')
    become(serve(control))


# The side of those who ask


class Child:
    """A program that runs. ``code`` is its exit code once it has ended, minus a signal's number where one ended it."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.server, self.pid = server, pid
        self.code: int | None = None

    def poll(self) -> int | None:
        self.server.listen(0)
        return self.code

    def wait(self, timeout_seconds: float) -> int | None:
        """Its exit code; None where it still runs after the time."""
        deadline = time.monotonic() + timeout_seconds
        while self.code is None and (left := deadline - time.monotonic()) > 0:
            self.server.listen(left)
        return self.code

    def send(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it may end in between, and the fork server takes its code
                os.kill(self.pid, number)

    def is_stopped(self) -> bool:
        """Whether SIGSTOP holds it."""
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return False
        return text.rpartition(")")[2].split()[0] in "Tt"

    def end(self) -> None:
        self.send(signal.SIGKILL)
        self.wait(10)


class ForkServer:
    """Used by one thread at a time."""

    def __init__(self, repo: Path = REPO, environment: Mapping[str, str] = os.environ) -> None:
        ours, its = socket.socketpair()
        self.control = ours
        command = [sys.executable, "-m", "tests.faults.fork_server", str(its.fileno())]
        self.process = subprocess.Popen(command, cwd=repo, env={**environment, **ENVIRONMENT}, pass_fds=[its.fileno()])
        its.close()
        self.buffer = b""
        self.children: dict[int, Child] = {}
        self.started: Child | None = None
        self.ready = False

    def listen(self, timeout_seconds: float) -> None:
        """Take in what the fork server says, waiting for it no longer than the time."""
        if not select.select([self.control], [], [], timeout_seconds)[0]:
            return
        received = self.control.recv(LINE_BYTES)
        if not received:
            raise RuntimeError("the fork server has ended; its own error is above")
        *lines, self.buffer = (self.buffer + received).split(b"\n")
        for line in map(json.loads, lines):
            if "ready" in line:
                self.ready = True
            elif "pid" in line:
                self.started = self.children[line["pid"]] = Child(self, line["pid"])
            else:
                self.children.pop(line["ended"]).code = line["code"]

    def wait_until_ready(self) -> None:
        while not self.ready:
            self.listen(1)

    def start(self, request: Request) -> Child:
        self.wait_until_ready()
        self.control.sendall(json.dumps(dataclasses.asdict(request)).encode() + b"\n")
        self.started = None
        while self.started is None:
            self.listen(1)
        return self.started

    def close(self) -> None:
        """End the server and, with it, every child that still runs."""
        self.control.close()
        self.process.wait()


if __name__ == "__main__":
    main()
