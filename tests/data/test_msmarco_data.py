"""data.msmarco_data: the preprocessed directory against tokenizing each text by itself, and every bad input."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import msmarco_data
from data.tokens import tokenizer as tokenizer_module
from data.tokens.collection import (
    Preprocessed,
    check_tokenizer,
    open_preprocessed,
    read_qrel_offsets,
    tokenizer_fingerprint,
)
from data.tokens.tokenizer import load_tokenizer
from model.encoders.registry import read_spec
from tests import REPO, forked
from tests.texts import listed
from utils.errors import UserError, exit_code_of

MAX_SEQ_LENGTH, MAX_QUERY_LENGTH = 32, 16


def arguments(raw: Path, out: Path, tokenizer: Path, *more: str) -> list[str]:
    words = ["--data_dir", raw, "--out_data_dir", out, "--model_type", "static", "--model_name_or_path", tokenizer]
    lengths = ["--max_seq_length", MAX_SEQ_LENGTH, "--max_query_length", MAX_QUERY_LENGTH]
    return [str(word) for word in (*words, *lengths, "--data_type", 1, *more)]


@pytest.fixture
def run(
    tiny_collection: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Run the program in this process on the tiny collection into tmp_path/out; its exit code."""

    def run_with(*more: str, tokenizer: Path = tiny_tokenizer) -> int:
        argv = ["msmarco_data", *arguments(tiny_collection, tmp_path / "out", tokenizer, *more)]
        monkeypatch.setattr(sys, "argv", argv)
        return exit_code_of("msmarco_data", msmarco_data.main)

    return run_with


