"""Which negatives serve which steps: in lockstep, async, and when a journal is replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.mining.negative_lists import read_negative_lists
from data.training.triple_order import TRIPLE_ORDER, is_as_in_version_1
from drivers.job.resume import check_resumes, is_model_unknown
from drivers.job.run_config import COMMON, SAME_FLAGS, check_agreement
from drivers.job.session import Session
from drivers.train.journal import RefreshUse, TrainingHistory
from drivers.train.trainer_state import read_trainer_state
from utils.errors import Disagreement, PeerGone, UserError
from utils.exchange import atomic, checkpoints
from utils.exchange.checkpoints import Checkpoint
from utils.exchange.layout import RUN
from utils.exchange.markers import read_run
from utils.exchange.negatives import Refresh, newest_refresh, read_records, read_refresh, read_visible_refresh
from utils.exchange.peers import Peer
from utils.exchange.wait import wait_for
from utils.run_log import say


@dataclass(frozen=True)
class ScheduleSettings:
    """Which negatives serve which steps.

    Args:
        ann_dir: the generator publishes them there.
        is_lockstep: refresh N is made from step N * ``steps_per_refresh``, and serves ``refresh_lag`` windows later;
            else the newest wins.
        max_steps: the run's last.
        looks_every: in async, so many steps pass between two looks for newer negatives; in lockstep, for the generator.
        max_staleness_steps: the age at which negatives end the run; 0 for no limit.
        replay: the journal of an earlier run, whose uses of refreshes are ``journal``; both None without one.
        restarts_schedule: newer negatives begin a new learning-rate schedule.
    """

    ann_dir: Path
    is_lockstep: bool
    steps_per_refresh: int
    refresh_lag: int
    max_steps: int
    looks_every: int
    max_staleness_steps: int = 0
    replay: Path | None = None
    journal: list[RefreshUse] | None = None
    restarts_schedule: bool = True


def history_from(
    settings: ScheduleSettings, session: Session, start: Checkpoint | None, initial_model: str
) -> TrainingHistory:
    """What the earlier job had stored, or the beginning.

    Args:
        settings: in async, refreshes of checkpoints newer than ``start`` are of a model that this run will not have
            again.
        session: of the trainer.
        start: the checkpoint that is resumed; None for a run that begins.
        initial_model: the sha256 of its weights at step 0.
    """
    if start is None:
        return TrainingHistory({0: initial_model})
    stored = read_trainer_state(start)
    models = {int(step): sha256 for step, sha256 in stored["models"].items()}
    models[start.step] = checkpoints.model_sha256(start.path)
    models[0] = models.get(0) or initial_model  # blank in the state of an earlier version
    history = TrainingHistory(models, [RefreshUse(**entry) for entry in stored["taken"]], stored["schedule_from"])
    if not settings.is_lockstep:
        history.lost = frozenset(session.decide_on_process0(partial(made_after, settings, start.step)))
    return history


def check_new_run(settings: ScheduleSettings, config: Mapping[str, object]) -> None:
    """Disagreement where a run that only begins finds negatives of a later model: they cannot be its own."""
    records = read_records(settings.ann_dir)
    later = [record for record in records if record["step"] > 0 and "model_sha256" in record]
    if later and settings.journal is None:
        newest = int(later[-1]["refresh"])
        check_agreement(config, later[-1], f"refresh {newest}", SAME_FLAGS, COMMON)
        raise Disagreement(
            f"{settings.ann_dir} has refreshes up to {newest} already, and this run only begins: another run left "
            "them; give both programs an empty --ann_dir and generate the initial data again"
        )


def made_after(settings: ScheduleSettings, step: int) -> list[int]:
    """The refreshes of checkpoints newer than ``step``."""
    found = [int(record["refresh"]) for record in read_records(settings.ann_dir) if record["step"] > step]
    if found:
        say(f"resuming from step {step} without refreshes {found}: they are of newer checkpoints, which are damaged")
    return found


# Replaying


def check_replayed(settings: ScheduleSettings, config: Mapping[str, object]) -> str:
    """Disagreement where --replay's run was of other flags than this one; what may differ, as of `check_resumes`."""
    replayed = read_run(settings.replay.parent) if settings.replay else None
    if replayed is None:
        return ""
    ours = {name: value for name, value in config.items() if name != "replayed_journal_sha256"}
    return check_resumes(ours, replayed.get("science", {}), f"the run of {settings.replay}", SAME_FLAGS)


