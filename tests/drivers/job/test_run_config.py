"""drivers.job.run_config: what has to be the same between processes, a job and its run, and the jobs of a run."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from drivers.cli.generate import GenerateFlags
from drivers.cli.train import AnnFlags, WarmupFlags
from drivers.generate import generator as ann_generator
from drivers.generate.generator import GeneratorRun
from drivers.generate.next_checkpoint import RequestSettings
from drivers.job.preflight import Preflight
from drivers.job.resume import NOTHING_MEASURED, dev_split_record
from drivers.job.run_config import (
    COMMON,
    Run,
    check_agreement,
    check_holds_no_other_run,
    join_run,
    provenance,
    remove_other_run,
    run_config,
    run_config_sha256,
)
from drivers.job.session import Session, open_session
from drivers.job.settings import OpeningFlags, deciding_flags
from drivers.train.trainer import Trainer
from tests.exchanging import LIFE, FakeTime, lease_of, names, put_checkpoint, read_beat
from tests.forked import spawn
from tests.processes_as_threads import ALONE
from utils.distributed.world import World
from utils.errors import Disagreement, Fenced, PeerGone, Stopped, UserError, exit_code_of
from utils.exchange.atomic import load_with_checksum
from utils.exchange.lease.record import LeaseTimeouts
from utils.exchange.markers import mark_done, mark_run
from utils.exchange.peers import watch_peer
from utils.exchange.stop import STOP_FILE, Stop, StopRequested
from utils.exchange.wait import VISIBLE_WITHIN_SECONDS

COLLECTION: Any = SimpleNamespace(manifest={"collection_fingerprint": "c", "tokenizer": {"fingerprint": "t"}})
TRAINER = AnnFlags(data_dir="d", ann_dir="a", output_dir="o", model_type="static", max_steps=10)
GENERATOR = GenerateFlags(data_dir="d", training_dir="o", init_model_dir="m", output_dir="a", model_type="static")
WARMUP = WarmupFlags(data_dir="d", output_dir="o", model_type="static")
OF_TRAINING = """
    adam_epsilon collection_fingerprint compile grad_cache_tokens gradient_accumulation_steps gradient_checkpointing
    group_size learning_rate load_optimizer_scheduler loss max_grad_norm max_query_length max_seq_length max_steps
    model_type optimizer per_gpu_train_batch_size seed tokenizer_fingerprint warmup_steps weight_decay
