"""Runs the programs to their end, in one process or in several, each forked from one that has imported torch."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.fork_server import Child, ForkServer, Request
from tests.faults.runs import TEMPO

LIMIT_SECONDS = 120.0  # of one program, which takes two
LOOK_SECONDS = 0.005
PORTS = range(20_000, 32_000)  # below /proc/sys/net/ipv4/ip_local_port_range
ASKED = itertools.count()
Command = Sequence[object]  # as after `python -m`


class ProgramFailed(Exception):
    """A program did not end with 0; the message has its last words."""


def free_port() -> int:
    """Not one of those that the system gives to connections, one of which might take it before it is used."""
    first = os.getpid() * 97 + next(ASKED)
    for place in range(len(PORTS)):
        port = PORTS[(first + place) % len(PORTS)]
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no port of {PORTS} is free")


def process_environments(count: int) -> list[dict[str, str]]:
    """What torchrun tells each of ``count`` processes; nothing where there is one."""
    if count == 1:
        return [{}]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    return [{**meeting, "RANK": str(number), "LOCAL_RANK": str(number)} for number in range(count)]


@dataclass(frozen=True)
class Programs:
    """Starts programs. ``settings`` replaces constants in them, for a test of what a change does."""

    server: ForkServer
    settings: dict[str, float] = field(default_factory=dict)

    def start(self, command: Command, out: Path, processes: int = 1) -> list[Child]:
        """Begin ``command``. ``out`` gets the first process's output, ``out`` + ``.err`` its errors."""
        out.parent.mkdir(parents=True, exist_ok=True)
        words = tuple(str(word) for word in command)
        names = [out, *(out.with_name(f".{out.name}.{number}") for number in range(1, processes))]
        requests = [
            Request(words, str(name), f"{name}.err", environment=environment, settings={**TEMPO, **self.settings})
            for name, environment in zip(names, process_environments(processes), strict=True)
        ]
        return [self.server.start(request) for request in requests]

    def run(self, command: Command, out: Path, processes: int = 1) -> str:
        """Run ``command`` to its end; its output. ProgramFailed where a process does not end with 0."""
        self.run_together({out: command}, processes)
        return out.read_text()

    def run_together(self, commands: dict[Path, Command], processes: int = 1) -> None:
        """Run programs that meet in their directories, each with its ``.out``."""
        running = {out: self.start(command, out, processes) for out, command in commands.items()}
        children = [child for group in running.values() for child in group]
        deadline = time.monotonic() + LIMIT_SECONDS
        try:
            while any(child.poll() is None for child in children) and not any(child.poll() for child in children):
                if time.monotonic() > deadline:
                    break
                time.sleep(LOOK_SECONDS)
        finally:
            for child in children:
                child.end()
        for out, group in running.items():
            if codes := [child.code for child in group if child.code != 0]:
                told = "\n".join(path.read_text()[-3000:] for path in sorted(out.parent.glob(f"*{out.name}*")))
                raise ProgramFailed(f"{commands[out][0]} ended with {codes}:\n{told}")
