"""Real runs and judgements: what others publish or measure of them.

A run of BM25 over the whole of MS MARCO, with NIST's judgements of TREC DL 2019: Anserini's regression page for DL 2019
passages (k1 0.9, b 0.4) has nDCG@10 0.5058 and, from grade 2, R@100 0.4910.
"""

from __future__ import annotations

import gzip
import json
import math
import shutil
from collections import defaultdict
from pathlib import Path

import ir_measures
import numpy as np
import pytest

from model.encoders.static import StaticEncoder
from tests.forked import run
from tests.real import collection_dir
from utils.exchange.evaluations import read_metrics
from utils.ir.metrics import choose_metrics, mean_metrics, per_query_metrics
from utils.ir.runs import read_run

PUBLISHED = {"ndcg@10": 0.5058, "recall@100": 0.4910}
RUN = "BM25.dl19.trec"


def test_a_run_with_the_judgements_as_they_are() -> None:
    trec = collection_dir("msmarco-mini") / "trec"
    grades: dict[str, dict[str, int]] = defaultdict(dict)
    for line in (trec / "2019qrels-pass.tsv").read_text().splitlines():
        query, _, passage, grade = line.split("\t")
        grades[query][passage] = int(grade)
    assert (len(grades), sum(map(len, grades.values()))) == (43, 9260)
    passage_ids = sorted({passage for judged in grades.values() for passage in judged})
    offset_of = {passage: offset for offset, passage in enumerate(passage_ids)}
    qrels = {
        query: {offset_of[passage]: grade for passage, grade in judged.items()}
        for query, judged in enumerate(grades.values())
    }
    found = read_run(trec / RUN, [*grades], passage_ids)
    assert (found.other_queries, found.reordered) == (0, 0)
    choice = choose_metrics("AP(rel=2)", 2, is_of_documents=False)
    rows = per_query_metrics(qrels, np.arange(len(qrels)), found.passages_QK, 100, choice)
    metrics = mean_metrics(qrels, rows, 100, choice)
    assert {name: round(metrics[name], 4) for name in PUBLISHED} == PUBLISHED
    binary = mean_metrics(qrels, per_query_metrics(qrels, np.arange(43), found.passages_QK, math.inf), math.inf)
    assert round(binary["recall@100"], 4) != PUBLISHED["recall@100"], "from grade 1 it is another figure"


@pytest.mark.measured
def test_run_eval_on_a_part_of_the_collection(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """Passages that the collection lacks keep their ranks: the figures are those of the whole."""
    mini, raw = collection_dir("msmarco-mini"), tmp_path / "raw"
    shutil.copytree(mini / "raw", raw)
    (raw / "top1000.dev.gz").unlink()
    model = ("--model_type", "static", "--model_name_or_path", tiny_tokenizer)
    lengths = ("--max_seq_length", "16", "--max_query_length", "8", "--data_type", "1")
    run("data.msmarco_data", "--data_dir", raw, "--out_data_dir", tmp_path / "data", *lengths, *model)
    given = mini / "trec" / RUN
    flags = ("--relevance_level", "2", "--split", "dev", "--overlap_run", given, "--output_dir", tmp_path / "runs")
    said = run("drivers.run_eval", "--data_dir", tmp_path / "data", "--run", given, *flags)
    record = read_metrics(tmp_path / "runs" / "BM25.dl19" / "metrics.json")
    assert {name: round(record["metrics"][name], 4) for name in PUBLISHED} == PUBLISHED
    assert (record["queries"], record["pooled"]["overlap@100"]) == (43, 1.0)
    with gzip.open(mini / "raw" / "collection.tsv.gz", "rt", encoding="utf-8") as file:
        held = {line.split("\t")[0] for line in file}
    lines = given.read_text().splitlines()
    unknown = sum(line.split(" ")[2] not in held for line in lines)
    if unknown:
        assert f"{unknown:,} passages are not in the collection, and count as not judged" in said


@pytest.mark.measured
def test_two_splits_of_a_real_collection_at_once(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """NFCorpus, grades 1 and 2, with a model of random weights: as ir_measures reads the runs and BEIR's own qrels."""
    raw, data, model = collection_dir("nfcorpus"), tmp_path / "data", tmp_path / "model"
    lengths = ("--max_seq_length", "64", "--max_query_length", "32")
    words = ("--model_type", "static", "--model_name_or_path", tiny_tokenizer)
    run("data.msmarco_data", "--source", "beir", "--data_dir", raw, "--out_data_dir", data, *lengths, *words)
    vocab_size = json.loads((data / "manifest.json").read_text())["vocab_size"]
    model.mkdir()
    StaticEncoder({"vocab_size": vocab_size, "embedding_size": 64}).save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_tokenizer / name, model / name)
    flags = ("--relevance_level", "2", "--metrics", "RR(rel=1)@10 P@5 AP", "--split", "test", "dev")
    flags = (*flags, "--model_type", "static", "--model_name_or_path", model, "--output_dir", tmp_path / "out")
    run("drivers.run_eval", "--data_dir", data, *lengths, *flags)
    splits = read_metrics(tmp_path / "out" / "metrics.json")["splits"]
    named = {"ndcg@10": "nDCG@10", "mrr@10": "RR(rel=2)@10", "recall@100": "R(rel=2)@100", "RR@10": "RR@10"}
    named |= {"P(rel=2)@5": "P(rel=2)@5", "AP(rel=2)": "AP(rel=2)"}
    for split, found in splits.items():
        qrels: dict[str, dict[str, int]] = defaultdict(dict)
        for line in (raw / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]:
            query, passage, grade = line.split("\t")
            qrels[query][passage] = int(grade)
        scored: dict[str, dict[str, float]] = defaultdict(dict)
        for doc in ir_measures.read_trec_run(str(tmp_path / "out" / f"{split}.trec")):
            scored[doc.query_id][doc.doc_id] = doc.score
        assert found["queries"] == len(qrels)
        for key, notation in named.items():
            expected = ir_measures.parse_measure(notation).calc_aggregate(dict(qrels), dict(scored))
            assert found["metrics"][key] == pytest.approx(expected, abs=1e-9), (split, key)
