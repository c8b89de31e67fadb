"""The shell side of the quickstart and of the study, with a Python that only writes what each program would: what is
reused, what is redone, and how trainer and generator are watched together."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.shell import copy_scripts, run_script, script_environment, single_error_line, write_script

# Stands in for every program: does what FAKE_<program> says, else writes the program's last artefact.
FAKE_PYTHON = r"""
[[ ${1:-} == -m ]] || { echo "fake Python"; exit 0; }
program=${2##*.}
echo "$program" >>"$FAKE_CALLS"
behaviour=FAKE_$program
value() { # FLAG: its value on the command line
  while (($# > 1)); do [[ $2 == "$1" ]] && { echo "$3"; return; }; set -- "$1" "${@:3}"; done
  return 1
}
out=$(value --output_dir "$@")
echo "$program speaks"
eval "${!behaviour:-true}"
case $program in
  docstrings) file=$(value --out_data_dir "$@")/docstrings.json ;;
  wordpiece) file=$(value --out_dir "$@")/tokenizer.json ;;
  msmarco_data) file=$(value --out_data_dir "$@")/manifest.json ;;
  run_bm25 | run_eval) file=$out/metrics.json ;;
  run_neighbourhood) file=$out/neighbourhood.json ;;
  run_warmup) file=$out/checkpoint-$(value --max_steps "$@")/config.json ;;
  run_ann_data_gen) file=$out/ann_ndcg_0 ;;
  run_ann) file=$out/DONE.json ;;
  run_plan)
    [[ " $* " != *" --dry_run "* ]] || exit 0
    printf '%s' "$FAKE_PLAN" >"$(value --output "$@")"
    exit
    ;;
  report)
    out=$(value --output "$@" || value --run_dir "$@")
    mkdir -p "$out" && echo "130 lines" >"$out/report.md"
    echo "the table"
    file=$out/report.json
    ;;
