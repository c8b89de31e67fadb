"""A refresh that is left: its checkpoint is gone, or another job has the lease. All processes leave it together."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from data.mining.candidates import Candidates
from data.mining.select import Selection
from data.mining.strategy import parse_strategy
from data.tokens.collection import open_preprocessed
from drivers.generate import encode_corpus
from drivers.generate.encode_corpus import RefreshRequest, RefreshSettings
from drivers.generate.generator import GeneratorRun, one_refresh
from drivers.generate.refresh import dev_metrics, select
from drivers.job.encoder_setup import EncoderSettings
from drivers.job.fencing import Fence
from drivers.job.session import Session
from model.encode import EncodingSettings
from model.encoders.base import Encoder
from model.encoders.static import StaticEncoder
from tests.exchanging import FakeTime, lease_of, names, put_checkpoint, take
from tests.forked import spawn
from tests.processes_as_threads import CPU
from utils.distributed import collectives
from utils.distributed.world import World
from utils.errors import Fenced
from utils.exchange import wait
from utils.exchange.atomic import numbered
from utils.exchange.checkpoints import model_sha256, publish_checkpoint
from utils.exchange.layout import RECORD_PATTERN, JobLayout
from utils.exchange.negatives import read_refresh
from utils.exchange.retention import remove, remove_old_checkpoints
from utils.exchange.stop import Stop
from utils.run_log import RunLog
from utils.search.settings import SearchSettings


def put_model(training_dir: Path, data_dir: Path, step: int) -> RefreshRequest:
    """A checkpoint as a trainer publishes it, and a refresh to make from it."""
    vocab_size = json.loads((data_dir / "manifest.json").read_text())["vocab_size"]
    with publish_checkpoint(lease_of(training_dir), step, {}) as staging:
        torch.manual_seed(step)
        StaticEncoder({"vocab_size": vocab_size, "embedding_size": 8}).save_pretrained(staging)
    path = JobLayout(training_dir).checkpoint(step)
    return RefreshRequest(0, str(path), step, model_sha256(path))


def settings_over(data_dir: Path, root: Path) -> RefreshSettings:
    return RefreshSettings(
        collection=open_preprocessed(data_dir, 32, 16),
        ann_dir=root / "ann",
        dev_split="dev",
        encoder=EncoderSettings("static", "", EncodingSettings(32, 16, 128 * 32, None), compiled=False),
        search=SearchSettings("torch"),
        selection=Selection(parse_strategy("random", 5, 20)),
        bm25=None,
        seed=42,
        topk_training=20,
        chunk_factor=5,
        embedding_dtype="fp32",
    )


def start(root: Path, world: World) -> tuple[Session, RunLog | None]:
    lease = lease_of(root / "ann", "generator") if world.is_first else None
    log = RunLog(root / "ann" / "metrics.jsonl", root / "tensorboard") if world.is_first else None
    return Session(world, Stop(root / str(world.process)), lease), log


def refresh_once(
    settings: RefreshSettings,
    session: Session,
    request: RefreshRequest,
    ours: dict[str, Any],
    log: RunLog | None,
    should_stop: Callable[[], bool],
) -> bool:
    """One refresh by a generator whose trainer is not looked at."""
    nothing: Any = None
    return one_refresh(GeneratorRun(settings, nothing, session, nothing, ours, log), request, should_stop)


def stay() -> bool:
    return False


# A query's own passage


def test_a_passage_that_is_its_query_is_no_negative_and_not_measured(tiny_preprocessed: Path, tmp_path: Path) -> None:
    """The first train query finds its own at rank 1; so does the first dev query, whose answer then moves up."""
    data = tmp_path / "data"
    shutil.copytree(tiny_preprocessed, data)
    manifest = json.loads((data / "manifest.json").read_text())
    passages = manifest["counts"]["passages"]
    plain = open_preprocessed(data, 32, 16)
    query_Q, dev_Q = (plain.qrels(split).queries_with_positive() for split in ("train", "dev"))
    answer = {q: {p for p, grade in row.items() if grade > 0} for q, row in plain.qrels("dev").as_dict().items()}
    known = set(zip(*(side.tolist() for side in plain.qrels("train").positives()), strict=True))
    own = next(p for p in range(passages) if (int(query_Q[0]), p) not in known and p not in answer[int(dev_Q[0])])
    pairs = {"train": [[int(query_Q[0]), own]], "dev": [[int(dev_Q[0]), own]]}
    (data / "manifest.json").write_text(json.dumps({**manifest, "own_passages": pairs}))
    settings = replace(settings_over(data, tmp_path), selection=Selection(parse_strategy("top", 5, 20)))

    passage_QK = np.array([[own, *(p for p in range(passages) if p != own)][:20]] * len(query_Q))
    candidates = Candidates(query_Q, passage_QK, np.linspace(1, 0, 20, dtype=np.float32)[None].repeat(len(query_Q), 0))
    lists = select(settings, RefreshRequest(0, "", 0, ""), candidates).lists
    held = {q: own in row for q, row in zip(lists.query_Q.tolist(), lists.negative_QN.tolist(), strict=True)}
    assert held == {q: q != query_Q[0] and (q, own) not in known for q in query_Q.tolist()}

    ranked = [
        [own, *answer[q], *(p for p in range(passages) if p != own and p not in answer[q])] for q in dev_Q.tolist()
    ]
    dev_passages_QK = np.array([row[:101] for row in ranked])
    reciprocal = [1.0, *(1.0 if own in answer[q] else 0.5 for q in dev_Q.tolist()[1:])]
    mean = sum(reciprocal) / len(plain.qrels("dev").as_dict())
    found = dev_metrics(settings, dev_passages_QK)
    assert found["mrr@10"] == pytest.approx(mean)
    of_level_2 = {**plain.manifest, "own_passages": pairs, "relevance_levels": {"dev": 2}}
    collection = replace(settings.collection, manifest=of_level_2)
    from_2 = dev_metrics(replace(settings, collection=collection), dev_passages_QK)
    assert from_2["mrr@10"] == 0 and from_2["ndcg@10"] == found["ndcg@10"], "its grades are all 1"


# The lease


def test_a_lease_that_is_gone_is_noticed_now_and_then_and_never_forgotten(tmp_path: Path) -> None:
    lease, time, asked = take(tmp_path, "generator"), FakeTime(), [False]
    leave = Fence(World(0, 1, CPU), lease.staging).should_stop(lambda: asked[0], time.clock)
    time.now += 10
    assert not leave()
    take(tmp_path, "generator")
    assert not leave()
    time.now += 1.9
    assert not leave()
    asked[0] = True
    assert leave(), "a stop is not waited for"
    asked[0] = False
    time.now += 0.2
    assert leave() and leave()


# The checkpoint


def test_a_checkpoint_that_is_gone_before_it_is_read(
    tiny_preprocessed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session, log = start(tmp_path, World(0, 1, CPU))
    work = put_model(tmp_path / "checkpoints", tiny_preprocessed, 3)
    remove(lease_of(tmp_path / "checkpoints"), Path(work.checkpoint))
    settings = settings_over(tiny_preprocessed, tmp_path)
    assert refresh_once(settings, session, work, {}, log, stay) is False
    assert f"{work.checkpoint} is gone" in capsys.readouterr().out
    newer = put_model(tmp_path / "checkpoints", tiny_preprocessed, 4)
    assert refresh_once(settings, session, newer, {}, log, stay) is True
    assert read_refresh(tmp_path / "ann", 0).step == 4


def test_a_checkpoint_that_goes_while_it_is_read(
    tiny_preprocessed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the trainer's own retention, between its config and its weights."""
    session, log = start(tmp_path, World(0, 1, CPU))
    work = put_model(tmp_path / "checkpoints", tiny_preprocessed, 3)
    trainer = lease_of(tmp_path / "checkpoints")
    for step in range(4, 8):
        put_checkpoint(tmp_path / "checkpoints", step)
    opened: list[str] = []

    def open_late(*given: Any) -> Any:
        opened.append(given[1])
        remove_old_checkpoints(trainer, tmp_path / "ann", keep_unused=False)
        return load_to_encode(*given)

    load_to_encode = encode_corpus.load_to_encode
    monkeypatch.setattr(encode_corpus, "load_to_encode", open_late)
    assert refresh_once(settings_over(tiny_preprocessed, tmp_path), session, work, {}, log, stay) is False
    assert opened == [work.checkpoint] and "checkpoint-3" not in names(tmp_path / "checkpoints")


