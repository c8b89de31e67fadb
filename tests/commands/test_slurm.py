"""The shipped scripts on a real Slurm: two virtual nodes on this machine, tests/slurm/cluster.sh.

The jobs of the first half run a program that only does what a test tells it to; those of the second half are whole
chains of real programs on tiny data. All of them are submitted early and run side by side. Three chains are disturbed
for minutes, each by a thread of its own, so that they wait at the same time; their tests wait for the thread.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests import REPO
from tests.conftest import TINY_MAX_QUERY_LENGTH, TINY_MAX_SEQ_LENGTH
from tests.shell import run_script, script_environment, single_error_line, write_script
from tests.slurm.cluster import ENDED, SMALL, TOLD_PYTHON, Cluster, Told, lacking, wait_until
from utils.exchange.atomic import sha256_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = lacking()
    if reason and os.environ.get("ANCE_REQUIRE_SLURM") == "1":
        pytest.fail(f"no Slurm, and ANCE_REQUIRE_SLURM is 1: {reason}")
    if reason:
        pytest.skip(f"no Slurm: {reason}")
    directory = tmp_path_factory.mktemp("slurm") / "cluster"
    script = REPO / "tests" / "slurm" / "cluster.sh"
    subprocess.run([script, "up", directory], env=script_environment(), check=True, timeout=120)
    yield Cluster(directory)
    subprocess.run([script, "down", directory], env=script_environment(), check=True, timeout=120)
    assert not directory.exists()


# Whole chains of the real programs

WARMUP_STEPS, STEPS, WINDOW = 1500, 80, 10  # the warmup is long enough to be met in the middle
PROGRAMS = ("initial_data", "generator", "trainer", "evaluation")
FLAGS = (
    "--warmup_trainer", "--max_steps", str(WARMUP_STEPS), "--save_steps", "50", "--logging_steps", "50",
    "--learning_rate", "3e-3", "--warmup_steps", "5", "--optimizer", "adamW", "--per_gpu_train_batch_size", "8",
    "--trainer", "--max_steps", str(STEPS), "--logging_steps", "5", "--learning_rate", "1e-3", "--warmup_steps", "5",
)  # fmt: skip


LENGTHS = ("--max_seq_length", str(TINY_MAX_SEQ_LENGTH))
ON_N1 = ("--cpus-per-task=1", "--mem=1G", "--gpus-per-node=0", "--nodelist=n1")


class Chain:
    """A submitted chain: ``jobs`` has the numbers by name, without the strategy."""

    def __init__(self, cluster: Cluster, settings: dict[str, str], strategy: str, *words: str) -> None:
        self.cluster, self.settings, self.strategy = cluster, settings, strategy
        self.run_dir = Path(settings["RUN_DIR"])
        options = () if "--" in words else ("--", *ON_N1)
        self.command = ["bash", "commands/submit_ance.sh", "--strategy", strategy, *LENGTHS, *words, *options]
        self.table = cluster.call(*self.command, **settings)
        rows = re.findall(rf"^(\d+) +ance_(\w+?)(?:_{strategy})? .* (/\S+)$", self.table, re.M)
        self.jobs = {name: job for job, name, _ in rows}
        self.logs = {name: log for _, name, log in rows}

    def weights(self, strategy: str) -> str:
        """sha256 of the arm's last checkpoint."""
        checkpoints = self.run_dir / "arms" / strategy / "checkpoints"
        assert json.loads((checkpoints / "DONE.json").read_text())["step"] == STEPS
        return sha256_of(checkpoints / f"checkpoint-{STEPS}" / "model.safetensors")


