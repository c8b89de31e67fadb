"""The protocol broken on purpose, one rule at a time, in a copy of the repository: each must be caught by a row.

A mutant replaces a text that is in its file exactly once. Where the source has changed so that it is not, the mutant
is a miss, and has to be written anew.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.faults.runs import Lab, Miss, Outcome
from tests.faults.zygote import ENVIRONMENT, Zygote

COPIED = ("data", "drivers", "model", "tests", "utils", "results", "pyproject.toml")
TIMEOUT_SECONDS = 600
SEEDS = 4  # tries of a row


@dataclass(frozen=True)
class Mutant:
    """``old`` becomes ``new`` in ``file``; one of ``rows``, at its small size, has to end with a miss."""

    about: str
    file: str
    old: str
    new: str
    rows: tuple[str, ...]

    def __str__(self) -> str:
        return f"mutant: {self.about}"


MUTANTS = (
    Mutant(
        "the record before the data",
        "utils/exchange.py",
        """        link_data(staged, data, commit)
        sync(lease.directory)
        try:
            os.link(staged_record, commit)
""",
        """        try:
            os.link(staged_record, commit)
            link_data(staged, data, commit)
""",
        ("order",),
    ),
    Mutant(
        "files of a checkpoint not synced before its name appears",
        "utils/exchange.py",
        "            sync(file)\n",
        "",
        ("order",),
    ),
    Mutant(
        "the directory not synced between the data and its record",
        "utils/exchange.py",
        "        link_data(staged, data, commit)\n        sync(lease.directory)\n",
        "        link_data(staged, data, commit)\n",
        ("order",),
    ),
    Mutant(
        "small files written in place",
        "utils/publishing.py",
        '        staged.write_text(text, encoding="utf-8")\n        sync(staged)\n        staged.replace(path)\n',
        '        path.write_text(text, encoding="utf-8")\n        sync(path)\n',
        ("order",),
    ),
    Mutant(
        "sizes checked, sha256 not",
        "utils/exchange.py",
        "        if sha256_of(path) != expected_sha256:\n",
        "        if False:\n",
        ("damage",),
    ),
    Mutant(
        "the seal of small files not checked",
        "utils/publishing.py",
        "    if value.pop(SEAL, None) is None or text != sealed(value).encode():\n",
        "    if value.pop(SEAL, None) is None:\n",
        ("damage",),
    ),
    Mutant(
        "the first checkpoint listed instead of the newest",
        "utils/exchange.py",
        "    for candidate in reversed(steps):\n",
        "    for candidate in steps:\n",
        ("damage", "stops"),
    ),
    Mutant(
        "going on without the position in the negatives",
        "drivers/ann_trainer.py",
        "    batches_done = (trainer.state.step - taken.taken_at_step) * flags.gradient_accumulation_steps\n",
        "    batches_done = 0\n",
        ("stops", "kills"),
    ),
    Mutant(
        "going on with a learning-rate schedule begun anew",
        "model/training.py",
        '        state.scheduler.load_state_dict(stored.get("scheduler", stored))\n',
        "",
        ("stops", "kills"),
    ),
    Mutant(
        "a stop that saves nothing",
        "drivers/trainer.py",
        "        if self.saved_step != self.state.step:\n            self.publish(**trainer_state)\n",
        "",
        ("stops",),
    ),
    Mutant(
        "an earlier holder's staging left where it is",
        "utils/lease.py",
        "        fence_others(directory, role, lease)\n",
        "        pass\n",
        ("fencing",),
    ),
    Mutant(
        "silence never noticed",
        "utils/peers.py",
        "        if watch.silent_seconds > lives * life_seconds:\n",
        "        if False:\n",
        ("peers",),
    ),
)


def copy_of(repo: Path, directory: Path) -> Path:
    directory.mkdir()
    for name in COPIED:
        if (repo / name).is_dir():
            shutil.copytree(repo / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(repo / name, directory / name)
    return directory


def inject(lab: Lab, _zygote: Zygote, mutant: Mutant) -> None:
    """Miss where the copy with the mutant passes every row that should catch it.

    A small row may by chance inject nothing that a mutant answers wrongly (half of the steps are saved anyway), so it
    has several tries.
    """
    copy = copy_of(lab.repo, lab.directory / f"mutant-{next(lab.numbers)}")
    path = copy / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise Miss(f"its text is in {mutant.file} {text.count(mutant.old)} times, expected once: write it anew")
    path.write_text(text.replace(mutant.old, mutant.new))
    said = ""
    for row, seed in itertools.product(mutant.rows, range(SEEDS)):
        command = [sys.executable, "-m", "tests.faults", "--row", row, "--workers", "1", "--seed", str(seed)]
        environment = {**os.environ, **ENVIRONMENT}
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
        if done.returncode == 1 and ": MISS: " in done.stdout:
            shutil.rmtree(copy)
            return
        said += done.stdout + done.stderr[-300:]
    raise Miss(f"not caught: {' '.join(said.split())[:500]}")


def run(lab: Lab, count: int, rng: random.Random) -> list[Outcome]:
    """Each of them, or ``count`` from the end: what only jobs that go on, or are taken over, can show."""
    return lab.each(MUTANTS[-min(count + 1, len(MUTANTS)) : -1] if count < len(MUTANTS) else MUTANTS, inject)
