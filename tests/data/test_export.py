"""python -m data.export: read back with json alone, and compared with the raw files and what data.mining wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import export
from data.formats.examples import Example, examples_of
from data.formats.registry import FORMATS
from data.formats.texts import ExportTexts
from data.mining.candidates import Candidates
from drivers import run_bm25
from tests.data.sources.test_layouts import register_dataset
from tests.drivers.test_run_bm25 import call
from tests.exchanging import names
from utils.errors import UserError

NEGATIVES = 5
Records = list[dict[str, Any]]


@pytest.fixture(scope="module")
def bm25(shared_collection: Path, tiny_preprocessed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BM25's negatives and candidates."""
    directory = tmp_path_factory.mktemp("bm25") / "bm25"
    call(run_bm25.main, raw_data_dir=shared_collection, data_dir=tiny_preprocessed, output_dir=directory,
         topk_training=40, negative_sample=NEGATIVES, negative_strategy="random", keep_candidates=True)  # fmt: skip
    return directory


class Raw:
    """The raw collection and the lists of BM25, read by splitting lines."""

    def __init__(self, raw: Path, data_dir: Path, bm25: Path) -> None:
        def lines(path: Path) -> list[list[str]]:
            return [line.split("\t") for line in path.read_text().splitlines()]

        self.passages = dict(lines(raw / "collection.tsv"))
        self.queries = dict(lines(raw / "queries.train.tsv"))
        self.positives: dict[str, set[str]] = {}
        for query, _, passage, _ in lines(raw / "qrels.train.tsv"):
            self.positives.setdefault(query, set()).add(passage)
        query_ids = (data_dir / "train-query.ids.txt").read_text().splitlines()
        passage_ids = (data_dir / "passages.ids.txt").read_text().splitlines()
        self.negatives = {
            query_ids[int(query)]: [passage_ids[int(passage)] for passage in negatives.split(",")]
            for query, _, negatives, _, _ in lines(bm25 / "ann_training_data_0")
        }
        with np.load(bm25 / "ann_candidates_0.npz") as found:
            self.candidates = {
                query_ids[query]: {passage_ids[p]: float(s) for p, s in zip(passage_K, score_K, strict=True) if p >= 0}
                for query, passage_K, score_K in zip(found["query"], found["passage"], found["score"], strict=True)
            }


@pytest.fixture(scope="module")
def raw(shared_collection: Path, tiny_preprocessed: Path, bm25: Path) -> Raw:
    return Raw(shared_collection, tiny_preprocessed, bm25)


@pytest.fixture
def given_flags(shared_collection: Path, tiny_preprocessed: Path, bm25: Path, tmp_path: Path) -> dict[str, object]:
    return {
        "training_data": bm25 / "ann_training_data_0",
        "candidates": bm25 / "ann_candidates_0.npz",
        "data_dir": tiny_preprocessed,
        "raw_data_dir": shared_collection,
        "output": tmp_path / "out.jsonl",
    }


def exported(flags: dict[str, object], **more: object) -> Records:
    call(export.main, **{name: value for name, value in {**flags, **more}.items() if value is not None})
    output = Path(str(flags["output"]))
    assert names(output.parent) == [output.name]
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_tevatron_s_lines_are_the_negatives_in_the_order_of_their_file(
    given_flags: dict[str, object], raw: Raw
) -> None:
    records = exported(given_flags, format="tevatron", candidates=None)
    assert [record["query_id"] for record in records] == list(raw.negatives)
    for record in records:
        query = record["query_id"]
        assert list(record) == ["query_id", "query", "positive_passages", "negative_passages"]
        assert record["query"] == raw.queries[query]
        positives, negatives = record["positive_passages"], record["negative_passages"]
        assert {p["docid"] for p in positives} == raw.positives[query] and len(positives) == len(raw.positives[query])
        assert [p["docid"] for p in negatives] == raw.negatives[query]
        assert all(p == {**p, "title": "", "text": raw.passages[p["docid"]]} for p in [*positives, *negatives])
        assert all(list(p) == ["docid", "title", "text"] for p in [*positives, *negatives])


