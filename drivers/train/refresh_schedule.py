"""Which negatives serve which steps: in lockstep, async, and when a journal is replayed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.mining.negative_lists import read_negative_lists
from data.tokens.collection import Preprocessed
from data.training.triple_order import TRIPLE_ORDER, is_as_in_version_1
from drivers.cli import AnnFlags
from drivers.job.resume import check_resumes, is_model_unknown
from drivers.job.run_config import COMMON, SAME_FLAGS, check_agreement
from drivers.job.session import Session
from drivers.train.trainer import read_trainer_state
from utils.distributed import agreement
from utils.errors import Disagreement, PeerGone, UserError
from utils.exchange import atomic, checkpoints
from utils.exchange.checkpoints import Checkpoint
from utils.exchange.layout import DONE, RUN, JobLayout
from utils.exchange.markers import read_done, read_run
from utils.exchange.negatives import Refresh, newest_refresh, read_records, read_refresh, read_visible_refresh
from utils.exchange.peers import Peer
from utils.exchange.wait import wait_for
from utils.json_text import json_text
from utils.run_log import say
from utils.text_files import read_lines


@dataclass(frozen=True)
class Job:
    """What preflight resolved."""

    flags: AnnFlags
    collection: Preprocessed
    dtype: torch.dtype | None
    journal: list[RefreshUse] | None  # to replay

    @property
    def ann_dir(self) -> Path:
        return Path(self.flags.ann_dir)

    @property
    def output_dir(self) -> Path:
        return Path(self.flags.output_dir)


@dataclass(frozen=True)
class RefreshUse:
    """A line of the journal: from ``taken_at_step`` on, training is on these negatives."""

    refresh: int
    made_from_step: int
    taken_at_step: int
    sha256: str
    model_sha256: str

    def told(self) -> dict[str, int]:
        """As DONE.json has it."""
        return {name: getattr(self, name) for name in ("refresh", "made_from_step", "taken_at_step")}


@dataclass
class TrainingHistory:
    """What the loop knows in addition to the trainer's state; all of it is stored with every checkpoint.

    ``model_of_step``: sha256 of the weights that negatives may have been made from, this run's own.
    ``schedule_from``: the step at which the learning-rate schedule in use began.
    """

    model_of_step: dict[int, str]
    taken: list[RefreshUse] = field(default_factory=list)
    schedule_from: int = 0
    lost: frozenset[int] = frozenset()  # refreshes of checkpoints that this run has lost, and will not train again

    def stored(self) -> dict[str, Any]:
        return {
            "refresh": self.taken[-1].refresh if self.taken else None,
            "taken": [asdict(entry) for entry in self.taken],
            "models": {str(step): sha256 for step, sha256 in self.model_of_step.items()},
            "schedule_from": self.schedule_from,
        }


def history_from(job: Job, session: Session, start: Checkpoint | None, initial_model: str) -> TrainingHistory:
    """What the earlier job had stored, or the beginning.

    In async, refreshes of checkpoints newer than ``start`` were made from a model that this run will not have again.
    """
    if start is None:
        return TrainingHistory({0: initial_model})
    stored = read_trainer_state(start)
    models = {int(step): sha256 for step, sha256 in stored["models"].items()}
    models[start.step] = checkpoints.model_sha256(start.path)
    models[0] = models.get(0) or initial_model  # blank in the state of an earlier version
    history = TrainingHistory(models, [RefreshUse(**entry) for entry in stored["taken"]], stored["schedule_from"])
    if job.flags.refresh_mode == "async":
        history.lost = frozenset(session.decide_on_process0(partial(made_after, job, start.step)))
    return history


def check_new_run(job: Job, science: dict[str, Any]) -> None:
    """Disagreement where a run that only begins finds negatives of a later model: they cannot be its own."""
    records = read_records(job.ann_dir)
    later = [record for record in records if record["step"] > 0 and "model_sha256" in record]
    if later and job.journal is None:
        newest = int(later[-1]["refresh"])
        check_agreement(science, later[-1], f"refresh {newest}", SAME_FLAGS, COMMON)
        raise Disagreement(
            f"{job.ann_dir} has refreshes up to {newest} already, and this run only begins: another run left them; "
            "give both programs an empty --ann_dir and generate the initial data again"
        )


def made_after(job: Job, step: int) -> list[int]:
    """The refreshes of checkpoints newer than ``step``."""
    found = [int(record["refresh"]) for record in read_records(job.ann_dir) if record["step"] > step]
    if found:
        say(f"going on from step {step}, without refreshes {found}: they are of newer checkpoints, which are damaged")
    return found


# The journal


def read_journal(path: Path) -> list[RefreshUse]:
    """The lines of an earlier run's journal. UserError where there are none, or one is not of it."""
    if not path.is_file():
        raise UserError(f"{path} is missing, expected the journal.jsonl of the run to replay, in its --output_dir")
    try:
        entries = [RefreshUse(**json.loads(line)) for line in read_lines(path)]
    except (ValueError, TypeError):
        raise UserError(f"{path} is not a journal: each line names a refresh and the step it was taken at") from None
    if not entries or entries[0].taken_at_step != 0:
        raise UserError(f"{path} does not begin at step 0: expected the journal of a whole run")
    told = (read_done(path.parent) or {}).get("taken")
    if told is not None and told != [entry.told() for entry in entries]:
        raise UserError(f"{path} and {DONE} name different refreshes or steps: one is damaged; put it back")
    return entries


