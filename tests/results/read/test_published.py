"""Nothing published is used unverified: every program against a file of which one byte has changed.

The changed file can still be read: a digit is another digit, a weight another number.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data.tokens.collection import open_preprocessed
from drivers.cli.evaluate import EvalFlags
from drivers.evaluate.evaluator import last_negatives
from drivers.train.journal import RefreshUse, read_journal
from model.encoders.static import StaticEncoder
from results.read.evaluation import read_evaluation
from results.read.logged import read_returned
from results.read.study import read_by_query, read_negatives
from tests.conftest import TINY_MAX_QUERY_LENGTH, TINY_MAX_SEQ_LENGTH
from tests.exchanging import lease_of
from utils.errors import UserError
from utils.exchange.atomic import write_json
from utils.exchange.checkpoints import publish_checkpoint
from utils.exchange.evaluations import write_metrics
from utils.exchange.markers import mark_done
from utils.exchange.negatives import publish_negatives
from utils.flags import parse_flags


def change_a_digit(path: Path, after: bytes = b"") -> None:
    """The last digit of the file (before the end of ``after``, where that is given) becomes another."""
    content = path.read_bytes()
    start, end = content.index(after) if after else 0, content.index(after) + len(after) if after else len(content)
    place = max(match.start() for match in re.finditer(rb"[0-9]", content[start:end])) + start
    digit = b"4" if content[place : place + 1] != b"4" else b"5"
    path.write_bytes(content[:place] + digit + content[place + 1 :])


def change_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module", name="made")
def fixture_made(
    tiny_preprocessed: Path, tiny_tokenizer: Path, shared_collection: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """data/, raw/, trained/checkpoint-0, ann/ with refresh 0, and bm25/ with dev.trec."""
    root = tmp_path_factory.mktemp("published")
    shutil.copytree(tiny_preprocessed, root / "data")
    shutil.copytree(shared_collection, root / "raw")
    vocab_size = json.loads((root / "data" / "manifest.json").read_text())["vocab_size"]
    (root / "trained").mkdir()
    (root / "ann").mkdir()
    torch.manual_seed(4)
    with publish_checkpoint(lease_of(root / "trained", "warmup"), 0, {}) as staged:
        shutil.copytree(tiny_tokenizer, staged, dirs_exist_ok=True)
        StaticEncoder({"vocab_size": vocab_size, "embedding_size": 12}).save_pretrained(staged)
    lines = "".join(f"{query}\t{query}\t{query + 1},{query + 2}\n" for query in range(20))
    record = {"step": 0, "ndcg": 0.5, "mrr": 0.5}
    publish_negatives(lease_of(root / "ann", "generator"), 0, lambda path: str(path.write_text(lines)) and None, record)
    main("drivers.run_bm25", bm25_words(root))
    return root


@pytest.fixture(name="root")
def fixture_root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "root"))


def bm25_words(root: Path) -> list[str | Path]:
    places = ["--raw_data_dir", root / "raw", "--data_dir", root / "data", "--output_dir", root / "bm25"]
    return [*places, "--topk_training", "20", "--negative_sample", "2", "--keep_candidates", "--workers", "1"]


def main(program: str, words: list[str | Path]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *map(str, words)])
        importlib.import_module(program).main()


def words_of(program: str, root: Path, *more: str | Path) -> list[str | Path]:
    """A command line that passes a dry run."""
    if program == "drivers.run_bm25":
        shutil.rmtree(root / "bm25")
        return [*bm25_words(root), "--dry_run"]
    if program == "data.negatives":
        candidates = ["--candidates", root / "bm25" / "ann_candidates_0.npz", "--negative_strategy", "top"]
        return [*candidates, "--data_dir", root / "data", "--output_dir", root / "view", "--dry_run"]
    checkpoint = root / "trained" / "checkpoint-0"
    lengths = ["--max_seq_length", str(TINY_MAX_SEQ_LENGTH), "--max_query_length", str(TINY_MAX_QUERY_LENGTH)]
    own: dict[str, list[str | Path]] = {
        "drivers.run_eval": ["--model_name_or_path", checkpoint, "--rerank_file", root / "bm25" / "dev.trec"],
        "drivers.run_neighbourhood": ["--model_name_or_path", checkpoint],
        "drivers.run_ann": ["--model_name_or_path", checkpoint, "--ann_dir", root / "ann", "--max_steps", "5"],
        "drivers.run_ann_data_gen": ["--init_model_dir", checkpoint, "--training_dir", root / "trainer"],
        "drivers.run_warmup": ["--model_name_or_path", checkpoint, "--bm25_dir", root / "bm25", "--do_eval"],
    }
    own["drivers.run_ann_data_gen"] += ["--topk_training", "20", "--negative_sample", "2"]
    own["drivers.run_neighbourhood"] += ["--negatives", f"top={root / 'ann' / 'ann_training_data_0'}"]
    common = ["--data_dir", root / "data", "--model_type", "static", "--output_dir", root / "out", "--no_cuda"]
    return [*own[program], *common, *lengths, "--dry_run", *more]


WEIGHTS, QRELS = "trained/checkpoint-0/model.safetensors", "data/train-qrel.tsv"
CASES = [
    *((program, WEIGHTS) for program in ("run_eval", "run_neighbourhood", "run_ann", "run_ann_data_gen", "run_warmup")),
    ("run_eval", "trained/checkpoint-0/config.json"),
    ("run_eval", "bm25/dev.trec"),
    ("run_eval", "bm25/metrics.json"),
    ("run_warmup", "bm25/dev.trec"),
    ("run_neighbourhood", "ann/ann_training_data_0"),
    ("run_neighbourhood", QRELS),
    ("run_bm25", QRELS),
    ("data.negatives", QRELS),
    ("data.negatives", "bm25/ann_candidates_0.npz"),
]


@pytest.mark.parametrize(("program", "name"), CASES)
def test_a_dry_run_finds_the_changed_byte(root: Path, program: str, name: str) -> None:
    program = program if "." in program else f"drivers.{program}"
    intact = words_of(program, root)
    main(program, intact)
    (change_a_weight if name.endswith((".safetensors", ".npz")) else change_a_digit)(root / name)
    with pytest.raises(UserError) as caught:
        main(program, intact)
    assert str(root / name) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_checkpoint_is_not_evaluated_by_the_warmup_that_trained_it(root: Path) -> None:
    """--do_eval without a model takes what lies in --output_dir."""
    words = ["--data_dir", root / "data", "--model_type", "static", "--output_dir", root / "trained", "--no_cuda"]
    lengths = ["--max_seq_length", str(TINY_MAX_SEQ_LENGTH), "--max_query_length", str(TINY_MAX_QUERY_LENGTH)]
    tokenizer = ["--tokenizer_name", root / "trained" / "checkpoint-0", "--config_name", root / "trained/checkpoint-0"]
    change_a_weight(root / WEIGHTS)
    with pytest.raises(UserError, match=r"model\.safetensors: sha256 differs from its manifest.*copy the checkpoint"):
        main("drivers.run_warmup", [*words, *lengths, *tokenizer, "--do_eval"])


def test_what_an_evaluation_left_is_verified_by_its_readers(tmp_path: Path) -> None:
    """metrics.json is sealed, and vouches for the files next to it; older ones, without either, are read as before."""
    write_json(tmp_path / "dev.by_rank.json", {
        "score_over_corpus_mean": [0.5, 0.25], "examples": {}, "grades": [1], "passages_by_grade": {},
    })  # fmt: skip
    (tmp_path / "dev.per_query.tsv").write_text("query_id\tmrr@10\tndcg@10\nq\t0.5\t0.25\n")
    record = {"metrics": {"mrr@10": 0.5, "ndcg@10": 0.25}, "queries": 1, "model": "m", "step": 3, "seconds": 1.5}
    readers: dict[str, Callable[[Path], object]] = {
        "dev.by_rank.json": read_returned,
        "dev.per_query.tsv": read_by_query,
        "metrics.json": lambda path: read_evaluation(path, "evaluate again"),
    }
    for is_listed in (False, True):
        if is_listed:
            write_metrics(tmp_path, record, [name for name in readers if name != "metrics.json"])
        else:
            write_json(tmp_path / "metrics.json", record)
        for name, read in readers.items():
            read(tmp_path / name)
            content = (tmp_path / name).read_bytes()
            change_a_digit(tmp_path / name, after=b"0.25")
            if is_listed:
                with pytest.raises(UserError, match=f"{name}.*(sha256 differs)"):
                    read(tmp_path / name)
            else:
                read(tmp_path / name)
            (tmp_path / name).write_bytes(content)


def test_negatives_that_a_study_compares_are_those_of_their_record(root: Path) -> None:
    path = root / "ann" / "ann_training_data_0"
    assert len(read_negatives(path)) == 40
    change_a_digit(path)
    with pytest.raises(UserError, match="sha256 differs from its record"):
        read_negatives(path)


def test_run_eval_names_damaged_negatives_that_the_model_was_trained_on(root: Path) -> None:
    mark_done(lease_of(root / "trained", "trainer"), step=0, taken=[RefreshUse(0, 0, 0, "", "").record()])
    words = words_of("drivers.run_eval", root, "--ann_dir", root / "ann")
    flags = parse_flags(EvalFlags, "run_eval", [str(word) for word in words])
    collection = open_preprocessed(root / "data", 1, 1)
    ann_dir = Path(flags.ann_dir)
    assert last_negatives(ann_dir, flags.model_name_or_path, collection)[0] == 0
    change_a_digit(root / "ann" / "ann_training_data_0")
    with pytest.raises(UserError, match="ann_training_data_0: sha256 differs from its record"):
        last_negatives(ann_dir, flags.model_name_or_path, collection)


def test_a_journal_is_the_one_of_its_run(tmp_path: Path) -> None:
    entries = [RefreshUse(0, 0, 0, "a", "b"), RefreshUse(1, 10, 15, "c", "d")]
    path = tmp_path / "journal.jsonl"
    path.write_text("".join(json.dumps(vars(entry)) + "\n" for entry in entries))
    assert read_journal(path) == entries, "of a run that has not ended"
    mark_done(lease_of(tmp_path), step=30, taken=[entry.record() for entry in entries])
    assert read_journal(path) == entries
    path.write_text(path.read_text().replace('"taken_at_step": 15', '"taken_at_step": 16'))
    with pytest.raises(UserError, match=r"journal\.jsonl and DONE\.json name different refreshes or steps"):
        read_journal(path)


FOREIGN = [
    b"[1]", b"", b"{", b"\xff\xfe{\0}\0", b"3", b'{"map": 0.3}', b'{"files": ["dev.trec"]}',
    b'{"files": {"dev.trec": 7}}', b'{"files": {"dev.trec": {"lines": 7}}}',
]  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN)
def test_a_metrics_json_of_another_program_vouches_for_nothing(root: Path, content: bytes) -> None:
    (root / "bm25" / "metrics.json").write_bytes(content)
    main("drivers.run_eval", words_of("drivers.run_eval", root))


@pytest.mark.parametrize("program", ["drivers.run_eval", "drivers.run_warmup"])
@pytest.mark.parametrize("fault", ["no line end", "the last line is empty"])
def test_a_dry_run_sees_candidates_that_end_wrongly(root: Path, program: str, fault: str) -> None:
    path, words = root / "bm25" / "mine.trec", words_of(program, root)
    whole = (root / "bm25" / "dev.trec").read_bytes()
    given = ["--rerank_file", path]
    path.write_bytes(whole)
    main(program, [*words, *given])
    path.write_bytes(whole[:-1] if fault == "no line end" else whole + b"\n")
    with pytest.raises(UserError, match=rf"mine\.trec, line [0-9]+: .*{fault}"):
        main(program, [*words, *given])


def last_of(root: Path, ann_dir: Path | None = None, model_name_or_path: str = "") -> int:
    return last_negatives(ann_dir or root / "ann", model_name_or_path, open_preprocessed(root / "data", 1, 1))[0]


def test_run_eval_says_which_refresh_it_misses(root: Path) -> None:
    mark_done(lease_of(root / "trained", "trainer"), step=0, taken=[RefreshUse(7, 0, 0, "", "").record()])
    with pytest.raises(UserError, match=r"has no refresh 7, .*DONE\.json"):
        last_of(root, model_name_or_path=str(root / "trained" / "checkpoint-0"))
    with pytest.raises(UserError, match="has no negatives"):
        last_of(root, model_name_or_path=str(root), ann_dir=root / "raw")


def test_a_done_json_of_the_current_directory_decides_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark_done(lease_of(root / "trained", "trainer"), step=0, taken=[RefreshUse(7, 0, 0, "", "").record()])
    monkeypatch.chdir(root / "trained")
    assert last_of(root) == 0