def test_a_checkpoint_that_is_there_and_cannot_be_read_is_an_error(tiny_preprocessed: Path, tmp_path: Path) -> None:
    session, log = start(tmp_path, World(0, 1, CPU))
    work = put_model(tmp_path / "checkpoints", tiny_preprocessed, 3)
    (Path(work.checkpoint) / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(Exception, match=r"safetensors|header"):
        refresh_once(settings_over(tiny_preprocessed, tmp_path), session, work, {}, log, stay)


# Ranks


def outcome(call: Callable[[], Any]) -> str:
    try:
        return str(call())
    except Fenced as error:
        return f"Fenced {error.exit_code}"


def one_of_two_processes(rank: int, directory: str, data_dir: str) -> None:
    """Only process 1 meets the fault; what each process makes of it is written down."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    world, said = World(rank, 2, CPU), []
    for number, fault in enumerate(("none", "gone", "goes", "fenced", "fenced, seen")):
        root = Path(directory) / str(number)
        session, log = start(root, world)
        work = put_model(root / "checkpoints", Path(data_dir), 3) if rank == 0 else None
        dist.barrier()
        path = root / "checkpoints" / "checkpoint-3"
        work = work or RefreshRequest(0, str(path), 3, model_sha256(path))
        settings = settings_over(Path(data_dir), root)
        dist.barrier()
        said.append(outcome(partial(refresh_with, fault, settings, session, work, log)))
    dist.destroy_process_group()
    (Path(directory) / f"said-{rank}").write_text(json.dumps(said))


def passage_records(settings: RefreshSettings) -> set[str]:
    return {path.name for path in settings.ann_dir.glob("embeddings/*/passages-*.json")}


def refresh_with(
    fault: str, settings: RefreshSettings, session: Session, work: RefreshRequest, log: RunLog | None
) -> bool:
    strikes = session.world.process == 1
    load_to_encode, prepare_encoder = encode_corpus.load_to_encode, encode_corpus.prepare_encoder
    wait.LOOK_EVERY_SECONDS = 0 if fault == "fenced, seen" else 1e9
    if fault == "gone" and session.world.is_first:
        shutil.rmtree(work.checkpoint)

    def open_late(*given: Any) -> Any:
        if fault == "goes" and strikes:
            shutil.rmtree(work.checkpoint)
        return load_to_encode(*given)

    def prepare_on_gpus(encoder: Encoder, dtype: torch.dtype | None, world: World, compiled: bool) -> Encoder:
        """Where the ranks agree on how they attend."""
        collectives.any_process(world, False)
        return prepare_encoder(encoder, dtype, world, compiled)

    def leave() -> bool:
        """The other job takes over while process 0 has finished its half of the ten shards, and process 1 has not."""
        if fault.startswith("fenced") and strikes and passage_records(settings):
            while not passage_records(settings) >= {f"passages-{first:010d}.json" for first in range(0, 160, 32)}:
                time.sleep(0.01)
            for path in (settings.ann_dir / ".staging").glob("generator-*"):
                path.rename(path.with_name(f"gone-{path.name}"))
        return False

    encode_corpus.load_to_encode, encode_corpus.prepare_encoder = open_late, prepare_on_gpus
    try:
        return refresh_once(settings, session, work, {}, log, leave)
    finally:
        encode_corpus.load_to_encode, encode_corpus.prepare_encoder = load_to_encode, prepare_encoder


@pytest.mark.slow
def test_two_ranks_leave_a_refresh_together(tiny_preprocessed: Path, tmp_path: Path) -> None:
    spawn(one_of_two_processes, tmp_path, tiny_preprocessed, processes=2)
    said = [json.loads((tmp_path / f"said-{rank}").read_text()) for rank in (0, 1)]
    assert said[0] == said[1] == ["True", "False", "False", "Fenced 75", "Fenced 75"]
    assert read_refresh(tmp_path / "0" / "ann", 0).step == 3
    assert not any(numbered(tmp_path / str(number) / "ann", RECORD_PATTERN) for number in (1, 2, 3, 4))
