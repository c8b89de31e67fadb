"""Every row of tests.faults at a size that fits here; `python -m tests.faults --full` injects as many as promised."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import REPO
from tests.faults import order
from tests.faults.__main__ import ROWS, inject
from tests.faults.programs import GENERATOR, TRAINER
from tests.faults.runs import Lab, Miss, NeverInjected, Outcome, Play, count_plan, injected, laboratory
from tests.faults.space import PREFLIGHT_OVER
from tests.faults.victim import Operation, read_log

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


def test_the_inputs_are_the_same_bytes_in_every_process(lab: Lab, tmp_path: Path) -> None:
    code = f"from tests.faults.programs import make_inputs, Path; make_inputs(Path({str(tmp_path / 'inputs')!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True, timeout=120)
    for name in ("tokenizer/tokenizer.json", "model/model.safetensors", "bm25/ann_training_data_0"):
        assert (tmp_path / "inputs" / name).read_bytes() == (lab.inputs.directory / name).read_bytes()


def operations_of(play: Play, role: str) -> list[str]:
    log = read_log(play.run.directory / f"{role}.log")
    return [each.kind for each in log if each.thread == "main" and each.at]


def test_how_many_operations_there_are_does_not_depend_on_who_is_first(lab: Lab) -> None:
    assert lab.finished is not None
    server = lab.servers.get()
    play = Play(lab, server, lab.new_run())
    try:
        play.start(GENERATOR, count_plan(play.run, GENERATOR))
        play.watch_until(play.run.ann_data.exists, "the generator did not begin")
        play.to_the_end({TRAINER: count_plan(play.run, TRAINER)})
    finally:
        lab.servers.put(server)
    first = Play(lab, server, lab.finished)
    assert operations_of(play, TRAINER) == operations_of(first, TRAINER)
    assert operations_of(play, GENERATOR) == operations_of(first, GENERATOR)


def test_a_run_that_outlives_its_limit_leaves_stacks_and_logs(lab: Lab) -> None:
    server = lab.servers.get()
    play = Play(lab, server, lab.new_run())
    trainer = play.start(TRAINER)  # alone: it waits for a generator
    try:
        out = play.run.out(TRAINER)
        play.watch_until(lambda: out.exists() and PREFLIGHT_OVER in out.read_text(), "it did not begin")
        play.deadline = 0.0
        with pytest.raises(Miss, match=rf"hangs: .*\(trainer runs\); stacks and logs are in {play.run.directory}$"):
            play.wait_for(TRAINER)
        assert trainer.code == -signal.SIGABRT
    finally:
        play.stop_all()
        lab.servers.put(server)
    stacks = play.run.err(TRAINER).read_text()
    assert "drivers/train/ann.py" in stacks and "in keep_beating" in stacks  # the work and the heartbeat
    assert (play.run.directory / "waits").read_text().startswith(f"process {trainer.pid}\nthread {trainer.pid} (")


def test_an_instant_that_did_not_come_is_tried_again() -> None:
    tries = iter([NeverInjected("early"), NeverInjected("early"), None])

    def inject() -> None:
        if (missed := next(tries)) is not None:
            raise missed

    injected(inject)
    tries = iter([NeverInjected("early")] * 3)
    with pytest.raises(NeverInjected):
        injected(inject)
    tries = iter([Miss("torn"), None])
    with pytest.raises(Miss, match="torn"):
        injected(inject)


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
