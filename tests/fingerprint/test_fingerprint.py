"""tests.fingerprint: the same lines for the same computation wherever it runs, other lines for another one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tensorboardX import SummaryWriter

from tests.fingerprint import loop as small
from tests.fingerprint.digest import fix_clocks, lines_of
from tests.fingerprint.programs import Programs
from tests.forked import fork_server
from utils.exchange.atomic import dump_with_checksum, load_with_checksum


def digests_of(directory: Path) -> dict[str, str]:
    """By name; every line is a sha256, two blanks and a name."""
    found = {}
    for line in lines_of(directory):
        digest, name = line.split("  ", 1)
        assert len(digest) == 64 and name not in found
        found[name] = digest
    return found


@pytest.mark.slow
def test_two_loops_are_equal_and_another_constant_changes_what_comes_after_it(tmp_path: Path) -> None:
    parts = (small.collection, small.bm25, small.static_warmup, small.static_arm)
    found = []
    for place, settings in (
        ("one", {}),
        ("another place", {}),
        ("changed", {"model.train.lamb.LARGEST_WEIGHT_NORM": 1.0}),
    ):
        loop = small.Loop(tmp_path / place / "loop", Programs(fork_server(), settings))
        for part in parts:
            part(loop)
        found.append(digests_of(loop.directory))
    one, other, changed = found
    assert one == other
    assert one.keys() == changed.keys()
    # LAMB trains the arm and nothing before it; refresh 0 is of the warmup's model.
    arm = {name for name in one if name.startswith("arms/top/")}
    steps = [f"arms/top/checkpoints/checkpoint-{step}" for step in (4, 8, 12)]
    refreshes = [
        f"arms/top/ann_data/{name}_{number}" for number in (1, 2) for name in ("ann_ndcg", "ann_training_data")
    ]
    own = {f"{step}/{name}" for step in steps for name in ("model.safetensors", "optimizer.pt", "MANIFEST.json")}
    must = own | {*refreshes, "arms/top/eval/dev.trec", "arms/top/checkpoints/metrics.jsonl"}
    may_not = {f"{step}/{name}" for step in steps for name in ("config.json", "rng_states.safetensors", "scheduler.pt")}
    may_not |= {"arms/top/ann_data/ann_ndcg_0", "arms/top/ann_data/ann_training_data_0", "arms/top/trainer.flags.json"}
    differing = {name for name in one if one[name] != changed[name]}
    assert must <= differing <= arm - may_not


def write_record(path: Path, value: float, clock: float) -> None:
    path.write_text(
        dump_with_checksum({"ndcg": value, "encode_seconds": clock, "checkpoint": f"{path.parent}/checkpoint-4"})
    )


def write_metrics(path: Path, value: float, clock: float) -> None:
    path.write_text("".join(json.dumps({"step": step, "loss": value, "time": clock}) + "\n" for step in (1, 2)))


def write_manifest(path: Path, value: float, clock: float) -> None:
    files = {"trainer_state.json": {"sha256": str(clock)}, "model.safetensors": {"sha256": str(value)}}
    path.write_text(dump_with_checksum({"files": files, "run_id": str(clock), "git": {"commit": str(clock)}}))


def write_candidates(path: Path, value: float, clock: float) -> None:
    np.savez(path, ids=np.arange(3), scores=np.array([value, 0.5]))


def write_weights(path: Path, value: float, clock: float) -> None:
    save_file({"a": torch.tensor([value]), "b": torch.zeros(2, dtype=torch.bfloat16)}, path, {"format": "pt"})


def write_state(path: Path, value: float, clock: float) -> None:
    torch.save({"state": {0: {"step": 3, "exp_avg": torch.tensor([0.5, value])}}, "param_groups": [{"lr": 0.1}]}, path)


def write_events(path: Path, value: float, clock: float) -> None:
    with SummaryWriter(str(path.parent)) as writer:
        writer.add_scalar("loss", value, 3, walltime=clock)
        writer.add_scalar("steps_per_second", clock, 3)
    next(path.parent.glob("events.out.tfevents.*")).rename(path)


def write_run(path: Path, value: float, clock: float) -> None:
    path.write_text(f"q1 Q0 p3 1 {value} {path.parent}\n")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("ann_ndcg_3", write_record),
        ("metrics.jsonl", write_metrics),
        ("MANIFEST.json", write_manifest),
        ("ann_candidates_0.npz", write_candidates),
        ("model.safetensors", write_weights),
        ("optimizer.pt", write_state),
        ("events.out.tfevents.17.host", write_events),
        ("dev.trec", write_run),
    ],
)
def test_a_value_changes_its_line_and_a_clock_or_a_place_does_not(
    tmp_path: Path, name: str, write: Callable[[Path, float, float], None]
) -> None:
    found = []
    for place, value, clock in (("a", 0.25, 1.5), ("b c", 0.25, 2.5), ("d", 0.25000003, 1.5)):
        (tmp_path / place).mkdir()
        write(tmp_path / place / name, value, clock)
        found.append(digests_of(tmp_path / place))
    assert len(found[0]) == 1
    assert found[0] == found[1]
    assert found[0].keys() == found[2].keys() and found[0] != found[2]


def test_a_file_that_is_gone_or_new_has_a_line_and_who_worked_there_has_none(tmp_path: Path) -> None:
    for name in (".leases/trainer-1.json", "trainer.out", "trainer.out.err", "DONE.json", "raw/queries.train.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert [*digests_of(tmp_path)] == ["DONE.json", "raw/queries.train.tsv"]


def test_shards_of_one_model_have_one_line(tmp_path: Path) -> None:
    shards = tmp_path / "ann_data" / "embeddings" / "step-4-2770b062bc069311"
    shards.mkdir(parents=True)
    np.save(shards / "passages-0000000000.npy", np.zeros(2))
    np.save(shards / "passages-0000000032.npy", np.ones(2))
    before = digests_of(tmp_path)
    assert [*before] == ["ann_data/embeddings/step-4"]
    np.save(shards / "passages-0000000032.npy", np.zeros(2))
    assert digests_of(tmp_path) != before


def test_fixed_clocks_leave_a_record_that_verifies_and_its_values(tmp_path: Path) -> None:
    write_record(tmp_path / "ann_ndcg_0", 0.25, 7.0)
    write_metrics(tmp_path / "metrics.jsonl", 0.25, 7.0)
    (tmp_path / "dev.by_rank.json").write_text('{"curve":  [1]}')  # without a clock: not a byte is touched
    before = digests_of(tmp_path)
    fix_clocks(tmp_path)
    assert digests_of(tmp_path) == before
    record = load_with_checksum(tmp_path / "ann_ndcg_0")
    assert record["ndcg"] == 0.25 and record["encode_seconds"] == 0.5
    assert [json.loads(line)["time"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1e9, 1e9]
    assert (tmp_path / "dev.by_rank.json").read_text() == '{"curve":  [1]}'
