"""SIGSTOP before every publication, past the lease's life; a second job takes over; SIGCONT: the first one has lost."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass, replace
from pathlib import Path

from tests.faults.fork_server import Child, ForkServer
from tests.faults.kills import roles_beside
from tests.faults.order import is_published
from tests.faults.programs import ROLES, SAVE_STEPS, Run
from tests.faults.runs import Lab, Miss, NeverInjected, Outcome, Play, count_plan, injected, pick
from tests.faults.victim import PUBLISHING, SUCCEEDED, Operation, read_log

FENCED, REFUSED = 75, 2


@dataclass(frozen=True)
class Pause:
    """``at``: of the role's renames and links. It continues when the other has taken over, or has finished."""

    role: str
    at: int
    until_finished: bool

    def __str__(self) -> str:
        end = "finished" if self.until_finished else "taken over"
        return f"SIGSTOP of the {self.role} before its publication {self.at}, until another has {end}"


def publications(lab: Lab, rng: random.Random) -> list[Pause]:
    assert lab.finished is not None
    found = []
    for role in ROLES:
        log = read_log(lab.finished.directory / f"{role}.log")
        last = sum(operation.kind in PUBLISHING and operation.thread == "main" for operation in log)
        found += [Pause(role, at, rng.random() < 0.5) for at in range(1, last + 1)]
    return found


def leases(run: Run, role: str) -> list[str]:
    return sorted(path.name for path in run.own_directory(role).glob(f".leases/{role}-*.json"))


def inject(lab: Lab, server: ForkServer, pause: Pause) -> None:
    injected(lambda: fence(lab, server, pause))


def fence(lab: Lab, server: ForkServer, pause: Pause) -> None:
    """One try; NeverInjected where the role ended before the publication."""
    run = lab.new_run()
    play = Play(lab, server, run, roles_beside(pause.role))
    plan = count_plan(run, pause.role, what="stop", at=pause.at, kinds=PUBLISHING)
    try:
        for role in play.roles:
            play.start(role, plan if role == pause.role else None)
        loser = play.children[pause.role]
        play.watch_until(lambda: loser.is_stopped() or loser.poll() is not None, "the instant did not come")
        if loser.poll() is not None:
            raise NeverInjected(f"never injected: the {pause.role} ended with {loser.code}")
        held = leases(run, pause.role)
        del play.children[pause.role]
        play.start(pause.role)
        if pause.until_finished:
            play.to_the_end()
        else:
            play.watch_until(lambda: leases(run, pause.role) != held or play.step(), "nobody took over")
        go_on(play, pause, loser, bool(held))
        play.to_the_end()
    finally:
        play.stop_all()
        loser.end()
    # Those steps are repeated that the loser had done since its last checkpoint.
    play.check_end(repeated=SAVE_STEPS)
    play.discard()


def go_on(play: Play, pause: Pause, loser: Child, had_lease: bool) -> None:
    """SIGCONT; Miss where the loser does not end as it should, or publishes."""
    log = play.run.directory / f"{pause.role}.log"
    before = len(read_log(log))
    loser.send(signal.SIGCONT)
    play.watch_until(lambda: loser.poll() is not None, "the fenced job did not end")
    if not had_lease:  # it comes late and is refused, or finds the run finished
        if loser.code not in (REFUSED, 0):
            raise Miss(f"the late {pause.role} ended with {loser.code}, expected {REFUSED} or 0")
        return
    published = [Path(each.target).name for each in succeeded(read_log(log)[before:])]
    if published:
        raise Miss(f"the fenced {pause.role} has published {', '.join(published)}")
    if loser.code != FENCED:
        raise Miss(f"the fenced {pause.role} ended with {loser.code}, expected {FENCED}")


def succeeded(operations: list[Operation]) -> list[Operation]:
    """Versions whose publication came about. Shards of embeddings are none: their names hold a hash of all that
    decides their bytes, so that it does not matter who wrote them (`Published` sees that they never change)."""
    return [
        each
        for each in operations
        if each.kind == SUCCEEDED
        and is_published(replace(each, kind=PUBLISHING[0]))
        and "embeddings" not in Path(each.target).parts
    ]


def run(lab: Lab, count: int, rng: random.Random) -> list[Outcome]:
    return lab.each(pick(rng, publications(lab, rng), count), inject)
