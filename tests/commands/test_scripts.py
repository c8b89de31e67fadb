"""The shell scripts: their form, how they find things, what the set-up of .venv says; the drivers parse them."""

from __future__ import annotations

import importlib
import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from model.kernels.precision import compute_dtype
from tests import REPO
from tests.shell import (
    copy_scripts,
    path_without,
    run_script,
    script_environment,
    single_error_line,
    write_script,
)
from utils.flags import parse_flags

SCRIPTS = sorted([*REPO.glob("commands/*.sh"), *REPO.glob("drivers/**/*.sh"), REPO / ".ci" / "run"])
NAMES = [str(path.relative_to(REPO)) for path in SCRIPTS]
SUBMITTED = [path for path in SCRIPTS if path.parent.name != "commands" and path.name != "run"]
ARM_SCRIPTS = {
    "commands/subset_10_train-a40.sh": "top",
    "commands/subset_10_train-a40_bottom_neg.sh": "top_bottom",
    "commands/subset_10_train-a40_bottom_neg_only.sh": "bottom",
    "commands/subset_10_train-a40_random.sh": "random",
    "drivers/10/sbatch_train_index-a40_subset_10.sh": "top",
    "drivers/10/sbatch_train_index-a40_subset_10_bottom_neg.sh": "top_bottom",
    "drivers/10/sbatch_train_index-a40_subset_10_bottom_neg_only.sh": "bottom",
    "drivers/10/sbatch_train_index-a40_subset_10_random.sh": "random",
}


# Form


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_script_is_bash_and_strict(script: Path) -> None:
    text = script.read_text()
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    if text.startswith("#!"):
        assert text.startswith("#!/usr/bin/env bash\n")
        assert "\nset -eu\n" in text
        # Not every sh knows pipefail, and it must get as far as to be told that it is not bash.
        before, _, after = text.partition("run it with bash, not with sh")
        assert "pipefail" not in before
        assert re.search(
            r'^(set -o pipefail|(source|exec bash) "\$REPO/commands/\w[\w.-]*\.sh"( "\$@")?)$', after, re.M
        )
    elif script.name == "env.sh":
        assert "\nset -euo pipefail\n" in text
    assert not re.search(r"[^\x00-\x7f]", text), "a script in another locale must read the same"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    result = subprocess.run(["shellcheck", *NAMES], cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_repository_names_no_site() -> None:
    site = re.compile(r"(?<![\w.])/(home|Users|work|scratch|gpfs)/\w")
    folders = (".ci", "benchmarks", "commands", "data", "docs", "drivers", "model", "results", "utils")
    files = [path for folder in folders for path in (REPO / folder).rglob("*") if path.suffix != ".pyc"]
    files += [path for path in REPO.iterdir() if path.suffix]
    for path in files:
        if path.is_file() and "runs" not in path.relative_to(REPO).parts:
            assert not site.search(path.read_text(errors="replace")), path


def test_slurm_directives() -> None:
    assert len(SUBMITTED) == 10
    for script in SUBMITTED:
        directives = re.findall(r"^#SBATCH --(\S+)$", script.read_text(), re.M)
        options = {name: value for name, _, value in (directive.partition("=") for directive in directives)}
        assert options["gpus-per-node"] == "4"
        assert options["constraint"] == "a40|l40s"
        assert options["cpus-per-task"] == "32"
        assert options["mem"] == "300G"
        assert options["time"] == "7-00:00:00"
        assert options["open-mode"] == "append" and "requeue" in options
        assert options["signal"] == "B:USR2@300"
        assert not {"partition", "account"} & set(options)
        # A missing log directory fails a job without a word.
        assert (REPO / options["output"]).parent.is_dir()


# Finding the repository and the settings


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return copy_scripts(tmp_path)


def settings(repo: Path, names: str, cwd: Path | str = "/", **changes: str | Path) -> list[str]:
    """What env.sh makes of the settings in ``names``."""
    show = f'source "{repo}/commands/env.sh"; for name in {names}; do echo "${{!name}}"; done'
    write_script(repo / "show.sh", show)
    result = run_script(repo / "show.sh", cwd=cwd, **changes)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_environment_wins_over_site_env_over_default(repo: Path, tmp_path: Path) -> None:
    names = "DATA_DIR MODEL MAX_SEQ_LENGTH"
    assert settings(repo, names) == [f"{repo}/results/runs/msmarco/preprocessed", "roberta-base", "512"]
    (repo / "commands" / "site.env").write_text("DATA_DIR=shared/data\nMODEL=site-model\n")
    assert settings(repo, names) == [f"{repo}/shared/data", "site-model", "512"]
    found = settings(repo, names, cwd=tmp_path, DATA_DIR="mine", MAX_SEQ_LENGTH="64")
    assert found == [f"{tmp_path}/mine", "site-model", "64"]


def test_a_tilde_in_a_path_is_expanded(repo: Path, tmp_path: Path) -> None:
    (repo / "commands" / "site.env").write_text("RUNS_DIR='~/site runs'\n")
    home = {"HOME": tmp_path / "a home"}
    root = pwd.getpwuid(0)
    found = settings(repo, "RUNS_DIR DATA_DIR RUN_DIR", DATA_DIR="~", RUN_DIR=f"~{root.pw_name}/x", **home)
    assert found == [f"{tmp_path}/a home/site runs", f"{tmp_path}/a home", f"{root.pw_dir}/x"]
    (repo / "commands" / "site.env").unlink()
    found = settings(
        repo, "RUN_DIR DATA_DIR RAW_DATA_DIR", cwd=tmp_path, RUN_DIR="./~/x", DATA_DIR="a~b", RAW_DATA_DIR=""
    )
    assert found == [f"{tmp_path}/./~/x", f"{tmp_path}/a~b", f"{repo}/results/runs/msmarco/raw"]
    for name in ("~nobody-of-that-name/x", "~$(touch harmed)/x", "~+/x"):
        refused = single_error_line(run_script(repo / "show.sh", cwd=tmp_path, RUN_DIR=name))
        assert f"error: {name}: there is no such user; write ./{name}" in refused
    assert not (tmp_path / "harmed").exists() and not (repo / "harmed").exists()


@pytest.mark.parametrize("words", [["quickstart.sh"], ["study.sh"], ["submit_ance.sh", "--strategy", "top"]])
def test_a_run_directory_is_expanded_or_refused(words: list[str], tmp_path: Path) -> None:
    script, *more = words
    for run_dir in ("--run_dir=~/runs", "--run_dir"):
        value = [] if "=" in run_dir else ["~/runs"]
        settings = {"HOME": tmp_path, "PYTHON": "/bin/true", "RAW_DATA_DIR": REPO}
        done = run_script(REPO / "commands" / script, *more, run_dir, *value, "--dry_run", cwd=tmp_path, **settings)
        assert done.returncode == 0, done.stderr
        assert f"{tmp_path}/runs" in done.stdout and "~" not in done.stdout
    for empty in (["--run_dir="], ["--run_dir", ""]):
        error = single_error_line(run_script(REPO / "commands" / script, *more, *empty, "--dry_run", cwd=tmp_path))
        assert "--run_dir needs a value" in error
    assert not list(tmp_path.iterdir())


def test_site_env_may_change_the_path(repo: Path) -> None:
    (repo / "commands" / "site.env").write_text("export PATH=/opt/site:$PATH\n")
    assert settings(repo, "PATH")[0].startswith("/opt/site:")


@pytest.mark.parametrize(
    ("changes", "gpus"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, "0"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "0"),
        ({"CUDA_VISIBLE_DEVICES": "4,6"}, "2"),
        ({"SLURM_GPUS_ON_NODE": "4"}, "4"),
        ({"SLURM_GPUS_ON_NODE": "4", "GPUS": "1"}, "1"),
    ],
)
def test_gpus_are_counted(repo: Path, changes: dict[str, str], gpus: str) -> None:
    assert settings(repo, "GPUS", **changes) == [gpus]


