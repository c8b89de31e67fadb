"""Which negatives a run was trained on, and from which step on: journal.jsonl, and what a checkpoint stores of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from drivers.job.session import Session
from utils.distributed import agreement
from utils.errors import UserError
from utils.exchange import atomic
from utils.exchange.layout import DONE, JobLayout
from utils.exchange.markers import read_done
from utils.json_text import json_text
from utils.text_files import read_lines


@dataclass(frozen=True)
class RefreshUse:
    """A line of the journal: from ``taken_at_step`` on, training is on these negatives."""

    refresh: int
    made_from_step: int
    taken_at_step: int
    sha256: str
    model_sha256: str

    def record(self) -> dict[str, int]:
        """As DONE.json has it."""
        return {name: getattr(self, name) for name in ("refresh", "made_from_step", "taken_at_step")}


@dataclass
class TrainingHistory:
    """What ANN training knows in addition to the trainer's state; all of it is stored with every checkpoint.

    ``model_of_step``: sha256 of the weights that negatives may have been made from, this run's own.
    ``schedule_from``: the step at which the learning-rate schedule in use began.
    """

    model_of_step: dict[int, str]
    taken: list[RefreshUse] = field(default_factory=list)
    schedule_from: int = 0
    lost: frozenset[int] = frozenset()  # refreshes of checkpoints that this run has lost, and will not train again

    def stored(self) -> dict[str, object]:
        return {
            "refresh": self.taken[-1].refresh if self.taken else None,
            "taken": [asdict(entry) for entry in self.taken],
            "models": {str(step): sha256 for step, sha256 in self.model_of_step.items()},
            "schedule_from": self.schedule_from,
        }


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
    recorded = (read_done(path.parent) or {}).get("taken")
    if recorded is not None and recorded != [entry.record() for entry in entries]:
        raise UserError(f"{path} and {DONE} name different refreshes or steps: one is damaged; put it back")
    return entries


def write_journal(session: Session, history: TrainingHistory) -> None:
    """journal.jsonl: which negatives served which steps, for --replay."""
    text = "".join(json_text(asdict(entry)) + "\n" for entry in history.taken)

    def write() -> None:
        assert session.lease is not None
        atomic.write_text(JobLayout(session.lease.directory).journal, text, session.lease.stage)

    agreement.on_process0(session.world, write)
