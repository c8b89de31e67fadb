"""python -m data.negatives --candidates RUN: anyone's run in the place of a generator's search."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
import torch
from safetensors.torch import load_file

from data import negatives
from data.mining.candidates import read_bm25, read_candidates
from data.mining.negative_lists import read_negative_lists
from data.tokens.collection import Preprocessed, open_preprocessed
from results.read.logged import by_rank_of, read_logged
from tests.data.test_negatives import GENERATED, generate
from tests.drivers.test_run_bm25 import call
from tests.exchanging import names
from tests.forked import run
from utils.errors import UserError
from utils.exchange.layout import JobLayout
from utils.exchange.negatives import Refresh, read_kept_candidates, read_refresh
from utils.ir.trec import write_run


@pytest.fixture(scope="module", name="collection")
def fixture_collection(tiny_preprocessed: Path) -> Preprocessed:
    return open_preprocessed(tiny_preprocessed, 1, 1)


@pytest.fixture(scope="module", name="kept")
def fixture_kept(tiny_preprocessed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator's candidates, and the same as run.trec and rank.tsv."""
    ann_dir = generate(tiny_preprocessed, tmp_path_factory.mktemp("kept"), "random")
    collection = open_preprocessed(tiny_preprocessed, 1, 1)
    found = read_candidates(read_kept_candidates(ann_dir, 0).path)
    query_ids, passage_ids = collection.queries("train").original_ids(), collection.passages.original_ids()
    ids_Q = [query_ids[query] for query in found.query_Q]
    write_run(ann_dir / "run.trec", ids_Q, passage_ids, found.passage_QK, found.score_QK, "theirs")
    rows = [line.split(" ") for line in (ann_dir / "run.trec").read_text().splitlines()]
    (ann_dir / "rank.tsv").write_text("".join(f"{q}\t{p}\t{rank}\n" for q, _, p, rank, *_ in rows))
    return ann_dir


def select(candidates: Path, data_dir: Path, output_dir: Path, **flags: object) -> Refresh:
    call(negatives.main, candidates=candidates, data_dir=data_dir, output_dir=output_dir, **flags)
    return read_refresh(output_dir, 0)


STRATEGIES = ("top", "random", "bottom", "ranks:21-60", "log-uniform:3+corpus:2")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_is_selected_from_as_the_search_that_it_is_of(
    kept: Path, tiny_preprocessed: Path, tmp_path: Path, strategy: str
) -> None:
    """The same passages at the same ranks; the scores to the last bit, by which a run's writer breaks ties.

    Of three columns the scores are the ranks'.
    """
    flags = {**GENERATED, "negative_strategy": strategy}
    search = select(kept / "ann_candidates_0.npz", tiny_preprocessed, tmp_path / "search", **flags)
    given = select(kept / "run.trec", tiny_preprocessed, tmp_path / "given", **flags)
    ranked = select(kept / "rank.tsv", tiny_preprocessed, tmp_path / "ranked", **flags)
    expected, scored, found = (read_negative_lists(refresh.path) for refresh in (search, given, ranked))
    for lists in (scored, found):
        assert np.array_equal(lists.negative_QN, expected.negative_QN)
        assert np.array_equal(lists.rank_QN, expected.rank_QN)
    np.testing.assert_allclose(scored.score_QN, expected.score_QN, rtol=1e-6)
    retrieved_QN = found.rank_QN > 0
    assert np.array_equal(found.score_QN[retrieved_QN], -found.rank_QN[retrieved_QN].astype(np.float32))
    record = given.record
    assert (record["strategy"], record["step"], record["checkpoint"]) == (strategy, 0, str(kept / "run.trec"))


