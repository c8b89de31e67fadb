"""drivers.run_bm25 and utils.search.bm25: against BM25 written out, and a ranking by sorting everything."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import msmarco_data, wordpiece
from data.mining.negative_lists import read_negative_lists
from data.tokens.collection import open_preprocessed
from drivers import run_bm25
from tests import REPO
from tests.exchanging import names
from utils.errors import UserError
from utils.exchange.negatives import read_refresh
from utils.search import bm25

PASSAGES = {
    "D1": "Foxes jump over dogs; dogs jump over logs.",
    "D2": "A fox is an animal and a dog is an animal.",
    "77": "Logs of wood, dogs of war.",
    "D4": "Identical twin passage about foxes.",
    "D5": "Identical twin passage about foxes.",
    "x-6": "The and of to in.",
    "D7": "Dogs dogs dogs dogs, and nothing but dogs",
    "D8": "War and peace: foxes, logs, wood, animal, jump, over, twin.",
}
TRAIN = {"t1": "dogs jump", "t2": "the of", "t3": "identical foxes", "t4": "zeppelin", "t5": "wood logs war"}
DEV = {"900": "foxes foxes animal", "901": "war", "902": "and the"}
TRAIN_QRELS = [("t1", "D7", 1), ("t1", "D1", 1), ("t3", "D5", 1), ("t2", "x-6", 1), ("t4", "D2", 0), ("t5", "77", 1)]
DEV_QRELS = [("900", "D8", 1), ("901", "77", 1), ("901", "D1", 0), ("902", "x-6", 1)]


def write_raw(raw: Path) -> Path:
    raw.mkdir()
    for name, texts in (("collection", PASSAGES), ("queries.train", TRAIN), ("queries.dev.small", DEV)):
        (raw / f"{name}.tsv").write_text("".join(f"{an_id}\t{text}\n" for an_id, text in texts.items()))
    for name, qrels in (("train", TRAIN_QRELS), ("dev.small", DEV_QRELS)):
        lines = "".join(f"{query}\t0\t{passage}\t{relevance}\n" for query, passage, relevance in qrels)
        (raw / f"qrels.{name}.tsv").write_text(lines)
    return raw


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The flags that name a raw collection and its preprocessed directory."""
    base = tmp_path_factory.mktemp("bm25")
    raw = write_raw(base / "raw")
    texts = [*PASSAGES.values(), *TRAIN.values()]
    wordpiece.save_tokenizer(wordpiece.train_tokenizer(lambda: iter(texts), 150), base / "tokenizer")
    call(msmarco_data.main, data_dir=raw, out_data_dir=base / "data", data_type=1, model_type="static",
         model_name_or_path=base / "tokenizer")  # fmt: skip
    return {"raw_data_dir": str(raw), "data_dir": str(base / "data")}


def call(main, **flags: object) -> None:  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *(word for name, v in flags.items() for word in (f"--{name}", str(v)))])
        main()


def bm25_scores(query: list[str], texts: list[list[str]], k1: float, b: float) -> list[float]:
    """Lucene's BM25 from Kamphuis et al. 2020, "Which BM25 do you mean?", table 1: plain loops in float64."""
    mean_length = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        counts, score = Counter(text), 0.0
        for word in filter(counts.__getitem__, query):
            having = sum(word in other for other in texts)
            idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
            score += idf * counts[word] / (counts[word] + k1 * (1 - b + b * len(text) / mean_length))
        scores.append(score)
    return scores


def words(text: str) -> list[str]:
    """Lower-cased runs of two or more letters or digits that are not among bm25s's English stopwords."""
    from bm25s.stopwords import STOPWORDS_EN

    found = "".join(c.lower() if c.isalnum() else " " for c in text).split()
    return [word for word in found if len(word) > 1 and word not in STOPWORDS_EN]


def ranked(scores: list[float], k: int) -> list[int]:
    """Rows by score, ties by row, matches only. Scores are rounded: equal sums may differ in the last bit."""
    matching = [row for row, score in enumerate(scores) if score > 0]
    return sorted(matching, key=lambda row: (-round(scores[row], 5), row))[:k]


# The library and the lists


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75), (0.0, 0.0), (2.0, 1.0)])
def test_scores_and_lists_are_those_of_the_formula(tmp_path: Path, k1: float, b: float) -> None:
    texts, queries = list(PASSAGES.values()), [*TRAIN.values(), *DEV.values(), ""]
    index = bm25.build_index(iter(texts), k1, b)
    scores_QK, rows_QK = bm25.search(index, bm25.words_of(queries), 4, 1, tmp_path, "queries")
    assert (scores_QK.dtype, rows_QK.dtype, rows_QK.shape) == (np.float32, np.int64, (len(queries), 4))
    for query, scores_K, rows_K in zip(queries, scores_QK, rows_QK, strict=True):
        expected = bm25_scores(words(query), [words(text) for text in texts], k1, b)
        rows = ranked(expected, 4)
        assert rows_K.tolist() == rows + [-1] * (4 - len(rows)), query
        np.testing.assert_allclose(scores_K[: len(rows)], [expected[row] for row in rows], rtol=1e-5)
        assert np.isneginf(scores_K[len(rows) :]).all()


