"""One collection in every layout gives one preprocessed directory; TREC's splits, and a passage that is its query."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ir_datasets
import pytest
from ir_datasets.datasets.base import Dataset
from ir_datasets.datasets.beir import BeirTitleDoc
from ir_datasets.formats import BaseDocs, BaseQrels, BaseQueries, GenericDoc, GenericQrel, GenericQuery

from data import create_subset, msmarco_data
from data.sources.base import SourceRequest
from data.sources.registry import open_source
from data.tokens.collection import Preprocessed, open_preprocessed
from drivers import run_bm25
from tests.beir import beir_of_documents, beir_of_msmarco, documents_of_passages, rows_of
from utils.errors import UserError, exit_code_of

Rows = list[list[str]]
SPLITS = {"train": "train", "dev": "dev.small"}


class Docs(BaseDocs):
    """Rows of passages (id, text), or of documents (id, url, title, body)."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def docs_iter(self) -> Iterator[GenericDoc | BeirTitleDoc]:
        for row in self.rows:
            yield GenericDoc(*row) if len(row) == 2 else BeirTitleDoc(row[0], row[3], row[2])


class Queries(BaseQueries):
    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def queries_iter(self) -> Iterator[GenericQuery]:
        return (GenericQuery(*row) for row in self.rows)


class Qrels(BaseQrels):
    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def qrels_iter(self) -> Iterator[GenericQrel]:
        return (GenericQrel(query, passage, int(grade)) for query, _, passage, grade in self.rows)


def register_dataset(monkeypatch: pytest.MonkeyPatch, name: str, raw: Path) -> str:
    """Give ir_datasets the files of MS MARCO's layout as a dataset with a subset for each split; its name."""
    is_of_documents = (raw / "msmarco-docs.tsv").exists()
    docs = Docs(rows_of(raw / ("msmarco-docs.tsv" if is_of_documents else "collection.tsv")))
    monkeypatch.setitem(ir_datasets.registry._registered, name, Dataset(docs))
    for split, file in SPLITS.items():
        names = [f"msmarco-doc{split}-{kind}" if is_of_documents else f"{kind}.{file}" for kind in ("queries", "qrels")]
        queries, qrels = (raw / f"{each}.tsv" for each in names)
        judgements = [line.split() for line in qrels.read_text().splitlines()]
        of_split = Dataset(docs, Queries(rows_of(queries)), Qrels(judgements))
        monkeypatch.setitem(ir_datasets.registry._registered, f"{name}/{split}", of_split)
    return name


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], str]:
    return partial(register_dataset, monkeypatch)


def preprocess(monkeypatch: pytest.MonkeyPatch, out: Path, tokenizer: Path, *source: object) -> int:
    words = ("--out_data_dir", out, "--model_type", "static", "--model_name_or_path", tokenizer, *source)
    lengths = ("--max_seq_length", 32, "--max_query_length", 16)
    monkeypatch.setattr(sys, "argv", ["msmarco_data", *map(str, (*words, *lengths))])
    return exit_code_of("msmarco_data", msmarco_data.main)


def layouts_of_passages(
    raw: Path, folder: Path, register: Callable[[str, Path], str]
) -> dict[str, tuple[str | Path, ...]]:
    return {
        "msmarco": ("--data_dir", raw, "--source", "msmarco"),
        "beir": ("--data_dir", beir_of_msmarco(raw, folder, SPLITS)),
        "ir_datasets": ("--dataset", register("tests-layouts", raw)),
    }


def layouts_of_documents(
    raw: Path, folder: Path, register: Callable[[str, Path], str]
) -> dict[str, tuple[str | Path, ...]]:
    """With titles and grades."""
    documents = documents_of_passages(raw, folder.with_name("documents"))
    return {
        "msmarco": ("--data_dir", documents),
        "beir": ("--data_dir", beir_of_documents(documents, folder)),
        "ir_datasets": ("--dataset", register("tests-documents", documents)),
    }


