"""What a trainer looks at in its first minute."""

from __future__ import annotations

from functools import partial

from data.tokens.collection import Preprocessed
from drivers.job.disk_budget import check_space, checkpoint_item, reusable_checkpoint_bytes
from drivers.job.preflight import Preflight
from drivers.job.sanity_batch import TrialSize, check_training
from drivers.train.trainer import Trainer


def check_trainer(checks: Preflight, collection: Preprocessed, trainer: Trainer, checkpoints: int) -> None:
    """The checks of a trainer that is ready to begin.

    Args:
        checks: what runs them, and logs what they find.
        collection: whose longest texts are tried.
        trainer: whose encoder, optimiser and directory.
        checkpoints: how many of it are on the disk at once.

    Raises:
        UserError: one of them fails.
    """
    settings, state = trainer.settings, trainer.state
    item = checkpoint_item(state.encoder, trainer.tokenizer, checkpoints)
    batch = settings.batch
    size = TrialSize(batch.triples, batch.max_seq_length, batch.max_query_length, settings.grad_cache_tokens)
    reusable_bytes = reusable_checkpoint_bytes(settings.output_dir)
    checks.on_process0(partial(check_space, settings.output_dir, [item], reusable_bytes))
    given = (settings.loss, size, state.world, settings.dtype, settings.temperature)
    trial = partial(check_training, state.encoder, collection, *given)
    checks.on_every_process(trial)
    checks.end()
