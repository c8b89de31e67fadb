"""The names of a run's files: spelled in one module, as people and other programs know them."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import REPO
from utils.exchange import layout, model_files
from utils.exchange.layout import ArmLayout, EvaluationLayout, JobLayout, ReportLayout, RunLayout

OF_MODEL_FILES = "model_files.py"  # which spells those of a model
ROOMS = ("drivers", "data", "model", "utils", "results")
SOURCES = [path for room in ROOMS for path in sorted((REPO / room).rglob("*.py")) if path.name != "layout.py"]
NAMES = {value for name, value in vars(layout).items() if name.isupper() and isinstance(value, str)} - {layout.NUMBER}
OF_MODELS = {model_files.CONFIG, model_files.SAFETENSORS}
# What begins, or ends, a name with a number or a word in it.
PARTS = ("checkpoint-", "ann_training_data_", "ann_ndcg_", "ann_candidates_", "step-", "seed-", ".stop-")
ENDS = (".beat", ".trec", ".per_query.tsv", ".by_rank.json", ".answers.tsv", ".taken", ".rows.npy")
# These are other things too: a role, a kind of negatives, a word.
WORDS = {
    "bm25",
    "warmup",
    "arms",
    "runs",
    "raw",
    "tokenizer",
    "embeddings",
    "logs",
    "eval",
    "inference",
    "neighbourhood",
}
ALSO_WORDS = WORDS | {"checkpoints", "preprocessed", "tensorboard", "STOP"}


def spelled_names(source: str) -> list[str]:
    """The names that a module spells: alone in quotes, after a /, or as the beginning or the end of an f-string."""
    tree, found = ast.parse(source), []
    joined = {node.right for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)}
    inside = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            first, last = node.values[0], node.values[-1]
            if isinstance(first, ast.Constant) and str(first.value) in PARTS:
                found.append(str(first.value))
            if isinstance(last, ast.Constant) and str(last.value) in ENDS and len(node.values) == 2:
                found.append(str(last.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            is_name = node.value in NAMES | OF_MODELS or (node.value.endswith(ENDS) and " " not in node.value)
            if is_name and (node in joined or node.value not in ALSO_WORDS):
                found.append(node.value)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_no_other_module_spells_a_name(path: Path) -> None:
    own = OF_MODELS if path.name == OF_MODEL_FILES else set()
    assert set(spelled_names(path.read_text(encoding="utf-8"))) <= own


def test_a_spelled_name_is_seen() -> None:
    source = 'a = d / "eval"\nb = "DONE.json"\nc = f"checkpoint-{step}"\nd = f"{split}.trec"\ne = d / "dev.trec"\n'
    assert sorted(spelled_names(source)) == [".trec", "DONE.json", "checkpoint-", "dev.trec", "eval"]
    assert spelled_names('role = "warmup"\nsay(f"no DONE.json: it is {what}")\n"""Of DONE.json."""\n') == []


def paths_of(files: object, **arguments: object) -> list[str]:
    """Every path that a layout names, its methods called with ``arguments``."""
    found = []
    for name, member in inspect.getmembers(type(files)):
        if isinstance(member, property):
            value = getattr(files, name)
        elif inspect.isfunction(member) and not name.startswith("_"):
            taken = [arguments[parameter] for parameter in [*inspect.signature(member).parameters][1:]]
            value = getattr(files, name)(*taken)
        else:
            continue
        found.append(str(value if isinstance(value, Path) else value.root))
    return sorted(found)


def test_the_names_that_other_programs_read() -> None:
    """Written out: whatever happens to the module, these stay."""
    job = paths_of(JobLayout(Path()), role="trainer", epoch=2, name="checkpoint-8", step=8, refresh=3)
    assert [name for name in job if name.startswith(".")] == [
        ".damaged/checkpoint-8.2",
        ".leases",
        ".leases/trainer-2.beat",
        ".leases/trainer-2.json",
        ".leases/trainer.lock",
        ".staging",
    ]
    assert [name for name in job if not name.startswith(".")] == [
        *("DONE.json", "FAILED.json", "RUN.json", "STOP", "ann_candidates_3.npz", "ann_ndcg_3", "ann_training_data_3"),
        *("checkpoint-8", "embeddings", "journal.jsonl", "metrics.jsonl", "tensorboard"),
    ]
    evaluation = paths_of(EvaluationLayout(Path("eval")), split="dev")
    names = ["dev.answers.tsv", "dev.by_rank.json", "dev.per_query.tsv", "dev.rerank.trec", "dev.trec", "metrics.json"]
    assert evaluation == [f"eval/{name}" for name in names]
    arm = paths_of(ArmLayout(Path("arms/top")), program="trainer", job="17")
    assert arm == [
        f"arms/top/{name}" for name in (".stop-trainer-17", "ann_data", "checkpoints", "eval", "trainer.out")
    ]
    assert paths_of(ReportLayout(Path())) == ["report.html", "report.json", "report.md", "summary.json"]
    run = paths_of(RunLayout(Path()), seed=4)
    assert run == ["arms", "bm25", "preprocessed", "runs", "seed-4", "warmup", "warmup/eval"]


def test_bash_has_the_names_at_once(tmp_path: Path) -> None:
    """Commands/env.sh asks at the start of every script."""
    began = time.monotonic()
    printed = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "utils.exchange.layout"], cwd=REPO, capture_output=True, text=True
    )
    assert time.monotonic() - began < 2 and not re.search(r"\| +(numpy|torch)$", printed.stderr, re.M)
    (tmp_path / "names.sh").write_text(printed.stdout)
    script = 'declare -A LAYOUT; . "$0"; echo "${LAYOUT[checkpoints]} ${LAYOUT[first_record]} ${LAYOUT[done]}"'
    told = subprocess.run(["bash", "-euc", script, tmp_path / "names.sh"], capture_output=True, text=True)
    assert told.stdout == "checkpoints ann_ndcg_0 DONE.json\n", told


@pytest.mark.parametrize("path", sorted((REPO / "commands").glob("*.sh")), ids=lambda path: path.name)
def test_no_script_spells_a_name(path: Path) -> None:
    """After a / in a path with a variable in front; what is said to people, and comments, may."""
    names = "|".join(map(re.escape, sorted(NAMES - {"."}, key=len, reverse=True)))
    prefixes = r"(checkpoint-|seed-)\$|(ann_ndcg_|ann_training_data_)\d"
    spelled = re.compile(rf"\$[^ ]*/(({names})(?=[\"/\s}})]|$)|{prefixes})")
    for line in path.read_text(encoding="utf-8").splitlines():
        if not re.match(r"\s*(#|die |say_error |echo )", line):
            assert not spelled.search(line.partition(" # ")[0]), line
    assert spelled.search('rm "$arm/checkpoints/DONE.json"') and not spelled.search('echo "$arm/mine"')