@pytest.fixture(scope="module")
def settings(shared_collection: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tiny collection, not yet preprocessed, and a static encoder with random weights."""
    import torch

    from model.encoders.static import StaticEncoder

    root = tmp_path_factory.mktemp("chains")
    (root / "model").mkdir()
    vocabulary = json.loads((tiny_tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    torch.manual_seed(5)
    StaticEncoder({"vocab_size": len(vocabulary), "embedding_size": 16}).save_pretrained(root / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_tokenizer / name, root / "model" / name)
    paths = {"RAW_DATA_DIR": shared_collection, "DATA_DIR": root / "data", "MODEL": root / "model", "ROOT": root}
    numbers = {"TOPK_TRAINING": 50, "NEGATIVE_SAMPLE": 5, "ANN_CHUNK_FACTOR": 2, "STEPS_PER_REFRESH": WINDOW}
    lengths = {"MAX_SEQ_LENGTH": TINY_MAX_SEQ_LENGTH, "MAX_QUERY_LENGTH": TINY_MAX_QUERY_LENGTH}
    machine = {"PYTHON": sys.executable, "GPUS": 0, "CPUS": 1, "OMP_NUM_THREADS": 1, "HF_HUB_OFFLINE": 1}
    given = {**paths, **numbers, **lengths, **machine, "MODEL_TYPE": "static", "GLOBAL_BATCH": 16}
    return {name: str(value) for name, value in given.items()}


@pytest.fixture(scope="module", autouse=True)
def disturbed(cluster: Cluster, settings: dict[str, str]) -> Chain:
    """One arm, each job of which will be requeued. It has the longest way to go, and so begins first. Its warmup, of
    a few seconds, is held until the test can watch it.
    """
    chain = Chain(cluster, {**settings, "RUN_DIR": settings["ROOT"] + "/disturbed"}, "top", *FLAGS)
    cluster.call("scontrol", "hold", chain.jobs["warmup"])
    return chain


@pytest.fixture(scope="module", autouse=True)
def all_arms(cluster: Cluster, settings: dict[str, str], disturbed: Chain) -> Chain:
    """Four arms from one warmup; nobody disturbs them."""
    return Chain(cluster, {**settings, "RUN_DIR": settings["ROOT"] + "/all"}, "all", *FLAGS)


@pytest.fixture(scope="module", autouse=True)
def limited(cluster: Cluster, settings: dict[str, str], all_arms: Chain) -> Chain:
    """Another of these arms, from the warmup that is in the queue already. Its trainer gets a time limit of two minutes
    and a warning one minute early, give or take the half minute between two looks of Slurm; but for the first negatives
    it has nothing to do: the generator is held.
    """
    root = settings["ROOT"]
    changed = {**settings, "RUN_DIR": f"{root}/limited", "WARMUP_DIR": f"{root}/all/warmup"}
    chain = Chain(cluster, changed, "bottom", *FLAGS, "--", *ON_N1, "--signal=B:USR2@65")
    warmup = all_arms.jobs["warmup"]
    if "warmup" in chain.jobs:
        assert chain.jobs["warmup"] == warmup
    else:  # on a machine under load it may have ended by now
        assert cluster.state(warmup) == "COMPLETED"
    cluster.call("scontrol", "hold", chain.jobs["generator"])
    cluster.call("scontrol", "update", f"JobId={chain.jobs['trainer']}", "TimeLimit=2")
    return chain


@pytest.fixture(scope="module", autouse=True)
def colocated(cluster: Cluster, settings: dict[str, str], all_arms: Chain) -> Chain:
    """Another of these arms in a single job, as two processes of the trainer and one of the generator. Slurm's GPUs are
    but files here, so the processes work on the CPU, where there is no fp16. Held until its test can watch it.
    """
    root = settings["ROOT"]
    changed = {**settings, "RUN_DIR": f"{root}/colocated", "WARMUP_DIR": f"{root}/all/warmup"}
    del changed["GPUS"]  # of the job's own, by SLURM_GPUS_ON_NODE
    gpus = ("--colocated", "--train_gpus", "2", "--gen_gpus", "1")
    flags = (*FLAGS, "--fp16", "false", "--generator", "--fp16", "false", "--evaluation", "--fp16", "false")
    options = ("--", "--cpus-per-task=3", "--mem=1G", "--nodelist=n1")
    chain = Chain(cluster, changed, "top_bottom", *gpus, *flags, *options)
    cluster.call("scontrol", "hold", chain.jobs["arm"])
    return chain


def requeue_in_mid_run(chain: Chain, name: str, sign: str, how: str = "requeue") -> None:
    """As scontrol does it, once ``sign`` is in the job's log."""
    job, cluster = chain.jobs[name], chain.cluster
    cluster.wait_for_log(job, sign)
    assert cluster.state(job) == "RUNNING"
    cluster.call("scontrol", how, job)
    wait_until(lambda: cluster.job(job)["Restarts"] == "1", f"{name} to be requeued")


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as made:
        yield made


def requeue_every_job(disturbed: Chain) -> None:
    cluster, jobs = disturbed.cluster, disturbed.jobs
    cluster.call("scontrol", "release", jobs["warmup"])
    requeue_in_mid_run(disturbed, "warmup", "checkpoint-100")
    requeue_in_mid_run(disturbed, "initial_data", "program run_ann_data_gen")
    # While the generator is held the trainer cannot finish, however fast it is.
    requeue_in_mid_run(disturbed, "generator", "refresh 1: published", "requeuehold")
    requeue_in_mid_run(disturbed, "trainer", f"step {WINDOW}/")
    cluster.wait_for_log(jobs["trainer"], "program run_ann ", times=2)
    cluster.call("scancel", "--batch", "--signal=USR2", jobs["trainer"])  # as the time limit does
    cluster.wait_for_log(jobs["trainer"], "program run_ann ", times=3)
    cluster.call("scontrol", "release", jobs["generator"])
    requeue_in_mid_run(disturbed, "evaluation", "program run_eval")
    ended = {name: cluster.end(job) for name, job in disturbed.jobs.items()}
    assert {name: job["JobState"] for name, job in ended.items()} == dict.fromkeys(["warmup", *PROGRAMS], "COMPLETED")
    assert {name: job["Restarts"] for name, job in ended.items()} == {
        **dict.fromkeys(["warmup", *PROGRAMS], "1"),
        "trainer": "2",
    }


@pytest.fixture(scope="module", autouse=True)
def requeued(disturbed: Chain, threads: ThreadPoolExecutor) -> Future[None]:
    return threads.submit(requeue_every_job, disturbed)


def stop_at_its_time_limit_and_by_scancel(limited: Chain) -> Chain:
    """Its time limit requeues the trainer; then it is cancelled and submitted again: that chain, at its end."""
    cluster, job, waiting = limited.cluster, limited.jobs["trainer"], f"at step {2 * WINDOW}"
    cluster.wait_for_log(job, "requeueing job")
    cluster.wait_for_log(job, "program run_ann ", times=2)
    assert waiting in cluster.log(job) and int(cluster.job(job)["Restarts"]) >= 1
    cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    check_that_a_second_job_is_refused(limited)

    cluster.call("scancel", job, limited.jobs["generator"])
    ended = {name: cluster.end(limited.jobs[name]) for name in PROGRAMS}
    assert {name: state["JobState"] for name, state in ended.items()} == {
        "initial_data": "COMPLETED", "trainer": "CANCELLED", "generator": "CANCELLED", "evaluation": "CANCELLED",
    }  # fmt: skip

    again = Chain(cluster, limited.settings, "bottom", *FLAGS, "--", *ON_N1)
    for name in PROGRAMS:
        assert cluster.end(again.jobs[name])["JobState"] == "COMPLETED", cluster.log(again.jobs[name])[-3000:]
    return again


def check_that_a_second_job_is_refused(chain: Chain) -> None:
    """By submit_ance.sh before it is submitted, and by its program where it was submitted by hand."""
    cluster, job = chain.cluster, chain.jobs["trainer"]
    refused = run_script(REPO / chain.command[1], *chain.command[2:], cwd=REPO, **cluster.environment, **chain.settings)
    assert f"works on this arm in {chain.run_dir} already" in single_error_line(refused)
    log, setting = chain.run_dir / "second.out", {"STRATEGY": chain.strategy, "REFRESH_MODE": "lockstep"}
    words = ["sbatch", "--parsable", f"--output={log}", *ON_N1, "drivers/sbatch_train.sh", *LENGTHS, *FLAGS]
    ended = cluster.end(cluster.call(*words, **chain.settings, **setting).strip())
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), log.read_text()
    line = log.read_text().splitlines()[-1]
    assert line.startswith("run_ann: error: ") and f"job {job}" in line