@pytest.mark.parametrize("layouts_of", [layouts_of_passages, layouts_of_documents])
def test_one_collection_in_three_layouts_is_one_preprocessed_directory(
    shared_collection: Path,
    tiny_preprocessed: Path,
    tiny_tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    register: Callable[[str, Path], str],
    capsys: pytest.CaptureFixture[str],
    layouts_of: Callable[..., dict[str, tuple[str | Path, ...]]],
) -> None:
    """The same bytes in every file, the same BM25 run, metrics and negatives; the manifest names another source."""
    names = {path.name for path in tiny_preprocessed.iterdir()} - {"manifest.json"}
    first = tiny_preprocessed if layouts_of is layouts_of_passages else tmp_path / "msmarco"
    for word, source in layouts_of(shared_collection, tmp_path / "folder", register).items():
        assert preprocess(monkeypatch, tmp_path / word, tiny_tokenizer, *source) == 0, capsys.readouterr().err
        manifest = open_preprocessed(tmp_path / word, 32, 16).manifest
        assert manifest["source"] == word
        assert {path.name for path in (tmp_path / word).iterdir()} == {*names, "manifest.json"}
        for name in names:
            assert (tmp_path / word / name).read_bytes() == (first / name).read_bytes(), (word, name)
        assert f"source {word}: passages" in capsys.readouterr().out
        raw = () if word == "ir_datasets" else ("--raw_data_dir", source[1])
        search = ("--data_dir", tmp_path / word, "--output_dir", tmp_path / f"{word}_bm25", "--topk_training", 50, *raw)
        monkeypatch.setattr(sys, "argv", ["run_bm25", *map(str, search)])
        assert exit_code_of("run_bm25", run_bm25.main) == 0, capsys.readouterr().err
        made = [tmp_path / f"{layout}_bm25" for layout in ("msmarco", word)]
        for name in ("dev.trec", "ann_training_data_0"):
            assert (made[0] / name).read_bytes() == (made[1] / name).read_bytes()
        of_msmarco, found = (json.loads((directory / "metrics.json").read_text())["metrics"] for directory in made)
        assert found == {name: of_msmarco[name] for name in found} and found["ndcg@10"] > 0.5
    collection = open_preprocessed(tmp_path / "beir", 32, 16)
    grades = {*collection.qrels("train").relevance_R.tolist()} | {*collection.qrels("dev").relevance_R.tolist()}
    lengths_N = collection.passages.lengths(32) - open_preprocessed(tiny_preprocessed, 32, 16).passages.lengths(32)
    assert grades == ({1} if layouts_of is layouts_of_passages else {0, 1, 2, 3})
    assert bool((lengths_N > 0).any()) == (layouts_of is layouts_of_documents), "titles are encoded"


def judged(collection: Preprocessed, split: str) -> dict[tuple[str, str], int]:
    qrels = collection.qrels(split)
    queries, passages = collection.queries(split).original_ids(), collection.passages.original_ids()
    rows = zip(qrels.query_R.tolist(), qrels.passage_R.tolist(), qrels.relevance_R.tolist(), strict=True)
    return {(queries[query], passages[passage]): grade for query, passage, grade in rows}


@pytest.fixture
def trec(tiny_collection: Path) -> Path:
    """MS MARCO's layout with TREC's and the leaderboard's files: blanks in the qrels, queries that nobody judged."""
    (tiny_collection / "msmarco-test2019-queries.tsv").write_text("901\tone\n902\ttwo\n903\tthree\n")
    (tiny_collection / "2019qrels-pass.txt").write_text("902 Q0 p3 0\n902 Q0 p10 3\n901 Q0 p17 2\n")
    (tiny_collection / "msmarco-test2020-queries.tsv").write_text("904\tfour\n")
    (tiny_collection / "2020qrels-pass.txt").write_text("904\t0\tp24\t1\n")
    (tiny_collection / "queries.eval.small.tsv").write_text("905\tfive\n906\tsix\n")
    return tiny_collection