esac
mkdir -p "$(dirname "$file")"
echo "$program" >"$file"
"""
STAGES = ["docstrings", "wordpiece", "preprocess", "bm25", "warmup", "warmup_eval", "top", "top.eval", "report"]


class Quickstart:
    def __init__(self, tmp_path: Path) -> None:
        self.repo = copy_scripts(tmp_path)
        self.run_dir = tmp_path / "a run"
        self.calls = tmp_path / "calls"
        self.environment: dict[str, str | Path] = {
            "PYTHON": write_script(tmp_path / "fake python", FAKE_PYTHON),
            "FAKE_CALLS": self.calls,
        }
        self.script = self.repo / "commands" / "quickstart.sh"

    def run(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        changed = {**self.environment, **changes}
        return run_script(self.script, "--run_dir", self.run_dir, *arguments, **changed)

    def redone(self, *arguments: str, **changes: str) -> list[str]:
        """The stages that a run that succeeds did not reuse."""
        result = self.run(*arguments, **changes)
        assert result.returncode == 0, result.stderr
        stages = re.findall(r"^\[ *\d+/\d+\] (\S+)( *reused)?", result.stdout, re.M)
        return [name for name, reused in stages if not reused]


@pytest.fixture
def quickstart(tmp_path: Path) -> Quickstart:
    return Quickstart(tmp_path)


def test_every_stage_then_none(quickstart: Quickstart) -> None:
    assert quickstart.redone() == STAGES
    assert quickstart.redone() == []
    result = quickstart.run()
    assert result.stdout.endswith("the table\n")
    assert (quickstart.run_dir / "warmup" / "warmup.out").read_text() == "run_warmup speaks\n"
    assert (quickstart.run_dir / "arms" / "top" / "trainer.out").read_text() == "run_ann speaks\n"


def test_all_adds_the_other_arms(quickstart: Quickstart) -> None:
    quickstart.redone()
    others = [stage for name in ("top_bottom", "bottom", "random") for stage in (name, f"{name}.eval")]
    assert quickstart.redone("--strategy", "all") == [*others, "report"]


def test_changed_setting_redoes_what_depends_on_it(quickstart: Quickstart) -> None:
    quickstart.redone("--strategy=all")
    assert quickstart.redone(MAX_STEPS="300") == ["top", "top.eval", "report"]
    # The other arms were made with another number of steps.
    assert [path.name for path in (quickstart.run_dir / "arms").iterdir()] == ["top"]
    assert quickstart.redone(EMBEDDING_SIZE="64", MAX_STEPS="300") == STAGES[4:]


MISTYPED = [
    ("MAX_STEPS", "abc"), ("MAX_STEPS", "150"), ("MAX_STEPS", "0200"), ("LEARNING_RATE", "1e"), ("BATCH", "0"),
    ("EMBEDDING_SIZE", "0"), ("VOCAB_SIZE", "99"), ("NEGATIVE_SAMPLE", "500"), ("SEED", "99999999999999999999"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), MISTYPED)
def test_mistyped_setting_costs_no_finished_stage(quickstart: Quickstart, name: str, value: str) -> None:
    quickstart.redone()
    result = quickstart.run(**{name: value})
    assert f"{name} is " in single_error_line(result)
    assert f"{name} is " in single_error_line(quickstart.run("--dry_run", **{name: value}))
    assert quickstart.redone() == []


def test_changed_requirements_redo_all(quickstart: Quickstart) -> None:
    quickstart.redone()
    (quickstart.repo / "requirements.txt").write_text("# other packages\n")
    assert quickstart.redone() == STAGES


def test_missing_artefact_is_made_again_with_all_that_builds_on_it(quickstart: Quickstart) -> None:
    quickstart.redone()
    (quickstart.run_dir / "bm25" / "metrics.json").unlink()
    assert quickstart.redone() == STAGES[3:]


@pytest.mark.parametrize(("program", "goes_on"), [("run_bm25", False), ("run_warmup", True)])
def test_failing_stage_shows_its_log_and_is_redone_or_goes_on(
    quickstart: Quickstart, program: str, goes_on: bool
) -> None:
    """What a warmup or an arm has published is gone on with; of the other stages nothing is left over."""
    name = program.removeprefix("run_")
    result = quickstart.run(**{f"FAKE_{program}": 'mkdir -p "$out/half"; echo "the reason" >&2; exit 3'})
    assert result.returncode == 3
    assert f"{name} failed with exit code 3" in result.stderr and "the reason" in result.stderr
    assert quickstart.redone() == STAGES[STAGES.index(name) :]
    assert (quickstart.run_dir / name / "half").exists() == goes_on
    log = quickstart.run_dir / {"run_bm25": "bm25.out", "run_warmup": "warmup/warmup.out"}[program]
    assert ("the reason" in log.read_text()) == goes_on


def test_other_settings_do_not_go_on_with_what_a_failed_stage_left(quickstart: Quickstart) -> None:
    quickstart.run(FAKE_run_warmup='mkdir -p "$out/half"; exit 3')
    quickstart.redone(WARMUP_STEPS="100")
    assert not (quickstart.run_dir / "warmup" / "half").exists()


def test_program_that_writes_nothing(quickstart: Quickstart) -> None:
    assert "bm25 ended without writing" in single_error_line(quickstart.run(FAKE_run_bm25="exit 0"))


@pytest.mark.parametrize(("failing", "other"), [("run_ann", "run_ann_data_gen"), ("run_ann_data_gen", "run_ann")])
def test_pair_fails_when_either_fails(quickstart: Quickstart, failing: str, other: str, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    changes = {
        f"FAKE_{failing}": "sleep 0.5; echo the reason; exit 3",
        f"FAKE_{other}": f"trap 'touch {stopped}; exit 0' TERM; while true; do sleep 0.1; done",
    }
    start = time.monotonic()
    result = quickstart.run(**changes)
    assert result.returncode == 3
    role = "trainer" if failing == "run_ann" else "generator"
    assert f"top: the {role} failed with exit code 3" in result.stderr and "the reason" in result.stderr
    assert stopped.exists()
    assert time.monotonic() - start < 20
    assert quickstart.redone() == ["top", "top.eval", "report"]


def test_pair_blames_the_one_that_failed_not_the_one_that_lost_its_peer(quickstart: Quickstart) -> None:
    result = quickstart.run(FAKE_run_ann_data_gen="exit 4", FAKE_run_ann="sleep 1; echo the reason; exit 3")
    assert result.returncode == 3
    assert "the trainer failed with exit code 3" in result.stderr


def test_failures_of_an_earlier_run_are_removed_before_the_pair_starts(quickstart: Quickstart, tmp_path: Path) -> None:
    left = [tmp_path / "arm" / name / "FAILED.json" for name in ("ann_data", "checkpoints")]
    for path in left:
        path.parent.mkdir(parents=True)
        path.touch()
    sourced = "; ".join(f'source "{quickstart.repo}/commands/{name}.sh"' for name in ("env", "processes"))
    pair = f'{sourced}; check=(test ! -e "$2"); run_pair x "$1" check check'
    script = write_script(quickstart.repo / "pair.sh", f"set -euo pipefail; {pair}\n")
    for path in left:
        result = run_script(script, tmp_path / "arm", path)
        assert result.returncode == 0, result.stderr
    assert not any(path.exists() for path in left)


def test_generator_may_take_its_time_to_stop_but_not_for_ever(quickstart: Quickstart) -> None:
    slow = "while [[ ! -f ${out%/*}/checkpoints/DONE.json ]]; do sleep 0.1; done; sleep 1"
    assert quickstart.run(FAKE_run_ann_data_gen=slow, PEER_STOP_SECONDS="30").returncode == 0
    result = quickstart.run(FAKE_run_ann_data_gen="sleep 100", PEER_STOP_SECONDS="1", MAX_STEPS="300")
    assert result.returncode == 143
    assert "the generator (still running 1 s after the trainer was done) failed" in result.stderr


def test_progress_of_the_trainer_is_shown(quickstart: Quickstart) -> None:
    line = '{"learning_rate": 0.0001, "loss": 0.25, "step": 40}'
    result = quickstart.run(FAKE_run_ann=f"echo '{line}'; sleep 2", PROGRESS_SECONDS="1")
    assert result.stdout.count("top: step 40, loss 0.2500") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"])
@pytest.mark.parametrize("program", ["run_warmup", "run_ann"])
def test_signal_stops_the_programs(
    quickstart: Quickstart, tmp_path: Path, program: str, number: signal.Signals, code: int
) -> None:
    pids = tmp_path / "pids"
    changes = {f"FAKE_{program}": f'sleep 1000 & echo $$ $! >"{pids}"; wait'}
    command = ["bash", str(quickstart.script), "--run_dir", str(quickstart.run_dir)]
    environment = script_environment(**quickstart.environment, **changes)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (pids.exists() and pids.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=20) == code
    for pid in pids.read_text().split():
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]


def test_programs_that_saved_their_state_make_the_exit_code_75(quickstart: Quickstart, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    saving = f"trap 'sleep 0.3; exit 75' TERM; touch {ready}; while true; do sleep 0.1; done"
    command = ["bash", str(quickstart.script), "--run_dir", str(quickstart.run_dir)]
    environment = script_environment(**quickstart.environment, FAKE_run_ann=saving)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not ready.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=20) == 75


def test_second_run_in_the_same_directory_is_refused(quickstart: Quickstart, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    command = ["bash", str(quickstart.script), "--run_dir", str(quickstart.run_dir)]
    environment = script_environment(**quickstart.environment, FAKE_docstrings=f"touch {ready}; sleep 1000")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not ready.exists():
        assert process.poll() is None
        time.sleep(0.05)
    try:
        assert "another quickstart.sh is working in" in single_error_line(quickstart.run())
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_directory_of_the_user_is_left_alone(quickstart: Quickstart) -> None:
    quickstart.run_dir.mkdir()
    (quickstart.run_dir / "thesis.tex").touch()
    assert "is not a run of this script" in single_error_line(quickstart.run())
    assert [path.name for path in quickstart.run_dir.iterdir()] == ["thesis.tex"]


def test_run_dir_is_taken_from_the_callers_directory(quickstart: Quickstart, tmp_path: Path) -> None:
    result = run_script(quickstart.script, "--run_dir=here", cwd=tmp_path, **quickstart.environment)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "here" / "report.json").exists()
    result = run_script(quickstart.script, cwd=tmp_path, **quickstart.environment)
    assert result.returncode == 0, result.stderr
    assert (quickstart.repo / "results" / "runs" / "quickstart" / "report.json").exists()


def test_bad_arguments(quickstart: Quickstart) -> None:
    assert "--strategy is 'best', expected one of top top_bottom bottom random all" in single_error_line(
        quickstart.run("--strategy", "best")
    )
    assert "unknown argument --stratgy" in single_error_line(quickstart.run("--stratgy", "top"))
    assert "--strategy needs a value" in single_error_line(quickstart.run("--strategy"))
    assert quickstart.run("--help").stdout.startswith("usage: bash commands/quickstart.sh")


def test_read_only_place(quickstart: Quickstart) -> None:
    quickstart.run_dir.parent.joinpath("file").touch()
    quickstart.run_dir = quickstart.run_dir.parent / "file" / "run"
    assert "cannot write in" in single_error_line(quickstart.run())


# The study


def study(quickstart: Quickstart, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    script = quickstart.repo / "commands" / "study.sh"
    changed = {**quickstart.environment, **changes}
    return run_script(script, "--run_dir", quickstart.run_dir, *arguments, **changed)


def stages_done(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert result.returncode == 0, result.stderr
    found = re.findall(r"^\[ *\d+/\d+\] (\S+)( *reused)?", result.stdout, re.M)
    return [name for name, reused in found if not reused]


def test_a_study_trains_each_arm_with_each_seed_from_one_warmup(quickstart: Quickstart) -> None:
    two = ("--seeds", "1 2", "--arms", "top=top again=top@1000")
    arms = [f"seed-{seed}.{name}" for seed in (1, 2) for name in ("top", "again")]
    result = study(quickstart, *two)
    assert stages_done(result) == [
        *STAGES[:6],
        *(stage for arm in arms for stage in (arm, f"{arm}.eval")),
        "neighbourhood",
    ]
    assert "[15/15] " in result.stdout and result.stdout.endswith("the table\n")
    assert (quickstart.run_dir / "report" / "report.md").is_file()
    assert stages_done(study(quickstart, *two)) == []
    # Another seed, another arm: what is there stays.
    more = study(quickstart, "--seeds", "1 3", "--arms", "top=top windows=ranks:21-60+corpus:3")
    assert [name for name in stages_done(more) if not name.endswith(".eval")] == [
        "seed-1.windows",
        "seed-3.top",
        "seed-3.windows",
        "neighbourhood",
    ]
    dry = study(quickstart, *two, "--dry_run").stdout
    assert dry.count("--negative_strategy top ") == 4 and dry.count("--seed 1002 ") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "one"), "--seeds has 'one', expected whole numbers"),
        (("--seeds", "08"), "--seeds has '08', expected whole numbers"),
        (("--seeds", "1 2 1"), "--seeds names 1 twice"),
        (("--arms", "top"), "--arms has 'top', expected NAME=STRATEGY"),
        (("--arms", "../x=top"), "--arms has '../x=top', expected NAME=STRATEGY"),
        (("--arms", "a=top a=bottom"), "--arms names a twice"),
        (("--seeds", " "), "expected at least one of each"),
        (("--output",), "--output needs a value"),
        (("--arm", "x"), "unknown argument --arm"),
    ],
)
def test_what_a_study_cannot_mean(quickstart: Quickstart, arguments: tuple[str, ...], message: str) -> None:
    assert message in single_error_line(study(quickstart, *arguments))
    assert not quickstart.run_dir.exists()
