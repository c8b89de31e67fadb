"""How the jobs of a run are: alive or not, how far, how old their negatives, what went wrong.

    python -m results.status RUN_DIR
    python -m results.status RUN_DIR --watch

RUN_DIR holds warmup/ and arms/, or is one arm, or the directories that a program was given: of the trainer and of the
generator, or of the warmup. One look takes a heartbeat's time: a job is alive whose heartbeat changes while we look.

Exit codes: 0 all jobs are at work or done; 4 a job is gone or has failed before the end; 75 a job has stopped, or not
begun: it waits to be started; 2 not a run.
"""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, TextIO

from results.read.job_states import (
    ABSENT,
    ALIVE,
    DONE,
    GENERATOR,
    GONE,
    UNSURE,
    UNWELL,
    WAITING,
    Place,
    Reader,
    RoleStatus,
    awaits_arm,
    find_places,
    finished_groups,
    health,
)
from utils.errors import one_line, run_program
from utils.exchange.atomic import numbered
from utils.exchange.layout import CHECKPOINT_PATTERN, RECORD_PATTERN
from utils.exchange.lease.record import FAILED_STATE
from utils.exchange.markers import read_run
from utils.flag_values import LONGEST_SECONDS, Group, flag
from utils.flags import ProgramFlags, answer_dry_run, parse_flags
from utils.run_log import say
from utils.system import disk_used, in_bytes

WIDTH, INDENT = 80, 11
ERROR_CHARACTERS = 250
POLL_SECONDS = 0.5
CLEAR = "\x1b[H\x1b[J"
VERDICTS = {0: "all well", UNWELL: "a job is gone or has failed", WAITING: "a job waits to be started"}
NONE_BEGUN = f"no job has begun yet: those submitted wait in the queue (squeue --me)\n{VERDICTS[WAITING]} ({WAITING})"
NO_ARM = "no arm has begun yet: those submitted wait in the queue (squeue --me)"


def format_time(seconds: object) -> str:
    """A moment on the clock of the host that wrote it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if isinstance(seconds, int | float) else "?"


def count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def format_state(role: RoleStatus) -> str:
    holder, silence = role.holder, f"no sign of life for {role.silent_seconds:.0f} s"
    since = f" since {format_time(holder.time)}" if holder else ""
    last_word = f", last heard of at {format_time(role.beat['time'])}" if "time" in role.beat else ""
    if role.state == ALIVE:
        late = holder is not None and role.silent_seconds > 3 * holder.heartbeat_seconds
        return f"alive{since}" + (f", {silence}" if late else "")
    if role.state == UNSURE:
        return f"at work{since}, {silence} yet"
    if role.state == GONE:
        return f"GONE, {silence}{last_word}"
    if role.state == FAILED_STATE:
        return f"FAILED{last_word}"
    return role.state if role.state in (ABSENT, DONE) else f"{role.state}{last_word}"


def format_progress(role: RoleStatus) -> list[str]:
    """Step, refresh and age of the negatives: from the heartbeat, or from what is published where there is none."""
    beat, directory, facts = role.beat, role.place.directory, []
    if role.place.role == GENERATOR:
        published = numbered(directory, RECORD_PATTERN)
        facts += [f"refresh {published[-1]} published"] if published else []
        if role.state in (ALIVE, UNSURE, GONE) and beat.get("refresh") not in (None, *published):
            facts.append(f"making refresh {beat['refresh']} from step {count(beat.get('step', '?'))}")
        return facts
    checkpoints = numbered(directory, CHECKPOINT_PATTERN)
    step = role.done.get("step", beat.get("step", checkpoints[-1] if checkpoints else None))
    total = beat.get("total_steps")
    if step is not None:
        of_total = f" of {total:,} ({100 * step / total:.0f}%)" if isinstance(total, int) and total > 0 else ""
        facts.append(f"step {count(step)}{of_total}")
    made_from = beat.get("made_from_step")
    if beat.get("refresh") is not None and made_from is not None and step is not None:
        facts.append(f"negatives of refresh {beat['refresh']} from step {made_from:,}: {step - made_from:,} steps old")
    return facts


def format_speed(role: RoleStatus) -> list[str]:
    """What it is doing, how fast, and until when; nothing of a job that is not at work."""
    if role.state not in (ALIVE, UNSURE):
        return []
    beat, facts = role.beat, []
    if beat.get("doing"):
        facts.append(str(beat["doing"]))
    if isinstance(rate := beat.get("rate"), int | float):
        facts.append(f"{rate:,.{1 if rate >= 10 else 2}f} {'passages' if role.place.role == GENERATOR else 'steps'}/s")
    if isinstance(eta_seconds := beat.get("eta_seconds"), int | float):
        facts.append(f"ETA {timedelta(seconds=round(eta_seconds))}")
    return facts


def lines_of_role(role: RoleStatus, used_bytes: int) -> list[str]:
    """The role's name, and next to it what there is to say, within WIDTH columns."""
    who = [str(role.holder)] if role.holder and role.state not in (ABSENT, DONE) else []
    blocks = [
        [format_state(role), *who],
        [*format_progress(role), f"{in_bytes(used_bytes)} on disk"],
        format_speed(role),
    ]
    texts = [", ".join(block) for block in blocks if block]
    if role.error and role.state != DONE:
        texts.append(f"error: {textwrap.shorten(one_line(role.error), ERROR_CHARACTERS)}")
    lines = [line for text in texts for line in textwrap.wrap(text, WIDTH - INDENT, break_on_hyphens=False)]
    labels = [f" {role.place.role}".ljust(INDENT), *[" " * INDENT] * (len(lines) - 1)]
    return [label + line for label, line in zip(labels, lines, strict=True)]


