"""data.create_subset: what a subset must keep, for any seed and fraction, and that it is the same every time."""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import create_subset, msmarco_data
from data.create_subset import SubsetSettings, is_kept
from data.sources.base import SourceRequest
from data.sources.msmarco import find_collection
from data.sources.registry import open_source
from data.tokens.collection import open_preprocessed
from drivers import run_eval
from tests.beir import beir_of_documents, documents_of_passages
from utils.errors import UserError, exit_code_of
from utils.exchange.evaluations import read_metrics

KNOWN_CHOICE = [3, 4, 6, 14, 20]
FILES = ("collection.tsv", "queries.train.tsv", "qrels.train.tsv", "queries.dev.small.tsv", "qrels.dev.small.tsv")


def subset(raw: Path, out: Path, fraction: float, seed: int) -> dict[str, list[list[str]]]:
    """The records of each file of the subset."""
    create_subset.create_subset(find_collection(raw, 1), out, SubsetSettings(fraction, seed))
    return records(out)


def records(directory: Path) -> dict[str, list[list[str]]]:
    return {name: [line.split("\t") for line in (directory / name).read_text().splitlines()] for name in FILES}


def is_subsequence(part: list, whole: list) -> bool:
    rest = iter(whole)
    return all(item in rest for item in part)


@settings(max_examples=25, deadline=None)
@given(fraction=st.floats(0.2, 1), seed=st.integers(0, 2**63))
def test_every_subset(shared_collection: Path, fraction: float, seed: int) -> None:
    whole = records(shared_collection)
    with tempfile.TemporaryDirectory() as directory:
        part = subset(shared_collection, Path(directory) / "out", fraction, seed)
        again = Path(directory) / "again"
        subset(shared_collection, again, fraction, seed)
        for path in (Path(directory) / "out").iterdir():
            assert path.read_bytes() == (again / path.name).read_bytes()
    for name in FILES:
        assert is_subsequence(part[name], whole[name])
    for name in ("queries.dev.small.tsv", "qrels.dev.small.tsv"):
        assert part[name] == whole[name]
    queries = {query for query, _ in part["queries.train.tsv"]}
    assert part["qrels.train.tsv"] == [qrel for qrel in whole["qrels.train.tsv"] if qrel[0] in queries]
    passages = {passage for passage, _ in part["collection.tsv"]}
    for name in ("qrels.train.tsv", "qrels.dev.small.tsv"):
        assert {qrel[2] for qrel in part[name]} <= passages
    if fraction == 1:
        assert part == whole


def test_a_larger_fraction_keeps_what_a_smaller_one_does(shared_collection: Path, tmp_path: Path) -> None:
    parts = [subset(shared_collection, tmp_path / str(fraction), fraction, 3) for fraction in (0.2, 0.5, 0.8)]
    for smaller, larger in pairwise(parts):
        for name in FILES:
            assert is_subsequence(smaller[name], larger[name]) and len(smaller[name]) <= len(larger[name])
    assert len(parts[0]["collection.tsv"]) < len(parts[2]["collection.tsv"])


def test_order_of_the_files_does_not_matter(tiny_collection: Path, shared_collection: Path, tmp_path: Path) -> None:
    for name in FILES:
        lines = (tiny_collection / name).read_text().splitlines(keepends=True)
        (tiny_collection / name).write_text("".join(reversed(lines)))
    backward = subset(tiny_collection, tmp_path / "backward", 0.4, 9)
    forward = subset(shared_collection, tmp_path / "forward", 0.4, 9)
    for name in FILES:
        assert backward[name] == forward[name][::-1]