def test_lengths_that_are_not_given_are_the_model_s(
    tiny_collection: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sentence-transformers' files say them; one that is given stays, and without any files ANCE's hold."""
    model = shutil.copytree(tiny_tokenizer, tmp_path / "model")
    modules = [{"path": path, "type": f"sentence_transformers.models.{path[2:] or 'Transformer'}"}
               for path in ("", "1_Pooling")]  # fmt: skip
    for name, value in (
        ("modules.json", modules),
        ("sentence_bert_config.json", {"max_seq_length": 20, "query_length": 9}),
        ("1_Pooling/config.json", {"pooling_mode": "mean"}),
        ("config.json", {"model_type": "bert"}),
    ):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(json.dumps(value))
    for number, (directory, given, expected) in enumerate(
        [
            (model, (), (20, 9)),
            (model, ("--max_query_length", "12"), (20, 12)),
            (tiny_tokenizer, (), (128, 64)),
        ]
    ):
        out = tmp_path / str(number)
        words = ("--data_dir", tiny_collection, "--out_data_dir", out, "--model_type", "hf", "--data_type", "1")
        argv = ["msmarco_data", *map(str, words), "--model_name_or_path", str(directory), *given]
        monkeypatch.setattr(sys, "argv", argv)
        assert exit_code_of("msmarco_data", msmarco_data.main) == 0
        manifest = json.loads((out / "manifest.json").read_text())
        assert (manifest["max_seq_length"], manifest["max_query_length"]) == expected


def test_lengths_are_within_the_model_s_positions(
    tiny_collection: Path,
    tiny_tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those that the encoder itself will have; a length that is given and beyond them is refused before any work."""
    model = shutil.copytree(tiny_tokenizer, tmp_path / "model")
    body = {"model_type": "roberta", "pad_token_id": 1, "max_position_embeddings": 42}

    def run_with(config: dict[str, object], model_type: str, *given: str) -> int:
        (model / "config.json").write_text(json.dumps(config))
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        argv = ["--data_dir", tiny_collection, "--out_data_dir", out, "--model_type", model_type, "--data_type", "1"]
        monkeypatch.setattr(sys, "argv", [*map(str, ["msmarco_data", *argv, "--model_name_or_path", model]), *given])
        return exit_code_of("msmarco_data", msmarco_data.main)

    towers = {"model_type": "dpr", "question_model": body | {"max_position_embeddings": 12}, "ctx_model": body}
    older = {name: value for name, value in body.items() if name != "model_type"}
    cases = [
        ("hf", body, (40, 40)),
        ("dpr", towers, (40, 10)),
        ("rdot_nll", older, (40, 40)),
        ("static", body, (128, 64)),  # it has no positions: the directory is a tokenizer's
    ]
    for model_type, config, expected in cases:
        assert run_with(config, model_type) == 0
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert (manifest["max_seq_length"], manifest["max_query_length"]) == expected
        said = capsys.readouterr().out
        assert (f"(as {model / 'config.json'} has it)" in said) == (model_type != "static")
        if model_type == "hf":
            spec = read_spec(str(model), "hf")
            assert (spec.max_length("passage"), spec.max_length("query")) == expected
    assert run_with(body, "hf", "--max_seq_length", "40") == 0
    capsys.readouterr()
    for name in ("max_seq_length", "max_query_length"):
        assert run_with(body, "hf", f"--{name}", "41") == 2 and not (tmp_path / "out").exists()
        line = f"--{name} is 41, the model has 40 positions ({model / 'config.json'}); give no more than that"
        assert capsys.readouterr().err == f"msmarco_data: error: {line}\n"


def lines_of(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


def edit(path: Path, change: Callable[[list[str]], Any]) -> None:
    """Change the lines of a file in place, or replace them by what ``change`` returns."""
    lines = path.read_text().splitlines(keepends=True)
    changed = change(lines)
    path.write_text("".join(changed if isinstance(changed, list) else lines))


def test_every_text_is_as_the_tokenizer_makes_it(
    shared_collection: Path, tiny_tokenizer: Path, tiny_preprocessed: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    found = open_preprocessed(tiny_preprocessed, MAX_SEQ_LENGTH, MAX_QUERY_LENGTH)
    for cache, file, max_length in (
        (found.passages, "collection.tsv", MAX_SEQ_LENGTH),
        (found.queries("train"), "queries.train.tsv", MAX_QUERY_LENGTH),
        (found.queries("dev"), "queries.dev.small.tsv", MAX_QUERY_LENGTH),
    ):
        rows = lines_of(shared_collection / file)
        assert cache.original_ids() == [row[0] for row in rows]
        for shorter in (max_length, max_length - 5, 3):
            batch = tokenizer([row[1] for row in rows], truncation=True, max_length=shorter)
            assert listed(*cache.gather(np.arange(len(rows)), shorter)) == batch["input_ids"]


def test_qrels_point_at_the_same_ids(shared_collection: Path, tiny_preprocessed: Path) -> None:
    found = open_preprocessed(tiny_preprocessed, MAX_SEQ_LENGTH, MAX_QUERY_LENGTH)
    passage_ids = found.passages.original_ids()
    for split, file in (("train", "qrels.train.tsv"), ("dev", "qrels.dev.small.tsv")):
        qrels, query_ids = found.qrels(split), found.queries(split).original_ids()
        judged = {(query_ids[q], passage_ids[p]): r for q, row in qrels.as_dict().items() for p, r in row.items()}
        rows = lines_of(shared_collection / file)
        assert judged == {(query, passage): int(relevance) for query, _, passage, relevance in rows}
        pairs = list(zip(qrels.query_R.tolist(), qrels.passage_R.tolist(), strict=True))
        assert pairs == sorted(pairs) == list(zip(*(side.tolist() for side in qrels.positives()), strict=True))
        assert qrels.queries_with_positive().tolist() == sorted({query for query, _ in pairs})


def test_manifest(tiny_preprocessed: Path) -> None:
    manifest = json.loads((tiny_preprocessed / "manifest.json").read_text())
    assert manifest["counts"] == {
        "passages": 300, "train-query": 60, "train-qrel": 66, "dev-query": 20, "dev-qrel": 22,
    }  # fmt: skip
    assert set(manifest["dropped"].values()) == {0}
    assert manifest["max_seq_length"] == MAX_SEQ_LENGTH and manifest["pad_token_id"] == 0
    assert sorted(path.name for path in tiny_preprocessed.iterdir()) == sorted([*manifest["files"], "manifest.json"])
    assert set(manifest["sources"]) == {
        "collection.tsv", "queries.train.tsv", "queries.dev.small.tsv", "qrels.train.tsv", "qrels.dev.small.tsv",
    }  # fmt: skip


def test_batches_and_compression_change_nothing(
    run: Callable[..., int],
    tiny_collection: Path,
    tiny_preprocessed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizer_module, "BATCH_TEXTS", 7)
    monkeypatch.setattr(tokenizer_module, "BATCH_CHARACTERS", 900)
    for path in list(tiny_collection.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert run() == 0
    for path in tiny_preprocessed.iterdir():
        if path.name != "manifest.json":
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    first, second = (json.loads((d / "manifest.json").read_text()) for d in (tiny_preprocessed, tmp_path / "out"))
    assert first["collection_fingerprint"] == second["collection_fingerprint"]
    assert first.pop("sources") != second.pop("sources") and first == second


def test_another_text_is_another_collection(
    run: Callable[..., int], tiny_collection: Path, tiny_preprocessed: Path, tmp_path: Path
) -> None:
    edit(tiny_collection / "collection.tsv", lambda lines: lines.__setitem__(0, lines[0].replace("\t", "\tand ")))
    assert run() == 0
    first, second = (json.loads((d / "manifest.json").read_text()) for d in (tiny_preprocessed, tmp_path / "out"))
    assert first["collection_fingerprint"] != second["collection_fingerprint"]
    assert first["tokenizer"] == second["tokenizer"]


def test_documents(tiny_tokenizer: Path, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    body = " ".join(f"word{number}" for number in range(500))
    (raw / "msmarco-docs.tsv").write_text(f"D1\thttp://a.b\tTitle\t{body}\nD2\thttp://c.d\t\tbody\n")
    for split in ("train", "dev"):
        (raw / f"msmarco-doc{split}-queries.tsv").write_text("7\twhat is it\n")
        (raw / f"msmarco-doc{split}-qrels.tsv").write_text("7 0 D2 1\n")
    words = [*arguments(raw, out, tiny_tokenizer), "--data_type", "0", "--max_doc_character", "40"]
    assert "2 passages" in forked.run("data.msmarco_data", *words)
    found, tokenizer = open_preprocessed(out, 32, 16), load_tokenizer(tiny_tokenizer)
    texts = [f"http://a.b Title {body}"[:40], "http://c.d body"]
    expected = tokenizer(texts, truncation=True, max_length=32)["input_ids"]
    assert listed(*found.passages.gather([0, 1], 32)) == expected
    assert found.qrels("dev").as_dict() == {0: {1: 1}}


# What is dropped


def test_queries_without_a_qrel_are_dropped_and_counted(
    run: Callable[..., int], tiny_collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(tiny_collection / "queries.train.tsv", lambda lines: lines.insert(0, "q999\tnever judged\n"))
    edit(tiny_collection / "qrels.train.tsv", lambda lines: lines.append(lines[0]))
    assert run() == 0
    found = open_preprocessed(tmp_path / "out", MAX_SEQ_LENGTH, MAX_QUERY_LENGTH)
    assert found.queries("train").original_ids() == [f"q{number}" for number in range(60)]
    counted = {reason: count for reason, count in found.manifest["dropped"].items() if count}
    assert counted == {"train-query without a qrel": 1, "train-qrel repeated": 1}
    assert "1 train-query without a qrel" in capsys.readouterr().out


def unknown_qrels(queries: int, passages: int) -> Callable[[list[str]], list[str]]:
    """Rename the queries and passages of so many lines to ids that are not there."""

    def change(lines: list[str]) -> list[str]:
        renamed = [line.replace("q", "unknown", 1) for line in lines[1 : 1 + queries]]
        moved = [line.replace("p", "nowhere", 1) for line in lines[1 + queries : 1 + queries + passages]]
        return [lines[0], *renamed, *moved, *lines[1 + queries + passages :]]

    return change


@pytest.mark.parametrize("queries, passages", [(1, 0), (0, 1), (3, 2)])
def test_unknown_ids_of_qrels_are_refused_above_one_percent(
    run: Callable[..., int],
    tiny_collection: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    queries: int,
    passages: int,
) -> None:
    edit(tiny_collection / "qrels.train.tsv", unknown_qrels(queries, passages))
    assert run() == 2
    message = capsys.readouterr().err
    assert "qrels.train.tsv" in message and "expected at most 1%" in message and "--allow_missing" in message
    assert ("unknown query" in message) == (queries > 0)
    assert not (tmp_path / "out").exists()
    assert run("--allow_missing") == 0
    dropped = open_preprocessed(tmp_path / "out", MAX_SEQ_LENGTH, MAX_QUERY_LENGTH).manifest["dropped"]
    assert dropped["train-qrel of an unknown query"] == queries
    assert dropped["train-qrel of an unknown passage"] == passages


def test_few_unknown_ids_are_reported_and_left_out(
    run: Callable[..., int], tiny_collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [f"q{number % 60}\t0\tp{7 * (number // 60) + 3}\t0\n" for number in range(600)]

    def change(lines: list[str]) -> list[str]:
        positive = {tuple(line.split("\t")[:3]) for line in lines}
        return lines + [line for line in more if tuple(line.split("\t")[:3]) not in positive] + ["q0\t0\tp0\t1\n"]

    edit(tiny_collection / "qrels.train.tsv", change)
    assert run() == 0
    assert "1 an unknown passage (as 'p0'); continuing" in capsys.readouterr().out
    found = open_preprocessed(tmp_path / "out", MAX_SEQ_LENGTH, MAX_QUERY_LENGTH)
    assert found.manifest["dropped"]["train-qrel of an unknown passage"] == 1
    assert len(found.qrels("train").queries_with_positive()) == 60
    assert len(found.qrels("train").query_R) > 600


def test_query_with_no_known_passage_left_is_dropped_from_train_alone(
    run: Callable[..., int], tiny_collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, query in (("train", "q59"), ("dev.small", "q79")):
        edit(
            tiny_collection / f"qrels.{split}.tsv",
            lambda lines, query=query: (
                [line for line in lines if not line.startswith(f"{query}\t")]
                + [f"{query}\t0\tp0\t1\n", f"{query}\t0\tp3\t0\n"]
            ),
        )
    assert run("--allow_missing") == 0
    found = open_preprocessed(tmp_path / "out", MAX_SEQ_LENGTH, MAX_QUERY_LENGTH)
    assert found.queries("train").original_ids() == [f"q{number}" for number in range(59)]
    assert found.qrels("train").queries_with_positive().tolist() == list(range(59))
    assert found.manifest["dropped"]["train-query without a known positive"] == 1
    assert found.queries("dev").original_ids() == [f"q{number}" for number in range(60, 80)]
    assert found.qrels("dev").queries_with_positive().tolist() == list(range(19))
    assert "1 train-query without a known positive" in capsys.readouterr().out


def test_queries_that_nobody_judged_are_kept_in_every_split_but_train(
    run: Callable[..., int], tiny_collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "dev.small"):
        for query in (f"{split}-unjudged", f"{split}-negative"):
            edit(tiny_collection / f"queries.{split}.tsv", lambda lines, query=query: lines.insert(1, f"{query}\tx\n"))
        edit(
            tiny_collection / f"qrels.{split}.tsv",
            lambda lines, split=split: lines.insert(1, f"{split}-negative\t0\tp3\t0\n"),
        )
    assert run() == 0
    found = open_preprocessed(tmp_path / "out", MAX_SEQ_LENGTH, MAX_QUERY_LENGTH)
    assert found.queries("train").original_ids() == [f"q{number}" for number in range(60)]
    assert found.queries("dev").original_ids()[:4] == ["q60", "dev.small-negative", "dev.small-unjudged", "q61"]
    assert set(found.qrels("dev").query_R.tolist()) == set(range(22)) - {2}
    said = capsys.readouterr().out
    for words in ("1 train-query without a qrel, 1 train-query without a positive", "1 dev-query without a qrel"):
        assert words in said


def test_train_queries_without_any_positive_are_refused(
    run: Callable[..., int], tiny_collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(tiny_collection / "qrels.train.tsv", lambda lines: [line.replace("\t1\n", "\t0\n") for line in lines])
    check_refused(run(), tmp_path / "out", capsys.readouterr().err, "no train query has a positive")


def test_qrels_of_another_collection_are_refused(
    run: Callable[..., int], tiny_collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(tiny_collection / "qrels.dev.small.tsv", lambda lines: [line.replace("p", "D") for line in lines])
    assert run("--allow_missing") == 2
    assert "none of its 22 qrels is about this collection" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_three_passages(run: Callable[..., int], tiny_collection: Path, tmp_path: Path) -> None:
    (tiny_collection / "collection.tsv").write_text("1\tone\n2\ttwo\n3\tthree\n")
    for split in ("train", "dev.small"):
        (tiny_collection / f"queries.{split}.tsv").write_text("7\tone\n")
        (tiny_collection / f"qrels.{split}.tsv").write_text("7\t0\t1\t1\n")
    assert run() == 0
    assert len(open_preprocessed(tmp_path / "out", 32, 16).passages) == 3


# Bad input: one line, exit code 2, nothing written


BAD_LINES: dict[str, tuple[str, Callable[[list[str]], Any], str]] = {
    "too few columns": ("collection.tsv", lambda lines: lines.__setitem__(9, "p66\n"), "line 10: 1 tab-separated"),
    "id with a tab": ("collection.tsv", lambda lines: lines.__setitem__(9, "p\t66\ta\n"), "line 10: 3 tab-separated"),
    "duplicate passage": ("collection.tsv", lambda lines: lines.append(lines[4]), "line 301: the id 'p31'"),
    "duplicate query": ("queries.train.tsv", lambda lines: lines.append(lines[4]), "line 61: the id 'q4'"),
    "empty passage": ("collection.tsv", lambda lines: lines.__setitem__(299, "p2096\t  \n"), "line 300: the text"),
    "empty query": ("queries.dev.small.tsv", lambda lines: lines.append("q80\t\n"), "line 21: the text"),
    "cut off": ("collection.tsv", lambda lines: lines.__setitem__(-1, "p2096\thal"), "line 300: the last line"),
    "empty qrels": ("qrels.train.tsv", lambda lines: lines.clear(), "qrels.train.tsv is empty"),
    "bad qrel": ("qrels.dev.small.tsv", lambda lines: lines.append("q60\tp3\n"), "line 23: 2 columns"),
    "contradiction": (
        "qrels.train.tsv", lambda lines: lines.append(lines[1].replace("\t1\n", "\t0\n")), "line 67: query 'q0'",
    ),
}  # fmt: skip


def check_refused(code: int, out: Path, error: str, message: str) -> None:
    assert code == 2
    assert message in error and error.startswith("msmarco_data: error: ") and error.count("\n") == 1, error
    assert not out.exists()


@pytest.mark.parametrize("fault", BAD_LINES)
def test_bad_line(
    run: Callable[..., int], tiny_collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    file, change, message = BAD_LINES[fault]
    edit(tiny_collection / file, change)
    check_refused(run(), tmp_path / "out", capsys.readouterr().err, message)


def zipped_copy(path: Path, damage: Callable[[bytes], bytes]) -> None:
    path.with_name(f"{path.name}.gz").write_bytes(damage(gzip.compress(path.read_bytes())))
    path.unlink()


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data: data[: len(data) // 2], "collection.tsv.gz is truncated"),
        (lambda data: data[:10] + b"\xff" * 40 + data[50:], "collection.tsv.gz is damaged"),
        (lambda data: b"not gzip at all\n", "collection.tsv.gz is damaged"),
        (lambda data: b"", "collection.tsv.gz is empty"),
    ],
)
def test_damaged_gzip(
    run: Callable[..., int],
    tiny_collection: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[bytes], bytes],
    message: str,
) -> None:
    zipped_copy(tiny_collection / "collection.tsv", damage)
    check_refused(run(), tmp_path / "out", capsys.readouterr().err, message)


def test_invalid_utf8(
    run: Callable[..., int], tiny_collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_collection / "collection.tsv"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], b"p38\tnaively in latin-1: na\xefve\n", *lines[6:]]))
    check_refused(
        run(), tmp_path / "out", capsys.readouterr().err, "collection.tsv, line 6: byte 27 is not valid UTF-8"
    )


def test_missing_file(
    run: Callable[..., int], tiny_collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tiny_collection / "queries.dev.small.tsv").unlink()
    check_refused(run(), tmp_path / "out", capsys.readouterr().err, "has no queries.dev.small.tsv[.gz]")


@pytest.mark.parametrize(
    "more, message",
    [
        (["--data_type", "0"], "did you mean --data_type 1"),
        (["--data_type", "2"], "--data_type is 2, expected 0 (MS MARCO's documents) or 1"),
        (["--max_seq_length", "2"], "hold nothing but the 2 special ones"),
    ],
)
def test_bad_flags(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    check_refused(run(*more), tmp_path / "out", capsys.readouterr().err, message)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("nothing.txt", "", "holds no tokenizer"),
        ("tokenizer.json", "{}", "no tokenizer could be loaded"),
        ("tokenizer.json", "not JSON", "no tokenizer could be loaded"),
    ],
)
def test_bad_tokenizer(
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str,
    message: str,
) -> None:
    directory = tmp_path / "bad_tokenizer"
    directory.mkdir()
    (directory / name).write_text(content)
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    check_refused(run(tokenizer=directory), tmp_path / "out", capsys.readouterr().err, message)
    check_refused(run(tokenizer=tmp_path / "no"), tmp_path / "out", capsys.readouterr().err, "is not a directory")


def altered_tokenizer(source: Path, target: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """A copy with ``change(tokenizer.json, tokenizer_config.json)`` applied."""
    shutil.copytree(source, target)
    paths = [target / "tokenizer.json", target / "tokenizer_config.json"]
    states = [json.loads(path.read_text()) for path in paths]
    change(*states)
    for path, state in zip(paths, states, strict=True):
        path.write_text(json.dumps(state))
    return target


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state, config: state.update(post_processor=None), "puts no end token after a text"),
        (lambda state, config: config.pop("pad_token"), "has no padding token"),
    ],
)
def test_unfit_tokenizer(
    run: Callable[..., int],
    tiny_tokenizer: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any], dict[str, Any]], None],
    message: str,
) -> None:
    tokenizer = altered_tokenizer(tiny_tokenizer, tmp_path / "unfit", change)
    check_refused(run(tokenizer=tokenizer), tmp_path / "out", capsys.readouterr().err, message)