def check_replayed(job: Job, science: dict[str, Any]) -> str:
    """Disagreement where --replay's run was of other flags than this one; what may differ, as of `check_resumes`."""
    replayed = read_run(Path(job.flags.replay).parent) if job.flags.replay else None
    if replayed is None:
        return ""
    ours = {name: value for name, value in science.items() if name != "replayed_journal_sha256"}
    return check_resumes(ours, replayed.get("science", {}), f"the run of {job.flags.replay}", SAME_FLAGS)


def check_replayed_order(job: Job) -> None:
    """UserError where --replay's run was begun by a version with another order of triples for its lists."""
    group_size = job.flags.group_size
    run = read_run(Path(job.flags.replay).parent) if job.flags.replay else None
    if run is None or job.journal is None or group_size == 0 or run.get("triple_order") == TRIPLE_ORDER:
        return
    for number in sorted({entry.refresh for entry in job.journal}):
        lists = read_negative_lists(read_refresh(job.ann_dir, number).path)
        if not is_as_in_version_1(lists, group_size):
            raise UserError(
                f"{job.flags.replay} is of an earlier version, which had another order of triples for the lists of "
                f"refresh {number} at --group_size {group_size}, expected a run of this version's order; replay it "
                f"with the version that its {RUN} names, or train without --replay"
            )


def write_journal(session: Session, history: TrainingHistory) -> None:
    """journal.jsonl: which negatives served which steps, for --replay."""
    text = "".join(json_text(asdict(entry)) + "\n" for entry in history.taken)

    def write() -> None:
        assert session.lease is not None
        atomic.write_text(JobLayout(session.lease.directory).journal, text, session.lease.stage)

    agreement.on_process0(session.world, write)


# The choice


def is_stale(job: Job, step: int, refresh: Refresh) -> bool:
    """Whether these negatives are older than --max_staleness_steps allows."""
    return 0 < job.flags.max_staleness_steps < step - refresh.step


def check_staleness(job: Job, session: Session, step: int, refresh: Refresh) -> None:
    """Warn at half of --max_staleness_steps; PeerGone, with the state saved, beyond it."""
    limit = job.flags.max_staleness_steps
    age_steps = step - refresh.step
    if limit <= 0 or job.journal is not None:
        return
    if is_stale(job, step, refresh):
        raise PeerGone(
            f"the negatives of refresh {refresh.number} are of the model of {age_steps} steps ago, "
            f"--max_staleness_steps is {limit}: see the generator's log, and start both again to resume"
        )
    if age_steps == limit // 2 + 1 and session.world.is_first:
        say(f"warning: refresh {refresh.number} is {age_steps} steps old; training stops at {limit}")