def test_seeds_differ_and_fractions_hold() -> None:
    ids = [str(number) for number in range(20_000)]
    kept = {(kind, seed): {i for i in ids if is_kept(kind, i, seed, 0.1)} for kind in "qp" for seed in (1, 2)}
    for chosen in kept.values():
        assert len(chosen) == pytest.approx(2000, abs=200)  # 4.7 standard deviations
    pairs = [(a, b) for a in kept for b in kept if a < b]
    for a, b in pairs:  # independent draws share a hundredth
        assert len(kept[a] & kept[b]) == pytest.approx(200, abs=70)
    assert all(is_kept("q", text_id, 1, 1.0) for text_id in ids)


def test_known_choice() -> None:
    """What a seed keeps is part of a published subset: it must not change between versions."""
    kept = [number for number in range(40) if is_kept("passage", str(number), 42, 0.1)]
    assert kept == KNOWN_CHOICE


@pytest.fixture
def run(tiny_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the program in this process on the tiny collection into tmp_path/out; its exit code."""

    def run_with(*more: str) -> int:
        words = ["--data_dir", str(tiny_collection), "--out_data_dir", str(tmp_path / "out"), "--data_type", "1"]
        monkeypatch.setattr(sys, "argv", ["create_subset", *words, "--fraction", "0.5", "--seed", "1", *more])
        return exit_code_of("create_subset", create_subset.main)

    return run_with


def test_it_says_what_was_kept_and_dropped(
    run: Callable[..., int], tiny_collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tiny_collection / "top1000.dev").write_text("q\tp\ta\tb\n")
    (tiny_collection / "triples.train.small.tsv.gz").write_bytes(b"")
    with (tiny_collection / "queries.train.tsv").open("a") as file:
        file.write("q900\tnever judged\n")
    assert run() == 0
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "subset.json").read_text())
    part = records(tmp_path / "out")
    for name, total in zip(FILES, (300, 61, 66, 20, 22), strict=True):
        kept = len(part[name])
        assert record["files"][name] == {"kept": kept, "dropped": total - kept}
        assert f"{name}: kept {kept}, dropped {total - kept}\n" in said
    assert "q900" not in {query for query, _ in part["queries.train.tsv"]}
    assert record["not_carried_over"] == ["triples.train.small.tsv", "top1000.dev"]
    assert "triples.train.small.tsv: not carried over" in said
    assert (record["fraction"], record["seed"]) == (0.5, 1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*FILES, "subset.json"])


def test_documents_keep_their_columns(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    documents = "".join(f"D{number}\thttp://x/{number}\t\tbody {number} \n" for number in range(50))
    (raw / "msmarco-docs.tsv").write_text(documents)
    for split in ("train", "dev"):
        (raw / f"msmarco-doc{split}-queries.tsv").write_text("7\twhat is it\n8\twhy\n")
        (raw / f"msmarco-doc{split}-qrels.tsv").write_text("7 0 D2 1\n8 0 D3 1\n")
    create_subset.create_subset(find_collection(raw, 0), out, SubsetSettings(fraction=1.0, seed=42))
    assert (out / "msmarco-docs.tsv").read_text() == documents
    assert (out / "msmarco-doctrain-qrels.tsv").read_text() == "7\t0\tD2\t1\n8\t0\tD3\t1\n"


def add_line(directory: Path, name: str, line: str) -> None:
    with (directory / name).open("a") as file:
        file.write(line)


@pytest.mark.parametrize(
    "name, line, message",
    [
        ("collection.tsv", "p9000\t\n", "collection.tsv, line 301: the text of 'p9000' is empty"),
        ("collection.tsv", "p9000\thalf", "collection.tsv, line 301: the last line has no line end"),
        ("queries.train.tsv", "q1\tagain\n", "queries.train.tsv, line 61: the id 'q1'"),
        ("qrels.train.tsv", "q1\tp3\n", "qrels.train.tsv, line 67: 2 columns"),
        (
            "qrels.dev.small.tsv",
            "q61\t0\tp0\t1\n",
            "1 of 23 qrels (4.35%) name what is not there: 1 an unknown passage",
        ),
        ("qrels.train.tsv", "q999\t0\tp3\t1\n", "1 of 67 qrels (1.49%) name what is not there: 1 an unknown query"),
    ],
)
def test_bad_input_leaves_nothing(
    run: Callable[..., int],
    tiny_collection: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    line: str,
    message: str,
) -> None:
    add_line(tiny_collection, name, line)
    assert run() == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()
    if "not there" in message:
        assert run("--allow_missing") == 0


@pytest.mark.parametrize(
    "more, message",
    [
        (["--fraction", "1e-9"], "no judged query is among the 1e-09 kept of 60; raise --fraction"),
        (["--data_type", "0"], "did you mean --data_type 1"),
    ],
)
def test_bad_flags(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert run(*more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_collection_is_never_overwritten(
    run: Callable[..., int], tiny_collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = records(tiny_collection)
    assert run("--out_data_dir", str(tiny_collection)) == 2
    assert "already holds collection.tsv" in capsys.readouterr().err
    assert run() == 0
    assert run() == 2
    assert "already holds subset.json" in capsys.readouterr().err
    assert records(tiny_collection) == before


def test_dry_run_writes_nothing(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--dry_run") == 0
    assert json.loads(capsys.readouterr().out)["fraction"] == 0.5
    assert not (tmp_path / "out").exists()


def test_a_dry_run_reads_the_judgements(
    run: Callable[..., int], tiny_collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_line(tiny_collection, "qrels.dev.small.tsv", "q60\t0\tp3\t5000\n")
    assert run("--dry_run") == 2
    assert "the relevance is '5000', expected an integer from -1000 to 1000" in capsys.readouterr().err


def test_subset_of_a_subset_has_no_unknown_id(shared_collection: Path, tmp_path: Path) -> None:
    subset(shared_collection, tmp_path / "half", 0.5, 1)
    subset(tmp_path / "half", tmp_path / "quarter", 0.5, 2)
    record = json.loads((tmp_path / "quarter" / "subset.json").read_text())
    assert record["judged_passages"]["not in the collection"] == 0
    with pytest.raises(UserError, match="no judged query"):
        subset(tmp_path / "quarter", tmp_path / "none", 1e-12, 1)
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module", name="folder")
def fixture_folder(shared_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder: titles, grades, a split test that shares train's queries, and texts that no column can hold."""
    base = tmp_path_factory.mktemp("beir")
    folder = beir_of_documents(documents_of_passages(shared_collection, base / "documents"), base / "folder")
    train = (folder / "qrels" / "train.tsv").read_text().splitlines()
    (folder / "qrels" / "test.tsv").write_text("\n".join([train[0], *train[2:24:2], "q3\tp3\t2"]) + "\n")
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "odd", "title": "a\\tb", "text": "two\\nlines \u2028 \u00e9 \\ud83d\\ude00"}\n')
        file.write('{"_id": "e", "text": ""}\n')
        file.write('{"_id": 7, "title": null, "text": " blank ", "metadata": {}}\n')
    with (folder / "queries.jsonl").open("a") as file:
        file.write('{"_id": "nowhere", "text": "judged in no split"}\n')
    return folder