@pytest.fixture(scope="module", autouse=True)
def cancelled(limited: Chain, threads: ThreadPoolExecutor) -> Future[Chain]:
    return threads.submit(stop_at_its_time_limit_and_by_scancel, limited)


def requeue_and_cancel(colocated: Chain) -> Chain:
    """The arm's job is requeued, then cancelled and submitted again: that chain, at its end."""
    assert set(colocated.jobs) == {"warmup", "arm", "evaluation"}
    cluster, arm = colocated.cluster, colocated.run_dir / "arms" / "top_bottom"
    trainer_log, job = arm / "trainer.out", colocated.jobs["arm"]

    def wait_for_trainer(sign: str) -> None:
        def look() -> bool:
            assert cluster.state(job) not in ENDED, cluster.log(job)[-3000:]
            return trainer_log.exists() and sign in trainer_log.read_text()

        wait_until(look, f"{sign!r} in {trainer_log}")

    cluster.call("scontrol", "release", job)
    wait_for_trainer(f"step {WINDOW}/")
    assert "trainer on GPUs [0,1], generator on [2]" in cluster.log(job)
    cluster.call("scontrol", "requeue", job)
    wait_for_trainer("resuming from checkpoint-")
    wait_for_trainer(f"step {3 * WINDOW}/")
    cluster.call("scancel", job)
    assert cluster.end(job)["JobState"] == "CANCELLED"
    assert cluster.end(colocated.jobs["evaluation"])["JobState"] == "CANCELLED"
    assert not (arm / "checkpoints" / "DONE.json").exists()

    again = Chain(
        cluster, colocated.settings, "top_bottom", *colocated.command[colocated.command.index("--colocated") :]
    )
    for name in ("arm", "evaluation"):
        assert cluster.end(again.jobs[name])["JobState"] == "COMPLETED", cluster.log(again.jobs[name])[-3000:]
    return again