def refresh_for_step(
    job: Job, session: Session, history: TrainingHistory, peer: Peer, step: int, current: Refresh | None
) -> Refresh:
    """The negatives that the step after ``step`` is trained on, waited for where they must be."""
    flags = job.flags
    if job.journal is not None:
        return replayed_refresh(job, step, current)
    if flags.refresh_mode == "lockstep":
        needed = max(step // flags.steps_per_refresh - flags.refresh_lag, 0)
        if current is None or current.number != needed:
            return wait_for_refresh(job, session, history, peer, number=needed)
        last_needed = (flags.max_steps - 1) // flags.steps_per_refresh - flags.refresh_lag
        if step % flags.logging_steps == 0 and current.number < last_needed:
            session.decide_on_process0(
                lambda: None, peer, is_needed=False
            )  # a generator that is gone is seen before the window's end
        return current
    if current is None:
        return wait_for_refresh(job, session, history, peer)
    if step % flags.logging_steps and not is_stale(job, step, current):
        return current
    number = session.decide_on_process0(partial(newest_number, job, history, current.number), peer, is_needed=False)
    return current if number is None else read_visible_refresh(job.ann_dir, number)


def replayed_refresh(job: Job, step: int, current: Refresh | None) -> Refresh:
    """What the journal says was trained on after ``step``, the same bytes."""
    assert job.journal is not None
    entry = [entry for entry in job.journal if entry.taken_at_step <= step][-1]
    if current is not None and current.number == entry.refresh:
        return current
    refresh = read_refresh(job.ann_dir, entry.refresh)
    if (found := sha256_of_negatives(refresh)) != entry.sha256:
        raise Disagreement(
            f"{refresh.path} is not what {job.flags.replay} was written about: its sha256 is "
            f"{found}, expected {entry.sha256}; give that run's --ann_dir"
        )
    return refresh


def sha256_of_negatives(refresh: Refresh) -> str:
    """From its record; of ANCE's own, which says none, from the file."""
    return refresh.record.get("sha256") or atomic.sha256_of(refresh.path)


def newest_number(job: Job, history: TrainingHistory, above: int = -1, number: int | None = None) -> int | None:
    """Process 0's look at the directory: the newest valid refresh, or the one of ``number``."""
    refresh = newest_refresh(job.ann_dir, number, above, without=history.lost)
    return None if refresh is None else refresh.number


def wait_for_refresh(
    job: Job, session: Session, history: TrainingHistory, peer: Peer, number: int | None = None
) -> Refresh:
    what = f"negatives{'' if number is None else f' of refresh {number}'} in {job.ann_dir}"
    session.set_status(doing=f"waiting for {what}", rate=None, eta_seconds=None)

    def look() -> int | None:
        found = session.decide_on_process0(partial(newest_number, job, history, -1, number), peer)
        return None if found is None else int(found)

    found = wait_for(look, what, quiet=not session.world.is_first, wake_early=session.stop.requested)
    return read_visible_refresh(job.ann_dir, found)


def check_origin(job: Job, ours: dict[str, Any], refresh: Refresh, model_of_step: dict[int, str]) -> None:
    """Disagreement (exit 3) where the negatives are another run's, or made on another schedule."""
    flags, record = job.flags, refresh.record
    if job.journal is not None:
        return  # its sha256 says that it is what the replayed run was trained on
    check_agreement(ours, record, f"refresh {refresh.number}", SAME_FLAGS, COMMON)
    expected_step = refresh.number * flags.steps_per_refresh
    if flags.refresh_mode == "lockstep" and refresh.step != expected_step:
        raise Disagreement(
            f"refresh {refresh.number} was made from step {refresh.step}, in lockstep it is of step {expected_step}; "
            "start the generator with the same --steps_per_refresh"
        )
    made_by = record.get("model_sha256")
    if is_model_unknown(record, "model_sha256"):
        say(f"refresh {refresh.number} does not say which model made it (an earlier version did): not compared")
    elif made_by is not None and made_by != model_of_step.get(refresh.step):
        raise Disagreement(
            f"refresh {refresh.number} in {job.ann_dir} was not made from this run's model of step {refresh.step}: "
            "another run left it; give both programs an empty --ann_dir and generate the initial data again"
        )