def beir_subset(folder: Path, out: Path, *more: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["create_subset", "--data_dir", str(folder), "--out_data_dir", str(out), *more])
        return exit_code_of("create_subset", create_subset.main)


def test_a_subset_of_a_beir_folder_is_the_part_in_the_whole(folder: Path, tmp_path: Path) -> None:
    """Ids, titles, texts and grades of what is kept; every split but train whole; with a fraction of 1 all of it."""
    assert beir_subset(folder, tmp_path / "part", "--fraction", "0.5", "--seed", "3") == 0
    assert beir_subset(folder, tmp_path / "all", "--fraction", "1") == 0
    whole, part, everything = (
        open_source(SourceRequest(place)) for place in (folder, tmp_path / "part", tmp_path / "all")
    )
    assert part.record == whole.record == {"source": "beir"}
    assert [*part.split_files] == [*whole.split_files] == ["train", "dev", "test"]
    assert list(everything.passages()) == list(whole.passages())
    kept = list(part.passages())
    assert is_subsequence(kept, list(whole.passages())) and 150 < len(kept) < 260
    assert {passage.title for passage in kept} > {None, ""}
    for split in whole.split_files:
        queries, qrels = dict(part.queries(split)), list(part.qrels(split))
        assert dict(everything.queries(split)) == dict(whole.queries(split))
        assert list(everything.qrels(split)) == list(whole.qrels(split))
        assert queries.items() <= dict(whole.queries(split)).items()
        assert qrels == [qrel for qrel in whole.qrels(split) if qrel[0] in queries]
        assert (len(queries) == len(dict(whole.queries(split)))) == (split != "train")
        assert {passage for _, passage, _ in qrels} <= {passage.passage_id for passage in kept}
    record = json.loads((tmp_path / "part" / "subset.json").read_text())
    assert record["source"] == "beir" and "data_type" not in record
    assert record["files"]["corpus.jsonl"] == {"kept": len(kept), "dropped": 303 - len(kept)}
    queries_kept = len((tmp_path / "part" / "queries.jsonl").read_text().splitlines())
    assert record["files"]["queries.jsonl"] == {"kept": queries_kept, "dropped": 80 - queries_kept}
    names = {str(path.relative_to(tmp_path / "part")) for path in (tmp_path / "part").rglob("*") if path.is_file()}
    assert names == {*record["files"], "subset.json"}