@pytest.fixture(scope="module", autouse=True)
def resumed(colocated: Chain, threads: ThreadPoolExecutor) -> Future[Chain]:
    return threads.submit(requeue_and_cancel, colocated)


# Jobs whose program does as it is told


@pytest.fixture(scope="module")
def told(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Told:
    directory = tmp_path_factory.mktemp("told")
    return Told(cluster, directory, write_script(directory / "python", TOLD_PYTHON))


def lease_of(job: str) -> str:
    """The command that leaves a lease of the generator's, which had that job."""
    lease = f'{{\n "role": "generator",\n "job": "{job}",\n "pid": 1\n}}\n'
    return f"printf '%s' '{lease}' >$RUN_DIR/arms/top/ann_data/.leases/generator-1.json"


@pytest.fixture(scope="module", autouse=True)
def bounded(told: Told) -> str:
    return told.submit("sbatch_train.sh", "be_warned", MAX_RESTARTS="1")[0]


def test_restarts_are_bounded_and_a_job_that_failed_says_so(cluster: Cluster, bounded: str) -> None:
    ended = cluster.end(bounded)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "1")
    assert "not requeued: it was restarted 1 times, MAX_RESTARTS is 1" in cluster.log(bounded)


@pytest.fixture(scope="module", autouse=True)
def failing(told: Told) -> dict[str, str]:
    """The program's exit code by the job's number; 75 without a word of the state is a fenced program's."""
    endings = {f"exit {code}": str(code) for code in (1, 2, 3, 4, 75)} | {"save_and_stop  # by a user's STOP": "75"}
    endings[f"{lease_of('999999')}; exit 4  # its peer has left the queue"] = "4"
    return {told.submit("sbatch_train.sh", ending)[0]: code for ending, code in endings.items()}


def test_a_program_that_fails_or_is_fenced_is_not_started_again(cluster: Cluster, failing: dict[str, str]) -> None:
    for job, code in failing.items():
        ended = cluster.end(job)
        assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", f"{code}:0", "0")


@pytest.fixture(scope="module", autouse=True)
def peers(cluster: Cluster, told: Told) -> tuple[str, str]:
    """A held job, and one whose program first says that its peer, which had that number, is gone."""
    peer = cluster.call("sbatch", "--parsable", "--hold", *SMALL, "--output=/dev/null", "--wrap=sleep 1").strip()
    return peer, told.submit("sbatch_train.sh", f"((start > 1)) || {{ {lease_of(peer)}; exit 4; }}")[0]


