"""What the README says exists and parses: its commands, its paths, its flags."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from data.negatives import NegativesFlags
from data.strategies import COUNTED, STRATEGIES, parse_strategy
from drivers.flags import AnnFlags, EvalFlags, GenerateFlags, NeighbourhoodFlags, WarmupFlags
from drivers.run_bm25 import Bm25Flags
from results.read_log import ReadLogFlags, words_to_flag
from results.report import ReportFlags
from results.status import StatusFlags
from tests.shell import REPO, run_script
from utils.flags import parse_flags

README = (REPO / "README.md").read_text()
FLAGS_OF = {
    "data.negatives": NegativesFlags,
    "drivers.run_ann": AnnFlags,
    "drivers.run_ann_data_gen": GenerateFlags,
    "drivers.run_eval": EvalFlags,
    "drivers.run_warmup": WarmupFlags,
    "drivers.run_bm25": Bm25Flags,
    "drivers.run_neighbourhood": NeighbourhoodFlags,
    "results.read_log": ReadLogFlags,
    "results.report": ReportFlags,
    "results.status": StatusFlags,
}


def commands() -> list[str]:
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", README, re.M | re.S)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


COMMANDS = commands()


def test_there_are_commands() -> None:
    assert "bash commands/quickstart.sh --strategy all" in COMMANDS
    assert "bash commands/test.sh" in COMMANDS
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_what_exists_and_its_flags_parse(command: str) -> None:
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_0-9]+=\S+", word)]
    if words[:2] == ["python", "-m"]:
        positional = {"results.read_log": "files", "results.report": "run_dir", "results.status": "run_dir"}.get(
            words[2]
        )
        argv = words_to_flag(words[3:], positional, ("seeds", "arms")) if positional else words[3:]
        assert parse_flags(FLAGS_OF[words[2]], words[2].rsplit(".", 1)[1], argv)
        return
    assert words[0] in ("bash", "sbatch"), command
    script = REPO / words[1]
    assert script.is_file()
    if words[0] == "sbatch":
        assert "#SBATCH" in script.read_text()


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.search(r"(quickstart|study|data_download)\.sh", c)])
def test_commands_with_a_dry_run_run(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    files = {"RAW_DATA_DIR": tmp_path, "MSMARCO_URL": f"file://{tmp_path}"}
    result = run_script(REPO / words[1], *words[2:], "--dry_run", **files)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if "submit_ance.sh" in c])
def test_commands_that_submit_print_what_they_would(command: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    words = [f"{tmp_path}" if "checkpoint-" in word else word for word in shlex.split(command)]
    settings = {"PYTHON": sys.executable, "RUNS_DIR": tmp_path / "runs", "HF_HUB_OFFLINE": "1"}
    result = run_script(REPO / words[1], "--dry_run", *words[2:], **settings)
    assert result.returncode == 0, result.stderr
    submitted = [line for line in result.stdout.splitlines() if line.startswith("sbatch ")]
    assert len(submitted) == (2 if "--colocated" in words else 4) + ("--warmup" not in words)


def test_every_path_in_the_text_exists() -> None:
    made_later = ("results/runs/", "tensorboard/", "commands/site.env")
    for path in re.findall(r"`((?:drivers|data|model|utils|commands|results|tests|requirements)[\w./-]*)`", README):
        is_a_path = "/" in path or path.endswith(".txt")
        if not is_a_path or path.startswith(made_later):
            continue
        assert (REPO / path).exists(), f"README names {path}"
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (REPO / target).exists(), f"README links to {target}"
    headings = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", README, re.M)}
    for anchor in re.findall(r"\]\(#([^)]+)\)", README):
        assert anchor in headings


def test_every_flag_in_the_text_is_a_flag_of_some_program() -> None:
    known = {name for flags in FLAGS_OF.values() for name in flags.__dataclass_fields__}
    usage = run_script(REPO / "commands" / "submit_ance.sh", "--help").stdout
    of_scripts = {"nproc_per_node", *re.findall(r"--([a-z][a-z0-9_]+)", usage)}
    of_sbatch = {option for option in ("partition", "time", "signal") if f"--{option}" in README}
    for name in set(re.findall(r"--([a-z][a-z0-9_]+)", README)) - of_scripts - of_sbatch:
        assert name in known, f"README names --{name}"


def test_the_strategies_are_those_of_the_table() -> None:
    assert tuple(re.findall(r"^\| `(\w+)` \|", README, re.M)) == STRATEGIES


def test_the_examples_of_the_language_are_in_it_and_show_all_of_it() -> None:
    table = README.partition("| for example | takes |")[2].partition("\n\n")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    examples = [text for cell in first_cells for text in re.findall(r"`([^`]+)`", cell)]
    found = [parse_strategy(text, 20, 200) for text in examples]
    kinds = {part.kind for strategy in found for part in strategy.parts}
    assert kinds == {*COUNTED, "ranks", "around-positive"}
    assert any(len(strategy.stages) > 1 for strategy in found)


def test_the_requirements_differ_in_faiss_alone() -> None:
    cpu, gpu = ((REPO / name).read_text().splitlines() for name in ("requirements.txt", "requirements-gpu.txt"))
    assert [line for line in cpu if "faiss" not in line] == [line for line in gpu if "faiss" not in line]
    for name in ("requirements.txt", "requirements-gpu.txt", "requirements-dev.txt"):
        for line in (REPO / name).read_text().splitlines():
            assert "==" in line or line.startswith("-r "), f"{name}: {line} is not pinned"
    assert not any(re.match(r"apex\b", line) for line in cpu + gpu)  # PyPI's apex is another program