def test_a_dataset_of_ir_datasets_gives_the_same_lines_and_needs_no_directory(
    given_flags: dict[str, object],
    shared_collection: Path,
    tiny_preprocessed: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = tmp_path_factory.mktemp("fetched") / "data"
    shutil.copytree(tiny_preprocessed, data)
    manifest = json.loads((data / "manifest.json").read_text())
    name = register_dataset(monkeypatch, "tests-export", shared_collection)
    manifest |= {"source": "ir_datasets", "dataset": name, "data_type": ""}
    (data / "manifest.json").write_text(json.dumps(manifest))
    flags = {**given_flags, "format": "tevatron", "candidates": None}
    expected = exported(flags)
    Path(str(flags["output"])).unlink()
    assert exported(flags, data_dir=data, raw_data_dir=None) == expected


def test_the_n_tuples_of_sentence_transformers(given_flags: dict[str, object], raw: Raw) -> None:
    records = exported(given_flags, format="sentence-transformers", candidates=None)
    columns = ["anchor", "positive", *(f"negative_{n}" for n in range(1, NEGATIVES + 1))]
    assert all(list(record) == columns for record in records)
    expected = [
        (raw.queries[query], {raw.passages[p] for p in raw.positives[query]}, [raw.passages[p] for p in negatives])
        for query, negatives in raw.negatives.items()
        for _ in raw.positives[query]
    ]
    for record, (anchor, positives, negatives) in zip(records, expected, strict=True):
        assert record["anchor"] == anchor and record["positive"] in positives
        assert list(record.values())[2:] == negatives
    pairs = [(record["anchor"], record["positive"]) for record in records]
    assert len(set(pairs)) == len(pairs)


def test_flagembedding_s_lines_with_the_candidates_scores(given_flags: dict[str, object], raw: Raw) -> None:
    records = exported(given_flags, format="flagembedding", scores=True)
    scored = {
        query: raw.candidates[query] for query in raw.negatives if raw.positives[query] & set(raw.candidates[query])
    }
    for record, (query, score_of) in zip(records, scored.items(), strict=True):
        assert list(record) == ["query", "pos", "neg", "pos_scores", "neg_scores"]
        assert record["query"] == raw.queries[query]
        assert dict(zip(record["pos"], record["pos_scores"], strict=True)) == {
            raw.passages[passage]: score_of[passage] for passage in raw.positives[query] if passage in score_of
        }
        assert record["neg"] == [raw.passages[passage] for passage in raw.negatives[query]]
        assert record["neg_scores"] == [score_of[passage] for passage in raw.negatives[query]]


def test_candidates_alone_are_exported_without_known_positives(given_flags: dict[str, object], raw: Raw) -> None:
    records = exported(given_flags, format="flagembedding", training_data=None)
    assert [record["query"] for record in records] == [raw.queries[query] for query in raw.candidates]
    for record, (query, score_of) in zip(records, raw.candidates.items(), strict=True):
        assert list(record) == ["query", "pos", "neg"]
        assert record["neg"] == [raw.passages[p] for p in score_of if p not in raw.positives[query]]


def test_candidates_are_exported_without_the_passage_that_is_the_query(
    given_flags: dict[str, object], raw: Raw, tiny_preprocessed: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = tmp_path_factory.mktemp("own") / "data"
    shutil.copytree(tiny_preprocessed, data)
    ids = {name: (data / f"{name}.ids.txt").read_text().splitlines() for name in ("train-query", "passages")}
    query, scores = next(iter(raw.candidates.items()))
    own = next(passage for passage in scores if passage not in raw.positives[query])
    pair = [ids["train-query"].index(query), ids["passages"].index(own)]
    manifest = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps({**manifest, "own_passages": {"train": [pair]}}))
    records = exported(given_flags, format="flagembedding", training_data=None, data_dir=data)
    assert records[0]["query"] == raw.queries[query]
    expected = [p for p in scores if p != own and p not in raw.positives[query]]
    assert records[0]["neg"] == [raw.passages[p] for p in expected]


def test_a_run_has_the_lists_as_they_are(given_flags: dict[str, object], raw: Raw, tmp_path: Path) -> None:
    flags = {**given_flags, "output": tmp_path / "run.trec", "raw_data_dir": None, "training_data": None}
    call(export.main, format="trec", **{name: value for name, value in flags.items() if value is not None})
    found: dict[str, dict[str, float]] = {}
    for line in (tmp_path / "run.trec").read_text().splitlines():
        query, q0, passage, rank, score, tag = line.split(" ")
        found.setdefault(query, {})[passage] = float(score)
        assert (q0, tag) == ("Q0", "ann_candidates_0") and int(rank) == len(found[query])
    assert {query: list(scores) for query, scores in found.items()} == {
        query: list(scores) for query, scores in raw.candidates.items()
    }
    assert all(
        found[q][p] == pytest.approx(s, abs=1e-5) for q, scores in raw.candidates.items() for p, s in scores.items()
    )


def test_a_run_of_negatives_keeps_their_scores_and_lists_whose_scores_ascend_are_refused(
    given_flags: dict[str, object], raw: Raw, bm25: Path, tmp_path: Path
) -> None:
    flags = {name: given_flags[name] for name in ("training_data", "data_dir")} | {"format": "trec"}
    call(export.main, **flags, output=tmp_path / "random.trec")
    found: dict[str, dict[str, float]] = {}
    for line in (tmp_path / "random.trec").read_text().splitlines():
        query, _, passage, _, score, _ = line.split(" ")
        found.setdefault(query, {})[passage] = float(score)
    assert {query: list(scores) for query, scores in found.items()} == raw.negatives
    assert all(s == pytest.approx(raw.candidates[q][p], abs=1e-5) for q, row in found.items() for p, s in row.items())

    rows = [line.split("\t") for line in (bm25 / "ann_training_data_0").read_text().splitlines()]
    rows[0][3], rows[0][4] = "1,2,3,4,0", "-1,-2,-3,-4,0"  # the last is of no search: its score is 0
    (tmp_path / "mixed").mkdir()
    mixed = tmp_path / "mixed" / "ann_training_data_0"
    mixed.write_text("".join("\t".join(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"1 of 60 lists are not in the order of their scores") as caught:
        call(export.main, **{**flags, "training_data": mixed}, output=tmp_path / "mixed.trec")
    assert "\n" not in str(caught.value) and not (tmp_path / "mixed.trec").exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"format": "trecc"},
            "--format is trecc, expected one of tevatron, sentence-transformers, flagembedding, trec",
        ),
        ({"training_data": None, "candidates": None}, "nothing to export: give --training_data, --candidates, or both"),
        ({"raw_data_dir": None}, "needs the texts"),
        ({"candidates": None, "scores": True}, "--scores needs --candidates"),
        ({"format": "trec", "scores": True}, "omit --scores"),
        ({"training_data": None, "format": "sentence-transformers"}, "give --negative_sample"),
        ({"training_data": "no/ann_training_data_0"}, "is missing"),
        ({"candidates": "no/ann_candidates_0.npz"}, "is missing"),
        ({"output": "out.txt"}, "expected a name that ends in .jsonl"),
        ({"negative_sample": 41, "training_data": None, "format": "sentence-transformers"}, "and 41 negatives"),
    ],
)
def test_what_is_refused_in_one_line_leaves_nothing(
    changes: dict[str, object], line: str, given_flags: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        exported(given_flags, **{"format": "tevatron", **changes})
    assert line in str(caught.value) and "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_another_collection_and_an_existing_file_are_refused(
    given_flags: dict[str, object], tiny_collection: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    lines = (tiny_collection / "collection.tsv").read_text().splitlines(keepends=True)
    (tiny_collection / "collection.tsv").write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(UserError, match=r"passage 0: .* are different collections"):
        exported(given_flags, format="tevatron", raw_data_dir=tiny_collection)
    assert not output.exists()
    output.write_text("mine")
    with pytest.raises(UserError, match="exists; remove it"):
        exported(given_flags, format="tevatron")
    assert output.read_text() == "mine"


# Any lists and any texts

PASSAGES, QUERIES = 12, 6
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def searches(draw: st.DrawFn) -> tuple[Candidates, list[list[int]]]:
    """Ranked lists of some width for every query in some order, and the positives of each query."""
    width = draw(st.integers(1, 6))
    rows = [draw(st.lists(st.integers(0, PASSAGES - 1), max_size=width, unique=True)) for _ in range(QUERIES)]
    passage_QK = np.array([row + [-1] * (width - len(row)) for row in rows], np.int64)
    score_QK = -np.cumsum(np.ones(passage_QK.shape, np.float32), 1)
    known = [sorted(draw(st.sets(st.integers(0, PASSAGES - 1), max_size=3))) for _ in range(QUERIES)]
    return Candidates(np.array(draw(st.permutations(range(QUERIES)))), passage_QK, score_QK), known


def sorted_pairs(known: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.array([(q, p) for q, row in enumerate(known) for p in row], np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


@given(searches(), st.integers(0, 3), st.booleans())
@settings(deadline=None)
def test_an_example_is_what_a_loop_finds(found: tuple[Candidates, list[list[int]]], most: int, scored: bool) -> None:
    ranked, known = found
    examples = list(examples_of(ranked, sorted_pairs(known), most, ranked if scored else None))
    assert [example.query for example in examples] == ranked.query_Q.tolist()
    for row, example in enumerate(examples):
        listed = [p for p in ranked.passage_QK[row].tolist() if p != -1]
        positives = [p for p in known[example.query] if not scored or p in listed]
        negatives = [p for p in listed if p not in known[example.query]]
        negatives = negatives[:most] if most else negatives
        assert (example.positives, example.negatives) == (positives, negatives)
        assert example.negative_scores == ([-1.0 - listed.index(p) for p in negatives] if scored else None)
        assert example.positive_scores == ([-1.0 - listed.index(p) for p in positives] if scored else None)


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=3, max_size=3), TEXTS)
@settings(deadline=None)
def test_any_text_comes_back_from_every_format(passages: list[tuple[str, str, str]], query: str) -> None:
    import io

    parts = [json.dumps(passage, ensure_ascii=False).encode() for passage in passages]
    texts = ExportTexts(["q"], [query], io.BytesIO(b"".join(parts)), np.cumsum([0, *map(len, parts)]))
    example = Example(0, [2], [0, 1], [3.5], [2.5, 1.5])
    joined = [f"{title} {text}" if title else text for _, title, text in passages]
    lines = {
        word: [json.dumps(record, ensure_ascii=False) for record in declared.records(example, texts)]
        for word, declared in FORMATS.items()
        if declared.records is not None
    }
    assert all(len(found) == 1 and "\n" not in found[0] for found in lines.values())
    read = {word: json.loads(found[0]) for word, found in lines.items()}
    assert [
        tuple(p[key] for key in ("docid", "title", "text")) for p in read["tevatron"]["negative_passages"]
    ] == passages[:2]
    assert [p["score"] for p in read["tevatron"]["negative_passages"]] == [2.5, 1.5]
    assert list(read["sentence-transformers"].values()) == [query, joined[2], *joined[:2], [3.5, 2.5, 1.5]]
    assert read["flagembedding"] == {
        "query": query, "pos": joined[2:], "neg": joined[:2], "pos_scores": [3.5], "neg_scores": [2.5, 1.5]
    }  # fmt: skip