def test_a_job_waits_for_its_peer_that_waits_in_the_queue(cluster: Cluster, peers: tuple[str, str]) -> None:
    peer, job = peers
    wait_until(lambda: cluster.job(job)["Dependency"].startswith(f"after:{peer}"), f"{job} to wait for {peer}")
    cluster.wait_for_state(job, "PENDING")
    cluster.call("scontrol", "release", peer)
    ended = cluster.end(job)
    assert ended["JobState"] == "COMPLETED" and ended["Restarts"] == "1"


@pytest.fixture(scope="module", autouse=True)
def array(told: Told) -> tuple[str, Path]:
    """Four tasks, the last of which stops once."""
    told_to = "[[ $SLURM_ARRAY_TASK_ID != 3 || $start != 1 ]] || be_warned; sleep 2"
    return told.submit("sbatch_train.sh", told_to, "--array=0-3", STRATEGY="all")


def test_one_task_of_an_array_goes_on_alone(cluster: Cluster, array: tuple[str, Path]) -> None:
    """The last task has the number of the whole array: requeueing that number would start all of them again."""
    job, run_dir = array
    ended = [cluster.end(f"{job}_{task}") for task in range(4)]
    assert [task["JobState"] for task in ended] == ["COMPLETED"] * 4
    assert [task["Restarts"] for task in ended] == ["0", "0", "0", "1"]
    starts = {path.name: path.read_text().strip() for path in run_dir.glob("starts-*")}
    assert starts == {"starts-top-0": "1", "starts-top_bottom-1": "1", "starts-bottom-2": "1", "starts-random-3": "2"}


def test_a_job_that_is_cancelled_saves_its_state_and_does_not_come_back(cluster: Cluster, told: Told) -> None:
    job, run_dir = told.submit("sbatch_train.sh", "sleep 60 & wait")
    cluster.wait_for_log(job, "start 1")
    cluster.call("scancel", job)
    ended = cluster.end(job)
    assert ended["JobState"] == "CANCELLED" and ended["Restarts"] == "0"
    wait_until(lambda: "does not requeue itself" in cluster.log(job), "the script to say so")
    assert (run_dir / "starts-top-").read_text() == "1\n"
    assert not list((run_dir / "arms" / "top").glob(".stop-*"))