def check_replayed_order(settings: ScheduleSettings, group_size: int) -> None:
    """UserError where --replay's run was begun by a version with another order of triples for its lists."""
    run = read_run(settings.replay.parent) if settings.replay else None
    if run is None or settings.journal is None or group_size == 0 or run.get("triple_order") == TRIPLE_ORDER:
        return
    for number in sorted({entry.refresh for entry in settings.journal}):
        lists = read_negative_lists(read_refresh(settings.ann_dir, number).path)
        if not is_as_in_version_1(lists, group_size):
            raise UserError(
                f"{settings.replay} is of an earlier version, which had another order of triples for the lists of "
                f"refresh {number} at --group_size {group_size}, expected a run of this version's order; replay it "
                f"with the version that its {RUN} names, or train without --replay"
            )


# The choice


def is_stale(settings: ScheduleSettings, step: int, refresh: Refresh) -> bool:
    """Whether these negatives are older than --max_staleness_steps allows."""
    return 0 < settings.max_staleness_steps < step - refresh.step


def check_staleness(settings: ScheduleSettings, session: Session, step: int, refresh: Refresh) -> None:
    """Warn at half of --max_staleness_steps.

    Args:
        settings: with that bound, 0 for none; a run that replays another has none.
        session: whose first process warns.
        step: that training has reached.
        refresh: whose negatives are in use.

    Raises:
        PeerGone: the negatives are older than the bound.
    """
    limit = settings.max_staleness_steps
    age_steps = step - refresh.step
    if limit <= 0 or settings.journal is not None:
        return
    if is_stale(settings, step, refresh):
        raise PeerGone(
            f"the negatives of refresh {refresh.number} are of the model of {age_steps} steps ago, "
            f"--max_staleness_steps is {limit}: see the generator's log, and start both again to resume"
        )
    if age_steps == limit // 2 + 1 and session.world.is_first:
        say(f"warning: refresh {refresh.number} is {age_steps} steps old; training stops at {limit}")


