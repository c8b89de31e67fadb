"""What the programs write of an evaluation, as another evaluator finds it in their run files and in the raw qrels."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from drivers import run_bm25
from model.encoders.static import StaticEncoder
from results.read.evaluation import read_evaluation
from results.read.study import read_by_query
from tests.forked import run
from utils.errors import UserError
from utils.exchange.negatives import read_refresh

PASSAGES = 40
# The second passage of each text is its first one's twin: their scores tie, and ids would order them the other way.
TEXTS = [f"passage of the number{place // 2} and shared words" for place in range(PASSAGES)]
PASSAGE_IDS = [f"D\u00a0{place:02d}\u2028" for place in range(PASSAGES)]
QUERIES = {f"q\x85{place}": f"number{place} shared" for place in range(8)}
GRADED = {"q\x850": {0: 1}, "q\x851": {2: 1, 3: -2}, "q\x852": {4: 3, 5: 1, 9: -1}, "q\x853": {6: 12}, "q\x854": {8: 1}}
WITHOUT_POSITIVE = {"q\x855": {10: 0}, "q\x856": {12: -2}}
JUDGED = GRADED | WITHOUT_POSITIVE
THEIRS = {
    "ndcg@10": "ndcg_cut_10",
    "map@10": "map_cut_10",
    "recall@20": "recall_20",
    "recall@100": "recall_100",
    "recall@1000": "recall_1000",
}


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


@pytest.fixture(scope="module", name="base")
def fixture_base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """raw/, data/ and model/, a static encoder of random weights."""
    base = tmp_path_factory.mktemp("evaluation")
    raw, model = base / "raw", base / "model"
    raw.mkdir()
    write_lines(raw / "collection.tsv", (f"{an_id}\t{text}" for an_id, text in zip(PASSAGE_IDS, TEXTS, strict=True)))
    for split in ("train", "dev.small"):
        write_lines(raw / f"queries.{split}.tsv", (f"{an_id}\t{text}" for an_id, text in QUERIES.items()))
        rows = [(query, PASSAGE_IDS[p], grade) for query, row in JUDGED.items() for p, grade in row.items()]
        write_lines(raw / f"qrels.{split}.tsv", (f"{query}\t0\t{an_id}\t{grade}" for query, an_id, grade in rows))
    lengths = ("--max_seq_length", "32", "--max_query_length", "16")
    model_flags = ("--model_type", "static", "--model_name_or_path", tiny_tokenizer)
    run(
        "data.msmarco_data",
        "--data_dir",
        raw,
        "--out_data_dir",
        base / "data",
        "--data_type",
        "1",
        *lengths,
        *model_flags,
    )
    model.mkdir()
    vocab_size = json.loads((base / "data" / "manifest.json").read_text())["vocab_size"]
    StaticEncoder({"vocab_size": vocab_size, "embedding_size": 8}).save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_tokenizer / name, model / name)
    return base


def bm25(base: Path, out: Path, topk_dev: int) -> Path:
    flags = {"raw_data_dir": base / "raw", "data_dir": base / "data", "output_dir": out, "topk_dev": topk_dev}
    flags |= {"topk_training": 10, "negative_sample": 2, "negative_strategy": "top", "workers": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run_bm25", *(f"--{name}={value}" for name, value in flags.items())])
        run_bm25.main()
    return out


def evaluation_flags(base: Path) -> tuple[str | Path, ...]:
    model = ("--model_type", "static", "--model_name_or_path", base / "model")
    return ("--data_dir", base / "data", *model, "--max_seq_length", "32", "--max_query_length", "16")


def by_trec_eval(path: Path) -> dict[str, float]:
    """Means over all queries of the raw qrels, one that is not in the run counting 0; scores are read as float32."""
    run: dict[str, dict[str, float]] = {}
    for line in path.read_bytes().decode().split("\n")[:-1]:
        query, _, passage, _, score, _ = line.split("\t" if "\t" in line else " ")
        run.setdefault(query, {})[passage] = float(np.float32(score))
    # pytrec_eval cannot have a query without a grade of 0 or more: it is 0 in every measure.
    judged = {query: {PASSAGE_IDS[p]: grade for p, grade in row.items()} for query, row in GRADED.items()}
    rows = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10", "map_cut.10", "recall.20,100,1000"}).evaluate(run)
    return {ours: sum(row[theirs] for row in rows.values()) / len(JUDGED) for ours, theirs in THEIRS.items()}


def check(metrics: dict[str, float], run_path: Path, depth: float) -> None:
    """Those that lists of this depth reach are there, and are what another evaluator finds in the run."""
    named = {*THEIRS, "mrr@10", "hole_rate@10"}
    assert metrics.keys() == {name for name in named if int(name.partition("@")[2]) <= depth}
    theirs = by_trec_eval(run_path)
    for name in metrics.keys() & theirs.keys():
        assert metrics[name] == pytest.approx(theirs[name], abs=1e-9), name


@pytest.mark.parametrize(("topk_dev", "depth"), [(5, 5), (10, 10), (25, 25), (1000, math.inf)])
def test_bm25(base: Path, tmp_path: Path, topk_dev: int, depth: float) -> None:
    out = bm25(base, tmp_path / "bm25", topk_dev)
    written = json.loads((out / "metrics.json").read_text())
    check(written["metrics"], out / "dev.trec", depth)
    assert written["queries"] == len(JUDGED)
    assert read_evaluation(out / "metrics.json", "").metrics.keys() <= written["metrics"].keys()
    # ANCE's record has nDCG@10 all the same.
    record, whole = read_refresh(out, 0).record, bm25(base, tmp_path / "whole", 1000)
    metrics = json.loads((whole / "metrics.json").read_text())["metrics"]
    assert (record["ndcg"], record["mrr"]) == (metrics["ndcg@10"], metrics["mrr@10"])
    assert all(record["metrics"][name] == metrics[name] for name in record["metrics"])


def test_run_eval_and_the_reranking_of_short_lists(base: Path, tmp_path: Path) -> None:
    lines = (bm25(base, tmp_path / "bm25", 12) / "dev.trec").read_bytes().decode().split("\n")[:-1]
    out, candidates = tmp_path / "eval", tmp_path / "candidates.trec"
    write_lines(candidates, (line for line in lines if not line.startswith("q\x854")))
    said = run(
        "drivers.run_eval", *evaluation_flags(base), "--output_dir", out, "--topk", "20", "--rerank_file", candidates
    )
    written = json.loads((out / "metrics.json").read_text())
    check(written["metrics"], out / "dev.trec", 20)
    check(written["rerank_metrics"], out / "dev.rerank.trec", 12)
    assert "recall@100" not in said and "recall@20" in said
    assert "splits: dev: 8 queries are ranked; 1 of them are not judged, and in no mean; 2 of 7 judged queries" in said
    assert "dev: 1 of 8 queries have no candidates, and count as 0 in reranking" in said
    query_ids, by_query = read_by_query(out / "dev.per_query.tsv")
    assert query_ids == tuple(JUDGED)
    assert written["queries"] == len(query_ids), "the means are over the queries without a positive as well"
    for name, values_Q in by_query.items():
        assert written["metrics"][name] == pytest.approx(values_Q.mean(), abs=1e-9)
    by_rank = json.loads((out / "dev.by_rank.json").read_text())
    assert by_rank["queries"] == len(QUERIES), "those without a positive, or not judged, are ranked as well"


def test_lists_too_short_for_any_metric(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    said = run("drivers.run_eval", *evaluation_flags(base), "--output_dir", out, "--topk", "5")
    assert json.loads((out / "metrics.json").read_text())["metrics"] == {}
    assert "no metric: every cut-off is deeper than the lists" in said
    assert (out / "dev.per_query.tsv").read_bytes().decode().split("\n") == ["query_id", *JUDGED, ""]
    with pytest.raises(UserError, match="is not a table of mrr@10"):
        read_by_query(out / "dev.per_query.tsv")


def test_the_warmup_has_no_mrr_of_short_candidates(base: Path, tmp_path: Path) -> None:
    candidates = bm25(base, tmp_path / "bm25", 5)
    said = run(
        "drivers.run_warmup", "--do_eval", *evaluation_flags(base), "--bm25_dir", candidates, "--output_dir", tmp_path
    )
    assert "no list of candidates is longer than 5" in said
    assert "Reranking/Full ranking mrr: nan/0." in said