def test_a_subset_of_a_beir_folder_is_evaluated_as_the_part_in_the_whole(
    folder: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """Preprocessed: the same tokens; the same metrics of a run over what is kept."""
    assert beir_subset(folder, tmp_path / "part", "--fraction", "0.5") == 0
    found = {}
    for name, place in {"whole": folder, "part": tmp_path / "part"}.items():
        lengths = ("--max_seq_length", "32", "--max_query_length", "16")
        model = ("--model_type", "static", "--model_name_or_path", tiny_tokenizer)
        words = ("--data_dir", place, "--out_data_dir", tmp_path / "data" / name, *model, *lengths)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["msmarco_data", *map(str, words)])
            assert exit_code_of("msmarco_data", msmarco_data.main) == 0
        found[name] = open_preprocessed(tmp_path / "data" / name, 32, 16)
    kept = found["part"].passages.original_ids()
    offsets = {an_id: offset for offset, an_id in enumerate(found["whole"].passages.original_ids())}
    pairs = zip(
        found["part"].passages.gather(range(len(kept)), 32),
        found["whole"].passages.gather([offsets[an_id] for an_id in kept], 32),
        strict=True,
    )
    assert all(np.array_equal(ours, theirs) for ours, theirs in pairs)
    rng, run = random.Random(5), tmp_path / "given.tsv"
    with run.open("w") as file:
        for query_id in found["part"].queries("test").original_ids():
            ranked = rng.sample(kept, len(kept))
            file.writelines(f"{query_id}\t{passage}\t{rank}\n" for rank, passage in enumerate(ranked))
    metrics = []
    for name in found:
        words = (
            "--data_dir",
            tmp_path / "data" / name,
            "--run",
            run,
            "--split",
            "test",
            "--output_dir",
            tmp_path / name,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["run_eval", *map(str, words), "--topk", "100"])
            assert exit_code_of("run_eval", run_eval.main) == 0
        metrics.append(read_metrics(tmp_path / name / "given" / "metrics.json")["splits"]["test"])
    assert metrics[0] == metrics[1] and metrics[0]["metrics"]["recall@100"] > 0


def test_a_beir_folder_is_never_overwritten(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "qrels").mkdir()
    for place, taken in ((folder, "corpus.jsonl"), (tmp_path, "qrels")):
        assert beir_subset(folder, place, "--fraction", "0.5") == 2
        assert f"{place} already holds {taken}; remove it" in capsys.readouterr().err