def page(roles: Sequence[RoleStatus], is_arm_awaited: bool = False) -> str:
    """The whole answer. Groups in the order of their roles, and the verdict last, as `health` gives it."""
    lines, finished = [], finished_groups(roles)
    for group in dict.fromkeys(role.place.group for role in roles):
        members = [role for role in roles if role.place.group == group]
        strategies = {strategy_of(role.place) for role in members} - {""}
        heading = ", ".join([group, *(f"negatives {strategy}" for strategy in strategies)])
        heading += ": finished" if group in finished else ""
        lines += textwrap.wrap(heading, WIDTH, break_on_hyphens=False)
        for role in members:
            lines += lines_of_role(role, disk_used(role.place.directory))
    code, is_finished = health(roles, is_arm_awaited), len(finished) == len({role.place.group for role in roles})
    lines += [NO_ARM] if is_finished and is_arm_awaited else []
    verdict = VERDICTS[code] if code or not is_finished else "all done"
    return "\n".join([*lines, f"{verdict} (exit code {code})"])


def strategy_of(place: Place) -> str:
    run = read_run(place.directory) or {}
    config = run.get("science")
    return str(config.get("strategy", "")) if isinstance(config, dict) else ""


def look_until_sure(reader: Reader, sleep: Callable[[float], None], notify: Callable[[str], None]) -> list[RoleStatus]:
    """Look until every running job's heartbeat has changed, or has been silent for its lease's life."""
    roles = reader.look()
    unsure = [role for role in roles if role.state == UNSURE]
    if unsure:
        names = ", ".join(f"{role.place.group} {role.place.role}" for role in unsure)
        notify(f"looking for a sign of life of {names}")
    while any(role.state == UNSURE for role in roles):
        sleep(POLL_SECONDS)
        roles = reader.look()
    return roles


def watch(directories: Sequence[Path], every_seconds: float, stream: TextIO, sleep: Callable[[float], None]) -> int:
    """Show a page every so often until all is finished: over the last one on a terminal, below it elsewhere.

    It does not end while an arm is awaited, as `awaits_arm` has it.

    Args:
        directories: Of the jobs, as `find_places` takes them; they are looked through each time for jobs that begin.
        every_seconds: Between two pages.
        stream: Where they are shown.
        sleep: Waits for so many seconds.
    Returns:
        The exit code that `health` gives at the end.
    """
    reader = Reader([])
    while True:
        places = find_places(directories)
        is_arm_awaited = awaits_arm(directories, places)
        reader.follow(places)
        roles = reader.look()
        clear = CLEAR if stream.isatty() else ""
        say(f"{clear}{page(roles, is_arm_awaited) if roles else NONE_BEGUN}\n{format_time(time.time())}", stream)
        if not is_arm_awaited and finished_groups(roles) == {role.place.group for role in roles}:
            return health(roles)
        sleep(every_seconds)


@dataclass(frozen=True, kw_only=True)
class StatusFlags(ProgramFlags):
    """How the jobs of a run are."""

    GROUP: ClassVar[Group] = "job"
    POSITIONAL: ClassVar[str] = "run_dir"
    EXAMPLE: ClassVar[str] = "python -m results.status results/runs/quickstart --watch"

    run_dir: list[str] = flag(
        help="run directory, arm, or the directories of its programs; the flag's name may be omitted",
        is_path=True,
        group="data",
    )
    watch: bool = flag(
        False,
        "look again and again until all jobs that have begun are done, at least one arm's where arms are submitted",
    )
    every_seconds: float = flag(5.0, "with --watch: between two looks", above=0, at_most=LONGEST_SECONDS)


def main() -> None:
    flags = parse_flags(StatusFlags, "status")
    directories = [Path(directory) for directory in flags.run_dir]
    places = find_places(directories)
    if answer_dry_run(flags):
        return
    if flags.watch:
        sys.exit(watch(directories, flags.every_seconds, sys.stdout, time.sleep))
    if not places:
        say(NONE_BEGUN)
        sys.exit(WAITING)
    notify = (lambda text: say(text, sys.stderr)) if sys.stderr.isatty() else (lambda text: None)
    roles, is_arm_awaited = look_until_sure(Reader(places), time.sleep, notify), awaits_arm(directories, places)
    say(page(roles, is_arm_awaited))
    sys.exit(health(roles, is_arm_awaited))


if __name__ == "__main__":
    run_program("status", main)