def refresh_for_step(
    settings: ScheduleSettings,
    session: Session,
    history: TrainingHistory,
    peer: Peer,
    step: int,
    current: Refresh | None,
) -> Refresh:
    """The negatives that the next step is trained on, waited for where they must be. All processes together.

    Args:
        settings: which negatives serve which steps.
        session: of the trainer.
        history: which refreshes belong to checkpoints that were lost.
        peer: the generator.
        step: the steps made so far.
        current: what the step before was trained on; None for the first.

    Raises:
        PeerGone: where the generator is, and its negatives are needed.
        Disagreement: where a replayed journal is of other negatives.
    """
    if settings.journal is not None:
        return replayed_refresh(settings, step, current)
    if settings.is_lockstep:
        needed = max(step // settings.steps_per_refresh - settings.refresh_lag, 0)
        if current is None or current.number != needed:
            return wait_for_refresh(settings, session, history, peer, number=needed)
        last_needed = (settings.max_steps - 1) // settings.steps_per_refresh - settings.refresh_lag
        if step % settings.looks_every == 0 and current.number < last_needed:
            # A generator that is gone is seen before the window's end.
            session.decide_on_process0(lambda: None, peer, is_needed=False)
        return current
    if current is None:
        return wait_for_refresh(settings, session, history, peer)
    if step % settings.looks_every and not is_stale(settings, step, current):
        return current
    look = partial(newest_number, settings, history, current.number)
    number = session.decide_on_process0(look, peer, is_needed=False)
    return current if number is None else read_visible_refresh(settings.ann_dir, number)


def replayed_refresh(settings: ScheduleSettings, step: int, current: Refresh | None) -> Refresh:
    """What the journal says was trained on after ``step``, the same bytes."""
    assert settings.journal is not None
    entry = [entry for entry in settings.journal if entry.taken_at_step <= step][-1]
    if current is not None and current.number == entry.refresh:
        return current
    refresh = read_refresh(settings.ann_dir, entry.refresh)
    if (found := sha256_of_negatives(refresh)) != entry.sha256:
        raise Disagreement(
            f"{refresh.path} is not what {settings.replay} was written about: its sha256 is "
            f"{found}, expected {entry.sha256}; give that run's --ann_dir"
        )
    return refresh


def sha256_of_negatives(refresh: Refresh) -> str:
    """From its record; of ANCE's own, which says none, from the file."""
    return refresh.record.get("sha256") or atomic.sha256_of(refresh.path)


def newest_number(
    settings: ScheduleSettings, history: TrainingHistory, above: int = -1, number: int | None = None
) -> int | None:
    """Process 0's look at the directory.

    Args:
        settings: where the refreshes are.
        history: which of them this run has lost, and omits.
        above: only later ones.
        number: only this one.

    Returns:
        The newest valid refresh, None where there is none.
    """
    refresh = newest_refresh(settings.ann_dir, number, above, without=history.lost)
    return None if refresh is None else refresh.number


def wait_for_refresh(
    settings: ScheduleSettings, session: Session, history: TrainingHistory, peer: Peer, number: int | None = None
) -> Refresh:
    """The refresh of a number, or without one the newest; all processes wait for it.

    Args:
        settings: where the refreshes are.
        session: of this job; a request to stop ends the wait.
        history: which of them this run has lost, and omits.
        peer: the generator.
        number: of the refresh, None for the newest.

    Raises:
        PeerGone: the generator has ended without it.
    """
    what = f"negatives{'' if number is None else f' of refresh {number}'} in {settings.ann_dir}"
    session.set_status(doing=f"waiting for {what}", rate=None, eta_seconds=None)

    def look() -> int | None:
        return session.decide_on_process0(partial(newest_number, settings, history, -1, number), peer)

    found = wait_for(look, what, quiet=not session.world.is_first, wake_early=session.stop.requested)
    return read_visible_refresh(settings.ann_dir, found)


def check_origin(
    settings: ScheduleSettings, ours: Mapping[str, object], refresh: Refresh, model_of_step: dict[int, str]
) -> None:
    """Whether negatives are this run's own.

    Args:
        settings: which negatives serve which steps; of a journal's the sha256 says enough.
        ours: `drivers.job.run_config.provenance` of this run.
        refresh: the negatives, with their record.
        model_of_step: the sha256 of this run's weights by their step.

    Raises:
        Disagreement: exit code 3, where they are another run's, or made on another schedule.
    """
    record = refresh.record
    if settings.journal is not None:
        return  # its sha256 says that it is what the replayed run was trained on
    check_agreement(ours, record, f"refresh {refresh.number}", SAME_FLAGS, COMMON)
    expected_step = refresh.number * settings.steps_per_refresh
    if settings.is_lockstep and refresh.step != expected_step:
        raise Disagreement(
            f"refresh {refresh.number} was made from step {refresh.step}, in lockstep it is of step {expected_step}; "
            "start the generator with the same --steps_per_refresh"
        )
    made_by = record.get("model_sha256")
    if is_model_unknown(record, "model_sha256"):
        say(f"refresh {refresh.number} does not say which model made it (an earlier version did): not compared")
    elif made_by is not None and made_by != model_of_step.get(refresh.step):
        raise Disagreement(
            f"refresh {refresh.number} in {settings.ann_dir} was not made from this run's model of step "
            f"{refresh.step}: another run left it; give both programs an empty --ann_dir and generate the initial data "
            "again"
        )
