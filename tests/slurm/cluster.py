"""Talking to the tests' Slurm (cluster.sh), and jobs of the shipped scripts whose program does as it is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import REPO
from tests.shell import script_environment

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}
TIMEOUT_SECONDS = 240


def lacking() -> str:
    """Why no cluster can be started here; empty where one can."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if missing:
        return f"{', '.join(missing)} missing: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "not root, which slurmd must be"


def wait_until(look: Callable[[], Any], what: str, timeout_seconds: float = TIMEOUT_SECONDS) -> Any:
    deadline = time.monotonic() + timeout_seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {timeout_seconds} s: {what}"
        time.sleep(0.2)
    return found


@dataclass(frozen=True)
class Cluster:
    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        return script_environment(SLURM_CONF=self.directory / "slurm.conf")

    def call(self, *words: str | Path, code: int = 0, cwd: Path = REPO, **changes: str | Path) -> str:
        """What a command prints; it must end with ``code``."""
        environment = {**self.environment, **{name: str(value) for name, value in changes.items()}}
        done = subprocess.run(
            [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, (words, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout + done.stderr

    def job(self, job: str) -> dict[str, str]:
        """What scontrol knows of a job, or of a task of an array (``12_3``)."""
        text = self.call("scontrol", "show", "job", "--oneliner", job)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def state(self, job: str) -> str:
        return self.job(job)["JobState"]

    def wait_for_state(self, job: str, *states: str) -> dict[str, str]:
        wait_until(lambda: self.state(job) in states, f"job {job} to be {' or '.join(states)}, it is {self.job(job)}")
        return self.job(job)

    def end(self, job: str) -> dict[str, str]:
        """Wait until the job has ended for good."""
        return self.wait_for_state(job, *ENDED)

    def wait_for_log(self, job: str, text: str, times: int = 1) -> None:
        """Until ``text`` is in the job's log so many times; a job that ends without it has failed the test."""

        def look() -> bool:
            known = self.job(job)
            state, log = known["JobState"], log_at(known["StdOut"])
            assert state not in ENDED or log.count(text) >= times, (job, state, text, log[-3000:])
            return log.count(text) >= times

        wait_until(look, f"{text!r} in the log of job {job}")

    def log(self, job: str) -> str:
        return log_at(self.job(job)["StdOut"])


def log_at(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


# Stands in for every program: does what TOLD says, with the number of its start in $start.
TOLD_PYTHON = r"""
starts=$RUN_DIR/starts-$STRATEGY-${SLURM_ARRAY_TASK_ID:-}
start=$(($(cat "$starts" 2>/dev/null || echo 0) + 1))
echo "$start" >"$starts"
echo "start $start"
save_and_stop() {
  : >"$ANCE_STOP_FILE.taken"
  rm -f "$ANCE_STOP_FILE"
  exit 75
}
until_asked() {
  until [[ -e $ANCE_STOP_FILE ]]; do sleep 0.1; done
  save_and_stop
}
be_warned() { # as near the time limit
  kill -USR2 "$PPID"
  until_asked
}
trap save_and_stop TERM
eval "$TOLD"
"""
SMALL = ("--cpus-per-task=1", "--mem=1G", "--gpus-per-node=0", "--nodelist=n2")


@dataclass
class Told:
    """Submits jobs of the shipped scripts whose program does as it is told."""

    cluster: Cluster
    directory: Path
    python: Path
    made: int = 0

    def submit(self, script: str, told: str, *options: str, **changes: str) -> tuple[str, Path]:
        """The job's number and its run directory, in which the first negatives and the data are there."""
        self.made += 1
        run_dir = self.directory / f"run{self.made}"
        for strategy in ("top", "top_bottom", "bottom", "random"):
            (run_dir / "arms" / strategy / "ann_data" / ".leases").mkdir(parents=True)
            (run_dir / "arms" / strategy / "ann_data" / "ann_ndcg_0").touch()
            (run_dir / "arms" / strategy / "checkpoints").mkdir()
        (run_dir / "data").mkdir()
        (run_dir / "data" / "manifest.json").write_text("{}")
        settings = {"TOLD": told, "STRATEGY": "top", "RUN_DIR": run_dir, "DATA_DIR": run_dir / "data", "GPUS": "0"}
        settings |= {"WARMUP_CHECKPOINT": run_dir, "PYTHON": self.python, **changes}
        log = f"--output={run_dir}/%A_%a.out" if any("--array" in option for option in options) else ""
        words = ["sbatch", "--parsable", log or f"--output={run_dir}/%j.out", *SMALL, *options, f"drivers/{script}"]
        return self.cluster.call(*words, **settings).strip(), run_dir
