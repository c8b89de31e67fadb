"""What commands/quickstart.sh --data_dir would start, run: a BEIR folder and a tiny BERT, from the plan to the report.

Its commands are those of --dry_run, each forked from a process that has imported the programs; the script itself runs
them in test_own_collection.py, and on real collections here.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import REPO
from tests.beir import beir_of_msmarco
from tests.forked import ends_of, run, start
from tests.real import collection_dir, minilm_dir
from tests.shell import run_script, script_environment

SCRIPT = REPO / "commands" / "quickstart.sh"
GAIN = 0.05  # of nDCG@10 on the train queries
MOST_SECONDS = 45 * 60


def write_bert(tokenizer: Path, directory: Path) -> Path:
    """A BERT of random weights with the tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    vocabulary = len(AutoTokenizer.from_pretrained(tokenizer))
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    shutil.copytree(tokenizer, directory)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=vocabulary, max_position_embeddings=64, **shape)).save_pretrained(directory)
    return directory


def run_as_the_script_does(lines: list[str]) -> None:
    """Each program to its end; a trainer and the generator behind it at the same time."""
    commands = [shlex.split(line) for line in lines]
    while commands:
        words = commands.pop(0)
        if words[0] == "drivers.run_ann":
            arm = Path(words[words.index("--output_dir") + 1]).parent
            arm.mkdir(parents=True)
            pair = {"trainer": words, "generator": commands.pop(0)}
            logs = {name: arm / f"{name}.out" for name in pair}
            codes = ends_of([start(logs[name], *argv) for name, argv in pair.items()])
            assert codes == [0, 0], [log.read_text()[-2000:] for log in logs.values()]
        else:
            run(*words)


@pytest.mark.slow
def test_from_a_folder_and_a_model_to_the_report(shared_collection: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    data = beir_of_msmarco(shared_collection, tmp_path / "data", {"train": "train", "test": "dev.small"})
    model, run_dir = write_bert(tiny_tokenizer, tmp_path / "bert"), tmp_path / "run"
    words = ("--data_dir", data, "--model", model, "--run_dir", run_dir, "--dry_run")
    settings = {"MAX_STEPS": "6", "STEPS_PER_REFRESH": "2", "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    found = run_script(SCRIPT, *words, **settings)
    assert found.returncode == 0, found.stderr
    (run_dir / "preprocessed").parent.mkdir()
    run_as_the_script_does(found.stdout.splitlines())
    report = json.loads((run_dir / "report.json").read_text())
    assert {name: arm["refreshes"] for name, arm in report["arms"].items()} == {"top": 3}
    assert report["collection"]["test_queries"] == 20
    rows = re.findall(r"^\| *(\w+) *\| +\d+ \| +(\w+) *\|", (run_dir / "report.md").read_text(), re.M)
    assert rows == [("test", "top"), ("train", "top")]


@pytest.mark.measured
@pytest.mark.timeout(2 * MOST_SECONDS)
@pytest.mark.parametrize(("name", "measured"), [("scifact", "test"), ("nfcorpus", "test")])
def test_minilm_learns_a_real_collection_within_the_time(name: str, measured: str, tmp_path: Path) -> None:
    """nDCG@10 on the train queries rises, on the test queries it is not lower by the paired test; both are shown."""
    words = ("--data_dir", collection_dir(name), "--model", minilm_dir(), "--strategy", "top,random")
    command = ["bash", SCRIPT, *words, "--run_dir", tmp_path / "run"]
    environment = script_environment(PYTHON=sys.executable, HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", CPUS="2")
    found = subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, timeout=2 * MOST_SECONDS, check=False
    )
    assert found.returncode == 0, found.stderr
    sys.stdout.write(found.stdout)
    table = [re.split(r"  +", line.strip()) for line in found.stdout.splitlines()]
    changes = {(row[0], row[2]): row for row in table if len(row) == 8 and row[2] in ("top", "random")}
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    for arm in ("top", "random"):
        assert report["arms"][arm]["refreshes"] >= 3
        assert float(changes["train", arm][5]) >= GAIN
        assert changes[measured, arm][7] != "worse"
    seconds = sum(int(found) for found in re.findall(r"(\d+) s  ", found.stdout))
    assert seconds <= MOST_SECONDS
