"""What the README and the pages of docs/ say exists and parses: their commands, paths, flags and links."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from data.export import ExportFlags
from data.mining.strategy import parse_strategy
from data.msmarco_data import PreprocessFlags
from data.negatives import NegativesFlags
from drivers.cli.evaluate import EvalFlags, FuseFlags, NeighbourhoodFlags
from drivers.cli.generate import Bm25Flags, GenerateFlags
from drivers.cli.plan import PlanFlags
from drivers.cli.train import AnnFlags, WarmupFlags
from model.convert import ConvertFlags
from results.read_log import ReadLogFlags
from results.report import ReportFlags
from results.status import StatusFlags
from tests import REPO
from tests.shell import run_script
from utils.flags import parse_flags

README = REPO / "README.md"
PAGES = [README, *sorted((REPO / "docs").glob("*.md")), REPO / "benchmarks" / "README.md"]
LINKED = [*PAGES, REPO / "results" / "published" / "README.md"]
README_BYTES = 9_000
FLAGS_OF = {
    "data.export": ExportFlags,
    "data.msmarco_data": PreprocessFlags,
    "data.negatives": NegativesFlags,
    "drivers.run_ann": AnnFlags,
    "model.convert": ConvertFlags,
    "drivers.run_ann_data_gen": GenerateFlags,
    "drivers.run_eval": EvalFlags,
    "drivers.run_fuse": FuseFlags,
    "drivers.run_warmup": WarmupFlags,
    "drivers.run_bm25": Bm25Flags,
    "drivers.run_neighbourhood": NeighbourhoodFlags,
    "drivers.run_plan": PlanFlags,
    "results.read_log": ReadLogFlags,
    "results.report": ReportFlags,
    "results.status": StatusFlags,
}
BENCHMARKS = ("encode", "train", "search", "preprocess", "refresh", "loop", "plan")
WITH_ARGPARSE = (*(f"benchmarks.{name}" for name in BENCHMARKS), "tests.faults.__main__")
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.M | re.S)
MADE_LATER = ("results/runs/", "tensorboard/", "commands/site.env")
# Words that are no part of the field's vocabulary; a log's own words stand in fences and in backquotes.
OWN_WORDS = (
    r"\b(?:anew|mend|mends|mended|reckon\w*|beside|rank 0|every rank|(?:leave|leaves|leaving|left) out|"
    r"(?:go|goes|going|went) on|(?:take|takes|taken|took|taking) up)\b"
)


def id_of(path: Path) -> str:
    return str(path.relative_to(REPO))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose_of(path: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", text_of(path))


def commands_of(path: Path) -> list[str]:
    """Every line of its bash blocks, and of its console blocks those that begin with a dollar sign."""
    found = []
    for language, block in FENCE.findall(text_of(path)):
        lines = [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]
        found += lines if language == "bash" else [line[2:] for line in lines if line.startswith("$ ")]
    return found


COMMANDS = list(dict.fromkeys(command for path in PAGES for command in commands_of(path)))


def test_the_readme_is_short() -> None:
    assert len(README.read_bytes()) <= README_BYTES


def test_there_are_commands() -> None:
    in_readme = commands_of(README)
    assert in_readme[:2] == ["bash commands/quickstart.sh --strategy all", "bash commands/test.sh"]
    assert len(in_readme) >= 5 and len(COMMANDS) > 30


@pytest.mark.parametrize("path", PAGES, ids=id_of)
def test_no_block_has_a_command_that_is_not_checked(path: Path) -> None:
    for language, block in FENCE.findall(text_of(path)):
        assert language in ("bash", "console", "text"), f"a block has no kind: {block[:60]}"
        if language == "text":
            assert not re.search(r"^\s*(\$ |bash |sbatch |python |torchrun |pip |[A-Z_]+=\S+ )", block, re.M), block


class Parsed(Exception):
    """The parser of a program that reads its own flags, once it has read them."""


def parser_of(module: str, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """Start the program up to where its flags are parsed. SystemExit where they do not parse."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_end(parser: argparse.ArgumentParser) -> None:
        parse(parser, argv)
        raise Parsed(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
    with pytest.raises(Parsed) as parsed:
        importlib.import_module(module).main()
    monkeypatch.undo()
    parser: argparse.ArgumentParser = parsed.value.args[0]
    return parser


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_what_exists_and_its_flags_parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_0-9]+=\S+", word)]
    if words[:2] == ["python", "-m"] and words[2] in FLAGS_OF:
        assert parse_flags(FLAGS_OF[words[2]], words[2].rsplit(".", 1)[1], words[3:])
    elif words[:2] == ["python", "-m"]:
        assert words[2] in WITH_ARGPARSE
        assert parser_of(words[2], words[3:], monkeypatch)
    elif words[:3] == ["pip", "install", "-r"]:
        assert (REPO / words[3]).is_file() and len(words) == 4
    else:
        assert words[0] in ("bash", "sbatch"), command
        script = REPO / words[1]
        assert script.is_file()
        if words[0] == "sbatch":
            assert "#SBATCH" in script.read_text()