VISIBLE_DEVICES = (
    *("NoDevFiles", "none", "void", "x", "0,-1,1", "0,1,NoDevFiles", "0,", ",0", " 0, 2", "1gpu,2x", "00,1", "3,03"),
    *("GPU-8932f937-d72c,GPU-1a2b", "MIG-a,MIG-b,MIG-c", "GPU-a,1", "0,GPU-a", "1,1", "GPU-a,GPU-a"),
)


@pytest.mark.parametrize("value", VISIBLE_DEVICES)
def test_gpus_are_those_that_torch_takes(repo: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert settings(repo, "GPUS", CUDA_VISIBLE_DEVICES=value) == [str(len(torch.cuda._parse_visible_devices()))]


def test_without_gpus_the_programs_see_none(repo: Path) -> None:
    assert settings(repo, "CUDA_VISIBLE_DEVICES", CUDA_VISIBLE_DEVICES="0,1", GPUS="0") == [""]
    assert settings(repo, "CUDA_VISIBLE_DEVICES", CUDA_VISIBLE_DEVICES="0,1") == ["0,1"]


def test_newest_checkpoint_is_the_default(repo: Path, tmp_path: Path) -> None:
    for name in ("checkpoint-900", "checkpoint-10000", "checkpoint-20000.tmp"):
        (tmp_path / "warm-up" / name).mkdir(parents=True)
    found = settings(repo, "WARMUP_CHECKPOINT", WARMUP_DIR=tmp_path / "warm-up")
    assert found == [str(tmp_path / "warm-up" / "checkpoint-10000")]


def test_script_copied_by_slurm_finds_the_repository(repo: Path, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    for script in [*SUBMITTED, REPO / "commands" / "run_train.sh"]:
        shutil.copy(script, spool / "slurm_script")
        result = run_script(spool / "slurm_script", "--dry_run", SLURM_SUBMIT_DIR=repo, PYTHON="/bin/true")
        if "warmup" in script.name:
            assert result.returncode == 0, result.stderr
        else:
            assert "run commands/run_train_warmup.sh" in single_error_line(result)


def test_several_gpus_start_several_processes(repo: Path) -> None:
    text = f'source "{repo}/commands/env.sh"; launch 1 a --x; launch 4 a --x; launch 4 a --dry_run'
    python = write_script(repo / "python", 'echo "$OMP_NUM_THREADS $*"\n')
    result = run_script(write_script(repo / "show.sh", text), PYTHON=python, CPUS="8")
    assert result.stdout.splitlines() == [
        "8 -m a --x",
        "2 -m utils.launch --processes 4 a --x",
        "8 -m a --dry_run",
    ]


# A script's own options


def parsed(repo: Path, *arguments: str, switches: str = "dry_run") -> subprocess.CompletedProcess[str]:
    """What parse_options makes of the arguments, a word a line."""
    show = """set -eu
source "{repo}/commands/options.sh"
usage() {{ echo "usage: none"; }}
parse_options "run_dir arms" "{switches}" "$@"
for name in run_dir arms dry_run; do printf '%s=%s\\n' "$name" "${{OPTIONS[$name]-unset}}"; done
printf 'other %s\\n' "${{OTHERS[@]+"${{OTHERS[@]}}"}}"
printf 'after %s\\n' "${{AFTER_DASHES[@]+"${{AFTER_DASHES[@]}}"}}"
"""
    return run_script(write_script(repo / "show.sh", show.format(repo=repo, switches=switches)), *arguments)


@pytest.mark.parametrize(
    ("arguments", "options", "others", "after"),
    [
        ((), ("unset", "unset", "unset"), [], []),
        (("--run_dir", "a b", "x y", "--dry_run"), ("a b", "unset", "1"), ["x y"], []),
        (("--run-dir=a=b", "--arms", "--dry-run", "--arms=*"), ("a=b", "*", "unset"), [], []),
        (
            ("--dry_run=1", "--arm", "run_dir", "--run_dir arms", ""),
            ("unset",) * 3,
            ["--dry_run=1", "--arm", "run_dir", "--run_dir arms", ""],
            [],
        ),
        (("--dry_run", "--", "--arms", "x", "--"), ("unset", "unset", "1"), [], ["--arms", "x", "--"]),
    ],
)
def test_options_are_told_from_other_arguments(
    arguments: tuple[str, ...], options: tuple[str, ...], others: list[str], after: list[str], repo: Path
) -> None:
    found = parsed(repo, *arguments, switches="dry_run --")
    assert found.returncode == 0 and not found.stderr, found
    expected = [f"{name}={value}" for name, value in zip(("run_dir", "arms", "dry_run"), options, strict=True)]
    expected += [f"other {word}" for word in others or [""]] + [f"after {word}" for word in after or [""]]
    assert found.stdout.splitlines() == expected


def test_a_script_without_options_after_dashes_gets_the_dashes(repo: Path) -> None:
    assert "other --\nother x\nafter \n" in parsed(repo, "--", "x").stdout
    for script in ("quickstart.sh", "study.sh", "data_download.sh"):
        assert "unknown argument --" in single_error_line(run_script(repo / "commands" / script, "--", "--dry_run"))


# The set-up of .venv


def test_setup_without_python(repo: Path, tmp_path: Path) -> None:
    result = run_script(repo / "commands" / "quickstart.sh", PATH=path_without(tmp_path, "python"))
    line = single_error_line(result)
    assert "no python3 in PATH that runs utils/exchange/layout.py, expected Python 3.11 or newer" in line


def test_setup_with_an_old_python(repo: Path, tmp_path: Path) -> None:
    folder = path_without(tmp_path, "python")
    write_script(folder / "python3", "echo 3.9\n")
    result = run_script(repo / "commands" / "test.sh", PATH=folder)
    assert "python3 is Python 3.9, expected 3.11 or newer" in single_error_line(result)


def test_setup_without_the_venv_module(repo: Path, tmp_path: Path) -> None:
    folder = path_without(tmp_path, "python")
    write_script(folder / "python3", "case $* in *version*) echo 3.12 ;; *) exit 1 ;; esac\n")
    result = run_script(repo / "commands" / "setup_venv.sh", PATH=folder)
    assert "python3 has no venv module" in single_error_line(result)


def test_setup_without_space(repo: Path, tmp_path: Path) -> None:
    folder = path_without(tmp_path, "df")
    write_script(
        folder / "df", 'printf "Filesystem 1024-blocks Used Available Capacity Mounted on\\nx 9 9 2048 9%% /\\n"\n'
    )
    result = run_script(repo / "commands" / "setup_venv.sh", PATH=folder)
    assert ".venv needs 2500 MB, but the disk of" in single_error_line(result)
    assert "has 2 MB free" in result.stderr
    (repo / "requirements-gpu.txt").write_text("# none\n")
    result = run_script(repo / "commands" / "setup_venv.sh", "requirements-gpu.txt", PATH=folder)
    assert ".venv needs 8000 MB, but" in single_error_line(result)
    result = run_script(repo / "commands" / "setup_venv.sh", "requirements-gpu.txt", PATH=folder, VENV_SPACE_MB="3")
    assert ".venv needs 3 MB, but" in single_error_line(result)


def test_setup_explains_itself(repo: Path) -> None:
    result = run_script(repo / "commands" / "setup_venv.sh", "--help")
    assert result.returncode == 0 and "A CUDA build needs about 8000" in result.stdout
    assert not (repo / ".venv").exists()


@pytest.mark.slow
def test_setup_says_why_pip_failed(repo: Path) -> None:
    (repo / "requirements.txt").write_text("no/such directory/package.whl\n")
    result = run_script(repo / "commands" / "setup_venv.sh", VENV_SPACE_MB="1", PIP_NO_INDEX="1")
    assert re.search(r"pip failed: .*package\.whl.*pip\.log", single_error_line(result))
    assert not list((repo / ".venv").glob(".stamp-*"))


def test_setup_leaves_a_venv_of_the_user_alone(repo: Path) -> None:
    (repo / ".venv").mkdir()
    (repo / ".venv" / "mine").touch()
    result = run_script(repo / "commands" / "setup_venv.sh", VENV_SPACE_MB="1")
    assert "was not made by this script" in single_error_line(result)
    assert (repo / ".venv" / "mine").exists()


@pytest.mark.slow
def test_setup_is_made_once_and_again_when_it_was_interrupted_or_is_outdated(repo: Path) -> None:
    setup = repo / "commands" / "setup_venv.sh"
    commands = [["bash", str(setup)] for _ in range(2)]
    environment = {**os.environ, "VENV_SPACE_MB": "1", "PIP_NO_INDEX": "1"}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for command in commands]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("installing" in output for output in outputs) == 1

    def installs(requirements: str) -> bool:
        result = run_script(setup, requirements, VENV_SPACE_MB="1", PIP_NO_INDEX="1")
        assert result.returncode == 0, result.stderr
        return "installing" in result.stdout

    assert not installs("requirements.txt")
    assert installs("requirements-dev.txt")
    assert not installs("requirements.txt")
    (repo / "requirements.txt").write_text("# changed\n")
    assert installs("requirements-dev.txt")
    for stamp in (repo / ".venv").glob(".stamp-*"):
        stamp.unlink()
    (repo / ".venv" / "half-installed").touch()
    assert installs("requirements.txt")
    assert not (repo / ".venv" / "half-installed").exists()


# Every script's command line, parsed by its programs


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings that point the scripts to six passages, two queries, a tokenizer and a checkpoint."""
    from data import msmarco_data, wordpiece
    from model.encoders.static import StaticEncoder

    root = tmp_path_factory.mktemp("tiny data")
    raw, tokenizer, checkpoint = root / "raw", root / "tokenizer", root / "warmup" / "checkpoint-10"
    raw.mkdir()
    checkpoint.mkdir(parents=True)
    (raw / "collection.tsv").write_text("".join(f"{n}\tpassage number {n} on subject {n % 3}\n" for n in range(40)))
    for split, query in (("train", 100), ("dev.small", 101)):
        (raw / f"queries.{split}.tsv").write_text(f"{query}\twhich subject\n")
        (raw / f"qrels.{split}.tsv").write_text(f"{query}\t0\t3\t1\n")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
            patch.setenv(name, "1")  # so that what the program sets is undone
        patch.setattr(sys, "argv", ["x", "--data_dir", f"{raw}", "--out_dir", f"{tokenizer}", "--vocab_size", "200"])
        wordpiece.main()
        config = {"model_type": "static", "embedding_size": 8}
        (tokenizer / "config.json").write_text(json.dumps(config))
        words = "--data_type 1 --model_type static --max_seq_length 128 --max_query_length 64"
        places = ["--data_dir", f"{raw}", "--out_data_dir", f"{root / 'out'}", "--model_name_or_path", f"{tokenizer}"]
        patch.setattr(sys, "argv", ["x", *places, *words.split()])
        msmarco_data.main()
    vocab_size = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"])
    StaticEncoder({**config, "vocab_size": vocab_size}).save_pretrained(checkpoint)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, checkpoint / file)
    folders = {
        "RAW_DATA_DIR": raw,
        "DATA_DIR": root / "out",
        "SUBSET_DATA_DIR": root / "out",
        "RUNS_DIR": root / "runs",
    }
    return {
        **{name: str(folder) for name, folder in folders.items()},
        "PYTHON": sys.executable,
        "WARMUP_CHECKPOINT": str(checkpoint),
        "MODEL": str(checkpoint),
        "MODEL_TYPE": "static",
        "MAX_SEQ_LENGTH": "128",
        "TOPK_TRAINING": "30",
        "CUDA_VISIBLE_DEVICES": "",
    }


class Programs:
    """Runs a script with a Python that only notes what it is to run, then each program's --dry_run in this process."""

    def __init__(
        self, settings: dict[str, str], patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]
    ) -> None:
        self.settings, self.patch, self.capture = settings, patch, capture

    def __call__(self, script: str, *flags: str, **changes: str) -> list[dict[str, Any]]:
        """The resolved flags that the script's programs print, in the order they were started."""
        result = run_script(REPO / script, "--dry_run", *flags, **{**self.settings, **changes})
        assert result.returncode == 0, result.stderr
        return [self.resolved(*shlex.split(line)) for line in result.stdout.splitlines()]

    def resolved(self, _: str, module_name: str, *words: str) -> dict[str, Any]:
        self.patch.setattr(sys, "argv", [module_name, *words])
        self.capture.readouterr()
        importlib.import_module(module_name).main()
        return json.loads(self.capture.readouterr().out.splitlines()[-1])


