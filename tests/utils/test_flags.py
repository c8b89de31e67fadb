"""Every flag of ANCE and its fork (tests/facts/ance_flags.tsv) against our programs, and how flags are parsed."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

from data.mining.strategy import resolve_strategy
from data.msmarco_data import PreprocessFlags
from drivers.cli.evaluate import EvalFlags, NeighbourhoodFlags
from drivers.cli.generate import Bm25Flags, GenerateFlags
from drivers.cli.train import AnnFlags, WarmupFlags
from tests import REPO
from tests.drivers.models import save_random_static
from utils.errors import UserError
from utils.flags import REFUSED, ProgramFlags, flags_json, parse_flags

FACTS = REPO / "tests" / "facts" / "ance_flags.tsv"
CLASSES: dict[str, type[ProgramFlags]] = {
    "msmarco_data": PreprocessFlags,
    "run_warmup": WarmupFlags,
    "run_ann_data_gen": GenerateFlags,
    "run_ann": AnnFlags,
    "run_eval": EvalFlags,
    "run_bm25": Bm25Flags,
    "run_neighbourhood": NeighbourhoodFlags,
}
OUR_PROGRAM_OF = {  # ANCE's program: ours, or the program of ours whose flags it shares
    "msmarco_data.py": "msmarco_data",
    "run_warmup.py": "run_warmup",
    "run_ann_data_gen.py": "run_ann_data_gen",
    "run_ann.py": "run_ann",
    "DPR_data.py": "msmarco_data",
    "run_ann_data_gen_dpr.py": "run_ann_data_gen",
    "run_ann_dpr.py": "run_ann",
}
OF_DPR = ("DPR_data.py", "run_ann_data_gen_dpr.py", "run_ann_dpr.py")
DRIVERS = ("run_warmup", "run_ann_data_gen", "run_ann", "run_eval", "run_fuse", "run_bm25", "run_neighbourhood")
TYPES = {"str": str, "int": int, "float": float, "bool": bool, "store_true": bool, "": bool}

OUR_SAMPLE = {"local_rank": -1, "data_type": "1"}  # of a narrow range, and of a word
NONE_IS_EMPTY = "None and '' both mean not given"
NOT_REQUIRED = "required in ANCE, needed for nothing here: an old command line's value is accepted"
OF_THE_MODEL = "not given is known: the model's config.json says it, else ANCE's default holds"
# Where our default is not ANCE's (a fork-only flag: not the fork's), what it is and why.
OTHER_DEFAULT: dict[tuple[str, str], tuple[Any, str]] = {
    ("msmarco_data.py", "model_name_or_path"): (
        "",
        "--tokenizer_name serves as well; the program asks for one of them",
    ),
    ("msmarco_data.py", "data_dir"): (
        "",
        "a dataset of ir_datasets is in no directory; the program asks for one of both",
    ),
    ("msmarco_data.py", "data_type"): ("", "what is there is known: documents, passages, or files of another source"),
    ("msmarco_data.py", "max_seq_length"): (None, OF_THE_MODEL),
    ("msmarco_data.py", "max_query_length"): (None, OF_THE_MODEL),
    ("run_warmup.py", "model_name_or_path"): ("", "omitted, the model starts from random weights of --config_name"),
    ("run_warmup.py", "task_name"): ("msmarco", NOT_REQUIRED),
    ("run_warmup.py", "log_dir"): ("", NONE_IS_EMPTY),
    ("run_warmup.py", "per_gpu_eval_batch_size"): (128, "one meaning in all programs: texts of full length in a batch"),
    ("run_warmup.py", "max_seq_length"): (None, OF_THE_MODEL),
    ("run_ann_data_gen.py", "max_seq_length"): (None, OF_THE_MODEL),
    ("run_ann_data_gen.py", "max_query_length"): (None, OF_THE_MODEL),
    ("run_ann.py", "max_seq_length"): (None, OF_THE_MODEL),
    ("run_ann.py", "max_query_length"): (None, OF_THE_MODEL),
    ("run_ann_data_gen.py", "cache_dir"): ("", NOT_REQUIRED),
    ("run_ann_data_gen.py", "ann_measure_topk_mrr"): (None, "not given is known; the strategy is resolved and said"),
    ("run_ann_data_gen.py", "bottom_neg"): (None, "not given is known; the strategy is resolved and said"),
    ("run_ann_data_gen.py", "bottom_only"): (None, "not given is known; the strategy is resolved and said"),
    ("run_ann_data_gen.py", "ann_dir"): ("", "the fork's default is a path of its site"),
    ("run_ann.py", "model_name_or_path"): ("", "asked for by the program, in words that say which model it is"),
    ("run_ann.py", "task_name"): ("msmarco", NOT_REQUIRED),
    ("run_ann.py", "log_dir"): ("", NONE_IS_EMPTY),
}


def rows() -> list[dict[str, str]]:
    with FACTS.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


ALL_ROWS = rows()
ROWS = [row for row in ALL_ROWS if row["program"] not in OF_DPR]
DPR_ROWS = [row for row in ALL_ROWS if row["program"] in OF_DPR]


def name_of(row: dict[str, str]) -> str:
    return row["flag"].removeprefix("--")


def row_id(row: dict[str, str]) -> str:
    return f"{row['program']} {row['flag']}"


def fact_default(row: dict[str, str]) -> Any:
    """ANCE's default, the fork's for a flag that ANCE has not; "required" for a required one."""
    if row["required"]:
        return "required"
    text = row["default_fork"] if row["default_ANCE"] == "(absent)" else row["default_ANCE"]
    if row["type"] in ("store_true", "bool", ""):
        return {"": False, "False": False, "True": True}[text]
    if text == "None":
        return None
    return text.strip("'") if row["type"] == "str" else TYPES[row["type"]](text)


def fields_of(program: str) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(CLASSES[program])}


def required_words(program: str) -> list[str]:
    fields = dataclasses.fields(CLASSES[program])
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in CLASSES[program].DEFAULTS]
    return [word for name in missing for word in (f"--{name}", "x")]


def parse(program: str, *words: str) -> Any:
    return parse_flags(CLASSES[program], program, [*required_words(program), *words])


def our_name(program: str, name: str) -> str:
    return "model_type" if name == "train_model_type" else name


def is_boolean(program: str, name: str) -> bool:
    hint = typing.get_type_hints(CLASSES[program])[name]
    return hint is bool or bool in typing.get_args(hint)


def sample_of(row: dict[str, str], program: str, name: str) -> tuple[list[str], Any]:
    """Words after the flag, and the value they must give."""
    hint = typing.get_type_hints(CLASSES[program])[name]
    literals = [arg for arg in typing.get_args(hint) if not isinstance(arg, type)]
    if literals:
        return [str(literals[-1])], literals[-1]
    if name in OUR_SAMPLE:
        return [str(OUR_SAMPLE[name])], OUR_SAMPLE[name]
    samples: dict[type, tuple[list[str], Any]] = {
        str: (["some/where"], "some/where"),
        int: (["17"], 17),
        float: (["0.25"], 0.25),
        bool: ([], True),
    }
    return samples[TYPES[row["type"]]]


# The list of all flags


def test_the_list_is_whole() -> None:
    assert len(ALL_ROWS) == 179
    assert len({name_of(row) for row in ALL_ROWS}) == 71


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_a_flag_of_ance_is_accepted_with_its_type_and_default(row: dict[str, str]) -> None:
    program = OUR_PROGRAM_OF[row["program"]]
    name = our_name(program, name_of(row))
    words, expected = sample_of(row, program, name)
    found = getattr(parse(program, row["flag"], *words), name)
    assert found == expected and type(found) is type(expected)
    key = (row["program"], name_of(row))
    fact = fact_default(row)
    if key in OTHER_DEFAULT:
        ours, reason = OTHER_DEFAULT[key]
        assert reason and ours != fact
        assert getattr(parse(program), name) == ours
    elif fact == "required":
        assert fields_of(program)[name].default is dataclasses.MISSING, "required there, not here: name the reason"
    else:
        assert getattr(parse(program), name) == fact


def test_the_exceptions_are_all_of_the_list() -> None:
    assert OTHER_DEFAULT.keys() <= {(row["program"], name_of(row)) for row in ROWS}


@pytest.mark.parametrize("row", DPR_ROWS, ids=row_id)
def test_a_flag_of_the_dpr_programs_is_shared_or_refused(
    row: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    program = OUR_PROGRAM_OF[row["program"]]
    name = name_of(row)
    if name in fields_of(program):
        words, _ = sample_of(row, program, name)
        parse(program, row["flag"], *words)
        return
    assert name in REFUSED
    for spelling in (f"--{name}", f"--{name.replace('_', '-')}"):
        assert_refused(capsys, program, [spelling, "x"], f"--{name} belongs to ANCE's OpenQA (DPR) programs")
    assert_refused(capsys, program, [f"--{name}=x"], f"--{name} belongs to ANCE's OpenQA (DPR) programs")


def test_nothing_is_refused_that_is_not_in_the_list() -> None:
    assert set(REFUSED) == {name_of(row) for row in DPR_ROWS} - {name_of(row) for row in ROWS}


def assert_refused(capsys: pytest.CaptureFixture[str], program: str, words: list[str], *expected: str) -> str:
    """Exit code 2, nothing on stdout, one line on stderr."""
    with pytest.raises(SystemExit) as caught:
        parse(program, *words)
    out, error = capsys.readouterr()
    assert caught.value.code == 2
    assert out == "" and error.count("\n") == 1 and error.startswith(f"{program}: error: ")
    for text in expected:
        assert text in error
    return error


# Parsing


@pytest.mark.parametrize("program", CLASSES)
def test_every_boolean_is_bare_true_or_false(program: str) -> None:
    names = [name for name in fields_of(program) if is_boolean(program, name)]
    assert "dry_run" in names
    for name in names:
        for words, expected in (([], True), (["true"], True), (["True"], True), (["false"], False), (["False"], False)):
            assert getattr(parse(program, f"--{name}", *words), name) is expected
        assert getattr(parse(program, f"--{name}=false"), name) is False
        assert getattr(parse(program, f"--{name}", "--dry_run"), name) is True


def test_what_broke_the_published_random_arm() -> None:
    """type=bool made True of "false"."""
    flags = parse("run_ann_data_gen", "--ann_measure_topk_mrr", "false")
    assert flags.ann_measure_topk_mrr is False
    strategy, _ = resolve_strategy(None, flags.ann_measure_topk_mrr, flags.bottom_neg, flags.bottom_only)
    assert strategy == "random"


@pytest.mark.parametrize("program", CLASSES)
def test_a_boolean_of_another_word_is_refused(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, program, ["--dry_run", "perhaps"], "--dry_run", "perhaps")


@pytest.mark.parametrize("program", CLASSES)
def test_every_flag_has_a_help_line_and_a_hyphenated_spelling(program: str) -> None:
    for field in dataclasses.fields(CLASSES[program]):
        assert field.metadata["help"], field.name
        if "_" in field.name and is_boolean(program, field.name):
            assert getattr(parse(program, f"--{field.name.replace('_', '-')}"), field.name) is True
    if "max_seq_length" in fields_of(program):
        assert parse(program, "--max-seq-length", "9").max_seq_length == 9
        assert parse(program, "--max-seq-length=9").max_seq_length == 9


def ignored_flags() -> list[tuple[str, str]]:
    found = []
    for program, flags_class in CLASSES.items():
        names = {name for group in flags_class.__mro__ for name in vars(group).get("IGNORED", {})}
        assert names <= {field.name for field in dataclasses.fields(flags_class)}, "an ignored flag must be declared"
        found += [(program, name) for name in sorted(names)]
    return found


@pytest.mark.parametrize(("program", "name"), ignored_flags())
def test_an_ignored_flag_gives_one_warning_line(program: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    boolean = is_boolean(program, name)
    value = {"local_rank": "-1", "max_doc_character": "10000"}.get(name, "x")
    hyphenated = f"--{name.replace('_', '-')}"
    for words in (
        [f"--{name}"] if boolean else [f"--{name}", value],
        [hyphenated if boolean else f"{hyphenated}={value}"],
    ):
        parse(program, *words, *words)
        out, error = capsys.readouterr()
        assert out == ""
        assert error.count("\n") == 1
        assert error.startswith(f"{program}: warning: --{name} has no effect here: ")


def test_what_the_issue_says_is_ignored() -> None:
    ignored = set(ignored_flags())
    for program in ("run_warmup", "run_ann"):
        assert {(program, name) for name in ("server_ip", "server_port", "task_name", "local_rank")} <= ignored
    assert ("msmarco_data", "max_doc_character") not in ignored


@pytest.mark.parametrize("program", CLASSES)
def test_no_warning_without_cause(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    parse(program, "--dry_run")
    assert capsys.readouterr() == ("", "")


LAUNCHED = [program for program in CLASSES if "local_rank" in fields_of(program)]


@pytest.mark.parametrize("program", LAUNCHED)
def test_local_rank(program: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for words in (["--local_rank", "0"], ["--local_rank=1"], ["--local-rank=0"]):
        assert_refused(capsys, program, words, f"torchrun --nproc_per_node N -m drivers.{program}")
    parse(program, "--local_rank", "-1")
    capsys.readouterr()
    monkeypatch.setenv("WORLD_SIZE", "2")
    parse(program, "--local_rank=1")
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "warning" in error and "torchrun --nproc_per_node N -m drivers." in error


@pytest.mark.parametrize("program", CLASSES)
def test_unknown_flags(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean --output_dir?" in assert_refused(capsys, "run_ann", ["--ouput_dir", "x"], "--ouput_dir")
    assert_refused(capsys, program, ["--qqqqqqqq"], "unknown flag --qqqqqqqq", "--help lists them")
    assert_refused(capsys, program, ["stray"], "unknown flag stray")
    with pytest.raises(SystemExit):  # before the flags that are missing are asked for
        parse_flags(CLASSES[program], program, ["--qqqqqqqq=1"])
    assert capsys.readouterr().err == f"{program}: error: unknown flag --qqqqqqqq; --help lists them\n"
    assert_refused(capsys, program, ["--dry"], "unknown flag --dry; did you mean --dry")  # no abbreviations


@pytest.mark.parametrize("program", CLASSES)
def test_a_mistyped_flag_gets_the_nearest(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The last two letters swapped, for every flag of some length."""
    for name in fields_of(program):
        if len(name) > 5 and name[-1] != name[-2]:
            assert_refused(capsys, program, [f"--{name[:-2]}{name[-1]}{name[-2]}", "1"], f"did you mean --{name}?")


