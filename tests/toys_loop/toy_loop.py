"""A toy through the real programs: preprocessing, warmup, generator and trainer in lockstep, evaluation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.fork_server import Child
from tests.fingerprint import loop
from tests.fingerprint.programs import Command, Programs
from tests.forked import fork_server


@dataclass(frozen=True)
class ToyPrograms(Programs):
    """Programs that a toy starts: ``python -m tests.toys.TOY PROGRAM FLAGS``."""

    toy: str = ""

    def start(self, command: Command, out: Path, processes: int = 1) -> list[Child]:
        return super().start((f"tests.toys.{self.toy}", *command), out, processes)

    def run(self, command: Command, out: Path, processes: int = 1) -> str:
        """A --dry_run is not made: the program itself follows it."""
        out.parent.mkdir(parents=True, exist_ok=True)
        return "{}" if "--dry_run" in command else super().run(command, out, processes)


def toy_loop(toy: str, directory: Path, raw: Path, tokenizer: Path, *source: object) -> loop.Loop:
    """The loop of `tests.fingerprint.loop` in ``directory``, its collection preprocessed."""
    (directory / "raw").symlink_to(raw)
    (directory / "tokenizer").symlink_to(tokenizer)
    made = loop.Loop(directory, ToyPrograms(fork_server(), toy=toy))
    loop.preprocess(made, "raw", "preprocessed", *source)
    return made


def write_triples(directory: Path) -> Path:
    """Each train query with the passage of its first judgement, and with another one."""
    queries, passages = (
        dict(line.split("\t") for line in (directory / "raw" / name).read_text().splitlines())
        for name in ("queries.train.tsv", "collection.tsv")
    )
    judged = dict(line.split("\t")[::2] for line in (directory / "raw" / "qrels.train.tsv").read_text().splitlines())
    others = list(passages.values())
    rows = (f"{queries[query]}\t{passages[judged[query]]}\t{others[place]}\n" for place, query in enumerate(judged))
    path = directory / "triples.tsv"
    path.write_text("".join(rows))
    return path


def train_encoder(made: loop.Loop, model_type: str, config: dict[str, Any]) -> Path:
    """From random weights by a warmup on triples, in-batch; then an arm, pairwise, evaluated: its last checkpoint."""
    path = made.path("model.json")
    path.write_text(json.dumps({"model_type": model_type, **config}))
    learning = ("--optimizer", "adamW", "--learning_rate", "3e-2", "--loss", "in_batch")
    source = ("--triples", write_triples(made.directory))
    loop.warm_up(made, "warmup", model_type, "--config_name", path, *learning, source=source)
    loop.train_and_generate(made, "top", model_type, "warmup", *loop.batch(1))
    return made.path("arms", "top", "checkpoints", f"checkpoint-{loop.STEPS}")