def test_it_is_measured_on_dev_where_it_has_dev_else_on_train(
    kept: Path, collection: Preprocessed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ANCE's record has it; by pytrec_eval from the run's own lines."""
    train_only = select(kept / "run.trec", collection.directory, tmp_path / "train").record
    assert train_only["dev_split"] == "train"
    assert "candidates of 12 of 60 train queries; it is measured on train" in capsys.readouterr().out
    passages = collection.passages.original_ids()
    rng, dev = np.random.default_rng(4), collection.queries("dev").original_ids()
    lines = [
        f"{query} Q0 {p} {place} {-place} t" for query in dev[3:] for place, p in enumerate(rng.permutation(passages))
    ]
    both = tmp_path / "both.trec"
    both.write_text((kept / "run.trec").read_text() + "".join(f"{line}\n" for line in lines))
    record = select(both, collection.directory, tmp_path / "both").record
    assert "dev_split" not in record
    for split, found in (("train", train_only), ("dev", record)):
        queries = collection.queries(split).original_ids()
        qrels = {
            queries[q]: {passages[p]: grade for p, grade in judged.items()}
            for q, judged in collection.qrels(split).as_dict().items()
        }
        with both.open() as file:
            run_of_file = pytrec_eval.parse_run(file)
        rows = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run_of_file)
        assert found["ndcg"] == pytest.approx(sum(row["ndcg_cut_10"] for row in rows.values()) / len(qrels))


def test_what_the_collection_lacks_is_counted_and_too_much_of_it_refused(
    kept: Path, collection: Preprocessed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is ranked below an unknown passage moves up; a query without a list is omitted; the own passage, too."""
    data = tmp_path / "data"
    shutil.copytree(collection.directory, data)
    query_ids, passage_ids = collection.queries("train").original_ids(), collection.passages.original_ids()
    lines = (kept / "run.trec").read_text().splitlines()
    one, two = (query_ids.index(name) for name in list(dict.fromkeys(line.split(" ")[0] for line in lines))[:2])
    first = [line for line in lines if line.startswith(f"{query_ids[one]} ")]
    own = first[2].split(" ")[2]
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["own_passages"] = {"train": [[one, passage_ids.index(own)]]}
    (data / "manifest.json").write_text(json.dumps(manifest))
    changed = [line for line in lines if not line.startswith(f"{query_ids[two]} ")]
    changed += [f"{query_ids[one]} Q0 nowhere 1 1e6 t", "other Q0 p3 1 1 t"]
    path = tmp_path / "changed.trec"
    path.write_text("".join(f"{line}\n" for line in changed))
    found = select(path, data, tmp_path / "out", negative_strategy="top", negative_sample=200, keep_candidates=True)
    said = capsys.readouterr().out
    assert (
        f"{path}: candidates of 11 of 60 train queries; 1 other queries are passed over; 1 passages are not in" in said
    )
    lists = read_negative_lists(found.path)
    assert two not in lists.query_Q.tolist()
    positives = {p for p, grade in collection.qrels("train").as_dict()[one].items() if grade >= 1}
    expected = [passage_ids.index(line.split(" ")[2]) for line in first if line.split(" ")[2] != own]
    row = lists.negative_QN[lists.query_Q.tolist().index(one)]
    assert [p for p in row.tolist() if p >= 0] == [p for p in expected if p not in positives]
    path.write_text("".join(f"{line}\n" for line in [*lines, *(f"q0 Q0 x{n} 1 {n} t" for n in range(300))]))
    assert "passages are not in" in refused(path, collection.directory, tmp_path / "none")


def test_kept_candidates_of_a_run_are_what_the_strategy_bm25_takes(
    kept: Path, collection: Preprocessed, tmp_path: Path
) -> None:
    select(kept / "run.trec", collection.directory, tmp_path, keep_candidates=True, negative_strategy="top")
    assert names(tmp_path) == ["ann_candidates_0.npz", "ann_ndcg_0", "ann_training_data_0"]
    found, expected = read_bm25(str(tmp_path), collection).candidates, read_candidates(kept / "ann_candidates_0.npz")
    assert np.array_equal(found.passage_QK, expected.passage_QK) and np.array_equal(found.query_Q, expected.query_Q)
    mixed = tmp_path / "mixed"
    flags = {**GENERATED, "negative_strategy": "bm25:2+corpus:1", "bm25_dir": tmp_path}
    lists = read_negative_lists(select(kept / "ann_candidates_0.npz", collection.directory, mixed, **flags).path)
    assert lists.negative_QN.shape[1] == 3


def test_a_model_trains_on_the_negatives_of_a_run(
    kept: Path, collection: Preprocessed, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    view = tmp_path / "view"
    select(kept / "run.trec", collection.directory, view, negative_strategy="top", negative_sample=4)
    data = ("--data_dir", collection.directory, "--max_seq_length", "32", "--max_query_length", "16")
    model = ("--model_type", "static", "--config_name", tmp_path / "config.json", "--tokenizer_name", tiny_tokenizer)
    vocab_size = collection.manifest["vocab_size"]
    config = {"model_type": "static", "vocab_size": vocab_size, "embedding_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    first = ("--bm25_dir", view, *model, "--max_steps", "2", "--output_dir", tmp_path / "first")
    assert "finished step=2" in run("drivers.run_warmup", "--do_train", *data, *first)
    start = tmp_path / "first" / "checkpoint-2"
    trained = (
        "--model_type",
        "static",
        "--model_name_or_path",
        start,
        "--max_steps",
        "3",
        "--learning_rate",
        "1e-2",
        "--logging_steps",
        "1",
    )
    said = run("drivers.run_ann", *data, *trained, "--ann_dir", view, "--output_dir", tmp_path / "checkpoints")
    assert "finished step=3" in said
    before, after = (
        load_file(place / "model.safetensors") for place in (start, tmp_path / "checkpoints" / "checkpoint-3")
    )
    assert any(not torch.equal(before[name], after[name]) for name in before)
    by_rank = by_rank_of(read_logged(JobLayout(tmp_path / "checkpoints").metrics))
    assert {*by_rank} == {"1-5"} and by_rank["1-5"]["triples"] > 0, "the run's first four of each query"


def refused(path: Path, data_dir: Path, output_dir: Path, **flags: object) -> str:
    with pytest.raises(UserError) as caught:
        select(path, data_dir, output_dir, **flags)
    assert "\n" not in str(caught.value)
    assert not output_dir.exists() or not names(output_dir)
    return str(caught.value)


def test_what_is_refused_before_anything_is_written(kept: Path, tiny_preprocessed: Path, tmp_path: Path) -> None:
    def said(content: str, **flags: object) -> str:
        path = tmp_path / "given.trec"
        path.write_text(content)
        return refused(path, tiny_preprocessed, tmp_path / "out", **flags)

    assert "line 1: the score is 'high'" in said("q0 Q0 p3 1 high t\n")
    assert "names none of the 80 queries" in said("other Q0 p3 1 2.5 t\n")
    assert "has a list for no train query with a positive" in said("q60 Q0 p3 1 2.5 t\n")
    assert "has 1 candidates a query" in said("q0 Q0 p3 1 2.5 t\n", topk_training=2)
    assert "--max_positive_ratio is of scores" in said("q0\tp3\t1\nq0\tp10\t2\n", max_positive_ratio=0.9)
    assert "none.trec is missing, expected" in refused(tmp_path / "none.trec", tiny_preprocessed, tmp_path / "out")
    shutil.copy(kept / "ann_candidates_0.npz", tmp_path / "mine.npz")
    assert "is not named ann_candidates_N.npz" in refused(tmp_path / "mine.npz", tiny_preprocessed, tmp_path / "out")
    assert not JobLayout(tmp_path / "out").record(0).exists()