@pytest.fixture
def dry_run(
    tiny: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Programs:
    noting = write_script(tmp_path / "noting python", "printf '%q ' \"$@\" && echo\n")
    return Programs({**tiny, "PYTHON": str(noting)}, monkeypatch, capsys)


def check_arm(programs: list[dict[str, Any]], strategy: str) -> None:
    first, trainer, generator = programs
    assert first["end_output_num"] == 0
    assert trainer["learning_rate"] == 1e-6 and trainer["optimizer"] == "lamb"
    assert trainer["per_gpu_train_batch_size"] * trainer["gradient_accumulation_steps"] == 64
    assert trainer["group_size"] == 4
    assert generator["end_output_num"] == -1 and generator["negative_strategy"] == strategy
    assert trainer["ann_dir"] == generator["output_dir"] == first["output_dir"]
    assert trainer["output_dir"] == generator["training_dir"]
    assert trainer["model_name_or_path"] == generator["init_model_dir"]
    assert trainer["save_steps"] == trainer["steps_per_refresh"]
    for name in ("refresh_mode", "steps_per_refresh", "refresh_lag", "seed"):
        assert first[name] == trainer[name] == generator[name]
    assert first["only_keep_latest_embedding_file"] and generator["only_keep_latest_embedding_file"]


@pytest.mark.parametrize(("script", "strategy"), ARM_SCRIPTS.items(), ids=list(ARM_SCRIPTS))
def test_arm_scripts_reach_both_programs(script: str, strategy: str, dry_run: Programs) -> None:
    programs = dry_run(script)
    check_arm(programs, strategy)
    # Arms that are compared see one schedule.
    expected = {"refresh_mode": "lockstep", "steps_per_refresh": 10000, "refresh_lag": 1, "seed": 42}
    assert expected.items() <= programs[1].items()


def test_schedule_and_seed_are_settings(dry_run: Programs) -> None:
    changes = {"REFRESH_MODE": "async", "STEPS_PER_REFRESH": "500", "REFRESH_LAG": "0", "SEED": "7"}
    programs = dry_run("commands/subset_10_train-a40.sh", **changes)
    check_arm(programs, "top")
    expected = {"refresh_mode": "async", "steps_per_refresh": 500, "save_steps": 500, "refresh_lag": 0, "seed": 7}
    assert expected.items() <= programs[1].items()


def test_triples_in_succession_are_a_setting_and_a_flag(dry_run: Programs) -> None:
    assert dry_run("commands/run_arm.sh", GROUP_SIZE="0")[1]["group_size"] == 0
    assert dry_run("commands/run_arm.sh", "--trainer", "--group_size", "2")[1]["group_size"] == 2


def test_flags_reach_the_programs_they_are_for(dry_run: Programs) -> None:
    flags = ["--seed", "7", "--trainer", "--learning_rate", "5e-6", "--generator", "--ann_chunk_factor", "3"]
    _, trainer, generator = dry_run("commands/subset_10_train-a40.sh", *flags)
    assert trainer["seed"] == generator["seed"] == 7
    assert trainer["learning_rate"] == 5e-6
    assert generator["ann_chunk_factor"] == 3


def test_train_scripts_reach_their_programs(dry_run: Programs) -> None:
    first, trainer = dry_run("commands/run_train.sh", STRATEGY="random")
    (generator,) = dry_run("commands/run_ann_data_gen.sh", STRATEGY="random")
    check_arm([first, trainer, generator], "random")
    assert trainer["refresh_mode"] == "async"


def test_inference_embeds_the_checkpoint_that_was_given(dry_run: Programs) -> None:
    runs = Path(dry_run.settings["RUNS_DIR"]) / "msmarco"
    (inference,) = dry_run("commands/run_inference.sh")
    assert inference["inference"] is True and inference["end_output_num"] == -1
    assert inference["init_model_dir"] == dry_run.settings["WARMUP_CHECKPOINT"]
    assert inference["output_dir"] == str(runs / "inference")
    assert inference["training_dir"] == str(runs / "inference" / "checkpoints")


def test_arm_needs_a_finished_warmup_or_a_given_checkpoint(tiny: dict[str, str], tmp_path: Path) -> None:
    checkpoint = Path(tiny["WARMUP_CHECKPOINT"])
    unfinished = {**tiny, "WARMUP_CHECKPOINT": "", "WARMUP_DIR": str(checkpoint.parent), "PYTHON": "/bin/true"}
    script = REPO / "commands" / "run_train.sh"
    error = single_error_line(run_script(script, "--dry_run", **unfinished))
    assert f"no DONE.json in {checkpoint.parent}" in error and f"WARMUP_CHECKPOINT={checkpoint}" in error
    assert run_script(script, "--dry_run", **{**unfinished, "WARMUP_CHECKPOINT": str(checkpoint)}).returncode == 0
    finished = shutil.copytree(checkpoint.parent, tmp_path / "warmup")
    (finished / "DONE.json").write_text("{}")
    assert run_script(script, "--dry_run", **{**unfinished, "WARMUP_DIR": str(finished)}).returncode == 0


class WaitingGenerator:
    """run_ann_data_gen.sh, started before run_train.sh has made anything; its program only says that it runs."""

    def __init__(self, settings: dict[str, str], directory: Path) -> None:
        self.arm = directory / "msmarco" / "arms" / "top"
        for name in ("ann_data", "checkpoints"):
            (self.arm / name).mkdir(parents=True)
        (self.arm / "checkpoints" / "FAILED.json").write_text('{"reason": "an earlier run"}')
        python = write_script(directory / "python", 'echo "generating $*"\n')
        changes = {**settings, "RUNS_DIR": directory, "PYTHON": python, "POLL_SECONDS": "0.2"}
        self.process = subprocess.Popen(
            ["bash", str(REPO / "commands" / "run_ann_data_gen.sh")],
            env=script_environment(**changes),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith(f"waiting for {self.arm}/ann_data/ann_ndcg_0, which run_train")
        time.sleep(0.5)
        assert self.process.poll() is None

    def end(self) -> tuple[int, str, str]:
        output, errors = self.process.communicate(timeout=20)
        return self.process.returncode, output, errors


def test_generator_waits_for_the_first_negatives(tiny: dict[str, str], tmp_path: Path) -> None:
    waiting = WaitingGenerator(tiny, tmp_path)
    (waiting.arm / "checkpoints" / "FAILED.json").unlink()  # as a job that starts again does
    time.sleep(0.5)
    assert waiting.process.poll() is None
    (waiting.arm / "ann_data" / "ann_ndcg_0").write_text("{}")
    code, output, _ = waiting.end()
    assert code == 0 and output.startswith("generating -m drivers.run_ann_data_gen ")


@pytest.mark.parametrize("place", ["ann_data", "checkpoints"])
def test_generator_ends_when_the_job_it_waits_for_fails(tiny: dict[str, str], tmp_path: Path, place: str) -> None:
    waiting = WaitingGenerator(tiny, tmp_path)
    (waiting.arm / place / "FAILED.json").write_text('{"reason": "this run"}')
    code, output, errors = waiting.end()
    assert code == 4 and not output
    assert len(errors.splitlines()) == 1 and "run_train.sh has failed" in errors


@pytest.mark.parametrize(("left", "programs"), [("metrics.json", 2), ("ann_ndcg_0", 1)])
def test_warmup_makes_bm25_negatives_unless_they_are_complete(
    tiny: dict[str, str], tmp_path: Path, left: str, programs: int
) -> None:
    (tmp_path / "bm25").mkdir()
    (tmp_path / "bm25" / left).write_text("{}")
    python = write_script(tmp_path / "python", 'echo "$*"\n')
    changes = {**tiny, "PYTHON": str(python), "BM25_DIR": str(tmp_path / "bm25"), "SEED": "7"}
    result = run_script(REPO / "commands" / "run_train_warmup.sh", **changes)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if "check_commands" not in line]
    assert len(lines) == programs and lines[-1].startswith("-m drivers.run_warmup ") and "--seed 7" in lines[-1]


def test_a_warmup_s_passages_are_no_longer_than_the_collection_s(tiny: dict[str, str], tmp_path: Path) -> None:
    settings = {**tiny, "PYTHON": str(write_script(tmp_path / "python", 'echo "$*"\n'))}
    for length, expected in (("64", "64"), ("512", "128")):
        script, changes = REPO / "commands" / "run_train_warmup.sh", {**settings, "MAX_SEQ_LENGTH": length}
        result = run_script(script, "--dry_run", **changes)
        assert f"--max_seq_length {expected} " in result.stdout.splitlines()[-1]


@pytest.mark.parametrize("script", ["commands/run_train_warmup.sh", "drivers/sbatch_warmup.sh"])
def test_warmup_scripts_reach_their_program(script: str, dry_run: Programs, tmp_path: Path) -> None:
    triples = tmp_path / "triples.tsv"
    triples.write_text("which subject\tpassage number 3\tpassage number 4\n")
    (warmup,) = dry_run(script, "--max_steps", "7", TRIPLES=str(triples))
    assert warmup["learning_rate"] == 2e-4 and warmup["max_steps"] == 7


def test_settings_choose_the_run_directory_and_the_split_of_the_gpus(dry_run: Programs, tmp_path: Path) -> None:
    changes = {
        "RUN_DIR": str(tmp_path),
        "GPUS": "6",
        "TRAIN_GPUS": "4",
        "STRATEGY": "bottom",
        "REFRESH_MODE": "lockstep",
    }
    programs = dry_run("commands/run_arm.sh", **changes)
    assert programs[1]["output_dir"] == f"{tmp_path}/arms/bottom/checkpoints"
    assert programs[1]["per_gpu_train_batch_size"] == 64 // (4 * 2)
    assert programs[2]["negative_strategy"] == "bottom"
    refused = run_script(REPO / "commands/run_arm.sh", "--dry_run", **{**dry_run.settings, **changes, "GEN_GPUS": "3"})
    assert "TRAIN_GPUS is '4' and GEN_GPUS '3', expected 6 GPUs to hold" in single_error_line(refused)


def test_evaluation_has_the_lengths_and_the_flags_of_its_own(dry_run: Programs) -> None:
    flags = ["--max_query_length", "48", "--seed", "7", "--trainer", "--max_steps", "9", "--evaluation", "--topk", "50"]
    (evaluation,) = dry_run("commands/run_evaluation.sh", *flags)
    assert evaluation["max_query_length"] == 48 and evaluation["topk"] == 50
    assert evaluation["output_dir"].endswith("/msmarco/arms/top/eval")


def test_an_arm_s_checkpoint_says_its_lengths_and_the_warmup_gets_the_arms(
    tiny: dict[str, str], tmp_path: Path
) -> None:
    """An arm trained at other lengths by a program's own flags is evaluated as it was trained."""
    run_dir = tmp_path / "r\u00fcn"
    checkpoints = run_dir / "arms" / "top" / "checkpoints"
    for name, config in (("checkpoint-9", '{"max_seq_length": 256}'), ("checkpoint-10", "{}")):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "config.json").write_text(config)
    (checkpoints / "DONE.json").write_text("{}")
    python = write_script(
        tmp_path / "python", f'[[ $1 == - ]] || {{ echo "$*"; exit; }}\n{shlex.quote(sys.executable)} "$@"\n'
    )
    changes = {**tiny, "PYTHON": str(python), "RUN_DIR": str(run_dir), "RAW_DATA_DIR": str(tmp_path / "none")}

    def evaluations() -> list[str]:
        result = run_script(REPO / "commands" / "run_evaluation.sh", **changes)
        assert result.returncode == 0, result.stderr
        return [line for line in result.stdout.splitlines() if "drivers.run_eval" in line]

    lengths = "--max_seq_length 128 --max_query_length 64"
    assert [lengths in line for line in evaluations()] == [True, True]  # no length is recorded
    shutil.rmtree(checkpoints / "checkpoint-10")
    assert [lengths in line for line in evaluations()] == [False, True]
    (run_dir / "warmup" / "eval").mkdir(parents=True)
    record = run_dir / "warmup" / "eval" / "metrics.json"
    record.write_text(json.dumps({"model": "another"}))
    assert len(evaluations()) == 2
    warmup = tmp_path / "w\u00e4rmup" / "checkpoint-10"
    shutil.copytree(tiny["WARMUP_CHECKPOINT"], warmup)
    changes["WARMUP_CHECKPOINT"] = str(warmup)
    record.write_text(json.dumps({"model": str(warmup)}))
    assert len(evaluations()) == 1  # the warmup's is done