def test_flags_that_a_program_with_its_own_parser_lacks_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        parser_of("benchmarks.plan", ["--no_such_flag", "1"], monkeypatch)


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.search(r"(quickstart|study|data_download)\.sh", c)])
def test_commands_with_a_dry_run_run(
    command: str, tmp_path: Path, shared_collection: Path, tiny_tokenizer: Path
) -> None:
    model = Path(shutil.copytree(tiny_tokenizer, tmp_path / "model"))
    (model / "config.json").write_text('{"model_type": "static", "embedding_size": 8}')
    (model / "model.safetensors").touch()
    there = {"my_collection": str(shared_collection), "my_model": str(model)}
    found = [there.get(word, word) for word in shlex.split(command)]
    words = [word for word in found if not re.fullmatch(r"[A-Z_0-9]+=\S+", word)]
    settings = dict(word.split("=", 1) for word in found[: len(found) - len(words)])
    files = {"RAW_DATA_DIR": tmp_path, "MSMARCO_URL": f"file://{tmp_path}", **settings}
    result = run_script(REPO / words[1], *words[2:], "--dry_run", **files)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if "submit_ance.sh" in c])
def test_commands_that_submit_print_what_they_would(
    command: str, tmp_path: Path, shared_collection: Path, tiny_tokenizer: Path
) -> None:
    shutil.copytree(tiny_tokenizer, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    words = [f"{tmp_path}" if "checkpoint-" in word else word for word in shlex.split(command)]
    settings = {"PYTHON": sys.executable, "RUNS_DIR": tmp_path / "runs"}
    settings |= {"RAW_DATA_DIR": shared_collection, "MODEL": tmp_path}
    result = run_script(REPO / words[1], "--dry_run", *words[2:], **settings)
    assert result.returncode == 0, result.stderr
    submitted = [line for line in result.stdout.splitlines() if line.startswith("sbatch ")]
    assert len(submitted) == (2 if "--colocated" in words else 4) + ("--warmup" not in words)


@pytest.mark.parametrize("path", PAGES, ids=id_of)
def test_every_path_in_the_text_exists(path: Path) -> None:
    folders = "drivers|data|model|utils|commands|results|tests|docs|benchmarks|requirements"
    for name in re.findall(rf"`((?:{folders})[\w./*-]*)`", prose_of(path)):
        is_a_path = "/" in name or name.endswith(".txt")
        if is_a_path and not name.startswith(MADE_LATER):
            assert any(REPO.glob(name.rstrip("/"))), f"{path.name} names {name}"
    for name in re.findall(r"`(\w+\.sh)`", prose_of(path)):
        assert (REPO / "commands" / name).is_file(), f"{path.name} names {name}"
    for name in re.findall(r"`python -m ((?!torch)[\w.]+)", prose_of(path)):
        module = REPO / name.replace(".", "/")
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), f"{path.name} names {name}"


