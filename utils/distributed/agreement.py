"""Process 0 decides what all do, and the others are told; where one fails, all do."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist

from utils.distributed import collectives
from utils.distributed.world import World, process_gone
from utils.errors import ProcessGone, error_of, failure_of

Result = TypeVar("Result")
LOOK_EVERY_SECONDS = 2.0  # for a notice of another process


def decide_on_process0(world: World, decide: Callable[[], Any]) -> Any:
    """The first process's JSON answer, on every process.

    Where ``decide`` fails every process raises, and none waits in a collective for one that has ended: a UserError or
    an OSError is the same everywhere, of anything else the others raise ProcessFailed.
    """
    answer, fault = {}, None
    if world.is_first:
        try:
            answer = {"found": decide()}
        except Exception as error:
            answer, fault = {"failure": failure_of(error)}, error
    answer = collectives.broadcast_json(world, answer)
    if fault is not None:
        raise fault
    if "failure" in answer:
        raise error_of(answer["failure"])
    return answer["found"]


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
        rows = collectives.gather_rows(world, np.frombuffer(text, np.uint8))
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