def test_every_split_that_is_there_is_written(
    trec: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert preprocess(monkeypatch, tmp_path / "out", tiny_tokenizer, "--data_dir", trec) == 0
    found = open_preprocessed(tmp_path / "out", 32, 16)
    assert found.splits == ("train", "dev", "trec2019", "trec2020", "leaderboard")
    assert found.queries("trec2019").original_ids() == ["901", "902", "903"]
    assert judged(found, "trec2019") == {("902", "p3"): 0, ("902", "p10"): 3, ("901", "p17"): 2}
    assert judged(found, "trec2020") == {("904", "p24"): 1}
    assert {split: found.relevance_level(split) for split in found.splits if found.relevance_level(split) != 1} == {
        "trec2019": 2,
        "trec2020": 2,
    }
    assert found.queries("leaderboard").original_ids() == ["905", "906"]
    assert not found.has_qrels("leaderboard") and len(found.qrels("leaderboard").query_R) == 0
    assert not (tmp_path / "out" / "leaderboard-qrel.tsv").exists() and found.dev_split() == "dev"
    with pytest.raises(
        UserError, match="expected a split other than train that has qrels, there is dev, trec2019, trec"
    ):
        found.dev_split("leaderboard")


def test_a_subset_has_every_split(trec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    words = ("--data_dir", trec, "--out_data_dir", out, "--fraction", 0.2)
    monkeypatch.setattr(sys, "argv", ["create_subset", *map(str, words)])
    assert exit_code_of("create_subset", create_subset.main) == 0
    found = open_source(SourceRequest(out))
    assert list(found.split_files) == ["train", "dev", "trec2019", "trec2020", "leaderboard"]
    kept = {passage.passage_id for passage in found.passages()}
    assert {"p3", "p10", "p17", "p24"} <= kept and len(kept) < 200
    assert list(found.queries("leaderboard")) == [("905", "five"), ("906", "six")]


def test_queries_of_trec_without_their_qrels_are_no_split(tiny_collection: Path) -> None:
    """They are of passages and documents, which often lie in one directory."""
    (tiny_collection / "msmarco-test2019-queries.tsv").write_text("901\tone\n")
    (tiny_collection / "2019qrels-docs.txt").write_text("901 Q0 D1 1\n")
    source = open_source(SourceRequest(tiny_collection))
    assert list(source.split_files) == ["train", "dev"]
    assert source.remarks() == ["no split trec2019: msmarco-test2019-queries.tsv is there, 2019qrels-pass.txt is not"]


def test_what_people_expect_of_beir_is_said(
    tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ArguAna: no train split, every query a passage; an empty text, a query that is judged nowhere."""
    folder = tmp_path / "arguana"
    (folder / "qrels").mkdir(parents=True)
    corpus = [("a", "Topic", "Meat is  murder."), ("b", "Topic", "Meat is food."), ("1", "", "one"), ("e", "", "")]
    corpus += [("2", "", "Two and more."), ("3", "Three", "x")]
    lines = [json.dumps({"_id": an_id, "title": title, "text": text}) for an_id, title, text in corpus]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    queries = {"a": "topic meat is murder.", "b": "Meat is food.", "1": "another text by chance", "z": "nowhere"}
    queries |= {"2": "more", "3": "what is three x"}  # a part of it, and more than it
    lines = [json.dumps({"_id": an_id, "text": text}) for an_id, text in queries.items()]
    (folder / "queries.jsonl").write_text("\n".join(lines))
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\na\tb\t1\nb\ta\t1\nb\tb\t0\n1\ta\t1\n2\ta\t1\n3\ta\t1\n"
    )
    assert preprocess(monkeypatch, tmp_path / "out", tiny_tokenizer, "--data_dir", folder) == 0
    said = capsys.readouterr().out
    for words in (
        "splits test",
        "no split train: this collection can be searched and evaluated, not trained on",
        "1 queries (as 'z') are judged in no split",
        "1 passages without text",
        "2 test-query that is a passage itself",
    ):
        assert words in said, said
    found = open_preprocessed(tmp_path / "out", 32, 16)
    assert found.own_passages("test") == {0: 0, 1: 1}
    assert len(found.passages) == 6 and found.splits == ("test",)


MIXED: dict[str, tuple[tuple[str, ...], str]] = {
    "two layouts": (
        ("collection.tsv", "corpus.jsonl"),
        "files of several collections, collection.tsv (msmarco) and corp",
    ),
    "passages and documents": (("collection.tsv", "msmarco-docs.tsv"), "has both msmarco-docs.tsv and collection.tsv"),
    "nothing": ((), "has no collection, expected msmarco-docs.tsv or collection.tsv (msmarco), corpus.jsonl (beir)"),
}


@pytest.mark.parametrize("case", MIXED)
def test_auto_names_what_it_cannot_tell(tmp_path: Path, case: str) -> None:
    names, message = MIXED[case]
    for name in names:
        (tmp_path / name).write_text("")
    with pytest.raises(UserError) as caught:
        open_source(SourceRequest(tmp_path))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (SourceRequest(None), "no collection: give the directory of its raw files, or --dataset"),
        (SourceRequest(Path("x"), "bier"), "--source is bier, expected auto or one of msmarco, beir, dpr, ir_datasets"),
        (SourceRequest(Path("x"), "beir", dataset="beir/scifact"), "--dataset names a dataset of ir_datasets"),
        (SourceRequest(Path("x"), "beir", "1"), "--data_type is of MS MARCO's files, --source is beir"),
        (SourceRequest(None, "dpr"), "--source dpr reads a directory of raw files, and none was given"),
        (SourceRequest(Path("x"), dataset="beir/scifact"), "is in no directory, and one was given, x"),
        (SourceRequest(None, "ir_datasets"), "needs --dataset, the name of one"),
        (SourceRequest(None, dataset="beir/scifakt"), "has no dataset beir/scifakt; did you mean beir/scifact"),
        (SourceRequest(None, dataset="msmarco-passage/train/triples-v2/x"), "ir_datasets has no dataset"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line(request_: SourceRequest, message: str) -> None:
    with pytest.raises(UserError) as caught:
        open_source(request_)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_names_of_ir_datasets_become_splits() -> None:
    """By the package's own list; nothing is fetched."""
    found = {
        name: dict(open_source(SourceRequest(None, dataset=name)).split_files)
        for name in (
            "beir/nfcorpus",
            "msmarco-passage/trec-dl-2019/judged",
            "beir/arguana",
            "msmarco-document/eval",
            "msmarco-passage/eval",
            "car/v1.5/trec-y1",
            "tripclick/test",
        )
    }
    assert {name: list(splits) for name, splits in found.items()} == {
        "beir/nfcorpus": ["dev", "test", "train"],
        "msmarco-passage/trec-dl-2019/judged": ["trec-dl-2019"],
        "beir/arguana": ["test"],
        "msmarco-document/eval": ["eval"],
        "msmarco-passage/eval": ["eval"],
        "car/v1.5/trec-y1": ["trec-y1"],
        "tripclick/test": ["test"],
    }
    own = {found[name][split].queries for name, split in (("msmarco-passage/eval", "eval"), ("tripclick/test", "test"))}
    assert own == {"msmarco-passage/eval", "tripclick/test"}
    levels = {name: {files.relevance_level for files in splits.values()} for name, splits in found.items()}
    assert [name for name, of_splits in levels.items() if of_splits != {1}] == ["msmarco-passage/trec-dl-2019/judged"]
    assert found["beir/nfcorpus"]["test"].qrels == "beir/nfcorpus/test"
    assert found["msmarco-document/eval"]["eval"].qrels is None


@pytest.mark.parametrize("name", [name for name in ir_datasets.registry if "/trec-dl-20" in name])
def test_the_relevance_level_of_trec_s_splits_is_that_of_their_measures(name: str) -> None:
    """By the package's own account of the official measures, where it has one."""
    (files,) = open_source(SourceRequest(None, dataset=name)).split_files.values()
    official = ir_datasets.load(name).documentation().get("official_measures", [])
    of_precision = [text for text in map(str, official) if text.startswith(("AP", "MAP", "P"))]
    if "-passage" in name and official:
        assert "RR(rel=2)" in map(str, official) and files.relevance_level == 2
    elif of_precision:
        assert not any("rel=" in text for text in of_precision) and files.relevance_level == 1


def test_subsets_of_one_split_and_subsets_over_other_documents_are_refused(
    monkeypatch: pytest.MonkeyPatch, register: Callable[[str, Path], str], shared_collection: Path
) -> None:
    with pytest.raises(UserError, match="trec-tot/2025 has no queries, and no subset over its documents has"):
        open_source(SourceRequest(None, dataset="trec-tot/2025"))
    name = register("tests-repeat", shared_collection)
    registered = ir_datasets.registry._registered
    docs = registered[name].docs_handler()
    monkeypatch.setitem(registered, f"{name}/group", Dataset(docs))
    for part in ("a", "b"):
        monkeypatch.setitem(registered, f"{name}/group/{part}", registered[f"{name}/dev"])
    with pytest.raises(UserError, match=f"{name}/group/a and {name}/group/b are both a split group; name one of them"):
        open_source(SourceRequest(None, dataset=f"{name}/group"))


def test_without_network_or_package_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(SourceRequest(None, dataset="beir/scifact"))
    monkeypatch.setattr(type(ir_datasets.load("beir/scifact").docs_handler()), "docs_iter", no_network)
    with pytest.raises(UserError, match=r"ir_datasets cannot read beir/scifact .*check the network") as caught:
        list(source.passages())
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(UserError, match="needs the package ir-datasets, which is not installed: pip install"):
        open_source(SourceRequest(None, dataset="beir/scifact"))


def no_network(_: object) -> Iterator[Any]:
    raise ConnectionError("Max retries exceeded\nwith url")
