"""The jobs of a run as its directories show them: which roles there are, and how each one is.

Whether a job lives is judged by its heartbeat, whose text has to change before this reader's eyes; so it takes two
looks at least. No file time and no other host's clock counts: the times shown are for people.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.read.run import arm_order
from utils.errors import UserError
from utils.exchange import atomic
from utils.exchange.atomic import numbered
from utils.exchange.layout import (
    ANN_DATA,
    ARMS,
    CHECKPOINT_PATTERN,
    CHECKPOINTS,
    LOGS,
    RECORD_PATTERN,
    WARMUP,
    ArmLayout,
    RunLayout,
)
from utils.exchange.lease.record import (
    DEFAULT_TIMEOUTS,
    ENDED,
    FAILED_STATE,
    STOPPED,
    LeaseRecord,
    newest_epoch,
    parse_beat,
)
from utils.exchange.lease.watch import Watch
from utils.exchange.markers import read_done, read_failed

TRAINER, GENERATOR = "trainer", "generator"
# In addition to the heartbeat's own words (ended, stopped, failed):
ALIVE, UNSURE, GONE, DONE, ABSENT = "alive", "unsure", "gone", "done", "not started"
ALL_WELL, UNWELL, WAITING = 0, 4, 75


@dataclass(frozen=True)
class Place:
    """One role's directory. The roles of a group work together: an arm's trainer and generator."""

    group: str
    role: str
    directory: Path


@dataclass(frozen=True)
class RoleStatus:
    """What a look found. ``beat`` and ``done`` are what the heartbeat and DONE.json hold, empty without them."""

    place: Place
    state: str
    silent_seconds: float
    holder: LeaseRecord | None
    beat: dict[str, Any]
    done: dict[str, Any]
    error: str


def find_places(paths: Sequence[Path]) -> list[Place]:
    """The roles of run directories, arms, or of the programs' own directories; none of a run where no job has begun.

    UserError for any other directory.
    """
    places: list[Place] = []
    single = [place for path in paths for place in own_roles(path)]
    # A trainer's and a generator's directory are of one arm, wherever they lie.
    pair = len(single) == 2 and {place.role for place in single} == {TRAINER, GENERATOR}
    for path in paths:
        found = places_of_run(path) or places_of_arm(path, f"arm {path.resolve().name}") or own_roles(path)
        if not found and not (path / LOGS).is_dir():  # which submit_ance.sh makes
            raise UserError(
                f"{path} is no run, arm, or directory of a trainer, generator or warmup: give the directory that holds "
                f"{WARMUP}/ and {ARMS}/, or {CHECKPOINTS}/ and {ANN_DATA}/"
            )
        places += [Place("arm", p.role, p.directory) if pair and p in single else p for p in found]
    return places


def places_of_run(path: Path) -> list[Place]:
    warmup, arms = RunLayout(path).warmup.root, RunLayout(path).arms
    places = [Place(WARMUP, WARMUP, warmup)] if warmup.is_dir() else []
    found = sorted((arms / name for name in atomic.listing(arms) if not name.startswith(".")), key=arm_order)
    return places + [place for arm in found for place in places_of_arm(arm, f"arm {arm.name}")]


def awaits_arm(paths: Sequence[Path], places: Sequence[Place]) -> bool:
    """Whether jobs of arms were submitted to one of the run directories, and ``places`` has no arm of it.

    Told by the directory of the logs: submit_ance.sh makes it, and submits arms each time.
    """
    runs = [path for path in paths if (path / LOGS).is_dir()]
    return any(not any(RunLayout(run).arms in place.directory.parents for place in places) for run in runs)


def places_of_arm(path: Path, group: str) -> list[Place]:
    """Both roles of an arm, of which one may not have begun yet."""
    arm = ArmLayout(path)
    directories = {TRAINER: arm.checkpoints.root, GENERATOR: arm.ann_data.root}
    if not any(directory.is_dir() for directory in directories.values()):
        return []
    return [Place(group, role, directory) for role, directory in directories.items()]


def own_roles(path: Path) -> list[Place]:
    """The roles that have worked in the directory itself, by their leases, or by what they have published."""
    roles = [role for role in (TRAINER, GENERATOR, WARMUP) if newest_epoch(path, role)]
    if not roles and numbered(path, RECORD_PATTERN):
        roles = [GENERATOR]
    if not roles and (numbered(path, CHECKPOINT_PATTERN) or read_done(path) is not None):
        roles = [WARMUP if path.resolve().name == WARMUP else TRAINER]
    return [Place(str(path), role, path) for role in roles]


class Reader:
    """Looks at all roles again and again; it remembers since when each heartbeat has been silent."""

    def __init__(self, places: Sequence[Place], clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.watches: dict[tuple[str, Path], Watch] = {}
        self.follow(places)

    def follow(self, places: Sequence[Place]) -> None:
        """Look at these from now on; of those that it has looked at already it knows what it knew."""
        self.places = list(places)
        for place in places:
            watch = Watch(place.directory, place.role, DEFAULT_TIMEOUTS.lease_seconds, self.clock)
            self.watches.setdefault((place.role, place.directory), watch)

    def look(self) -> list[RoleStatus]:
        return [role_status(place, self.watches[place.role, place.directory]) for place in self.places]


def role_status(place: Place, watch: Watch) -> RoleStatus:
    last_status, beat = watch.look(), parse_beat(watch.text)
    done = read_done(place.directory) if place.role != GENERATOR else None
    failed = read_failed(place.directory) or {}
    if done is not None:
        state = DONE
    elif not last_status:
        state = FAILED_STATE if failed else ABSENT
    elif last_status in (ENDED, STOPPED, FAILED_STATE):
        state = last_status
    elif watch.is_silent:
        state = GONE
    else:
        state = ALIVE if watch.seen_alive else UNSURE
    error = str(beat.get("error") or failed.get("reason") or "")
    return RoleStatus(place, state, watch.silent_seconds, watch.holder, beat, done or {}, error)


def finished_groups(roles: Sequence[RoleStatus]) -> set[str]:
    """The groups in which nothing remains to be done, whatever the last words of their generators were."""
    finished = {role.place.group for role in roles}
    for role in roles:
        alone = not any(r.place.role != GENERATOR for r in roles if r.place.group == role.place.group)
        at_work = role.state in (ALIVE, UNSURE)
        complete = role.state == DONE or (role.state == ENDED and alone)
        if at_work or (not complete and (role.place.role != GENERATOR or alone)):
            finished.discard(role.place.group)
    return finished


def health(roles: Sequence[RoleStatus], is_arm_awaited: bool = False) -> int:
    """The exit code: UNWELL where a job of an unfinished group is gone or has failed, WAITING where one has to be
    started (again), or where all are finished and an arm is awaited (`awaits_arm`); else ALL_WELL."""
    finished = finished_groups(roles)
    states = {group: {r.state for r in roles if r.place.group == group} for group in {r.place.group for r in roles}}
    open_states = {group: found for group, found in states.items() if group not in finished}
    if any(found & {GONE, FAILED_STATE} for found in open_states.values()):
        return UNWELL
    # A generator that was asked for so many refreshes only has ended; its trainer continues.
    if any(found & {STOPPED, ABSENT} or not found & {ALIVE, UNSURE} for found in open_states.values()):
        return WAITING
    return WAITING if is_arm_awaited and not open_states else ALL_WELL