def test_a_job_that_is_preempted_or_loses_its_node_goes_on(cluster: Cluster, told: Told) -> None:
    job, _ = told.submit("sbatch_train.sh", "((start > 2)) || { sleep 60 & wait; }", "--gpus-per-node=4")
    cluster.wait_for_log(job, "start 1")
    urgent = ("--partition=urgent", "--output=/dev/null", "--wrap=sleep 1")
    cluster.call("sbatch", *SMALL, "--gpus-per-node=1", *urgent)
    cluster.wait_for_log(job, "start 2")  # after the preemption
    cluster.call("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    wait_until(lambda: cluster.job(job)["Restarts"] == "2", f"job {job} to be requeued")
    cluster.call("scontrol", "update", "NodeName=n2", "State=RESUME")
    ended = cluster.end(job)
    assert ended["JobState"] == "COMPLETED" and "start 3" in cluster.log(job)


@pytest.mark.parametrize("script", ["drivers/10/sbatch_train_index-a40_subset_10.sh", "commands/study.sh"])
def test_a_job_submitted_from_another_directory_runs_its_own_scripts(
    cluster: Cluster, tmp_path: Path, script: str
) -> None:
    """Slurm runs a copy; which file it is of, and with which arguments, its queue knows."""
    python = write_script(tmp_path / "python", 'echo "$PWD: $*"\n')
    (tmp_path / "checkpoint").mkdir()
    changes = {"PYTHON": python, "WARMUP_CHECKPOINT": tmp_path / "checkpoint"}
    words = ["sbatch", "--parsable", *SMALL, "--output=%j.out", os.path.relpath(REPO / script, tmp_path), "--dry_run"]
    job = cluster.call(*words, cwd=tmp_path, **changes).strip()
    assert cluster.end(job)["JobState"] == "COMPLETED", cluster.log(job)
    assert (f"{REPO}: -m drivers.run_ann " if "drivers" in script else f"{REPO}/results/runs/study") in cluster.log(
        job
    ).replace("\\", "")  # as %q prints


# The chains again


def test_all_arms_and_their_report(all_arms: Chain, cluster: Cluster) -> None:
    assert cluster.end(all_arms.jobs["warmup"])["JobState"] == "COMPLETED"
    for name in PROGRAMS:
        for task in range(4):
            job = f"{all_arms.jobs[name]}_{task}"
            ended = cluster.end(job)
            assert ended["JobState"] == "COMPLETED" and ended["Restarts"] == "0", cluster.log(job)[-3000:]
            assert ended["StdOut"] == all_arms.logs[name].replace("[0-3]", str(task))
    report = json.loads((all_arms.run_dir / "report.json").read_text())
    assert set(report["arms"]) == {"top", "top_bottom", "bottom", "random"}
    assert all(arm["steps"] == STEPS for arm in report["arms"].values())
    assert len({all_arms.weights(strategy) for strategy in report["arms"]}) == 4


def test_every_job_of_a_chain_is_requeued_in_mid_run(requeued: Future[None]) -> None:
    requeued.result()


def test_a_chain_that_was_requeued_everywhere_ends_with_the_same_weights(all_arms: Chain, disturbed: Chain) -> None:
    warmup = Path("warmup") / f"checkpoint-{WARMUP_STEPS}" / "model.safetensors"
    assert sha256_of(disturbed.run_dir / warmup) == sha256_of(all_arms.run_dir / warmup)
    assert disturbed.weights("top") == all_arms.weights("top")
    metrics = [json.loads((run.run_dir / "report.json").read_text())["arms"]["top"] for run in (disturbed, all_arms)]
    assert {**metrics[0], "seconds": 0} == {**metrics[1], "seconds": 0}


def test_a_job_goes_on_after_its_time_limit_and_by_the_same_command_after_scancel(
    cancelled: Future[Chain], all_arms: Chain
) -> None:
    assert cancelled.result().weights("bottom") == all_arms.weights("bottom")


def test_a_colocated_arm_of_several_processes_goes_on_after_a_requeue_and_after_scancel(
    resumed: Future[Chain], all_arms: Chain
) -> None:
    colocated = resumed.result()
    metrics = colocated.run_dir / "arms" / "top_bottom" / "checkpoints" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(5, STEPS + 1, 5))

    # Two processes add up the same gradients as one, in another order.
    weights = [load_file(path / "model.safetensors") for path in final_and_first_of(colocated, all_arms, "top_bottom")]
    for name, initial in weights.pop().items():
        one, two = (final[name] - initial for final in weights)
        assert (one - two).abs().max() <= 1e-3 * one.abs().max(), name


def final_and_first_of(chain: Chain, other: Chain, strategy: str) -> list[Path]:
    """Both last checkpoints, and the warmup's, from which both began."""
    finals = [run.run_dir / "arms" / strategy / "checkpoints" / f"checkpoint-{STEPS}" for run in (other, chain)]
    return [*finals, other.run_dir / "warmup" / f"checkpoint-{WARMUP_STEPS}"]


def test_after_a_warmup_that_fails_nothing_runs(cluster: Cluster, settings: dict[str, str]) -> None:
    """A submission looks whether the raw files are there, and does not read them."""
    raw = shutil.copytree(settings["RAW_DATA_DIR"], settings["ROOT"] + "/damaged/raw")
    (Path(raw) / "qrels.train.tsv").write_text("no qrels\n")
    damaged = dict.fromkeys(("DATA_DIR", "RUN_DIR"), settings["ROOT"] + "/damaged/run")
    chain = Chain(cluster, {**settings, **damaged, "RAW_DATA_DIR": raw}, "all", *FLAGS)
    ended = cluster.end(chain.jobs["warmup"])
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
    for name in PROGRAMS:
        for task in range(4):
            assert cluster.end(f"{chain.jobs[name]}_{task}")["JobState"] == "CANCELLED"
