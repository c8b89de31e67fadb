"""Every row of tests.faults at a size that fits here; `python -m tests.faults --full` injects as many as promised."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import order
from tests.faults.__main__ import ROWS, inject
from tests.faults.runs import Lab, Outcome, laboratory
from tests.faults.victim import Operation, read_log
from tests.faults.zygote import REPO

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with laboratory(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.mark.parametrize("name", ROWS)
def test_the_faults_of_a_row_are_survived(lab: Lab, name: str) -> None:
    outcomes = inject(lab, name, full=False, seed=0)
    assert outcomes
    assert [outcome for outcome in outcomes if outcome.problem] == []


# The instruments themselves

PROGRAM = """
import os, sys
from pathlib import Path
root = Path(sys.argv[1])
(root / "a").write_text("a")
descriptor = os.open(root / "a", os.O_RDONLY)
os.fsync(descriptor)
(root / "a").rename(root / "b")
with open(root / "c", "w") as file:
    file.write("c")
os.link(root / "c", root / "d")
(root / "c").unlink()
"""
OPERATIONS = ["open a", "fsync a", "rename a", "open c", "link c", "unlink c"]


def run_victim(directory: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    (directory / "program.py").write_text(PROGRAM)
    root = directory / "root"
    root.mkdir()
    command = [sys.executable, "-m", "tests.faults.victim", "--root", str(root), *flags, "program", str(root)]
    environment = {**os.environ, "PYTHONPATH": str(directory)}
    return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_victim_logs_every_change_and_what_was_not_synced(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run_victim(tmp_path, "--log", str(log)).returncode == 0
    operations = [each for each in read_log(log) if each.at]
    assert [f"{each.kind} {Path(each.path).name}" for each in operations] == OPERATIONS
    assert [each.at for each in operations] == list(range(1, len(OPERATIONS) + 1))
    unsynced = {each.kind: [Path(path).name for path in each.unsynced] for each in operations}
    assert unsynced["rename"] == [] and unsynced["link"] == ["c"]


@pytest.mark.parametrize("at", range(1, len(OPERATIONS) + 1))
def test_a_victim_dies_before_its_operation(tmp_path: Path, at: int) -> None:
    done = run_victim(tmp_path, "--at", str(at), "--what", "kill")
    assert done.returncode == -signal.SIGKILL
    left = {1: [], 2: ["a"], 3: ["a"], 4: ["b"], 5: ["b", "c"], 6: ["b", "c", "d"]}[at]
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == left


def test_a_victim_has_no_space(tmp_path: Path) -> None:
    done = run_victim(tmp_path, "--at", "2", "--kind", "open", "--what", "nospace")
    assert done.returncode == 1 and "No space left on device" in done.stderr
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["b"]


def publication(target: str, unsynced: tuple[str, ...] = ()) -> Operation:
    return Operation(1, "main", "rename", f"/d/.staging/x/{target}", f"/d/{target}", unsynced)


@pytest.mark.parametrize(
    ("log", "problem"),
    [
        ([publication("checkpoint-2"), Operation(2, "main", "fsync", "/d")], ""),
        ([publication("checkpoint-2", ("/d/w",)), Operation(2, "main", "fsync", "/d")], "1 files were not synced"),
        ([publication("checkpoint-2")], "its directory was never synced"),
        ([publication("checkpoint-2"), Operation(2, "main", "fsync", "/other")], "its directory was never synced"),
        ([publication("checkpoint-2"), publication("DONE.json")], "its directory was not synced before DONE.json"),
        ([publication("ann_ndcg_3"), Operation(2, "main", "fsync", "/d")], "ann_training_data_3 was not there before"),
        ([Operation(1, "main", "open", "/d/RUN.json")], "it is written in place"),
        ([Operation(1, "main", "open", "/d/.staging/x/RUN.json")], None),
    ],
)
def test_the_order_of_syncs(log: list[Operation], problem: str | None) -> None:
    outcomes = order.outcomes_of("trainer", log)
    if problem is None:
        assert outcomes == []
    elif problem:
        assert problem in outcomes[0].problem
    else:
        assert outcomes == [Outcome("rename of checkpoint-2 by the trainer")]
