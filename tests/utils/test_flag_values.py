"""Every number has a range and every path is known as one, in every program; both are checked by the parser."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import math
import pwd
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data.create_subset import SubsetFlags
from data.docstrings import DocstringsFlags
from data.export import ExportFlags
from data.mining.keyed_random import random_keys
from data.mining.negative_lists import NegativeLists
from data.msmarco_data import PreprocessFlags
from data.negatives import NegativesFlags
from data.training.batches import batches_of_triples
from data.wordpiece import WordPieceFlags
from drivers.cli.evaluate import EvalFlags, FuseFlags, NeighbourhoodFlags
from drivers.cli.generate import Bm25Flags, GenerateFlags
from drivers.cli.plan import PlanFlags
from drivers.cli.train import AnnFlags, WarmupFlags
from drivers.evaluate.query_map import named_files
from drivers.job.setup import seed_everything
from model.convert import ConvertFlags
from results.read_log import ReadLogFlags
from results.report import ReportFlags
from results.status import StatusFlags
from tests import REPO
from utils.errors import UserError
from utils.flag_values import LARGEST_INTEGER, LARGEST_SIZE, Range, path_argument
from utils.flags import ProgramFlags, ignored_flags, parse_flags, range_of

CLASSES: dict[str, type[ProgramFlags]] = {
    "convert": ConvertFlags,
    "create_subset": SubsetFlags,
    "docstrings": DocstringsFlags,
    "export": ExportFlags,
    "msmarco_data": PreprocessFlags,
    "negatives": NegativesFlags,
    "read_log": ReadLogFlags,
    "report": ReportFlags,
    "run_ann": AnnFlags,
    "run_ann_data_gen": GenerateFlags,
    "run_bm25": Bm25Flags,
    "run_eval": EvalFlags,
    "run_fuse": FuseFlags,
    "run_neighbourhood": NeighbourhoodFlags,
    "run_plan": PlanFlags,
    "run_warmup": WarmupFlags,
    "status": StatusFlags,
    "wordpiece": WordPieceFlags,
}
NO_PATHS = {  # the words that are none
    "arms",
    "data_type",
    "dataset",
    "dev_split",
    "faiss_index",
    "format",
    "fp16_opt_level",
    "from_layout",
    "loss",
    "metrics",
    "model_type",
    "negative_strategy",
    "negatives",
    "passage_prefix",
    "query",
    "query_prefix",
    "server_ip",
    "server_port",
    "source",
    "split",
    "stemmer",
    "task_name",
    "to_layout",
}


def of_type(flags_class: type[ProgramFlags], *wanted: type) -> Iterator[dataclasses.Field[typing.Any]]:
    """The flags whose value, or each of whose values, is of one of these types."""
    hints = typing.get_type_hints(flags_class)
    for field in dataclasses.fields(flags_class):
        hint = hints[field.name]
        parts = {hint, *typing.get_args(hint)}
        parts |= {inner for part in parts for inner in typing.get_args(part)}
        if parts & set(wanted):
            yield field


NUMBERS = [(program, field.name) for program, known in CLASSES.items() for field in of_type(known, int, float)]
PATHS = [
    (program, field.name)
    for program, known in CLASSES.items()
    for field in of_type(known, str)
    if field.metadata["is_path"]
]


def test_every_program_is_here() -> None:
    """One that reads its flags elsewhere would not be checked by the tests below."""
    for path in (path for folder in ("data", "drivers", "results") for path in (REPO / folder).glob("*.py")):
        if "parse_flags(" in path.read_text():
            assert path.stem in CLASSES, path


def required(program: str, but: str) -> list[str]:
    fields = dataclasses.fields(CLASSES[program])
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in CLASSES[program].DEFAULTS]
    return [word for name in missing if name != but for word in (f"--{name}", "0.5" if name == "fraction" else "x")]


def parse(program: str, name: str, value: str) -> typing.Any:
    argv = [*required(program, name), f"--{name}={value}"]
    return getattr(parse_flags(CLASSES[program], program, argv), name)


def refused(capsys: pytest.CaptureFixture[str], program: str, name: str, value: str) -> str:
    """The one line with which the program ends, exit code 2."""
    capsys.readouterr()  # a value that has no effect leaves a warning
    with pytest.raises(SystemExit) as caught:
        parse(program, name, value)
    out, error = capsys.readouterr()
    assert (caught.value.code, out, error.count("\n")) == (2, "", 1), (program, name, value, error)
    assert error.startswith(f"{program}: error: ") and f"--{name}" in error
    return error


# Numbers


def declared(program: str, name: str) -> Range:
    field = next(field for field in dataclasses.fields(CLASSES[program]) if field.name == name)
    range_ = range_of(CLASSES[program], field)
    assert range_ is not None, f"--{name} of {program} is a number and declares no range: flag(..., at_least=0)"
    return range_


@pytest.mark.parametrize(("program", "name"), NUMBERS)
def test_a_number_out_of_its_range_is_refused(
    program: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # as --local_rank wants it
    range_ = declared(program, name)
    default = CLASSES[program].DEFAULTS.get(name, getattr(CLASSES[program], name, None))
    is_whole = name in {field.name for field in of_type(CLASSES[program], int)}
    below = [range_.above] if range_.above is not None else []
    below += [range_.at_least - 1] if range_.at_least is not None and is_whole else []
    below += [math.nextafter(range_.at_least, -math.inf)] if range_.at_least is not None and not is_whole else []
    assert below, f"--{name} of {program} has no lower end"
    highest = LARGEST_SIZE if is_whole and range_.at_most is None else range_.at_most
    beyond = [] if highest is None else [highest + 1 if is_whole else math.nextafter(highest, math.inf)]
    for value in (*below, *beyond, -(10**30), *([10**30] if is_whole else [])):
        error = refused(capsys, program, name, repr(value))
        assert f"--{name} is {value if is_whole else float(value)}, expected a " in error, error
    for word in () if is_whole else ("nan", "inf", "-inf", "1e999"):
        assert f"--{name} is {float(word)}, expected a finite number" in refused(capsys, program, name, word)
    for end in (range_.at_least, highest, default):
        if end is not None:
            found = parse(program, name, repr(end))
            assert (found if not isinstance(found, list) else found[0]) == end


def test_the_cases_that_were_seen(capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (
        ("weight_decay", "-1"),
        ("adam_epsilon", "-1"),
        ("adam_epsilon", "0"),
        ("learning_rate", "nan"),
        ("seed", "18446744073709551616"),
        ("warmup_steps", "-3"),
    ):
        refused(capsys, "run_ann", name, value)
    refused(capsys, "run_warmup", "num_train_epochs", "nan")
    expected = "--k1 is nan, expected a finite number, at least 0 and at most 1000"
    assert expected in refused(capsys, "run_bm25", "k1", "nan")


def test_what_ance_allows_stays_allowed() -> None:
    for program, name, value in (
        ("run_warmup", "max_steps", -1),
        ("run_ann", "max_grad_norm", 0),
        ("run_ann", "local_rank", -1),
        ("run_ann", "warmup_steps", 0),
        ("run_ann_data_gen", "end_output_num", -1),
        ("run_ann_data_gen", "ann_chunk_factor", -1),
        ("negatives", "topk_training", 0),
    ):
        assert parse(program, name, str(value)) == value


@pytest.mark.parametrize("program", CLASSES)
def test_a_range_is_in_the_help(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_flags(CLASSES[program], program, ["--help"])
    text = capsys.readouterr().out.partition("\n\nexample:\n")[0]
    ignored = ignored_flags(CLASSES[program])
    for name in (name for owner, name in NUMBERS if owner == program):
        (shown,) = re.findall(rf"^  --{name} .*(?:\n    .*)*", text, re.M)
        expected = "ignored: " if name in ignored else f"({declared(program, name).in_help()})"
        assert expected in " ".join(shown.split()), name


@pytest.mark.parametrize("seed", [0, LARGEST_INTEGER])
def test_the_ends_of_a_seed_work_wherever_one_is_used(seed: int) -> None:
    with np.errstate(all="raise"):
        assert random_keys(seed, 1, 0, np.arange(3), 2).shape == (3, 2)
    np.random.default_rng([seed, 3]).random()
    seed_everything(seed, 1000)
    assert torch.rand(1) < 1
    ones_QN = np.ones((4, 2), np.int32)
    lists = NegativeLists(np.arange(4), np.arange(4), np.arange(8).reshape(4, 2), ones_QN, ones_QN.astype(np.float32))
    assert len(next(batches_of_triples(lists, 0, 3, seed, 0)).query_T) == 3


# Paths


@pytest.mark.parametrize("program", CLASSES)
def test_every_word_is_a_path_or_known_to_be_none(program: str) -> None:
    for field in of_type(CLASSES[program], str):
        is_word = field.name in NO_PATHS or "choices" in field.metadata
        assert field.metadata["is_path"] is not is_word, field.name


@pytest.mark.parametrize(("program", "name"), PATHS)
def test_a_tilde_is_expanded(
    program: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/somewhere/home")
    own = pwd.getpwuid(0)
    for value, expected in {
        "~/x y": "/somewhere/home/x y",
        "~": "/somewhere/home",
        f"~{own.pw_name}/x": f"{own.pw_dir.rstrip('/')}/x",
        "./~/x": "./~/x",
        "a~b": "a~b",
        "owner/model": "owner/model",
    }.items():
        found = parse(program, name, value)
        assert found == ([expected] if isinstance(found, list) else expected)
    assert "is ~nobody-of-that-name/x, and there is no such user" in refused(
        capsys, program, name, "~nobody-of-that-name/x"
    )


@pytest.mark.parametrize(("program", "name"), PATHS)
def test_an_empty_path_is_refused_unless_it_is_the_default(
    program: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if getattr(CLASSES[program], name, None) == "":
        assert parse(program, name, "") == ""
    else:
        assert f"--{name} is empty, expected a path" in refused(capsys, program, name, "")


def test_files_that_are_named_are_expanded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "negatives").touch()
    assert named_files(["top=~/negatives"]) == {"top": tmp_path / "negatives"}
    with pytest.raises(UserError, match="there is no such user"):
        named_files(["top=~nobody-of-that-name/x"])


# Programs with a parser of their own


BENCHMARKS = ("encode", "loop", "plan", "preprocess", "refresh", "search", "train")


class ParserSeen(Exception):
    pass


def own_parser(module: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser of a program's main."""
    seen: list[argparse.ArgumentParser] = []

    def look(parser: argparse.ArgumentParser, *_: object) -> None:
        seen.append(parser)
        raise ParserSeen

    with monkeypatch.context() as patched, pytest.raises(ParserSeen):
        patched.setattr(argparse.ArgumentParser, "parse_args", look)
        patched.setattr(sys, "argv", [module])
        importlib.import_module(module).main()
    return seen[0]


@pytest.mark.parametrize("module", ["utils.launch", *(f"benchmarks.{name}" for name in BENCHMARKS)])
def test_a_number_or_path_of_the_others(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = own_parser(module, monkeypatch)
    monkeypatch.setenv("HOME", "/somewhere/home")
    checked = 0
    for action in parser._actions:
        assert action.type not in (int, float, Path), f"{module} {action.dest} has no range: give another type"
        if action.type is None:
            continue
        checked += 1
        name = action.option_strings[0]
        is_path = action.type is path_argument
        for word in ("", "~nobody-of-that-name") if is_path else ("0", "-1", "nan", "inf", "many", str(10**400)):
            with pytest.raises(SystemExit) as caught:
                parser.parse_args([f"{name}={word}"])
            error = capsys.readouterr().err
            assert (caught.value.code, error.count("\n")) == (2, 1) and name in error, error
        if is_path:
            assert getattr(parser.parse_args([name, "~/x"]), action.dest) == Path("/somewhere/home/x")
    assert checked
