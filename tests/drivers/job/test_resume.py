"""drivers.job.resume: with which flags a job resumes a run, and what it says."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from drivers.job.resume import DIVIDE_STEP, check_resumes, dev_split_record
from utils.errors import Disagreement

BATCH, MICRO_BATCHES = "per_gpu_train_batch_size", "gradient_accumulation_steps"
THEIRS: dict[str, Any] = {
    "seed": 1, "loss": "pairwise", BATCH: 32, MICRO_BATCHES: 2, "processes": 2,
    "gradient_checkpointing": False, "grad_cache_tokens": 0, "compile": False,
}  # fmt: skip


def resumed(**changes: Any) -> str:
    """What is said of a job with these ``changes``, or why it is refused."""
    ours = {name: value for name, value in {**THEIRS, **changes}.items() if value is not None}
    try:
        return check_resumes(ours, {**THEIRS, "loss": ours["loss"]}, "the run", "begin another")
    except Disagreement as error:
        assert error.exit_code == 3
        return f"refused: {error}"


def test_the_same_flags_say_nothing() -> None:
    assert resumed() == resumed(loss="in_batch") == ""


@pytest.mark.parametrize(
    "changes", [{"gradient_checkpointing": True}, {"grad_cache_tokens": 512}, {"compile": True}], ids=str
)
@pytest.mark.parametrize("loss", ["pairwise", "in_batch"])
def test_what_decides_bytes_alone_resumes_with_a_word(changes: dict[str, Any], loss: str) -> None:
    ((name, value),) = changes.items()
    assert resumed(loss=loss, **changes) == f"{name} {THEIRS[name]} there, {value} here"
    assert resumed(loss=loss, seed=2, **changes) == (
        "refused: the run was made with other flags: seed 1 there, 2 here; begin another"
    )


@pytest.mark.parametrize("loss", ["pairwise", "in_batch"])
def test_a_step_may_be_divided_otherwise_where_its_loss_is_a_mean_over_triples(loss: str) -> None:
    """All ways to divide up to 256 triples: refused exactly where the product differs, or the loss looks at others."""
    for batch, micro_batches, processes in itertools.product((8, 16, 32, 64), (1, 2, 4), (1, 2, 4)):
        said = resumed(loss=loss, **{BATCH: batch, MICRO_BATCHES: micro_batches, "processes": processes})
        is_same = (batch, micro_batches, processes) == (32, 2, 2)
        is_equal = loss == "pairwise" and batch * micro_batches * processes == 128
        assert said.startswith("refused") == (not is_same and not is_equal), (batch, micro_batches, processes)
        assert bool(said) == (not is_same)
    why = f"refused: the run was made with other flags: {BATCH} 32 there, 16 here "
    if loss == "pairwise":
        why += "(a step is of 128 triples there, of 64 here: give batch x micro-batches x processes the same product)"
    else:
        why += "(with --loss in_batch a micro-batch decides its negatives)"
    assert resumed(loss=loss, **{BATCH: 16}) == f"{why}; begin another"
    assert resumed(loss=loss, **{BATCH: 16, "grad_cache_tokens": 9}) == f"{why}; begin another", "only what is refused"


def test_without_a_launcher_the_processes_may_be_what_they_must(loss: str = "pairwise") -> None:
    """A --dry_run of the command of 4 processes, or of 1, before the launcher starts them."""
    assert {BATCH, MICRO_BATCHES, "processes"} == DIVIDE_STEP
    for batch in (16, 64, 128):
        assert not resumed(**{BATCH: batch, MICRO_BATCHES: 1, "processes": None}).startswith("refused")
    assert "of 48 here" in resumed(**{BATCH: 48, MICRO_BATCHES: 1, "processes": None})
    assert "decides its negatives" in resumed(loss="in_batch", **{BATCH: 16, "processes": None})
    assert resumed(loss="in_batch", processes=None) == ""


@pytest.mark.parametrize(("there", "here"), [*itertools.product(["dev", "heldout", "test", ""], repeat=2)])
def test_a_run_is_measured_on_one_split(there: str, here: str) -> None:
    """A record without one, as of an earlier version, is of dev; a warmup that measures nothing goes with any."""
    theirs, ours = ({**THEIRS, **dev_split_record(split)} for split in (there, here))
    assert ("dev_split" in theirs) == (there != "dev")
    if there == here or "" in (there, here):
        assert check_resumes(ours, theirs, "the run", "begin another") == ""
    else:
        with pytest.raises(Disagreement, match=f"dev_split {there} there, {here} here"):
            check_resumes(ours, theirs, "the run", "begin another")