@pytest.mark.parametrize("end", ["5", "-1"])
def test_the_first_negatives_are_refresh_0_whatever_end_the_generator_has(end: str, dry_run: Programs) -> None:
    first, _, generator = dry_run("commands/run_arm.sh", "--generator", "--end_output_num", end)
    assert first["end_output_num"] == 0 and generator["end_output_num"] == int(end)


TYPES = [  # the user's flags, and what trainer and generator, then evaluation compute in on GPUs
    ("", ("fp16", "fp16")),
    ("--bf16", ("bf16", "bf16")),
    ("--dtype bf16", ("bf16", "bf16")),
    ("--dtype=fp32", ("fp32", "fp32")),
    ("--fp16_opt_level O0", ("fp32", "fp32")),
    ("--fp16", ("fp16", "fp16")),
    ("--trainer --bf16 --generator --bf16", ("bf16", "fp16")),
    ("--bf16 --evaluation --dtype fp32", ("bf16", "fp32")),
    ("--no-cuda", ("default", "default")),
    ("--no_cuda false", ("fp16", "fp16")),
    ("--bf16=False", ("fp16", "fp16")),
]


def computes_in(program: dict[str, Any]) -> str:
    """The program's own reading of its flags; a word for what it takes where none says a type."""
    words = (program[name] for name in ("dtype", "fp16", "bf16", "fp16_opt_level"))
    names = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "default"}
    return names[compute_dtype(*words, default="auto", quickest=torch.float64)]


