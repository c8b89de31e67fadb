"""Whether arms saw the same queries: what the trainer notes, and what the reports say of it."""

from __future__ import annotations

import hashlib
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokens.collection import open_preprocessed
from data.training.batches import BatchSettings, batches_from_lists, batches_of_triples
from results.page.run import report_of
from results.page.sections import seen_section
from results.read.run import read_run
from results.read.seen import read_seen
from results.read.study import read_study
from tests.data.training.test_batches import made_up_lists
from tests.results.studies import places, write_arm_of_study
from tests.results.test_report import Shape, write_run
from utils.distributed.world import World
from utils.seen import SeenQueries, SeenRefresh, seen_in


def seen_of(queries: list[int], refresh: int = 0) -> SeenRefresh:
    order = hashlib.sha256(b"".join(query.to_bytes(8, "little") for query in queries)).hexdigest()
    return SeenRefresh(refresh, len(set(queries)), len(queries), order)


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.lists(st.integers(0, 2**31), max_size=8), max_size=6), refresh=st.integers(0, 99))
def test_what_was_seen_does_not_depend_on_the_batches(steps: list[list[int]], refresh: int) -> None:
    noted = SeenQueries()
    for queries in steps:
        noted.add(np.array(queries, np.int64))
    expected = seen_of([query for queries in steps for query in queries], refresh)
    assert noted.of_refresh(refresh) == expected
    row = json.loads(json.dumps({"step": 7, "time": 1.5, **expected.logged()}))
    assert seen_in(row) == expected
    assert seen_in({"step": 7, "loss": 0.5}) is None and seen_in({**row, "seen_triples": "many"}) is None


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("start", [0, 3])
def test_batches_note_their_queries_as_they_are_taken(start: int, processes: int, tiny_preprocessed: Path) -> None:
    """Those that an interrupted run had trained on included, and none that was only made beforehand."""
    import torch

    collection = open_preprocessed(tiny_preprocessed, 32, 16)
    lists = made_up_lists([5, 2, 5, 5, 4], passages=200)
    settings = BatchSettings(6 // processes, 2, 16, 32, is_over_batch=False, seed=9)
    expected = [b.query_T.tolist() for b in islice(batches_of_triples(lists, 2, 6, 9, 4), start + 2)]
    for rank in range(processes):
        seen = SeenQueries()
        world = World(rank, processes, torch.device("cpu"))
        batches = batches_from_lists(settings, collection, world, lists, 4, start, seen)
        assert seen.triples == 6 * start
        assert len(list(islice(batches, 2))) == 2
        assert seen.of_refresh(4) == seen_of([query for queries in expected for query in queries], 4)


def test_a_resume_notes_what_was_trained_on_without_choosing_negatives(
    tiny_preprocessed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def refuse(*lists: object) -> None:
        pytest.fail("negatives are chosen for triples that were trained on already")

    settings = BatchSettings(6, 2, 16, 32, is_over_batch=False, seed=9)
    lists, seen = made_up_lists([5, 2, 5, 5, 4], passages=200), SeenQueries()
    expected = [b.query_T.tolist() for b in islice(batches_of_triples(lists, 2, 6, 9, 4), 1000)]
    monkeypatch.setattr("data.training.triple_order.places_of_turns", refuse)
    collection = open_preprocessed(tiny_preprocessed, 32, 16)
    batches_from_lists(settings, collection, World(0, 1, torch.device("cpu")), lists, 4, 1000, seen)
    assert seen.of_refresh(4) == seen_of([query for queries in expected for query in queries], 4)


# Reports


def note(training_dir: Path, *refreshes: SeenRefresh) -> None:
    lines = [{"step": 100 * (number + 1), **seen.logged()} for number, seen in enumerate(refreshes)]
    with (training_dir / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def write_lists(ann_dir: Path, refresh: int, negatives: dict[int, str]) -> None:
    lines = (f"{query}\t7\t{numbers}\n" for query, numbers in negatives.items())
    (ann_dir / f"ann_training_data_{refresh}").write_text("".join(lines))


def test_an_arm_that_saw_other_queries_is_named_with_those_it_has_no_negatives_for(tmp_path: Path) -> None:
    arms = {"top": Shape(0.2, 0.25), "bottom": Shape(0.2, 0.25), "random": Shape(0.2, 0.25, seed=5)}
    run = write_run(tmp_path / "run", arms)
    same = seen_of([3, 3, 17, 17], 0)
    note(run / "arms/top/checkpoints", same, seen_of([17, 17, 3, 3, 90, 90], 1))
    note(run / "arms/bottom/checkpoints", same, seen_of([17, 17, 17, 17, 90, 90], 1))
    note(run / "arms/random/checkpoints", seen_of([5], 0), seen_of([6], 1))  # of another seed
    write_lists(run / "arms/top/ann_data", 1, {3: "1,2", 17: "4", 90: "5"})
    write_lists(run / "arms/bottom/ann_data", 1, {3: "", 17: "8", 90: "5"})
    found = read_run(run, "run")
    (warning,) = [warning for warning in found.warnings if "queries" in warning]
    assert "The arms top and bottom (seed 42) did not train on the same queries at the same steps, in 1 of 2" in warning
    assert "top 3 different ones in 6 triples of refresh 1, bottom 2 different ones in 6 triples" in warning
    assert (
        "; bottom has no negatives for train query 3 (rows of train-query)." in warning and "top has no" not in warning
    )
    assert report_of(found)["arms"]["bottom"]["seen"][1]["queries"] == 2


def test_an_arm_that_skips_many_queries_is_told_by_some(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"top": Shape(0.2, 0.25), "bottom": Shape(0.2, 0.25)})
    note(run / "arms/top/checkpoints", seen_of([*range(12)]))
    note(run / "arms/bottom/checkpoints", seen_of([11] * 12))
    write_lists(run / "arms/top/ann_data", 0, dict.fromkeys(range(12), "1"))
    assert "has no negatives" not in " ".join(read_run(run, "run").warnings), "the other arm's file is not kept"
    write_lists(run / "arms/bottom/ann_data", 0, {11: "1"})
    (warning,) = read_run(run, "run").warnings
    assert "bottom has no negatives for train queries 0, 1, 2, 3, 4 and 6 more (rows of train-query)." in warning


def test_a_study_names_the_arms_that_saw_other_queries(tmp_path: Path) -> None:
    for seed in (1, 2):
        for name in ("top", "bottom", "again"):
            offset = 1000 * (name == "again")
            arm = write_arm_of_study(tmp_path, name, seed, name.replace("again", "top"), 0.3, offset=offset)
            note(arm / "checkpoints", seen_of([seed, 3 if name == "bottom" and seed == 2 else 2 + offset]))
    (warning,) = read_study(places(tmp_path, [1, 2]), ["top", "bottom", "again"]).warnings
    assert "The arms top and bottom (seed 2) did not train on the same queries" in warning


def test_a_run_that_noted_nothing_is_compared_as_before(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    note(run / "arms/top/checkpoints", seen_of([1, 2]))
    found = read_run(run, "run")
    assert found.warnings == () and found.arms[1].seen == ()
    assert seen_section({"bottom": [found.arms[-1]]}) is None


def test_a_refresh_that_one_arm_alone_has_noted_is_not_compared(tmp_path: Path) -> None:
    """As of an arm that an earlier version began: it noted nothing before refresh 2."""
    run = write_run(tmp_path / "run", {"top": Shape(0.2, 0.25), "bottom": Shape(0.2, 0.25)})
    of_both = [seen_of([7, 7, 9], 2), seen_of([9, 7, 7], 3)]
    note(run / "arms/top/checkpoints", seen_of([1, 2], 0), seen_of([3, 4], 1), *of_both)
    note(run / "arms/bottom/checkpoints", *of_both)
    assert read_run(run, "run").warnings == ()
    note(run / "arms/bottom/checkpoints", seen_of([5], 4))
    assert read_run(run, "run").warnings == ()
    for place in ("top", "bottom"):
        (run / "arms" / place / "checkpoints/metrics.jsonl").write_text("")
    note(run / "arms/top/checkpoints", seen_of([1, 2], 0), *of_both)
    note(run / "arms/bottom/checkpoints", of_both[0], seen_of([9, 9, 7], 3))
    (warning,) = read_run(run, "run").warnings
    assert "in 1 of 2 refreshes: top 2 different ones in 3 triples of refresh 3, bottom 2 different ones" in warning


def test_the_report_counts_queries_and_triples_of_each_refresh(tmp_path: Path) -> None:
    arms = {"top": Shape(0.2, 0.25), "bottom": Shape(0.2, 0.25)}
    runs = [write_run(tmp_path / name, arms) for name in ("one", "two")]
    for number, run in enumerate(runs):
        for name in arms:
            counts = [2000, 2000 + 5 * number, 3000 + (name == "bottom")]
            seen = [SeenRefresh(refresh, count, 12_800, "") for refresh, count in enumerate(counts)]
            note(run / "arms" / name / "checkpoints", *seen)
    assert [seen.queries for seen in read_seen(runs[0] / "arms/bottom/checkpoints")] == [2000, 2000, 3001]
    found = [read_run(run, run.name) for run in runs]
    section = seen_section({name: [run.arms[number] for run in found] for number, name in enumerate(arms)})
    assert section is not None
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.blocks[0].splitlines()]
    assert rows[0] == ["refresh", "top", "bottom"]
    assert rows[2:] == [
        ["0", "2,000 in 12,800", "2,000 in 12,800"],
        ["1", "2,000 to 2,005 in 12,800", "2,000 to 2,005 in 12,800"],
        ["2", "3,000 in 12,800", "3,001 in 12,800"],
    ]
    section = seen_section({"top": [found[0].arms[0]]})
    assert section is not None and "| 0 to 1" in section.blocks[0]