"""
RECORDED = {
    "AnnFlags": f"{OF_TRAINING} refresh_lag refresh_mode single_warmup steps_per_refresh",
    "GenerateFlags": """
        ann_chunk_factor collection_fingerprint compile embedding_dtype faiss_index max_positive_ratio max_query_length
        max_seq_length min_rank model_type negative_sample nprobe on_shortage refresh_lag refresh_mode seed
        steps_per_refresh tokenizer_fingerprint topk_training
    """,
    "WarmupFlags": f"""
        {OF_TRAINING} expected_train_size faiss_index nprobe num_train_epochs scheduler score_scale
    """,
}


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv(STOP_FILE, raising=False)


def alone(directory: Path, role: str = "trainer") -> Session:
    return Session(ALONE, Stop(directory), lease_of(directory, role))


# What decides a run


def other_value(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x"


@pytest.mark.parametrize("flags", [TRAINER, GENERATOR, WARMUP], ids=lambda flags: type(flags).__name__)
def test_every_flag_decides_a_run_unless_it_is_declared_not_to(flags: OpeningFlags) -> None:
    before = run_config_sha256(run_config(deciding_flags(flags), COLLECTION))
    for field in dataclasses.fields(flags):
        changed = dataclasses.replace(flags, **{field.name: other_value(getattr(flags, field.name))})
        decides = run_config_sha256(run_config(deciding_flags(changed), COLLECTION)) != before
        assert decides == (field.metadata["decides"] != "nothing"), field.name
    assert run_config_sha256(run_config(deciding_flags(flags), COLLECTION, strategy="top")) != before
    other: Any = SimpleNamespace(manifest={"collection_fingerprint": "d", "tokenizer": {"fingerprint": "t"}})
    assert run_config_sha256(run_config(deciding_flags(flags), other)) != before


@pytest.mark.parametrize("flags", [TRAINER, GENERATOR, WARMUP], ids=lambda flags: type(flags).__name__)
def test_the_runs_that_were_begun_so_far_are_known_by_the_same_flags(flags: OpeningFlags) -> None:
    """The hash of their versions is over these names: with one more or less they could not be resumed by it.

    Next to them a warmup records its first model's pooling, as resolved.
    """
    assert {*run_config(deciding_flags(flags), COLLECTION)} == {*RECORDED[type(flags).__name__].split()}


@pytest.mark.parametrize("flags", [TRAINER, GENERATOR], ids=["trainer", "generator"])
def test_what_is_common_is_known_to_both(flags: OpeningFlags) -> None:
    config = run_config(deciding_flags(flags), COLLECTION, initial_model_sha256="m", initial_config_sha256="c")
    assert set(COMMON) <= config.keys()
    assert {name: config[name] for name in COMMON}.items() <= provenance(Run("r", ""), config).items()


# Disagreement


def test_all_that_differs_is_named_with_both_values() -> None:
    ours = {"seed": 1, "loss": "pairwise", "lr": 0.1, "score_scale": 2.0, "new_flag": 7}
    theirs = {"seed": 2, "loss": "pairwise", "lr": 0.2, "score_scale": None, "their_flag": 8}
    with pytest.raises(Disagreement) as caught:
        check_agreement(ours, theirs, "refresh 3", "start again")
    assert str(caught.value) == (
        "refresh 3 was made with other flags: seed 2 there, 1 here; lr 0.2 there, 0.1 here; "
        "score_scale None there, 2.0 here; start again"
    )
    assert caught.value.exit_code == 3
    check_agreement(ours, theirs, "refresh 3", "start again", names=("loss", "new_flag", "their_flag"))
    with pytest.raises(Disagreement, match=r"flags: lr 0.2 there, 0.1 here; start again$"):
        check_agreement(ours, theirs, "refresh 3", "start again", names=("lr", "loss"))


@given(*[st.dictionaries(st.sampled_from("abcde"), st.sampled_from([None, 0, 1, "", "x", 0.5])) for _ in range(2)])
def test_disagreement_exactly_where_a_shared_name_differs(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    differing = [name for name in "abcde" if name in ours and name in theirs and ours[name] != theirs[name]]
    try:
        check_agreement(ours, theirs, "it", "fix it")
        said = ""
    except Disagreement as error:
        said = str(error)
    assert bool(said) == bool(differing)
    assert all(f"{name} {theirs[name]} there, {ours[name]} here" in said for name in differing)


def test_a_model_that_an_earlier_version_left_blank_is_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    ours = {"initial_model_sha256": "m", "initial_config_sha256": "c", "seed": 1}
    earlier = {"initial_model_sha256": "", "seed": 1}
    check_agreement(ours, earlier, "the blank run", "start again")
    assert capsys.readouterr().out.startswith("the blank run does not say which model it began from")
    for theirs in ({**earlier, "seed": 2}, {**earlier, "initial_config_sha256": "c"}, {"initial_model_sha256": "n"}):
        with pytest.raises(Disagreement, match="the run was made with other flags"):
            check_agreement(ours, theirs, "the run", "start again")


# The run of a directory


def test_the_second_job_joins_the_run_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    config = run_config(deciding_flags(TRAINER), COLLECTION, processes=1)
    session = alone(tmp_path)
    assert join_run(session, tmp_path, "first", config, "give the same").run_id == "first"
    stored = load_with_checksum(tmp_path / "RUN.json")
    assert (stored["role"], stored["run_id"], stored["job"]) == ("trainer", "first", "41")
    assert stored["science"] == json.loads(json.dumps(config)) and stored["science_sha256"] == run_config_sha256(config)
    before = (tmp_path / "RUN.json").read_bytes()
    assert join_run(session, tmp_path, "second", config, "give the same").run_id == "first"
    other = {**config, "seed": 7, "learning_rate": 0.5}
    with pytest.raises(Disagreement, match=r"learning_rate .* there, 0.5 here; .*give the same") as caught:
        join_run(session, tmp_path, "third", other, "give the same")
    assert "seed 42 there, 7 here" in str(caught.value) and str(tmp_path) in str(caught.value)
    assert (tmp_path / "RUN.json").read_bytes() == before


def test_every_job_publishes_as_of_the_flags_that_the_run_was_begun_with(tmp_path: Path) -> None:
    """A job resumes it with its steps divided otherwise; then RUN.json is lost, and those flags still resume it."""
    begun = run_config(deciding_flags(TRAINER), COLLECTION, processes=1, trained_in="fp32")
    divided = {**begun, "per_gpu_train_batch_size": begun["per_gpu_train_batch_size"] // 2, "processes": 2}
    session = alone(tmp_path)
    join_run(session, tmp_path, "first", begun, "give the same", triple_order=2)
    record = provenance(join_run(session, tmp_path, "second", divided, "give the same"), divided)
    stored = load_with_checksum(tmp_path / "RUN.json")
    assert (record["run_id"], record["science_sha256"]) == ("first", stored["science_sha256"])
    assert stored["triple_order"] == 2
    put_checkpoint(tmp_path, 100, **record)
    (tmp_path / "RUN.json").write_text("{")
    with pytest.raises(Disagreement, match=r"RUN\.json cannot be read"):
        join_run(session, tmp_path, "third", divided, "give the same")
    found = join_run(session, tmp_path, "fourth", begun, "give the same", triple_order=2)
    assert found.config_sha256 == run_config_sha256(begun)
    assert "triple_order" not in load_with_checksum(tmp_path / "RUN.json"), "who began it is not known"


@pytest.mark.parametrize("first", ["dev", "test"])
def test_the_first_job_that_measures_decides_the_split(first: str, tmp_path: Path) -> None:
    """A warmup begun without evaluation; the others that resume it measure that split or nothing."""
    begun = run_config(deciding_flags(WARMUP), COLLECTION)
    session = alone(tmp_path, "warmup")

    def joined(split: str) -> dict[str, Any]:
        own = {**begun, **dev_split_record(split)}
        assert join_run(session, tmp_path, "later", own, "give the same", triple_order=2).run_id == "first"
        return load_with_checksum(tmp_path / "RUN.json")

    join_run(session, tmp_path, "first", {**begun, "dev_split": NOTHING_MEASURED}, "give the same", triple_order=2)
    before = load_with_checksum(tmp_path / "RUN.json")
    assert joined("") == before
    recorded = {name: value for name, value in before["science"].items() if name != "dev_split"}
    expected = {**before, "science": {**recorded, **dev_split_record(first)}}
    assert joined(first) == joined("") == joined(first) == expected
    (other,) = {"dev", "test"} - {first}
    with pytest.raises(Disagreement, match=f"dev_split {first} there, {other} here"):
        joined(other)
    assert load_with_checksum(tmp_path / "RUN.json") == expected


def test_without_its_record_a_run_is_known_by_the_hash_of_its_flags(tmp_path: Path) -> None:
    """As this version computes it, and as those before that knew no config's sha256."""
    config = run_config(deciding_flags(TRAINER), COLLECTION, initial_model_sha256="m", initial_config_sha256="c")
    earlier = {name: value for name, value in config.items() if name != "initial_config_sha256"}
    blank = {**earlier, "initial_model_sha256": ""}
    for place, of_run in enumerate((config, earlier, blank, {**blank, "seed": 7}, {**config, "seed": 7})):
        directory = tmp_path / str(place)
        put_checkpoint(directory, 100, science_sha256=run_config_sha256(of_run))
        session = alone(directory)
        if of_run["seed"] == 7:
            with pytest.raises(Disagreement, match=r"RUN\.json cannot be read, and the newest version there was made"):
                join_run(session, directory, "run", config, "give the same")
        else:
            assert join_run(session, directory, "run", config, "give the same").run_id == "run"


