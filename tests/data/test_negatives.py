"""python -m data.negatives: a generator's candidates, selected from again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import negatives
from data.mining.candidates import Candidates, read_candidates, write_candidates
from data.mining.negative_lists import read_negative_lists
from data.mining.select import make_selection
from drivers import run_bm25
from tests.drivers.generate.test_refresh import CPU, put_model, refresh_once, settings_over, start, stay
from tests.drivers.test_run_bm25 import call
from tests.exchanging import names
from utils.declared.strategies import FILTERS
from utils.distributed.world import World
from utils.errors import UserError
from utils.exchange.layout import JobLayout
from utils.exchange.negatives import Refresh, read_kept_candidates, read_refresh

TOPK = 200  # of 300 passages, so that most positives are among them: --max_positive_ratio drops all where theirs is not
GENERATED = {"topk_training": TOPK, "negative_sample": 5, "seed": 42}


def generate(data_dir: Path, root: Path, strategy: str, **changes: Any) -> Path:
    """Refresh 0 of a generator that keeps its candidates; its directory."""
    settings = settings_over(data_dir, root)
    passages = len(settings.collection.passages)
    filters = {name: changes.pop(name) for name in FILTERS if name in changes}
    selection = make_selection(
        strategy,
        passages,
        topk_training=TOPK,
        negative_sample=5,
        filters=filters,
        **{"on_shortage": "fewer", **changes},
    )
    settings = replace(settings, selection=selection, topk_training=TOPK, keeps_candidates=True)
    session, log = start(root, World(0, 1, CPU))
    work = put_model(root / "checkpoints", data_dir, 3)
    known = {
        "collection_fingerprint": settings.collection.manifest["collection_fingerprint"],
        "science_sha256": "of it",
    }
    assert refresh_once(settings, session, work, known, log, stay)
    return root / "ann"


@pytest.fixture(scope="module")
def generated(tiny_preprocessed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tiny_preprocessed, tmp_path_factory.mktemp("generated"), "random")


def view(generated: Path, data_dir: Path, output_dir: Path, **flags: object) -> Refresh:
    candidates = JobLayout(generated).candidates(0)
    call(negatives.main, candidates=candidates, data_dir=data_dir, output_dir=output_dir, **flags)
    return read_refresh(output_dir, 0)


def test_the_candidates_are_published_with_the_refresh(generated: Path) -> None:
    assert {"ann_candidates_0.npz", "ann_ndcg_0", "ann_training_data_0"} <= set(names(generated))
    found = read_kept_candidates(generated, 0)
    candidates, lists = read_candidates(found.path), read_negative_lists(JobLayout(generated).negatives(0))
    assert candidates.passage_QK.shape[1] == TOPK and (np.diff(candidates.score_QK, axis=1) <= 0).all()
    row_of = {query: row for row, query in enumerate(candidates.query_Q.tolist())}
    assert set(lists.query_Q.tolist()) <= set(row_of)
    for query, negative_N, rank_N, score_N in zip(
        lists.query_Q.tolist(), lists.negative_QN, lists.rank_QN, lists.score_QN, strict=True
    ):
        row = row_of[query]
        assert np.array_equal(candidates.passage_QK[row, rank_N - 1], negative_N)
        assert np.array_equal(candidates.score_QK[row, rank_N - 1], score_N)


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("random", {}),
        ("top_bottom", {}),
        ("0-0=log-uniform:3+corpus:2;1-=top", {}),
        ("ranks:3-9:4", {"min_rank": 5, "max_positive_ratio": 0.9, "on_shortage": "widen"}),
    ],
)
def test_a_view_with_the_generator_s_flags_has_the_generator_s_bytes(
    strategy: str, changes: dict[str, Any], generated: Path, tiny_preprocessed: Path, tmp_path: Path
) -> None:
    made = read_refresh(generate(tiny_preprocessed, tmp_path / "again", strategy, **changes), 0)
    flags = {**GENERATED, **changes, "negative_strategy": strategy}
    found = view(generated, tiny_preprocessed, tmp_path / "view", **flags)
    assert found.path.read_bytes() == made.path.read_bytes()
    shared = ("ndcg", "mrr", "step", "metrics", "queries", "triples", "selection", "model_sha256")
    assert {name: found.record[name] for name in shared} == {name: made.record[name] for name in shared}
    kept = read_kept_candidates(generated, 0).record["candidates"]["sha256"]
    assert (found.record["strategy"], found.record["candidates_sha256"]) == (strategy, kept)
    assert found.record["science_sha256"] != made.record["science_sha256"]
    assert "candidates" not in found.record and names(tmp_path / "view") == ["ann_ndcg_0", "ann_training_data_0"]


def test_fewer_candidates_than_were_kept(generated: Path, tiny_preprocessed: Path, tmp_path: Path) -> None:
    found = view(generated, tiny_preprocessed, tmp_path, topk_training=8, negative_sample=2, negative_strategy="bottom")
    ranks = read_negative_lists(found.path).rank_QN
    assert ranks.max() == 8 and ranks[ranks > 0].min() >= 4


def refused(generated: Path, data_dir: Path, output_dir: Path, **flags: object) -> str:
    with pytest.raises(UserError) as caught:
        view(generated, data_dir, output_dir, **flags)
    assert "\n" not in str(caught.value)
    assert not output_dir.exists() or not names(output_dir)
    return str(caught.value)


def test_what_is_refused_before_anything_is_written(generated: Path, tiny_preprocessed: Path, tmp_path: Path) -> None:
    def said(**flags: object) -> str:
        return refused(generated, tiny_preprocessed, tmp_path / "view", **flags)

    assert "has 200 candidates a query" in said(topk_training=TOPK + 1)
    assert "is no window of the candidates (--topk_training 200)" in said(negative_strategy="ranks:5-201")
    assert "needs --bm25_dir" in said(negative_strategy="bm25:3")
    assert "--min_rank 201 leaves none" in said(min_rank=TOPK + 1)
    view(generated, tiny_preprocessed, tmp_path / "view")
    with pytest.raises(UserError, match="has a refresh 0 already"):
        view(generated, tiny_preprocessed, tmp_path / "view")


def test_damaged_candidates_are_named(generated: Path, tiny_preprocessed: Path, tmp_path: Path) -> None:
    for name in ("ann_ndcg_0", "ann_candidates_0.npz"):
        (tmp_path / name).write_bytes((generated / name).read_bytes())
    path = tmp_path / "ann_candidates_0.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "it is damaged" in refused(tmp_path, tiny_preprocessed, tmp_path / "view")
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert "it is damaged" in refused(tmp_path, tiny_preprocessed, tmp_path / "view")
    record = json.loads((generated / "ann_ndcg_0").read_text())
    (tmp_path / "ann_ndcg_0").write_text(json.dumps({"ndcg": record["ndcg"], "checkpoint": "c"}))
    assert "make it with --keep_candidates" in refused(tmp_path, tiny_preprocessed, tmp_path / "view")


def test_the_file_of_candidates_is_read_as_it_was_written(tmp_path: Path) -> None:
    candidates = Candidates(
        np.array([2**31 - 1, 0]), np.array([[5, 2**31 - 1], [1, -1]]), np.array([[0.5, -1], [3, -np.inf]], np.float32)
    )
    write_candidates(tmp_path / "file", candidates)
    found = read_candidates(tmp_path / "file")
    for name in ("query_Q", "passage_QK", "score_QK"):
        assert np.array_equal(getattr(found, name), getattr(candidates, name)), name
        assert getattr(found, name).dtype == getattr(candidates, name).dtype
    (tmp_path / "other").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="holds no candidates"):
        read_candidates(tmp_path / "other")
    with (tmp_path / "shape").open("wb") as file:
        np.savez(file, query=np.zeros(2), passage=np.zeros((3, 1)), score=np.zeros((3, 1)))
    with pytest.raises(UserError, match="make it again"):
        read_candidates(tmp_path / "shape")


def test_bm25_s_candidates_serve_the_strategy_of_that_name(
    generated: Path, tiny_preprocessed: Path, shared_collection: Path, tmp_path: Path
) -> None:
    flags = {
        "raw_data_dir": shared_collection,
        "data_dir": tiny_preprocessed,
        "topk_training": 20,
        "negative_sample": 5,
    }
    call(run_bm25.main, output_dir=tmp_path / "bm25", negative_strategy="top", keep_candidates=True, **flags)
    theirs = read_negative_lists(JobLayout(tmp_path / "bm25").negatives(0))
    found = view(
        generated, tiny_preprocessed, tmp_path / "view", negative_strategy="bm25:5", bm25_dir=tmp_path / "bm25"
    )
    ours = read_negative_lists(found.path)
    best = {query: set(row.tolist()) for query, row in zip(theirs.query_Q.tolist(), theirs.negative_QN, strict=True)}
    assert len(ours.query_Q)
    for query, row in zip(ours.query_Q.tolist(), ours.negative_QN, strict=True):
        assert set(row.tolist()) == best[query], "by the search's rank, but BM25's best"
    without = tmp_path / "without"
    without.mkdir()
    (without / "ann_ndcg_0").write_text('{"ndcg": 0.1, "checkpoint": "bm25"}')
    assert "knows of no ann_candidates_0.npz" in refused(
        generated, tiny_preprocessed, tmp_path / "other", negative_strategy="bm25:5", bm25_dir=without
    )


def test_make_selection_refuses_what_the_collection_has_not() -> None:
    with pytest.raises(UserError, match="the collection has 10 passages"):
        make_selection("top", 10, topk_training=11, negative_sample=5, filters={}, on_shortage="fewer")