def test_output_that_cannot_be_a_directory(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run("--out_data_dir", str(tmp_path / "file" / "out")) == 2
    assert "is a file, expected a directory" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_output_that_is_not_writable(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    for more in ([], ["--dry_run"]):
        assert run("--out_data_dir", str(tmp_path / "locked" / "out"), *more) == 2
        assert "is not writable for this user" in capsys.readouterr().err


def test_disk_that_fills_up(tiny_collection: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """A limit on the size of a file fails a write as a full disk does."""
    out = tmp_path / "new" / "out"
    done = subprocess.run(
        [sys.executable, "-m", "data.msmarco_data", *arguments(tiny_collection, out, tiny_tokenizer)],
        cwd=REPO,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000)),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("msmarco_data: error: no space left writing") and done.stderr.count("\n") == 1
    assert str(out) in done.stderr and not (tmp_path / "new").exists()


# Running again, and next to another


def test_complete_output_is_left_alone(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    for more in ([], ["--dry_run"]):
        assert run(*more) == 2
        assert "holds a complete collection" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_killed_run_is_started_over(run: Callable[..., int], tmp_path: Path, tiny_preprocessed: Path) -> None:
    unfinished = tmp_path / "out" / ".unfinished"
    (unfinished / "older").mkdir(parents=True)
    (unfinished / ".passages.tokens.part").write_bytes(b"half")
    (tmp_path / "out" / "passages.tokens").write_bytes(b"published before the kill")
    with pytest.raises(UserError, match=r"has no manifest.json"):
        open_preprocessed(tmp_path / "out", 32, 16)
    assert run() == 0
    names = [sorted(path.name for path in directory.iterdir()) for directory in (tmp_path / "out", tiny_preprocessed)]
    assert names[0] == names[1]
    assert (tmp_path / "out" / "passages.tokens").read_bytes() == (tiny_preprocessed / "passages.tokens").read_bytes()


def test_failure_keeps_what_was_there(run: Callable[..., int], tiny_collection: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    edit(tiny_collection / "collection.tsv", lambda lines: lines.append("p9\n"))
    assert run() == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_two_at_once(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished = tmp_path / "out" / ".unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "passages.tokens").write_bytes(b"the other's")
    with (unfinished / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run() == 2
        assert "another process is writing" in capsys.readouterr().err
        assert (unfinished / "passages.tokens").read_bytes() == b"the other's"
    assert run() == 0


def test_dry_run_writes_nothing(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_tokenizer: Path
) -> None:
    assert run("--dry_run") == 0
    flags = json.loads(capsys.readouterr().out)
    assert flags["max_seq_length"] == 32 and flags["tokenizer"] == tokenizer_fingerprint(tiny_tokenizer)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_reads_the_judgements(
    run: Callable[..., int], tiny_collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tiny_collection / "qrels.dev.small.tsv").open("a") as file:
        file.write("q60\t0\tp3\t5000\n")
    assert run("--dry_run") == 2
    assert "qrels.dev.small.tsv, line 23: the relevance is '5000', expected" in capsys.readouterr().err


# The directory as the drivers open it


def test_lengths_beyond_the_cache_are_refused(tiny_preprocessed: Path) -> None:
    open_preprocessed(tiny_preprocessed, 8, 8)
    with pytest.raises(UserError, match="passages were cut at 32 tokens, --max_seq_length is 64: pass"):
        open_preprocessed(tiny_preprocessed, 64, 16)
    with pytest.raises(UserError, match="queries were cut at 16 tokens, --max_query_length is 17: pass"):
        open_preprocessed(tiny_preprocessed, 32, 17)


@pytest.fixture
def damaged(tiny_preprocessed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_preprocessed, tmp_path / "damaged"))


def open_all(directory: Path) -> None:
    found = open_preprocessed(directory, 32, 16)
    for split in ("train", "dev"):
        found.qrels(split)


@pytest.mark.parametrize("name", ["passages", "train-query", "dev-query"])
def test_caches_that_disagree_are_refused(damaged: Path, name: str) -> None:
    path = damaged / f"{name}.tokens"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=rf"{name}.tokens: \d+ bytes, expected"):
        open_all(damaged)


def test_counts_that_disagree_are_refused(damaged: Path) -> None:
    for suffix in ("tokens", "offsets.npy", "ids.txt"):
        shutil.copy(damaged / f"train-query.{suffix}", damaged / f"dev-query.{suffix}")
    with pytest.raises(UserError, match=r"dev-query has 60 rows, manifest.json says 20"):
        open_all(damaged)


@pytest.mark.parametrize(
    "content, message",
    [
        ("0\t5\t1\n", "train-qrel has 1 rows"),
        ("0\t5\n" * 66, "has 2 columns"),
        ("a\tb\tc\n" * 66, "is damaged"),
        ("".join(f"{row}\t300\t1\n" for row in range(66)), "query offsets 0 to 65, expected below 60"),
        ("".join(f"0\t{300 - row}\t1\n" for row in range(66)), "passage offsets 235 to 300, expected below 300"),
        ("", "train-qrel has 0 rows"),
    ],
)
def test_damaged_qrels_are_refused(damaged: Path, content: str, message: str) -> None:
    (damaged / "train-qrel.tsv").write_text(content)
    with pytest.raises(UserError, match=message):
        open_all(damaged)
    (damaged / "train-qrel.tsv").unlink()
    with pytest.raises(UserError, match=r"train-qrel.tsv is missing"):
        open_all(damaged)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda manifest: manifest.update(format_version=99), "format version 99, expected 1"),
        (lambda manifest: manifest.pop("counts"), "lacks counts"),
    ],
)
def test_manifest_of_another_kind_is_refused(
    damaged: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = damaged / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=message):
        open_all(damaged)
    path.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        open_all(damaged)


def with_splits(collection: Preprocessed, *splits: str) -> Preprocessed:
    counts = {f"{split}-{kind}": 1 for split in splits for kind in ("query", "qrel")}
    return replace(collection, manifest={"counts": {"passages": 300, **counts}})


def test_splits_are_those_that_the_manifest_counts(tiny_preprocessed: Path) -> None:
    found = open_preprocessed(tiny_preprocessed, 32, 16)
    assert found.splits == ("train", "dev") and found.dev_split() == "dev"
    for read in (found.queries, found.qrels):
        with pytest.raises(UserError, match=r"has no split test, expected one of train, dev$"):
            read("test")


def test_what_is_measured_while_training(tiny_preprocessed: Path) -> None:
    """The split that is asked for; dev where there is one, else the first that is not trained on."""
    found = open_preprocessed(tiny_preprocessed, 32, 16)
    three = with_splits(found, "train", "test", "heldout")
    assert [three.dev_split(), three.dev_split("heldout")] == ["test", "heldout"]
    assert with_splits(found, "heldout", "dev", "train").dev_split() == "dev"
    for collection, asked in ((found, "train"), (with_splits(found, "train"), "")):
        with pytest.raises(UserError, match="nothing to measure on while training"):
            collection.dev_split(asked)
    with pytest.raises(UserError, match="has no split dev, expected one of train, test, heldout"):
        three.dev_split("dev")


def test_raw_directory_is_told(tiny_collection: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest.json.*run data.msmarco_data"):
        open_preprocessed(tiny_collection, 32, 16)


def test_qrels_are_sorted_on_reading(tmp_path: Path) -> None:
    (tmp_path / "qrel.tsv").write_text("3\t9\t1\n0\t4\t0\n3\t2\t2\n")
    qrels = read_qrel_offsets(tmp_path / "qrel.tsv")
    assert qrels.as_dict() == {0: {4: 0}, 3: {2: 2, 9: 1}}
    assert qrels.query_R.tolist() == [0, 3, 3] and qrels.passage_R.tolist() == [4, 2, 9]
    assert qrels.queries_with_positive().tolist() == [3]
    assert [side.tolist() for side in qrels.positives()] == [[3, 3], [2, 9]]
    assert all(array.dtype == np.int64 for array in (qrels.query_R, qrels.passage_R, qrels.relevance_R))


@pytest.mark.parametrize("grade", ["1001", "-1001", "9223372036854775807", "9223372036854775808", "1.5", "1#"])
def test_a_grade_that_preprocessing_writes_none_of_is_damage(tmp_path: Path, grade: str) -> None:
    (tmp_path / "qrel.tsv").write_text(f"3\t9\t-1000\n0\t4\t{grade}\n")
    with pytest.raises(UserError, match=r"qrel.tsv (has a relevance of|is damaged).*preprocess again"):
        read_qrel_offsets(tmp_path / "qrel.tsv")


# One tokenizer and another


def test_the_same_tokenizer_saved_again_is_accepted(
    tiny_preprocessed: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    found = open_preprocessed(tiny_preprocessed, 32, 16)
    check_tokenizer(found, tiny_tokenizer)
    tokenizer = load_tokenizer(tiny_tokenizer)
    tokenizer("some text", truncation=True, max_length=5, padding="max_length")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").read_bytes() != (tiny_tokenizer / "tokenizer.json").read_bytes()
    check_tokenizer(found, tmp_path / "saved")


@pytest.mark.parametrize(
    "change",
    [
        lambda state, config: state["normalizer"].update(lowercase=False),
        lambda state, config: state["model"]["vocab"].update({"newword": len(state["model"]["vocab"])}),
        lambda state, config: state["post_processor"]["single"].reverse(),
        lambda state, config: state["model"].update(max_input_chars_per_word=5),
    ],
)
def test_another_tokenizer_is_refused(
    tiny_preprocessed: Path,
    tiny_tokenizer: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any], dict[str, Any]], None],
) -> None:
    other = altered_tokenizer(tiny_tokenizer, tmp_path / "other", change)
    with pytest.raises(UserError, match="preprocess again with this tokenizer"):
        check_tokenizer(open_preprocessed(tiny_preprocessed, 32, 16), other)


