"""The scripts as jobs, without Slurm: what is submitted, how a job stops, and the evaluation that ends a run.

sbatch, squeue and scancel are stand-ins here; tests/commands/test_slurm.py has the real ones.
"""

from __future__ import annotations

import fcntl
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import REPO
from tests.shell import run_script, script_environment, single_error_line, write_script

# What each program does is in TOLD; $program is its name.
PYTHON = r"""
program=${2##*.}
[[ $1 != - ]] || exec "$REAL_PYTHON" "$@" # a line of the script's own
echo "$*" >>"$CALLS"
save_and_stop() { : >"$ANCE_STOP_FILE.taken"; rm -f "$ANCE_STOP_FILE"; exit 75; }
until_asked() { until [[ -e $ANCE_STOP_FILE ]]; do sleep 0.05; done; }
eval "$TOLD"
"""
SUBMIT = REPO / "commands" / "submit_ance.sh"


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """Settings under which every script finds what it needs, and a program that does what TOLD says."""
    run_dir = tmp_path / "a run"
    (run_dir / "arms" / "top" / "ann_data").mkdir(parents=True)
    (run_dir / "arms" / "top" / "ann_data" / "ann_ndcg_0").touch()
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "config.json").write_text("{}")
    for name in ("data", "raw"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    paths = {"RUN_DIR": run_dir, "DATA_DIR": tmp_path / "data", "RAW_DATA_DIR": tmp_path / "raw"}
    paths |= {"WARMUP_CHECKPOINT": tmp_path / "warmup", "CALLS": tmp_path / "calls"}
    python = write_script(tmp_path / "python", PYTHON)
    return {
        **{name: str(path) for name, path in paths.items()},
        "PYTHON": str(python),
        "GPUS": "0",
        "TOLD": "true",
        "REAL_PYTHON": sys.executable,
    }


def calls(job: dict[str, str]) -> list[str]:
    """The programs that were started, in order."""
    return [line.split()[1] for line in Path(job["CALLS"]).read_text().splitlines()]


def start(script: str, job: dict[str, str], program: str = "") -> subprocess.Popen[str]:
    """The script, once its program has begun: the first, or the one with this word in its command line."""
    process = subprocess.Popen(
        ["bash", str(REPO / "commands" / script)],
        env=script_environment(**job),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 20
    while not Path(job["CALLS"]).exists() or program not in Path(job["CALLS"]).read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    return process


def stop_files(job: dict[str, str]) -> list[Path]:
    return list(Path(job["RUN_DIR"]).rglob(".stop-*"))


# Stopping


@pytest.mark.parametrize("script", ["run_train.sh", "run_ann_data_gen.sh"])
def test_usr2_writes_the_stop_file_and_the_exit_code_is_the_programs(script: str, job: dict[str, str]) -> None:
    process = start(script, {**job, "TOLD": "until_asked; save_and_stop"})
    assert len(stop_files(job)) == 0
    process.send_signal(signal.SIGUSR2)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 75 and "asked to stop by SIGUSR2" in output
    assert not stop_files(job)


def test_usr2_stops_both_programs_of_an_arm(job: dict[str, str]) -> None:
    process = start("run_arm.sh", {**job, "TOLD": "until_asked; echo $program saves; save_and_stop"})
    time.sleep(1)
    process.send_signal(signal.SIGUSR2)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 75 and "has stopped; its state is saved" in output
    logs = [(Path(job["RUN_DIR"]) / "arms" / "top" / f"{name}.out").read_text() for name in ("trainer", "generator")]
    assert logs == ["run_ann saves\n", "run_ann_data_gen saves\n"]


def test_where_one_program_of_an_arm_stops_the_other_is_stopped(job: dict[str, str]) -> None:
    told = '[[ $program != run_ann ]] || { sleep 1; save_and_stop; }; trap "echo told; exit 75" TERM; sleep 60 & wait'
    result = run_script(REPO / "commands" / "run_arm.sh", **{**job, "TOLD": told})
    assert result.returncode == 75, result.stderr
    assert "the trainer has stopped; its state is saved" in result.stdout
    assert (Path(job["RUN_DIR"]) / "arms" / "top" / "generator.out").read_text() == "told\n"


def test_a_generator_that_stops_after_the_trainer_is_done_is_no_failure(job: dict[str, str]) -> None:
    told = "[[ $program == run_ann ]] || { sleep 1; save_and_stop; }"
    assert run_script(REPO / "commands" / "run_arm.sh", **{**job, "TOLD": told}).returncode == 0


def test_a_stop_between_two_programs_begins_no_other(job: dict[str, str]) -> None:
    (Path(job["RUN_DIR"]) / "arms" / "top" / "ann_data" / "ann_ndcg_0").unlink()
    process = start("run_train.sh", {**job, "TOLD": "until_asked"})  # it ends well in spite of it
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=20)
    assert process.returncode == 75 and calls(job) == ["drivers.run_ann_data_gen"]


@pytest.mark.parametrize("code", [1, 2, 3, 4, 75])
def test_exit_codes_pass_through(code: int, job: dict[str, str]) -> None:
    result = run_script(REPO / "commands" / "run_train.sh", **{**job, "TOLD": f"exit {code}"})
    assert result.returncode == code


SLEEP = "[[ $program != {} ]] || exec sleep 60"


@pytest.fixture
def slurm_job(job: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """As job 7 of a Slurm, whose peer, job 8, waits in the queue; what is told to scontrol is noted."""
    folder = tmp_path / "bin"
    write_script(folder / "squeue", '[[ $* == *--jobs=8* ]] && echo "8 PENDING" || echo RUNNING\n')
    write_script(folder / "scontrol", 'echo "$*" >>"$TOLD_SCONTROL"\n')
    (tmp_path / "scontrol").touch()
    path = f"{folder}:{script_environment()['PATH']}"
    return {**job, "SLURM_JOB_ID": "7", "PATH": path, "TOLD_SCONTROL": str(tmp_path / "scontrol")}


def requeued(slurm_job: dict[str, str]) -> list[str]:
    return Path(slurm_job["TOLD_SCONTROL"]).read_text().splitlines()


def finish_arm(job: dict[str, str]) -> None:
    checkpoints = Path(job["RUN_DIR"]) / "arms" / "top" / "checkpoints"
    (checkpoints / "checkpoint-20").mkdir(parents=True)
    (checkpoints / "DONE.json").write_text("{}")


@pytest.mark.parametrize(
    ("script", "program", "changes"),
    [
        ("run_train.sh", "data.msmarco_data", {"DATA_DIR": "new"}),
        (
            "run_arm.sh",
            "data.create_subset",
            {"SUBSET_10": "1", "SUBSET_RAW_DIR": "raw10", "SUBSET_DATA_DIR": "data10"},
        ),
        ("run_train_warmup.sh", "drivers.run_bm25", {"WARMUP_DIR": "w", "BM25_DIR": "bm25"}),
        ("run_evaluation.sh", "drivers.run_eval", {}),
        ("run_evaluation.sh", "drivers.run_eval", {"SLURM_RESTART_COUNT": "20"}),
        ("run_evaluation.sh", "results.report", {}),
    ],
)
def test_usr2_ends_a_program_that_saves_nothing_and_the_job_starts_the_step_over(
    script: str, program: str, changes: dict[str, str], slurm_job: dict[str, str], tmp_path: Path
) -> None:
    finish_arm(slurm_job)
    (Path(slurm_job["RUN_DIR"]) / "bm25").mkdir()
    (Path(slurm_job["RUN_DIR"]) / "bm25" / "metrics.json").write_text("{}")
    places = {name: str(tmp_path / value) if "DIR" in name else value for name, value in changes.items()}
    told = SLEEP.format(program.rpartition(".")[2])
    process = start(script, {**slurm_job, **places, "TOLD": told}, program)
    process.send_signal(signal.SIGUSR2)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 75 and "asked to stop; the step starts over" in output
    assert calls(slurm_job)[-1] == program  # no other is begun
    if "SLURM_RESTART_COUNT" in changes:
        assert requeued(slurm_job) == [] and "MAX_RESTARTS is 20" in output
    else:
        assert requeued(slurm_job) == ["requeue 7"]


def test_usr2_ends_the_workers_of_an_evaluation(slurm_job: dict[str, str]) -> None:
    """utils.launch only asks its workers when it gets a TERM; at HUP torchrun ends them."""
    finish_arm(slurm_job)
    told = 'trap "" TERM; trap "echo ended by HUP; exit 129" HUP; sleep 60 & wait'
    process = start("run_evaluation.sh", {**slurm_job, "GPUS": "2", "TOLD": told}, "drivers.run_eval")
    time.sleep(0.5)
    process.send_signal(signal.SIGUSR2)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 75 and "ended by HUP" in output
    assert calls(slurm_job) == ["utils.launch"] and requeued(slurm_job) == ["requeue 7"]


def test_a_program_that_saves_nothing_and_fails_is_not_started_again(slurm_job: dict[str, str]) -> None:
    finish_arm(slurm_job)
    result = run_script(REPO / "commands" / "run_evaluation.sh", **{**slurm_job, "TOLD": "exit 4"})
    assert result.returncode == 4 and requeued(slurm_job) == []


@pytest.mark.parametrize("place", ["preparing data", "report"])
def test_a_stop_is_taken_while_another_job_holds_the_lock(
    place: str, slurm_job: dict[str, str], tmp_path: Path
) -> None:
    finish_arm(slurm_job)
    file, script = tmp_path / "new" / ".prepare.lock", "run_train.sh"
    if place == "report":
        file, script = Path(slurm_job["RUN_DIR"]) / ".report.lock", "run_evaluation.sh"
    else:
        slurm_job["DATA_DIR"] = str(tmp_path / "new" / "data")
    file.parent.mkdir(exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            ["bash", str(REPO / "commands" / script)],
            env=script_environment(**slurm_job),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == f"waiting for another job, which holds {file}\n"
        process.send_signal(signal.SIGUSR2)
        process.communicate(timeout=20)
    assert process.returncode == 75 and requeued(slurm_job) == ["requeue 7"]


def test_two_jobs_that_start_together_prepare_the_data_once(job: dict[str, str], tmp_path: Path) -> None:
    job["DATA_DIR"] = str(tmp_path / "new")
    told = '[[ $program != msmarco_data ]] || { sleep 2; mkdir -p "$DATA_DIR"; : >"$DATA_DIR/manifest.json"; }'
    job["TOLD"] = told
    first = start("run_train.sh", job)
    second = start("run_train.sh", job)
    first_output, second_output = (process.communicate(timeout=30)[0] for process in (first, second))
    assert first.returncode == second.returncode == 0, (first_output, second_output)
    assert "waiting for another job" in second_output and "waiting" not in first_output
    assert sorted(calls(job)) == ["data.msmarco_data", "drivers.run_ann", "drivers.run_ann"]


def test_where_there_are_no_locks_the_work_goes_on_with_a_warning(job: dict[str, str], tmp_path: Path) -> None:
    write_script(tmp_path / "bin" / "flock", 'echo "flock: 10: No locks available" >&2; exit 71\n')
    path = f"{tmp_path / 'bin'}:{script_environment()['PATH']}"
    result = run_script(REPO / "commands" / "run_train.sh", **{**job, "DATA_DIR": str(tmp_path / "new"), "PATH": path})
    assert result.returncode == 0 and calls(job) == ["data.msmarco_data", "drivers.run_ann"]
    (line,) = result.stderr.splitlines()
    assert f"warning: no lock on {tmp_path}/.prepare.lock, continuing without" in line and "No locks available" in line


@pytest.mark.parametrize(
    ("script", "own", "other", "role"),
    [
        ("run_train.sh", "checkpoints", "ann_data", "generator"),
        ("run_ann_data_gen.sh", "ann_data", "checkpoints", "trainer"),
    ],
)
def test_a_job_comes_back_with_its_peer_unless_it_has_failed_itself(
    script: str, own: str, other: str, role: str, slurm_job: dict[str, str]
) -> None:
    arm = Path(slurm_job["RUN_DIR"]) / "arms" / "top"
    for name in (own, other):
        (arm / name / ".leases").mkdir(parents=True)
    (arm / other / ".leases" / f"{role}-1.json").write_text('{\n "job": "8",\n "pid": 1\n}\n')
    slurm_job["TOLD"] = "exit 4"
    result = run_script(REPO / "commands" / script, **slurm_job)
    assert result.returncode == 4 and requeued(slurm_job) == ["requeue 7", "update JobId=7 Dependency=after:8"]
    Path(slurm_job["TOLD_SCONTROL"]).write_text("")
    (arm / own / "FAILED.json").write_text("{}")  # it has lost one of its processes
    result = run_script(REPO / "commands" / script, **slurm_job)
    assert result.returncode == 4 and requeued(slurm_job) == []
    assert f"itself has failed, see {arm / own / 'FAILED.json'}" in result.stderr


def test_the_wait_for_the_first_negatives_has_an_end(job: dict[str, str]) -> None:
    arm = Path(job["RUN_DIR"]) / "arms" / "top"
    (arm / "ann_data" / "ann_ndcg_0").unlink()
    bound = {"FIRST_NEGATIVES_SECONDS": "1", "POLL_SECONDS": "0.2"}
    result = run_script(REPO / "commands" / "run_ann_data_gen.sh", **job, **bound)
    assert result.returncode == 4 and not Path(job["CALLS"]).exists()
    (line,) = result.stderr.splitlines()
    assert f"no {arm}/ann_data/ann_ndcg_0 after 1 s: start run_train.sh" in line


@pytest.mark.parametrize("flags", [["--dry_run"], []])
def test_the_programs_of_an_arm_have_a_stop_file_each_or_none(flags: list[str], job: dict[str, str]) -> None:
    told = 'echo "$program ${ANCE_STOP_FILE-unset}"'
    result = run_script(REPO / "commands" / "run_arm.sh", *flags, **{**job, "TOLD": told})
    assert result.returncode == 0, result.stderr
    arm = Path(job["RUN_DIR"]) / "arms" / "top"
    if flags:
        assert result.stdout.splitlines() == [
            f"{name} unset" for name in ("run_ann_data_gen", "run_ann", "run_ann_data_gen")
        ]
    else:
        assert (arm / "trainer.out").read_text().startswith(f"run_ann {arm}/.stop-trainer-")
        assert (arm / "generator.out").read_text().startswith(f"run_ann_data_gen {arm}/.stop-generator-")


# The end of a run


def evaluated(job: dict[str, str], **changes: str) -> list[str]:
    """The programs of run_evaluation.sh, whose outputs stay behind."""
    told = r"""
    out=$(printf '%s\n' "$@" | sed -n '/^--output_dir$/{n;p}')
    model=$(printf '%s\n' "$@" | sed -n '/^--model_name_or_path$/{n;p}')
    [[ -z $out ]] || { mkdir -p "$out"; echo "{\"model\": \"$model\"}" >"$out/metrics.json"; }
    [[ $program != run_bm25 ]] || : >"$out/ann_ndcg_0"
    """
    Path(job["CALLS"]).unlink(missing_ok=True)
    result = run_script(REPO / "commands" / "run_evaluation.sh", **{**job, "TOLD": told, **changes})
    assert result.returncode == 0, result.stderr
    return calls(job)


def test_evaluation_makes_what_the_report_reads_and_makes_it_once(job: dict[str, str]) -> None:
    run = Path(job["RUN_DIR"])
    checkpoints = run / "arms" / "top" / "checkpoints"
    script = REPO / "commands" / "run_evaluation.sh"
    assert f"no DONE.json in {checkpoints}" in single_error_line(run_script(script, **job))
    (checkpoints / "checkpoint-20").mkdir(parents=True)
    (checkpoints / "DONE.json").write_text("{}")
    assert evaluated(job) == ["drivers.run_eval", "drivers.run_eval", "drivers.run_bm25", "results.report"]
    models = [
        json.loads((run / name / "eval" / "metrics.json").read_text())["model"] for name in ("arms/top", "warmup")
    ]
    assert models == [str(checkpoints / "checkpoint-20"), job["WARMUP_CHECKPOINT"]]
    assert (run / "bm25" / "metrics.json").exists() and (run / "preprocessed" / "manifest.json").exists()
    assert evaluated(job) == ["drivers.run_eval", "results.report"]


def test_without_the_raw_collection_there_is_no_report(job: dict[str, str], tmp_path: Path) -> None:
    checkpoints = Path(job["RUN_DIR"]) / "arms" / "top" / "checkpoints"
    (checkpoints / "checkpoint-20").mkdir(parents=True)
    (checkpoints / "DONE.json").write_text("{}")
    assert evaluated(job, RAW_DATA_DIR=str(tmp_path / "none")) == ["drivers.run_eval", "drivers.run_eval"]


# Submitting

SBATCH = r"""
name=$(printf '%s\n' "$@" | sed -n 's/^--job-name=//p')
[[ $name != "${REFUSED:-}" ]] || { echo "sbatch: error: no" >&2; exit 1; }
number=$((100 + $(wc -l <"$SUBMITTED")))
printf '%q ' "STRATEGY=$STRATEGY" "WARMUP_CHECKPOINT=${WARMUP_CHECKPOINT-none}" "$@" >>"$SUBMITTED"
echo >>"$SUBMITTED"
echo "$number;cluster"
"""


@pytest.fixture
def queue(tmp_path: Path, job: dict[str, str]) -> dict[str, str]:
    """Stand-ins for Slurm's commands, which note what they are given. The jobs are 100, 101, ..."""
    folder = tmp_path / "bin"
    (tmp_path / "submitted").touch()
    write_script(folder / "sbatch", SBATCH)
    write_script(folder / "squeue", 'printf "%s" "${QUEUED:-}"\n')
    write_script(folder / "scancel", 'echo "$*" >>"$CANCELLED"\n')
    path = f"{folder}:{script_environment()['PATH']}"
    places = {"SUBMITTED": str(tmp_path / "submitted"), "CANCELLED": str(tmp_path / "cancelled"), "PATH": path}
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").touch()
    return {**job, **places, "PYTHON": sys.executable, "RUNS_DIR": str(tmp_path / "runs"), "MODEL": str(model)}


def submitted(queue: dict[str, str], *words: str, **changes: str) -> list[list[str]]:
    """The words of each sbatch, of which the first two are settings."""
    result = run_script(SUBMIT, *words, **{**queue, **changes})
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in Path(queue["SUBMITTED"]).read_text().splitlines()]


def option(words: list[str], name: str) -> str | None:
    found = [word.partition("=")[2] for word in words if word.startswith(f"--{name}=")]
    return found[-1] if found else None


def test_a_chain_without_a_warmup_begins_with_one(queue: dict[str, str], tmp_path: Path) -> None:
    words = ["--strategy", "bottom", "--train_gpus", "2", "--trainer", "--max_steps", "9", "--", "--partition=long"]
    jobs = submitted(queue, *words, WARMUP_CHECKPOINT="")
    run = queue["RUN_DIR"]
    names = ["warmup", "initial_data_bottom", "generator_bottom", "trainer_bottom", "evaluation_bottom"]
    assert [option(job, "job-name") for job in jobs] == [f"ance_{name}" for name in names]
    after = [None, "afterok:100", "afterok:101", "afterok:101", "afterok:103"]
    assert [option(job, "dependency") for job in jobs] == after
    assert [option(job, "kill-on-invalid-dep") for job in jobs] == [None, *["yes"] * 4]
    assert [option(job, "gpus-per-node") for job in jobs] == [None, None, None, "2", None]
    for job in jobs:
        assert job[-2:] == ["--max_steps", "9"] and option(job, "partition") == "long"
        assert option(job, "output") == f"{run}/logs/%x-%j.out"
        assert job[1] == "WARMUP_CHECKPOINT=none"  # each looks for the newest itself
    assert {job[0] for job in jobs[1:]} == {"STRATEGY=bottom"}
    assert Path(run, "logs").is_dir()


def test_four_arms_are_arrays_from_one_warmup(queue: dict[str, str]) -> None:
    jobs = submitted(queue, "--strategy", "all")
    assert [option(job, "array") for job in jobs] == ["0-3"] * 4
    assert [option(job, "dependency") for job in jobs] == [None, "aftercorr:100", "aftercorr:100", "aftercorr:102"]
    for job in jobs:
        assert job[:2] == ["STRATEGY=all", f"WARMUP_CHECKPOINT={queue['WARMUP_CHECKPOINT']}"]
        assert option(job, "output") == f"{queue['RUN_DIR']}/logs/%x-%A_%a.out"


def test_colocated_is_one_job_with_the_gpus_of_both(queue: dict[str, str]) -> None:
    jobs = submitted(queue, "--strategy", "top", "--colocated", "--train_gpus", "4", "--gen_gpus", "2")
    assert [option(job, "job-name") for job in jobs] == ["ance_arm_top", "ance_evaluation_top"]
    assert option(jobs[0], "gpus-per-node") == "6" and "drivers/sbatch_arm.sh" in jobs[0]
    assert option(jobs[1], "dependency") == "afterok:100"


def test_a_warmup_that_is_done_or_in_the_queue_is_not_submitted_again(queue: dict[str, str], tmp_path: Path) -> None:
    warmup = {"WARMUP_CHECKPOINT": "", "WARMUP_DIR": str(tmp_path / "shared")}
    jobs = submitted(queue, "--strategy", "top", **warmup, QUEUED=f"7 ance_warmup {tmp_path / 'shared'}\n")
    assert len(jobs) == 4 and option(jobs[0], "dependency") == "afterok:7"
    (tmp_path / "shared" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "shared" / "DONE.json").write_text("{}")
    jobs = submitted(queue, "--strategy", "top", **warmup)[4:]
    assert len(jobs) == 4 and option(jobs[0], "dependency") is None


def test_a_second_chain_is_refused(queue: dict[str, str]) -> None:
    queued = f"3 ance_trainer_all {queue['RUN_DIR']}\n"
    error = single_error_line(run_script(SUBMIT, "--strategy", "top", **queue, QUEUED=queued))
    assert f"job 3 works on this arm in {queue['RUN_DIR']} already" in error
    for others in (queued.replace("_all", "_top_bottom"), queued.replace("a run", "another run")):
        assert run_script(SUBMIT, "--strategy", "top", **queue, QUEUED=others).returncode == 0
    # Another spelling of an arm that is one of the four: their directories have the same name.
    error = single_error_line(run_script(SUBMIT, "--strategy", "top+bottom", **queue, QUEUED=queued))
    assert "job 3 works on this arm" in error


def test_nothing_stays_submitted_where_one_job_is_refused(queue: dict[str, str]) -> None:
    result = run_script(SUBMIT, "--strategy", "top", **queue, REFUSED="ance_trainer_top")
    assert result.returncode == 2 and "sbatch refused ance_trainer_top" in result.stderr
    assert Path(queue["CANCELLED"]).read_text() == "100 101\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--strategy", "best"], "'best' is not a strategy; for example top, top_bottom, random"),
        (["--strategy", "ranks:1-999"], "ranks:1-999 is no window of the candidates (--topk_training 200)"),
        (["--strategy"], "--strategy needs a value"),
        (["--strategy", "top", "--gen_gpus", "two"], "GEN_GPUS is 'two', expected a whole number"),
        (["--strategy", "top", "--train_gpus", "3"], "GLOBAL_BATCH is 64, expected a multiple of 3 GPUs"),
        (["--strategy", "top", "--warmup", "nowhere"], "nowhere is no checkpoint"),
        (["--strategy", "top", "--trainer", "--max_step", "9"], "--max_step"),
        (["--strategy", "top", "--evaluation", "--learning_rate", "9"], "--learning_rate"),
    ],
)
def test_mistakes_are_found_before_anything_is_submitted(words: list[str], says: str, queue: dict[str, str]) -> None:
    gpus = {name: value for name, value in queue.items() if name != "GPUS"}
    error = single_error_line(run_script(SUBMIT, *words, **gpus))
    assert says in error, error
    assert Path(queue["SUBMITTED"]).read_text() == ""