@pytest.mark.parametrize(("flags", "expected"), TYPES, ids=[flags or "none" for flags, _ in TYPES])
def test_the_type_that_the_user_says_wins(
    flags: str, expected: tuple[str, str], dry_run: Programs, tmp_path: Path
) -> None:
    triples = tmp_path / "triples.tsv"
    triples.write_text("which subject\tpassage number 3\tpassage number 4\n")
    changes = {"GPUS": "2", "TRIPLES": str(triples), "STRATEGY": "top"}
    programs = dry_run("commands/run_arm.sh", *flags.split(), **changes)
    (evaluation,) = dry_run("commands/run_evaluation.sh", *flags.split(), **changes)
    (warmup,) = dry_run(
        "commands/run_train_warmup.sh", *flags.replace("--trainer", "--warmup_trainer").split(), **changes
    )
    assert [computes_in(program) for program in (*programs, warmup)] == [expected[0]] * 4
    assert computes_in(evaluation) == expected[1]
    assert {program["no_cuda"] for program in (*programs, warmup, evaluation)} == {flags == "--no-cuda"}


def test_a_program_s_own_type_wins_over_that_of_all(dry_run: Programs) -> None:
    first, trainer, generator = dry_run("commands/run_arm.sh", "--bf16", "--trainer", "--dtype", "fp32", GPUS="2")
    assert [computes_in(program) for program in (first, trainer, generator)] == ["bf16", "fp32", "bf16"]


