"""The negatives that training is on: opened at a position, and replaced when there are newer ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from data.mining.negative_lists import NegativeLists, check_offsets, read_negative_lists
from data.tokens.collection import Preprocessed
from data.training.batches import Batch, batches_from_lists
from data.training.triple_order import TRIPLE_ORDER
from drivers.train.journal import RefreshUse, TrainingHistory, write_journal
from drivers.train.refresh_schedule import (
    ScheduleSettings,
    check_origin,
    check_staleness,
    refresh_for_step,
    sha256_of_negatives,
)
from drivers.train.trainer import Trainer
from utils.distributed import agreement
from utils.errors import UserError
from utils.exchange import atomic
from utils.exchange.checkpoints import model_sha256
from utils.exchange.evaluations import TRAIN
from utils.exchange.layout import JobLayout
from utils.exchange.negatives import Refresh, read_visible_refresh
from utils.exchange.peers import Peer
from utils.exchange.retention import remove_old_checkpoints
from utils.run_log import say
from utils.seen import SeenQueries


@dataclass
class ActiveNegatives:
    """The negatives being trained on, where in them the next batch is, and the queries of the batches before it."""

    refresh: Refresh
    lists: NegativeLists
    batches: Iterator[Batch]
    seen: SeenQueries | None  # None: they are not noted


@dataclass
class AnnTraining:
    """The negatives that training is on, and what it does when there are newer ones; see `drivers.train.loop.Hooks`."""

    settings: ScheduleSettings
    collection: Preprocessed
    trainer: Trainer
    history: TrainingHistory
    peer: Peer
    in_use: ActiveNegatives | None

    def batches(self) -> Iterator[Batch]:
        """Of the negatives that the next step is trained on, waited for where they must be."""
        settings, trainer, history, in_use = self.settings, self.trainer, self.history, self.in_use
        session, step = trainer.session, trainer.state.step
        refresh = refresh_for_step(settings, session, history, self.peer, step, in_use.refresh if in_use else None)
        if in_use is None or refresh.number != in_use.refresh.number:
            session.decide_on_process0(partial(check_origin, settings, trainer.record, refresh, history.model_of_step))
            self.log_seen()
            self.in_use = in_use = self.switch_to(refresh)
        check_staleness(settings, session, step, in_use.refresh)
        return in_use.batches

    def switch_to(self, refresh: Refresh) -> ActiveNegatives:
        """Read the negatives, say so, note it in the journal, and start their batches."""
        trainer, step = self.trainer, self.trainer.state.step
        trainer.triple_order = TRIPLE_ORDER
        in_use = open_negatives(self.collection, trainer, refresh, batches_done=0)
        note_use(trainer, self.history, refresh)
        if trainer.log is not None:
            lists, strategy = in_use.lists, refresh.record.get("strategy", "unknown strategy")
            say(
                f"refresh {refresh.number} from step {refresh.step}: {len(lists.query_Q):,} lists, {lists.triples:,} "
                f"triples, {strategy}, taken up at step {step}"
            )
        agreement.on_process0(trainer.session.world, partial(log_dev_ndcg, trainer, refresh))
        resumes_schedule = trainer.settings.optimizer_from is not None and step == 0
        if self.settings.restarts_schedule and not resumes_schedule:
            # Down to zero only at the end of the run: nobody knows how long these negatives will have to serve.
            rates = trainer.settings.optimizer
            trainer.state.restart_schedule(rates.learning_rate, rates.warmup_steps, trainer.total_steps - step)
            self.history.schedule_from = step
        return in_use

    def log_seen(self) -> None:
        """What was trained on of a refresh that has served its last step."""
        log, in_use = self.trainer.log, self.in_use

        def write() -> None:
            if log is not None and in_use is not None and in_use.seen is not None:
                log.record(self.trainer.state.step, **in_use.seen.of_refresh(in_use.refresh.number).logged())

        agreement.on_process0(self.trainer.session.world, write)

    def after_publishing(self) -> None:
        """What process 0 alone keeps: the model of each step, and the checkpoints still needed."""
        step, lease = self.trainer.state.step, self.trainer.session.lease

        def keep() -> None:
            assert lease is not None
            self.history.model_of_step[step] = model_sha256(JobLayout(lease.directory).checkpoint(step))
            remove_old_checkpoints(lease, self.settings.ann_dir, self.settings.is_lockstep)

        agreement.on_process0(self.trainer.session.world, keep)

    def stored(self) -> dict[str, object]:
        """For trainer_state.json: the history, and by which strategy the negatives in use were selected."""
        strategy = self.in_use.refresh.record.get("strategy") if self.in_use is not None else None
        return {**self.history.stored(), "strategy": strategy}

    def counts(self) -> dict[str, int]:
        return {"refreshes": len(self.history.taken)}

    def finished(self) -> dict[str, object]:
        """The journal, as DONE.json has it."""
        return {"taken": [entry.record() for entry in self.history.taken]}


def in_use_before(
    settings: ScheduleSettings, collection: Preprocessed, trainer: Trainer, history: TrainingHistory
) -> ActiveNegatives | None:
    """The negatives that the earlier job was training on, at the position it had reached; None at the beginning.

    Args:
        settings: where they lie.
        collection: what they must be of.
        trainer: at the step that is resumed.
        history: what the earlier job had stored.
    """
    if not history.taken:
        return None
    taken = history.taken[-1]
    refresh = read_visible_refresh(settings.ann_dir, taken.refresh)
    trainer.session.decide_on_process0(partial(check_unchanged, refresh, taken))
    batches_done = (trainer.state.step - taken.taken_at_step) * trainer.settings.micro_batches
    if trainer.log is not None:
        say(f"resuming refresh {taken.refresh}, in use since step {taken.taken_at_step}, after {batches_done} batches")
    trainer.session.set_status(refresh=taken.refresh, made_from_step=taken.made_from_step, step=trainer.state.step)
    return open_negatives(collection, trainer, refresh, batches_done)


def check_unchanged(refresh: Refresh, taken: RefreshUse) -> None:
    """UserError where the file is not what the earlier job trained on."""
    if atomic.sha256_of(refresh.path) != taken.sha256:
        raise UserError(f"{refresh.path} has changed since this run trained on it; start again in another --output_dir")


def open_negatives(collection: Preprocessed, trainer: Trainer, refresh: Refresh, batches_done: int) -> ActiveNegatives:
    """Read the negatives of a refresh, and their batches from the one that comes next.

    Args:
        collection: what they must be of.
        trainer: whose batches they become.
        refresh: which negatives.
        batches_done: of this process, on this refresh.

    Raises:
        UserError: the file is not of this collection.
    """
    world, batch = trainer.state.world, trainer.settings.batch
    lists = read_negative_lists(refresh.path)
    check_offsets(lists, len(collection.queries(TRAIN)), len(collection.passages), refresh.path)
    is_noted = trainer.log is not None and not trainer.resumes_other_order(lists, batch.group_size)
    seen = SeenQueries() if is_noted else None
    batches = batches_from_lists(batch, collection, world, lists, refresh.number, batches_done, seen)
    return ActiveNegatives(refresh, lists, batches, seen)


def note_use(trainer: Trainer, history: TrainingHistory, refresh: Refresh) -> None:
    """The journal's next line, and what the heartbeat says."""
    step, sha256 = trainer.state.step, sha256_of_negatives(refresh)
    made_by = refresh.record.get("model_sha256", "")
    history.taken.append(RefreshUse(refresh.number, refresh.step, step, sha256, made_by))
    write_journal(trainer.session, history)
    trainer.session.set_status(refresh=refresh.number, made_from_step=refresh.step, step=step)


def log_dev_ndcg(trainer: Trainer, refresh: Refresh) -> None:
    assert trainer.log is not None
    trainer.log.dev_ndcg(refresh.record["ndcg"], refresh.step)
