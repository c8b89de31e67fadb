"""What would end a job after hours, looked for in its first minute: inputs, qrels, tokenizer, disk, model, memory.

Each check answers with the line it says, or raises the UserError that ends the program. The checks of the files of
--data_dir are in data/tokens/verify.py, of the model and its memory in drivers/job/sanity_batch.py, of the space in
drivers/job/disk_budget.py; those of one program alone are in its own package.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.tokens.collection import Preprocessed, check_tokenizer
from data.tokens.verify import check_inputs
from utils.distributed import agreement
from utils.distributed.world import World
from utils.errors import UserError
from utils.exchange import atomic
from utils.exchange.evaluations import DEV
from utils.run_log import say

Check = Callable[[], str]


@dataclass
class Preflight:
    """Says one line per check on process 0; a check that fails ends every process with its error."""

    world: World
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.started = self.clock()

    def on_process0(self, *checks: Check) -> None:
        """Checks of files: process 0 looks for all, and its error is theirs."""
        for check in checks:
            self.say(agreement.decide_on_process0(self.world, check))

    def on_every_process(self, *checks: Check) -> None:
        """Checks of this process's own device, without collectives; all processes end where one fails."""
        for check in checks:
            self.say(agreement.on_every_process(self.world, check))

    def end(self) -> None:
        self.say(f"all well in {self.clock() - self.started:.1f} s")

    def say(self, line: str) -> None:
        if self.world.is_first:
            say(f"preflight: {line}")


def check_collection(collection: Preprocessed, tokenizer_dir: str, splits: Sequence[str]) -> list[Check]:
    """The checks of the inputs, for every program.

    Args:
        collection: what is opened.
        tokenizer_dir: of the model; empty where no tokenizer takes part.
        splits: that must have a query with a positive.
    """
    checks: list[Check] = [partial(check_inputs, collection)]
    checks += [partial(check_judgements, collection, splits)] if splits else []
    return [*checks, partial(check_fingerprint, collection, tokenizer_dir)] if tokenizer_dir else checks


def check_fingerprint(collection: Preprocessed, tokenizer_dir: str) -> str:
    check_tokenizer(collection, tokenizer_dir)
    return f"tokenizer: {tokenizer_dir} is the manifest's, {collection.manifest['tokenizer']['fingerprint'][:12]}"


def check_judgements(collection: Preprocessed, splits: Sequence[str]) -> str:
    """How many queries have a positive in the collection.

    UserError where none of a split has one, or where qrels name what is not there.
    """
    found = []
    for split in splits:
        held, qrels = len(collection.queries(split)), collection.qrels(split)
        judged = len(qrels.queries_with_positive())
        if not judged:
            raise UserError(f"{collection.directory}: no {split} query has a positive, expected some; check its qrels")
        share = f"{judged:,} of {held:,} queries ({100 * judged / held:.1f}%)"
        found.append(f"{share} of {split} have a positive, {len(qrels.query_R):,} judgements")
    return f"qrels: {'; '.join(found)}"


def say_dev_split(collection: Preprocessed, split: str) -> None:
    """Which split the dev measures are of, where it is another than their name says, and what is relevant in it."""
    if split != DEV:
        level = collection.relevance_level(split)
        say(f"dev measures are of the split {split}, where relevant is grade {level} and above")


def check_publishing(directory: Path) -> str:
    """Try in ``directory`` what publishing needs. UserError where it cannot be done."""
    atomic.check_writable(directory)
    return f"disk: writing, syncing, linking and renaming work in {directory}"