@pytest.mark.parametrize("has_triples", [False, True])
@pytest.mark.parametrize("source", ["bm25_dir", "triples"])
def test_the_warmup_s_negatives_that_the_user_names_win(
    source: str, has_triples: bool, tiny: dict[str, str], tmp_path: Path
) -> None:
    """run_warmup takes one of the two; BM25 is not made where nobody reads it."""
    python = write_script(tmp_path / "python", 'echo "$*"\n')
    mine, triples = tmp_path / "mine", tmp_path / "triples.tsv"
    if has_triples:
        triples.touch()
    changes = {**tiny, "PYTHON": str(python), "BM25_DIR": str(tmp_path / "bm25"), "TRIPLES": str(triples)}
    candidates = tmp_path / "top1000.dev"
    candidates.touch()
    changes["RERANK_FILE"] = str(candidates)
    result = run_script(REPO / "commands" / "run_train_warmup.sh", f"--{source}", mine, **changes)
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    assert re.findall(r"--(?:bm25_dir|triples) \S+", line) == [f"--{source} {mine}"]
    assert (f"--rerank_file {candidates}" in line) == (source == "triples")


def test_the_split_that_is_measured_is_a_setting(tiny: dict[str, str], tmp_path: Path) -> None:
    """It reaches every program that measures; without it their commands name no split."""
    settings = {**tiny, "PYTHON": str(write_script(tmp_path / "python", 'echo "$*"\n'))}
    scripts = (("run_train_warmup.sh",), ("run_arm.sh", "--dry_run"), ("run_evaluation.sh", "--dry_run"))
    for split in ("", "heldout"):
        changes = {"DEV_SPLIT": split, "BM25_DIR": str(tmp_path / f"bm25 {split}"), "STRATEGY": "top"}
        lines = [
            line
            for script, *dry in scripts
            for line in run_script(REPO / "commands" / script, *dry, **{**settings, **changes}).stdout.splitlines()
            if "check_commands" not in line
        ]
        told = {re.findall(r"-m drivers\.(\w+)", line)[0]: re.findall(r"--(?:dev_)?split \S+", line) for line in lines}
        of_training = ["--dev_split heldout"] if split else []
        measuring = dict.fromkeys(("run_bm25", "run_warmup", "run_ann_data_gen"), of_training)
        assert told == {**measuring, "run_ann": [], "run_eval": ["--split heldout"] if split else []}


