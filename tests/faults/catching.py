"""Whether the rows see a protocol that is broken on purpose (mutants.py); survived means caught.

At the small size every mutant meets the one fault that cannot but show it. At full size it meets its rows as they are,
at their small size: one of them has to end with a miss.
"""

from __future__ import annotations

import itertools
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import replace

from tests.faults import damage, fencing, kills, mutants, order, peers, stops
from tests.faults.fork_server import ForkServer
from tests.faults.mutants import MUTANTS, Mutant
from tests.faults.programs import TRAINER, WARMUP
from tests.faults.runs import Lab, Miss, Outcome, outcome_of, undisturbed
from tests.faults.victim import PUBLISHING, Operation, read_log

SEEDS = 4  # tries of a row: by chance its few faults may be none that a mutant answers wrongly
DAMAGES = 120
ODD_STEPS = (1, 3, 5, 7, 9, 11)  # every other step is saved anyway
ROUNDS = 3  # on a busy machine a signal may arrive a step late each time, when all is saved
PEER_STEP = 3
THIS_PROCESS = threading.Lock()  # one mutant at a time breaks it


# The fault that shows a mutant: Miss where it does


def expect_none(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.problem:
            raise Miss(f"{outcome.fault}: {outcome.problem}")


def in_order(lab: Lab, server: ForkServer) -> None:
    """An undisturbed run of the mutant's own."""
    own = replace(lab, reference={}, seconds={})
    undisturbed(own, server)
    expect_none(order.run(own, 1, random.Random(0)))


def damaged(lab: Lab, _server: ForkServer) -> None:
    expect_none(damage.run(lab, DAMAGES, random.Random(0)))


def to_first_checkpoint(lab: Lab) -> list[Operation]:
    """What the undisturbed trainer did until it published its first checkpoint, that included."""
    assert lab.finished is not None
    log = read_log(lab.finished.directory / f"{TRAINER}.log")
    published = next(each for each in log if each.kind == "rename" and each.target.endswith("/checkpoint-2"))
    return [each for each in log[: log.index(published) + 1] if each.thread == "main"]


def killed_after_a_checkpoint(lab: Lab, server: ForkServer) -> None:
    """Within the first window, so that the next job has to find its place in it."""
    kills.inject(lab, server, kills.Kill(TRAINER, to_first_checkpoint(lab)[-1].at + 2))


def stopped_at_odd_steps(lab: Lab, server: ForkServer) -> None:
    for step in ODD_STEPS * ROUNDS:
        stops.inject(lab, server, stops.Stop(WARMUP, "SIGTERM", step, 0.0))


def taken_over_at_a_checkpoint(lab: Lab, server: ForkServer) -> None:
    at = sum(each.kind in PUBLISHING for each in to_first_checkpoint(lab))
    fencing.inject(lab, server, fencing.Pause(TRAINER, at, until_finished=False))


def left_alone(lab: Lab, server: ForkServer) -> None:
    peers.inject(lab, server, peers.Ending(PEER_STEP, signal.SIGKILL, 0.0))


FAULTS: dict[str, Callable[[Lab, ForkServer], None]] = {
    "order": in_order,
    "damage": damaged,
    "kills": killed_after_a_checkpoint,
    "stops": stopped_at_odd_steps,
    "fencing": taken_over_at_a_checkpoint,
    "peers": left_alone,
}


# The row


def breaks_this_process(row: str) -> bool:
    """`damage` reads what is published here; the others run the programs."""
    return row == "damage"


def of_mutant(lab: Lab, mutant: Mutant, row: str, meet: Callable[[Lab], None]) -> str:
    """The miss that ``meet`` ends with where the programs are the mutant; empty where it sees nothing."""
    try:
        if breaks_this_process(row):
            with THIS_PROCESS, mutants.applied(mutant):
                meet(lab)
        else:
            meet(replace(lab, mutant=mutant.about))
    except Miss as miss:
        return str(miss)
    return ""


def catch(lab: Lab, server: ForkServer, mutant: Mutant) -> None:
    """Miss where the first row's fault does not show the mutant."""
    row = mutant.rows[0]
    if not of_mutant(lab, mutant, row, lambda broken: FAULTS[row](broken, server)):
        raise Miss(f"not caught by {FAULTS[row].__name__}")


def catch_by_rows(lab: Lab, mutant: Mutant) -> None:
    """Miss where none of its rows at their small size, in some tries, does."""
    for row, seed in itertools.product(mutant.rows, range(SEEDS)):
        if of_mutant(lab, mutant, row, lambda broken: expect_none(small_row(broken, row, seed))):  # noqa: B023
            return
    raise Miss(f"not caught by {', '.join(mutant.rows)} with {SEEDS} seeds each")


def small_row(lab: Lab, name: str, seed: int) -> list[Outcome]:
    from tests.faults.__main__ import ROWS, inject  # which names this row too

    if ROWS[name].run is not order.run:
        return inject(lab, name, full=False, seed=seed)
    server = lab.servers.get()
    try:
        return [outcome_of("order", lambda: in_order(lab, server))]
    finally:
        lab.servers.put(server)


def run(lab: Lab, count: int, _rng: random.Random) -> list[Outcome]:
    """All of them, each by its fault; by their rows where ``count`` is more than there are."""
    if count <= len(MUTANTS):
        return lab.each(MUTANTS, catch)
    return [outcome_of(mutant, lambda: catch_by_rows(lab, mutant)) for mutant in MUTANTS]  # noqa: B023