@given(st.lists(st.integers(-1, 4), max_size=30), st.integers(1, 8))
def test_best_matches_is_a_sort(scores: list[int], k: int) -> None:
    rows, values = bm25.best_matches(np.array(scores, np.float32), k)
    expected = sorted((row for row, score in enumerate(scores) if score > 0), key=lambda row: (-scores[row], row))[:k]
    assert rows.tolist() == expected
    assert values.tolist() == [scores[row] for row in expected]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["fox", "dog", "log", "war", "wood"]), min_size=1), min_size=1, max_size=8))
def test_random_texts_have_the_formulas_scores(texts: list[list[str]]) -> None:
    index = bm25.build_index([" ".join(text) for text in texts], 0.9, 0.4)
    query = ["dog", "wood", "dog"]
    scores = index.get_scores_from_ids(index.get_tokens_ids(query))
    np.testing.assert_allclose(scores, bm25_scores(query, texts, 0.9, 0.4), rtol=1e-4)


def test_processes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    texts = [" ".join(f"w{n}" for n in rng.zipf(1.3, 12) % 50) for _ in range(300)]
    index, queries = bm25.build_index(texts, 0.9, 0.4), bm25.words_of(texts[::-1])
    monkeypatch.setattr(bm25, "QUERIES_PER_BLOCK", 64)
    here = bm25.search(index, queries, 20, 2, tmp_path / "never", "queries")
    assert not (tmp_path / "never").exists()
    monkeypatch.setattr(bm25, "SCORES_WORTH_PROCESSES", 0)
    there = bm25.search(index, queries, 20, 2, tmp_path / "scratch", "queries")
    np.testing.assert_array_equal(here[0], there[0])
    np.testing.assert_array_equal(here[1], there[1])


def test_a_collection_without_words_is_named() -> None:
    with pytest.raises(UserError, match="no passage has a word that BM25 counts"):
        bm25.build_index(["the of", "a I"], 0.9, 0.4)


# The program


def test_the_program_writes_run_metrics_and_negatives(tmp_path: Path, directories: dict[str, str]) -> None:
    out = tmp_path / "out"
    call(run_bm25.main, output_dir=out, topk_training=6, negative_sample=2, negative_strategy="top", **directories)
    assert names(out) == ["ann_ndcg_0", "ann_training_data_0", "dev.trec", "metrics.json"]

    texts, ids = [words(text) for text in PASSAGES.values()], list(PASSAGES)
    run: dict[str, list[str]] = {}
    for line in (out / "dev.trec").read_text().splitlines():
        query_id, q0, passage_id, rank, score, tag = line.split(" ")
        run.setdefault(query_id, []).append(passage_id)
        expected = bm25_scores(words(DEV[query_id]), texts, 0.9, 0.4)
        assert (q0, int(rank), tag) == ("Q0", len(run[query_id]), "bm25")
        assert float(score) == pytest.approx(expected[ids.index(passage_id)], rel=1e-5)
    for query_id, text in DEV.items():
        rows = ranked(bm25_scores(words(text), texts, 0.9, 0.4), 1000)
        assert run.get(query_id, []) == [ids[row] for row in rows]

    written = json.loads((out / "metrics.json").read_text())
    reciprocal = [1 / (1 + run[query].index(passage)) for query, passage in (("900", "D8"), ("901", "77"))]
    assert written["metrics"]["mrr@10"] == pytest.approx(sum(reciprocal) / 3)  # 902 has no answer, and counts
    assert (written["queries"], written["model"], written["step"]) == (3, "bm25", None)


def test_the_negatives_have_their_raw_ranks_and_no_positive(tmp_path: Path, directories: dict[str, str]) -> None:
    flags = {"topk_training": 4, "negative_sample": 3, "negative_strategy": "top"}
    call(run_bm25.main, output_dir=tmp_path, **flags, **directories)
    refresh = read_refresh(tmp_path, 0)
    assert (refresh.step, refresh.record["strategy"], refresh.record["checkpoint"]) == (0, "top", "bm25")
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert (refresh.record["ndcg"], refresh.record["mrr"]) == (metrics["ndcg@10"], metrics["mrr@10"])

    lists = read_negative_lists(refresh.path)
    query_ids = open_preprocessed(directories["data_dir"], 1, 1).queries("train").original_ids()
    texts, ids = [words(text) for text in PASSAGES.values()], list(PASSAGES)
    found = {}
    for query, positive, *columns in zip(
        lists.query_Q, lists.positive_Q, lists.negative_QN, lists.rank_QN, lists.score_QN, strict=True
    ):
        query_id = query_ids[query]
        assert (query_id, ids[positive], 1) in TRAIN_QRELS
        found[query_id] = [(n, r, s) for n, r, s in zip(*columns, strict=True) if n >= 0]
    assert set(found) == {"t1", "t3", "t5"}  # t4 has no positive, t2 no candidate but its positive
    for query_id, negatives in found.items():
        scores = bm25_scores(words(TRAIN[query_id]), texts, 0.9, 0.4)
        candidates = list(enumerate(ranked(scores, 4), start=1))
        expected = [(row, rank) for rank, row in candidates if (query_id, ids[row], 1) not in TRAIN_QRELS][:3]
        assert [(n, r) for n, r, _ in negatives] == expected, query_id
        np.testing.assert_allclose([s for *_, s in negatives], [scores[row] for row, _ in expected], rtol=1e-5)