def test_any_strategy_is_an_arm(queue: dict[str, str]) -> None:
    """Its directory and its jobs have a name of plain letters; the four arms in the queue are others."""
    word = "around-positive:20\u00b140"
    queued = f"3 ance_trainer_all {queue['RUN_DIR']}\n"
    jobs = submitted(queue, "--strategy", word, QUEUED=queued)
    roles = ("initial_data", "generator", "trainer", "evaluation")
    assert [option(job, "job-name") for job in jobs] == [f"ance_{role}_around-positive_20__40" for role in roles]
    assert {job[0] for job in jobs} == {f"STRATEGY={word}"}
    again = queued.replace("_all", "_around-positive_20__40")
    assert "job 3 works on this arm" in single_error_line(run_script(SUBMIT, "--strategy", word, **queue, QUEUED=again))


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("GPUS", "many", "GPUS is 'many', expected a whole number"),
        ("MODEL_TYPE", "bert", "--model_type is 'bert', expected one of hf, rdot_nll"),
        ("RAW_DATA_DIR", "nowhere", "nowhere is not a directory, expected a collection: run commands/data_download.sh"),
        ("DATA_TYPE", "2", "--data_type is 2"),
    ],
)
def test_settings_that_no_job_could_work_with_are_not_submitted(
    setting: str, value: str, says: str, queue: dict[str, str], shared_collection: Path, tiny_tokenizer: Path
) -> None:
    (Path(queue["DATA_DIR"]) / "manifest.json").unlink()
    shutil.copytree(tiny_tokenizer, queue["MODEL"], dirs_exist_ok=True)
    there = {"RAW_DATA_DIR": str(shared_collection), "WARMUP_CHECKPOINT": "", "HF_HUB_OFFLINE": "1"}
    error = single_error_line(run_script(SUBMIT, "--strategy", "top", **{**queue, **there, setting: value}))
    assert says in error, error
    assert Path(queue["SUBMITTED"]).read_text() == "" and not Path(queue["RUN_DIR"], "logs").exists()


def test_dry_run_submits_nothing(queue: dict[str, str], shared_collection: Path, tiny_tokenizer: Path) -> None:
    (Path(queue["DATA_DIR"]) / "manifest.json").unlink()
    there = {"RAW_DATA_DIR": str(shared_collection), "MODEL": str(tiny_tokenizer)}
    result = run_script(SUBMIT, "--strategy", "all", "--dry_run", **{**queue, **there})
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("sbatch ")]
    assert len(lines) == 4 and all("--dry_run" not in line for line in lines)
    assert re.search(r"--dependency=aftercorr:\$trainer_all", lines[-1])
    assert Path(queue["SUBMITTED"]).read_text() == "" and not Path(queue["RUN_DIR"], "logs").exists()