@pytest.mark.parametrize("program", CLASSES)
def test_missing_and_mistyped_values(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_flags(CLASSES[program], program, [])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1
    for name in required_words(program)[::2]:
        assert f"--{name.removeprefix('--')}" in error
    for name, hint in typing.get_type_hints(CLASSES[program]).items():
        if hint in (int, float):
            assert_refused(capsys, program, [f"--{name}", "many"], f"--{name}", "many")
            assert_refused(capsys, program, [f"--{name}"], f"--{name}", "expected one argument")
        elif typing.get_origin(hint) is typing.Literal:
            assert_refused(capsys, program, [f"--{name}", "other"], f"--{name}", "other")


def test_our_own_default_where_a_program_differs() -> None:
    assert (parse("run_warmup").max_steps, parse("run_ann").max_steps) == (-1, 1_000_000)
    assert parse("run_warmup", "--max_steps", "7").max_steps == 7


def test_flags_as_json() -> None:
    flags = parse("run_ann_data_gen", "--bottom_neg", "--seed", "3")
    found = json.loads(flags_json(dataclasses.asdict(flags), resolved_strategy="top_bottom"))
    assert found == {**dataclasses.asdict(flags), "resolved_strategy": "top_bottom"}
    assert (found["bottom_neg"], found["bottom_only"], found["seed"]) == (True, None, 3)


# Strategies: what the four flags mean, for all their values


def meaning(measure: bool | None, bottom_neg: bool | None, bottom_only: bool | None) -> str | None:
    """DESIGN §5's table, from the three old flags alone; None for a contradiction."""
    if bottom_only and not bottom_neg:
        return None
    if bottom_neg and measure is False:
        return None
    table = {(False, True): "bottom", (False, False): "top_bottom"}
    if bottom_neg:
        return table[False, bool(bottom_only)]
    return "random" if measure is False else "top"


TRISTATE = (None, True, False)
STRATEGY_WORDS = (None, "top", "top_bottom", "bottom", "random")


@pytest.mark.parametrize("word", STRATEGY_WORDS)
@pytest.mark.parametrize(("measure", "bottom_neg", "bottom_only"), list(itertools.product(TRISTATE, repeat=3)))
def test_the_truth_table(
    word: str | None, measure: bool | None, bottom_neg: bool | None, bottom_only: bool | None
) -> None:
    old = (measure, bottom_neg, bottom_only)
    meant = meaning(*old)
    if old == (None, None, None):
        strategy, said = resolve_strategy(word, *old)
        assert strategy == (word or "top")
        assert ("ANCE" in said) == (word is None)
    elif meant is None or word not in (None, meant):
        with pytest.raises(UserError) as caught:
            resolve_strategy(word, *old)
        assert "--" in str(caught.value) and "\n" not in str(caught.value)
    else:
        strategy, said = resolve_strategy(word, *old)
        assert strategy == meant
        given = zip(("ann_measure_topk_mrr", "bottom_neg", "bottom_only"), old, strict=True)
        assert said == " ".join(f"--{name} {str(value).lower()}" for name, value in given if value is not None)


def test_the_rows_of_the_design() -> None:
    """DESIGN §5, word for word."""
    assert resolve_strategy(None, None, True, None)[0] == "top_bottom"
    assert resolve_strategy(None, None, True, True)[0] == "bottom"
    assert resolve_strategy(None, False, None, None)[0] == "random"


# Programs as they are started


WITHOUT_TORCH = """
import contextlib, io, json, runpy, sys
found = {}
for module in sys.argv[1].split(","):
    for words in (["--help"], ["--qqqqqqqq"], ["--local_rank", "0"]):
        sys.argv = [module, *words]
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
                code = 0
            except SystemExit as ended:
                code = ended.code
        slow = ("torch", "faiss", "bm25s", "matplotlib", "sklearn", "tokenizers")
        heavy = [name for name in slow if name in sys.modules]
        found[f"{module} {words[0]}"] = [code, len(out.getvalue()) > 100, error.getvalue(), heavy]
sys.__stdout__.write(json.dumps(found))
"""


def test_help_and_a_mistyped_flag_load_no_torch() -> None:
    """In one process, one program after the other: what any of them loads would be seen."""
    modules = ["data.msmarco_data", *(f"drivers.{driver}" for driver in DRIVERS)]
    command = [sys.executable, "-c", WITHOUT_TORCH, ",".join(modules)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 3 * len(modules)
    for what, (code, has_help, error, heavy) in found.items():
        assert heavy == [], what
        if what.endswith("--help"):
            assert (code, has_help, error) == (0, True, ""), what
        else:
            assert (code, has_help, error.count("\n")) == (2, False, 1), what


@pytest.mark.parametrize("driver", DRIVERS)
def test_started_by_its_path(driver: str, tmp_path: Path) -> None:
    """python drivers/run_ann.py, from anywhere: Python would not find the other packages."""
    command = [sys.executable, str(REPO / "drivers" / f"{driver}.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert f"start from the repository root: python -m drivers.{driver}" in done.stderr
    assert driver == "run_bm25" or f"torchrun --nproc_per_node N -m drivers.{driver})" in done.stderr


def test_no_strategy_flag_is_said_aloud(tiny_preprocessed: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """ANCE's users got random without a flag: a warning names what they get here, also in a dry run."""
    model = save_random_static(tiny_preprocessed, tiny_tokenizer, tmp_path / "model")
    flags = ["--data_dir", tiny_preprocessed, "--training_dir", tmp_path / "t", "--init_model_dir", model]
    flags += ["--output_dir", tmp_path / "a", "--model_type", "static", "--max_seq_length", "32"]
    flags += ["--max_query_length", "16", "--topk_training", "50", "--dry_run"]
    for more, warned in (((), True), (("--negative_strategy", "top"), False)):
        command = [sys.executable, "-m", "drivers.run_ann_data_gen", *map(str, flags), *more]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["resolved_strategy"] == "top"
        assert ("warning: negatives are top: no strategy flag given" in done.stderr) is warned