@pytest.mark.parametrize("strategy", ["top", "random", "corpus:4"])
def test_a_query_s_own_passage_is_no_negative_of_it(strategy: str, tmp_path: Path, directories: dict[str, str]) -> None:
    """All that may be negatives are taken: without the own passage it is the same ones but for that."""
    data = tmp_path / "data"
    shutil.copytree(directories["data_dir"], data)
    manifest = json.loads((data / "manifest.json").read_text())
    query = open_preprocessed(data, 1, 1).queries("train").original_ids().index("t3")
    own, found = list(PASSAGES).index("D4"), []
    for pairs in ([], [[query, own]]):
        (data / "manifest.json").write_text(json.dumps({**manifest, "own_passages": {"train": pairs}}))
        out = tmp_path / f"out{len(pairs)}"
        flags = {"topk_training": 8, "negative_sample": 8, "negative_strategy": strategy, **directories}
        call(run_bm25.main, output_dir=out, **{**flags, "data_dir": data})
        lists = read_negative_lists(out / "ann_training_data_0")
        rows = zip(lists.query_Q.tolist(), lists.negative_QN.tolist(), strict=True)
        found.append({q: {n for n in row if n >= 0} for q, row in rows})
    before, after = found
    assert after[query] and own not in after[query]
    if strategy != "corpus:4":
        assert before == {**after, query: after[query] | {own}}


def test_two_runs_are_equal(tmp_path: Path, directories: dict[str, str]) -> None:
    for name in ("a", "b"):
        call(run_bm25.main, output_dir=tmp_path / name, topk_training=5, negative_sample=2, **directories)
    for file in ("dev.trec", "ann_training_data_0"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    with pytest.raises(UserError, match=r"ann_ndcg_0 exists, .* is complete"):
        call(run_bm25.main, output_dir=tmp_path / "a", topk_training=5, negative_sample=2, **directories)


def swap_ids(raw: Path) -> None:
    text = (raw / "collection.tsv").read_text()
    (raw / "collection.tsv").write_text(text.replace("D2\t", "D9\t"))


def cut_passages(raw: Path) -> None:
    lines = (raw / "collection.tsv").read_text().splitlines(keepends=True)
    (raw / "collection.tsv").write_text("".join(lines[:-1]))


def add_passage(raw: Path) -> None:
    with (raw / "collection.tsv").open("a") as file:
        file.write("D10\tone more\n")


def drop_query(raw: Path) -> None:
    lines = (raw / "queries.dev.small.tsv").read_text().splitlines(keepends=True)
    (raw / "queries.dev.small.tsv").write_text("".join(lines[1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_ids, "passage 1: .* has 'D9', .* has 'D2': they are different collections"),
        (cut_passages, "passage 7: .* has the end, .* has 'D8'"),
        (add_passage, "passage 8: .* has 'D10', .* has the end"),
        (drop_query, "has no query 900, .* has: they are different collections"),
    ],
)
def test_another_raw_collection_is_refused(tmp_path: Path, directories: dict[str, str], change, message: str) -> None:  # type: ignore[no-untyped-def]
    raw = write_raw(tmp_path / "raw")
    change(raw)
    flags = {**directories, "raw_data_dir": str(raw), "output_dir": tmp_path / "out"}
    with pytest.raises(UserError, match=message):
        call(run_bm25.main, topk_training=4, negative_sample=2, **flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "--topk_training is 200, the collection has 8 passages"),
        ({"topk_training": 4, "negative_sample": 5}, "--negative_sample 5 exceeds --topk_training 4"),
        (
            {"topk_training": 4, "negative_sample": 2, "negative_strategy": "hard"},
            "--negative_strategy 'hard': 'hard' is not a strategy",
        ),
    ],
)
def test_flags_that_cannot_be(
    tmp_path: Path, directories: dict[str, str], flags: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        call(run_bm25.main, output_dir=tmp_path / "out", **flags, **directories)
    assert not (tmp_path / "out").exists()


def test_dry_run_and_errors_as_a_process(tmp_path: Path, directories: dict[str, str]) -> None:
    command = [sys.executable, "-m", "drivers.run_bm25", "--output_dir", str(tmp_path / "out"), "--topk_training"]
    command += [
        "4",
        "--negative_sample",
        "2",
        *(word for name, value in directories.items() for word in (f"--{name}", value)),
    ]
    done = subprocess.run([*command, "--dry_run"], cwd=REPO, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["k1"] == 0.9
    swapped = [*command, "--raw_data_dir", directories["data_dir"]]
    done = subprocess.run(swapped, cwd=REPO, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "out").exists()