@pytest.mark.parametrize("resume", ["auto", "never"])
@pytest.mark.parametrize("holds", ["nothing", "run without checkpoints", "run", "checkpoints without a run"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_directory_may_hold(tmp_path: Path, resume: str, holds: str, overwrite: bool) -> None:
    if holds.startswith("run"):
        mark_run(lease_of(tmp_path), run_id="r", science={})
    if holds in ("run", "checkpoints without a run"):
        put_checkpoint(tmp_path, 100)
        put_checkpoint(tmp_path, 200)
    is_refused = not overwrite and (holds == "checkpoints without a run" or (holds == "run" and resume == "never"))
    if not is_refused:
        check_holds_no_other_run(tmp_path, resume, overwrite)
        return
    reason = "--resume never is given" if resume == "never" else "no RUN.json says how to resume it"
    with pytest.raises(UserError, match=rf"holds a run already \(2 checkpoints, the last of step 200\) and {reason}; "):
        check_holds_no_other_run(tmp_path, resume, overwrite)


@pytest.mark.parametrize(
    ("job", "goes_on"), [("41", True), ("42", False), ("", False)], ids=["requeued", "another job", "no Slurm"]
)
def test_overwriting_spares_what_this_very_job_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, goes_on: bool
) -> None:
    session = alone(tmp_path)
    begun_by = "41" if job else ""
    mark_run(lease_of(tmp_path), run_id="r", science={}, job=begun_by)
    put_checkpoint(tmp_path, 100)
    mark_done(lease_of(tmp_path), step=100)
    (tmp_path / "notes.txt").write_text("the user's own")
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    remove_other_run(session, tmp_path)
    whole = ["DONE.json", "RUN.json", "checkpoint-100", "notes.txt"]
    assert names(tmp_path) == (whole if goes_on else ["notes.txt"])
    remove_other_run(session, tmp_path)


# Stopping


def test_a_stop_before_the_work_begins_can_be_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the model is loaded, say: exit 75, requeued, and no failure told to the peer."""
    stop_file = tmp_path / "stop"
    monkeypatch.setenv(STOP_FILE, str(stop_file))
    directory = tmp_path / "checkpoints"

    def main() -> None:
        with open_session(ALONE, directory, "trainer", LeaseTimeouts(10.0, 60.0), "run") as session:
            os.kill(os.getpid(), signal.SIGTERM)
            join_run(session, directory, "run", {"seed": 1}, "")

    assert exit_code_of("run_ann", main) == 75
    assert "stopped by SIGTERM" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["stop.taken"]
    assert names(directory) == []
    beat = read_beat(directory, "trainer")
    assert beat is not None and beat["state"] == "stopped"


def test_a_stop_at_step_0_saves_nothing(tmp_path: Path) -> None:
    """What would be saved is what the job was given; negatives made from that must still be known as such."""
    session = alone(tmp_path)
    state: Any = SimpleNamespace(step=0, world=ALONE)
    trainer = Trainer(SimpleNamespace(), session, state, 100, [], {}, None)
    with pytest.raises(Stopped, match="at step 0, with nothing to save"):
        trainer.save_and_stop(StopRequested("SIGTERM"), {})
    with pytest.raises(PeerGone, match="gone"):
        trainer.save_and_stop(PeerGone("gone"), {})
    assert names(tmp_path) == []


def test_a_lost_lease_comes_before_a_stop(tmp_path: Path) -> None:
    session = alone(tmp_path)
    assert session.lease is not None
    (tmp_path / "STOP").touch()
    with pytest.raises(StopRequested, match="STOP"):
        session.check_stop()
    session.lease.lost = True
    with pytest.raises(Fenced, match="another trainer works in"):
        session.decide_on_process0(lambda: 1)
    assert (tmp_path / "STOP").exists(), "the other's"


# Ranks


@pytest.mark.parametrize("error", [UserError("a"), Disagreement("b"), PeerGone("c")])
def test_an_error_of_the_look_keeps_its_exit_code(tmp_path: Path, error: UserError) -> None:
    def look() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)) as caught:
        alone(tmp_path).decide_on_process0(look)
    assert type(caught.value) is type(error) and caught.value.exit_code == error.exit_code
    assert alone(tmp_path).decide_on_process0(lambda: {"a": [1]}) == {"a": [1]}


def test_a_peer_that_has_ended_is_gone_where_it_left_nothing(tmp_path: Path) -> None:
    generator = lease_of(tmp_path / "ann", "generator")
    time = FakeTime()
    peer = watch_peer(tmp_path / "ann", "generator", 60, clock=time.clock)
    session = alone(tmp_path / "checkpoints")
    assert session.decide_on_process0(lambda: None, peer) is None
    generator.beat("ended")
    assert session.decide_on_process0(lambda: 3, peer) == 3, "what it published before it ended"
    assert session.decide_on_process0(lambda: None, peer) is None, "a cache may still hide what it published last"
    time.now += VISIBLE_WITHIN_SECONDS + 1
    with pytest.raises(PeerGone, match="the generator has ended, and what this job waits for will not come"):
        session.decide_on_process0(lambda: None, peer)


def outcome(call: Any) -> str:
    try:
        return str(call())
    except UserError as error:
        return f"{type(error).__name__} {error.exit_code}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def throw(error: Exception) -> None:
    raise error


def one_of_two_processes(rank: int, directory: str) -> None:
    """Only process 0 looks, only process 1 is asked to stop, only process 0 sees the lease lost: both do the same."""
    torch.set_num_threads(1)
    limit = timedelta(seconds=60)  # a rank that waits for one which has failed is found
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2, timeout=limit)
    own = Path(directory) / str(rank)
    session = Session(World(rank, 2, torch.device("cpu")), Stop(own), lease_of(own) if rank == 0 else None)
    disagree = partial(check_agreement, {"seed": rank}, {"seed": 2}, "it", "fix it")
    said = [
        outcome(lambda: session.decide_on_process0(lambda: f"process {rank}")),
        outcome(lambda: session.decide_on_process0(disagree)),
    ]
    session.stop.signal_name = "SIGTERM" if rank == 1 else ""
    said.append(outcome(lambda: session.decide_on_process0(lambda: None)).partition(":")[0])
    said.append(outcome(lambda: (_ for _ in ()).throw(session.stopped("at step 4"))).partition(" by ")[0])
    session.stop.signal_name = ""
    if session.lease is not None:
        session.lease.lost = True
    said.append(outcome(session.check_stop).partition(":")[0])
    session = Session(session.world, session.stop, None)
    for error in (OSError(errno.ESTALE, "Stale file handle", "/x/y"), OSError(errno.EIO, "I/O error"), KeyError("k")):
        said += [outcome(lambda e=error: session.decide_on_process0(partial(throw, e)))]
        said += [outcome(lambda e=error: Preflight(session.world).on_process0(partial(throw, e)))]
    said += [outcome(lambda: Preflight(session.world).on_process0(disagree))]
    for failing in (0, 1):
        mine = partial(throw, UserError("no memory")) if rank == failing else lambda: "well"
        said += [outcome(lambda m=mine: Preflight(session.world).on_every_process(m))]
    dist.destroy_process_group()
    (Path(directory) / f"said-{rank}").write_text(json.dumps(said))


@pytest.mark.slow
def test_two_ranks_do_the_same(tmp_path: Path) -> None:
    spawn(one_of_two_processes, tmp_path, processes=2)
    said = [json.loads((tmp_path / f"said-{rank}").read_text()) for rank in (0, 1)]
    disagreement = "Disagreement 3: it was made with other flags: seed 2 there, 0 here; fix it"
    of_the_disk = ["OSError: [Errno 116] Stale file handle: '/x/y'", "OSError: [Errno 5] I/O error"]
    others = "ProcessFailed 1: another process has failed: KeyError: 'k'"
    for rank in (0, 1):
        assert said[rank] == [
            "process 0",
            disagreement,
            "StopRequested 2",
            "Stopped 75: stopped",
            "Fenced 75",
            *(error for error in [*of_the_disk, others if rank else "KeyError: 'k'"] for _ in ("agree", "preflight")),
            disagreement,
            *["UserError 2: no memory"] * 2,
        ]


# A generator whose trainer is done


def test_a_trainer_that_is_done_while_a_refresh_is_made_ends_the_generator_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves that refresh unfinished, and has nothing more to do: exit code 0, not 4."""
    trainer = lease_of(tmp_path / "checkpoints")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    requests = RequestSettings(
        tmp_path / "ann", tmp_path / "checkpoints", tmp_path / "model", False, 0, refresh_lag=0, most_refreshes=9
    )
    refresh: Any = SimpleNamespace(collection=None)
    session = alone(tmp_path / "ann", "generator")
    peer = watch_peer(requests.training_dir, "trainer", LIFE.lease_seconds, clock=FakeTime().clock)
    made: list[int] = []

    def one_refresh(_run: Any, request: Any, _should_stop: Any) -> bool:
        made.append(request.refresh)
        mark_done(trainer, step=100)
        trainer.beat("ended")
        return False

    monkeypatch.setattr(ann_generator, "one_refresh", one_refresh)
    assert ann_generator.make_refreshes(GeneratorRun(refresh, requests, session, peer, {}, None)) == 0
    assert made == [0]


def test_a_refresh_that_is_left_for_a_silent_trainer_is_made_once_the_trainer_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was said of the trainer holds for the refresh that was left, not for every later one."""
    requests = RequestSettings(tmp_path, tmp_path, tmp_path, False, 0, refresh_lag=0, most_refreshes=1)
    answers = iter([PeerGone("the trainer is silent"), None, None])
    asked: list[bool] = []

    def check(is_needed: bool) -> None:
        if (answer := next(answers)) is not None:
            raise answer

    def one_refresh(_run: Any, _request: Any, should_stop: Callable[[], bool]) -> bool:
        asked.append(should_stop())
        assert len(asked) < 3, "again and again"
        return not asked[-1]

    times = itertools.count(step=1000)
    monkeypatch.setattr(ann_generator.stop_needed, "__defaults__", (lambda: float(next(times)),))
    monkeypatch.setattr(ann_generator, "one_refresh", one_refresh)
    monkeypatch.setattr(ann_generator, "next_request", lambda _run: SimpleNamespace(refresh=0))
    session: Any = SimpleNamespace(
        lease=None,
        stop=SimpleNamespace(requested=lambda: False),
        decide_on_process0=lambda look, peer: look(),
    )
    trainer: Any = SimpleNamespace(check=check)
    refresh: Any = SimpleNamespace(only_encodes=False, loads_embeddings=False)
    assert ann_generator.make_refreshes(GeneratorRun(refresh, requests, session, trainer, {}, None)) == 1
    assert asked == [True, False]