def anchors_of(path: Path) -> set[str]:
    """The anchors that GitHub makes of its headings."""
    headings = re.findall(r"^#+ (.+)$", prose_of(path), re.M)
    return {re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", LINKED, ids=id_of)
def test_every_link_resolves(path: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose_of(path)):
        target, _, anchor = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        assert there.exists() and there.is_relative_to(REPO), f"{path.name} links to {link}"
        if anchor:
            assert anchor in anchors_of(there), f"{path.name} links to {link}"


def test_the_anchors_are_github_s(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# How to read an `.out`\n```bash\n# no heading\n```\n## ANCE's *four* arms, and one_more\n")
    assert anchors_of(page) == {"how-to-read-an-out", "ances-four-arms-and-one_more"}


@pytest.mark.parametrize("path", PAGES[1:], ids=id_of)
def test_a_page_says_first_what_it_is_for_and_the_readme_lists_it(path: Path) -> None:
    assert re.match(r"# [^\n:]+: [^\n]+\n", text_of(path))
    table = text_of(README).partition("## Pages")[2].partition("\n## ")[0]
    assert f"({path.relative_to(REPO)})" in table


@pytest.mark.parametrize("path", PAGES, ids=id_of)
def test_the_words_are_the_field_s(path: Path) -> None:
    prose = " ".join(re.sub(r"`[^`\n]*`", "", prose_of(path)).split())
    assert not re.findall(rf".{{0,40}}{OWN_WORDS}.{{0,20}}", prose, re.I)


@pytest.fixture(scope="module")
def known_flags() -> set[str]:
    """The flags of every program, and of the scripts."""
    fields = [field for flags in FLAGS_OF.values() for field in dataclasses.fields(flags)]
    known = {field.name for field in fields}
    known |= {alias.removeprefix("--") for field in fields for alias in field.metadata.get("aliases", ())}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for module in WITH_ARGPARSE:
            known |= {action.dest for action in parser_of(module, [], monkeypatch)._actions}
    scripts = ("submit_ance.sh", "quickstart.sh")
    usage = "".join(run_script(REPO / "commands" / name, "--help").stdout for name in scripts)
    return known | {"nproc_per_node", *re.findall(r"--([a-z][a-z0-9_]+)", usage)}


@pytest.mark.parametrize("path", PAGES, ids=id_of)
def test_every_flag_in_the_text_is_a_flag_of_some_program(path: Path, known_flags: set[str]) -> None:
    of_sbatch = {"partition", "time", "signal"}
    for name in set(re.findall(r"--([a-z][a-z0-9_]+)", text_of(path))) - of_sbatch:
        assert name in known_flags, f"{path.name} names --{name}"


# The page of strategies


def test_the_combinations_on_the_page_of_strategies_are_in_the_language() -> None:
    page = text_of(REPO / "docs" / "strategies.md").partition("Words combine:")[2].partition("\n## ")[0]
    combined = re.findall(r"^\| `([^`]+)`", page, re.M)
    found = [parse_strategy(text, 20, 200) for text in combined]
    assert any(len(strategy.phases) > 1 for strategy in found)
    assert any(len(strategy.phases[0].samplers) > 1 for strategy in found)


def test_the_requirements_differ_in_faiss_alone() -> None:
    cpu, gpu = ((REPO / name).read_text().splitlines() for name in ("requirements.txt", "requirements-gpu.txt"))
    assert [line for line in cpu if "faiss" not in line] == [line for line in gpu if "faiss" not in line]
    for name in ("requirements.txt", "requirements-gpu.txt", "requirements-dev.txt"):
        for line in (REPO / name).read_text().splitlines():
            assert "==" in line or line.startswith("-r "), f"{name}: {line} is not pinned"
    assert not any(re.match(r"apex\b", line) for line in cpu + gpu)  # PyPI's apex is another program