def byte_level_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 9, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def test_roberta_tokenizer_in_all_its_forms_is_one(tmp_path: Path) -> None:
    """The hub's tokenizer.json (merges as strings), vocab.json and merges.txt, and what transformers saves of each.

    ANCE's checkpoints, of transformers before 2.4, name no model type.
    """
    state = json.loads(byte_level_tokenizer().to_str())
    state["model"]["merges"] = [" ".join(pair) for pair in state["model"]["merges"]]
    for name in ("hub", "slow", "older"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}" if name == "older" else '{"model_type": "roberta"}')
        (tmp_path / name / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    (tmp_path / "hub" / "tokenizer.json").write_text(json.dumps(state))
    for name in ("slow", "older"):
        (tmp_path / name / "vocab.json").write_text(json.dumps(state["model"]["vocab"]))
        (tmp_path / name / "merges.txt").write_text("#version: 0.2\n" + "\n".join(state["model"]["merges"]) + "\n")
    for name in ("hub", "slow", "older"):
        load_tokenizer(tmp_path / name).save_pretrained(tmp_path / f"{name}_saved")
    names = [f"{name}{end}" for name in ("hub", "slow", "older") for end in ("", "_saved")]
    found = {name: tokenizer_fingerprint(tmp_path / name) for name in names}
    assert len(set(found.values())) == 1, found


def test_blanks_at_the_end_of_a_text_are_no_tokens(
    run: Callable[..., int], tiny_collection: Path, tmp_path: Path
) -> None:
    """Whatever the source: of a query as of a passage. The tokenizer of RoBERTa has a token for a blank."""
    saved = tmp_path / "byte_level"
    saved.mkdir()
    byte_level_tokenizer().save(str(saved / "tokenizer.json"))
    options = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>"}
    (saved / "tokenizer_config.json").write_text(json.dumps(options))
    for name in ("collection.tsv", "queries.train.tsv"):
        edit(tiny_collection / name, lambda lines: [f"{line[:-1]}  \n" for line in lines])
    assert run(tokenizer=saved) == 0
    found = open_preprocessed(tmp_path / "out", MAX_SEQ_LENGTH, MAX_QUERY_LENGTH)
    for cache, name in ((found.passages, "collection.tsv"), (found.queries("train"), "queries.train.tsv")):
        text = lines_of(tiny_collection / name)[0][1]
        ids = load_tokenizer(saved).encode(text.rstrip())
        assert load_tokenizer(saved).encode(text) != ids
        limit = MAX_SEQ_LENGTH if cache is found.passages else MAX_QUERY_LENGTH
        assert listed(*cache.gather([0], limit))[0] == [*ids[: limit - 1], ids[-1]]


# The pipeline
