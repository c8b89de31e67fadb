"""utils.text_files: a first line that names the columns is refused, by every reader and in every program's dry run."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from data import create_subset, msmarco_data, wordpiece
from data.sources.judgements import read_qrels
from data.sources.msmarco import read_passages, read_queries
from data.training.text_triples import read_text_triples
from drivers import run_bm25, run_eval, run_warmup
from tests.conftest import TINY_MAX_QUERY_LENGTH, TINY_MAX_SEQ_LENGTH
from tests.drivers.models import save_random_static
from utils.errors import UserError, exit_code_of
from utils.ir.trec import read_lists_to_rerank
from utils.text_files import is_header

IDS, TEXTS = ("pid", "id", "docid", "_id"), ("text", "passage", "contents")
HEADERS: dict[str, list[str]] = {
    "collection.tsv": [*(f"{an_id}\t{text}" for an_id in IDS for text in TEXTS), "PID\tText", '"id"\t"contents"'],
    "queries.tsv": ["qid\tquery", "query_id\ttext", "query-id\tquery", "_id\ttext", "Query ID\tQuery Text"],
    "qrels.tsv": [
        "query-id\tcorpus-id\tscore",  # BEIR's
        "qid\t0\tpid\trelevance",
        "query_id iteration doc_id relevance",
        "topic iter docno rel",
        "Query-ID Q0 Corpus-ID Label",
    ],
    "msmarco-docs.tsv": ["docid\turl\ttitle\tbody"],
    "triples.tsv": ["query\tpositive\tnegative", "query\tpos\tneg", "anchor\tpositive_passage\tnegative_passage"],
    "top1000.dev": ["qid\tpid\tquery\tpassage", "query_id Q0 doc_id rank score tag"],
}
READERS: dict[str, Callable[[Path], Iterable[object]]] = {
    "collection.tsv": lambda path: read_passages(path, 1),
    "queries.tsv": read_queries,
    "qrels.tsv": read_qrels,
    "msmarco-docs.tsv": lambda path: read_passages(path, 0),
    "triples.tsv": read_text_triples,
    "top1000.dev": lambda path: read_lists_to_rerank(path, ["q1"], ["p1"]),
}
RECORDS = {
    "collection.tsv": "p1\ttext",
    "queries.tsv": "q1\tquery",
    "qrels.tsv": "q1\t0\tp1\t1",
    "msmarco-docs.tsv": "p1\turl\ttitle\tbody",
    "triples.tsv": "who\tpositive\tnegative",
    "top1000.dev": "q1\tp1\tquery\tpassage",
}


@pytest.mark.parametrize(
    ("name", "header"), [(name, header) for name, headers in HEADERS.items() for header in headers]
)
@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["", "after a byte order mark"])
@pytest.mark.parametrize("is_gzipped", [False, True], ids=["plain", "gzipped"])
def test_a_header_is_refused_and_never_dropped(
    name: str, header: str, start: str, is_gzipped: bool, tmp_path: Path
) -> None:
    path = tmp_path / name
    content = f"{start}{header}\r\n{RECORDS[name]}\n".encode()
    path.write_bytes(gzip.compress(content) if is_gzipped else content)
    with pytest.raises(UserError) as caught:
        list(READERS[name](path))
    assert str(caught.value) == (
        f"{path}, line 1: {header!r} is a header, expected the first record (these files have none); remove that line"
    )


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_such_words_is_none(name: str, tmp_path: Path) -> None:
    """Nor is a header's line further down: a text may be one word."""
    assert not is_header(RECORDS[name])
    later = {"collection.tsv": "id\ttext", "queries.tsv": "qid\tquery", "triples.tsv": "query\tpositive\tnegative"}
    path = tmp_path / name
    path.write_text(f"{RECORDS[name]}\n" + (f"{later[name]}\n" if name in later else ""))
    assert len(list(READERS[name](path))) == 1 + (name in later)
    for text in ("", "text", "pid", "0\tquery", "17\ttext", "id\ttext of a passage", "q1 0 p1 1"):
        assert not is_header(text)


def add_header(path: Path, header: str) -> None:
    path.write_text(f"{header}\n{path.read_text()}")


def dry_run(program: str, main: Callable[[], None], words: list[object], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", [program, *map(str, words), "--dry_run"])
    return exit_code_of(program, main)


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("collection.tsv", "pid\ttext"),
        ("queries.train.tsv", "qid\tquery"),
        ("queries.dev.small.tsv", "query_id\ttext"),
        ("qrels.train.tsv", "query-id\tcorpus-id\tscore"),
        ("qrels.dev.small.tsv", "qid 0 pid relevance"),
    ],
)
def test_a_header_of_a_raw_file_is_found_in_the_dry_run(
    name: str,
    header: str,
    tiny_collection: Path,
    tiny_tokenizer: Path,
    tiny_preprocessed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_header(tiny_collection / name, header)
    out = tmp_path / "out"
    programs: dict[str, tuple[Callable[[], None], list[object]]] = {
        "msmarco_data": (
            msmarco_data.main,
            [
                "--model_type",
                "static",
                "--model_name_or_path",
                tiny_tokenizer,
                "--data_type",
                "1",
                "--out_data_dir",
                out,
            ],
        ),
        "create_subset": (create_subset.main, ["--fraction", "0.5", "--data_type", "1", "--out_data_dir", out]),
        "run_bm25": (
            run_bm25.main,
            [
                "--raw_data_dir",
                tiny_collection,
                "--data_dir",
                tiny_preprocessed,
                "--output_dir",
                out,
                "--topk_training",
                50,
            ],
        ),
    }
    if name in ("collection.tsv", "queries.train.tsv"):
        programs["wordpiece"] = (wordpiece.main, ["--out_dir", out])
    for program, (main, words) in programs.items():
        given = words if "--data_dir" in words else ["--data_dir", tiny_collection, *words]
        assert dry_run(program, main, given, monkeypatch) == 2, program
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"{name}, line 1: {header!r} is a header" in error, error
        assert not out.exists()


@pytest.mark.parametrize("header", ["query\tpositive\tnegative", "qid\tpid\tquery\tpassage"])
def test_a_header_of_triples_or_candidates_is_found_in_the_dry_run(
    header: str,
    tiny_preprocessed: Path,
    tiny_tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = save_random_static(tiny_preprocessed, tiny_tokenizer, tmp_path / "model")
    path = tmp_path / "given.tsv"
    path.write_text(f"{header}\n{header.replace('qid', 'q1')}s\n")
    words: list[object] = ["--data_dir", tiny_preprocessed, "--model_type", "static", "--output_dir", tmp_path / "out"]
    words += ["--max_seq_length", TINY_MAX_SEQ_LENGTH, "--max_query_length", TINY_MAX_QUERY_LENGTH]
    words += ["--model_name_or_path", model]
    programs: list[tuple[str, Callable[[], None], list[object]]] = [
        ("run_eval", run_eval.main, ["--rerank_file", path])
    ]
    programs += [("run_warmup", run_warmup.main, ["--do_eval", "--rerank_file", path])]
    if header.startswith("query"):
        programs = [("run_warmup", run_warmup.main, ["--do_train", "--triples", path, "--max_steps", 1])]
    for program, main, more in programs:
        assert dry_run(program, main, [*words, *more], monkeypatch) == 2, program
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"given.tsv, line 1: {header!r} is a header" in error, error