def test_ance_s_words_for_a_strategy_win_over_the_script_s(dry_run: Programs) -> None:
    _, _, generator = dry_run("commands/subset_10_train-a40.sh", "--generator", "--bottom_neg", "true")
    assert generator["bottom_neg"] is True and generator["negative_strategy"] is None


def test_flags_with_hyphens_are_the_same_flags(dry_run: Programs) -> None:
    (evaluation,) = dry_run("commands/run_evaluation.sh", "--max-seq-length", "100")
    assert evaluation["max_seq_length"] == 100
    result = run_script(REPO / "commands/run_arm.sh", "--dry-run", STRATEGY="top", **dry_run.settings)
    assert result.returncode == 0 and result.stdout.count("--dry_run") == 3, result


@pytest.mark.slow
def test_script_runs_its_programs(tiny: dict[str, str]) -> None:
    result = run_script(REPO / "drivers/10/sbatch_train_index-a40_subset_10.sh", "--dry_run", **tiny)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    check_arm([json.loads(line) for line in lines], "top")


def test_quickstart_command_lines_parse() -> None:
    result = run_script(REPO / "commands" / "quickstart.sh", "--dry_run", "--strategy", "all", PYTHON=sys.executable)
    assert result.returncode == 0, result.stderr
    programs = [shlex.split(line) for line in result.stdout.splitlines()]
    assert len(programs) == 7 + 4 * 3
    for module_name, *words in programs:
        module = importlib.import_module(module_name)
        source = Path(str(module.__file__)).read_text()
        (flags_name,) = re.findall(r'(?:parse_flags\(|run_from_command_line\(\s*"\w+",\s*)(\w+),', source)
        parse_flags(getattr(module, flags_name), module_name, words)
