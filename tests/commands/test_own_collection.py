"""commands/quickstart.sh --data_dir: its stages, what they are given, and what is refused before anything is made."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from tests.commands.test_quickstart_script import Quickstart
from tests.shell import run_script, single_error_line
from utils.declared.stemmers import STEMMERS

SETTINGS = {
    "max_seq_length": 112, "max_query_length": 32, "dev_split": "dev", "splits": "dev train", "topk_training": 50,
    "negative_sample": 5, "max_positive_ratio": 0.95, "batch": 16, "max_steps": 40, "steps_per_refresh": 10,
    "warmup_steps": 4, "learning_rate": 3e-5, "loss": "in_batch", "first_steps": 60, "first_batch": 8,
    "first_learning_rate": 1e-4, "first_loss": "in_batch",
}  # fmt: skip
FROM_NOTHING = ["plan", "wordpiece", "preprocess", "bm25", "warmup", "warmup_eval", "top", "top.eval", "report"]
FROM_A_MODEL = [name for name in FROM_NOTHING if name not in ("wordpiece", "warmup")]


def plan(model: str, model_type: str = "static") -> str:
    settings = {"model_type": model_type, "model": model, **SETTINGS}
    return "".join(f"{name}\t{value}\tbecause of it\n" for name, value in settings.items())


@pytest.fixture
def own(tmp_path: Path) -> Quickstart:
    """A run on a folder of one file, with a model next to it."""
    quickstart = Quickstart(tmp_path)
    for name in ("my data/corpus.jsonl", "model/config.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}\n")
    quickstart.environment |= {"FAKE_PLAN": plan(""), "CPUS": "2", "GPUS": "0"}
    return quickstart


def commands_of(own: Quickstart, tmp_path: Path, *words: str, **changes: str) -> dict[str, list[str]]:
    """The words after each program's name, by program; the last of its name counts."""
    result = own.run("--data_dir", str(tmp_path / "my data"), "--dry_run", *words, **changes)
    assert result.returncode == 0, result.stderr
    lines = [shlex.split(line) for line in result.stdout.splitlines()]
    return {line[0].rpartition(".")[2]: line[1:] for line in lines}


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_without_a_model_one_is_trained_from_nothing(own: Quickstart, tmp_path: Path) -> None:
    data = ("--data_dir", str(tmp_path / "my data"))
    assert own.redone(*data) == FROM_NOTHING
    assert own.redone(*data) == []
    assert "\n[ 9/9] report " in own.run(*data, "--warmup").stdout  # which is done in any case
    assert own.redone(*data, "--strategy", "top,random") == ["random", "random.eval", "report"]
    (tmp_path / "my data" / "corpus.jsonl").write_text("{}\n{}\n")
    assert own.redone(*data, "--strategy", "top") == FROM_NOTHING


def test_a_model_is_warmed_up_only_where_that_is_asked_for(own: Quickstart, tmp_path: Path) -> None:
    model = str(tmp_path / "model")
    words = ("--data_dir", str(tmp_path / "my data"), "--model", model)
    own.environment["FAKE_PLAN"] = plan(model, "hf")
    assert own.redone(*words) == FROM_A_MODEL
    assert own.redone(*words) == []
    for name in ("config.json", "1_Pooling/config.json"):
        (tmp_path / "model" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_text("{ }\n")
        assert own.redone(*words) == FROM_A_MODEL
    own.run_dir = tmp_path / "warmed up"
    assert "warmup" in own.redone(*words, "--warmup")


def test_the_text_profile_reaches_the_plan(own: Quickstart, tmp_path: Path) -> None:
    words = ("--data_dir", str(tmp_path / "my data"), "--model", str(tmp_path / "model"))
    own.environment["FAKE_PLAN"] = plan(str(tmp_path / "model"), "rdot_nll")
    own.run(*words)
    assert own.redone(*words, TEXT_PROFILE="star")[:2] == ["plan", "preprocess"]


def test_another_machine_or_another_look_at_the_time_redoes_nothing_that_stays_the_same(
    own: Quickstart, tmp_path: Path
) -> None:
    data = ("--data_dir", str(tmp_path / "my data"))
    own.redone(*data)
    assert own.redone(*data, CPUS="1", GPUS="1", FAKE_PLAN=plan("").replace("40", "80")) == []
    assert own.redone(*data, ARM_MINUTES="20") == ["plan", "report"]
    (own.run_dir / "plan.tsv").unlink()
    assert own.redone(*data, ARM_MINUTES="20") == ["plan", "report"]
    longer = plan("").replace("max_steps\t40", "max_steps\t80")
    assert own.redone(*data, ARM_MINUTES="30", FAKE_PLAN=longer) == ["plan", "top", "top.eval", "report"]


def test_each_collection_and_each_use_of_a_model_has_its_own_directory(own: Quickstart, tmp_path: Path) -> None:
    """The page's first three commands one after the other, and a folder of the same name."""
    data, other, model = (str(tmp_path / name) for name in ("my data", "elsewhere/my data", "model"))
    (tmp_path / "elsewhere" / "my data").mkdir(parents=True)
    words = [[data], [data, "--model", model], [data, "--model", model, "--evaluate"], [other]]
    own.environment["FAKE_run_eval"] = "echo full ranking dev: 0.5"
    runs = own.repo / "results" / "runs"
    for round_ in range(2):
        for each in words:
            changes = own.environment | {"FAKE_PLAN": plan(model if model in each else "", "hf")}
            result = run_script(own.script, "--data_dir", *each, **changes)
            assert result.returncode == 0, result.stderr
            stages = [line for line in result.stdout.splitlines() if line.startswith("[")]
            assert all(line.endswith("reused") for line in stages) == bool(round_)
            assert stages[-1].startswith(f"[{len(stages):>2}/{len(stages)}]")
    assert len(list(runs.iterdir())) == len(words)


@pytest.mark.parametrize("words", [["--evaluate"], ["--warmup"], []])
def test_a_directory_of_another_run_is_left_alone(own: Quickstart, tmp_path: Path, words: list[str]) -> None:
    data, model = str(tmp_path / "my data"), str(tmp_path / "model")
    own.environment["FAKE_PLAN"] = plan(model, "hf")
    own.redone("--data_dir", data, "--model", model)
    shutil.copytree(data, tmp_path / "other")
    asked = ("--data_dir", data if words else str(tmp_path / "other"), "--model", model, *words)
    assert "give another --run_dir" in single_error_line(own.run(*asked))
    assert own.redone("--data_dir", data, "--model", model) == []


def test_the_programs_are_given_what_was_planned(own: Quickstart, tmp_path: Path) -> None:
    model = str(tmp_path / "model")
    found = commands_of(own, tmp_path, "--model", model, FAKE_PLAN=plan(model, "hf"))
    assert list(found) == ["msmarco_data", "run_bm25", "run_eval", "run_ann", "run_ann_data_gen", "report"]
    trainer, generator, evaluation = found["run_ann"], found["run_ann_data_gen"], found["run_eval"]
    for flag, expected in {
        "--max_steps": "40", "--steps_per_refresh": "10", "--per_gpu_train_batch_size": "16", "--loss": "in_batch",
        "--learning_rate": "3e-05", "--warmup_steps": "4", "--model_name_or_path": model, "--dtype": "auto",
    }.items():  # fmt: skip
        assert value(trainer, flag) == expected
    assert (value(generator, "--topk_training"), value(generator, "--negative_sample")) == ("50", "5")
    assert value(generator, "--init_model_dir") == model
    assert evaluation[evaluation.index("--split") + 1 :][:2] == ["dev", "train"]
    for words in (trainer, generator, evaluation, found["msmarco_data"]):
        assert (value(words, "--max_seq_length"), value(words, "--max_query_length")) == ("112", "32")
        assert value(words, "--model_type") == "hf"


def test_the_environment_wins_over_the_plan(own: Quickstart, tmp_path: Path) -> None:
    found = commands_of(own, tmp_path, MAX_STEPS="80", LEARNING_RATE="1e-6", MAX_SEQ_LENGTH="64")
    trainer = found["run_ann"]
    assert [value(trainer, flag) for flag in ("--max_steps", "--learning_rate", "--max_seq_length")] == [
        "80",
        "1e-6",
        "64",
    ]
    assert value(found["run_warmup"], "--max_steps") == "60" and value(found["run_bm25"], "--stemmer") == "none"
    result = own.run("--data_dir", str(tmp_path / "my data"), MAX_STEPS="45")
    assert "expected a multiple of STEPS_PER_REFRESH" in single_error_line(result)


def test_the_stemmer_of_bm25_is_a_word_of_its_flag(own: Quickstart, tmp_path: Path) -> None:
    words = ("--data_dir", str(tmp_path / "my data"))
    result = own.run(*words, "--dry_run", STEMMER="porter")
    assert single_error_line(result).endswith(f"STEMMER is 'porter', expected {' or '.join(STEMMERS)}")
    assert value(commands_of(own, tmp_path, STEMMER="s")["run_bm25"], "--stemmer") == "s"


def test_a_model_is_evaluated_as_it_is(own: Quickstart, tmp_path: Path) -> None:
    model = str(tmp_path / "model")
    words = ("--data_dir", str(tmp_path / "my data"), "--model", model, "--evaluate")
    own.environment |= {"FAKE_PLAN": plan(model, "hf"), "FAKE_run_eval": "echo full ranking dev: 0.5"}
    assert own.redone(*words) == ["plan", "preprocess", "evaluation"]
    assert own.run(*words).stdout.endswith("full ranking dev: 0.5\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--model", "model"], "are for a collection of your own: give its --data_dir"),
        (["--warmup"], "are for a collection of your own: give its --data_dir"),
        (["--data_dir", "nowhere"], "is not a directory, expected the folder of a collection"),
        (["--data_dir", "my data", "--evaluate"], "--evaluate is of a model: give its --model"),
        (["--data_dir", "my data", "--model", "model", "--evaluate", "--warmup"], "omit --warmup"),
        (["--data_dir", "my data", "--strategy", "top,worst"], "--strategy is 'worst', expected one of"),
    ],
)
def test_what_is_refused_makes_nothing(own: Quickstart, tmp_path: Path, words: list[str], line: str) -> None:
    there = [str(tmp_path / word) if word in ("my data", "nowhere", "model") else word for word in words]
    assert line in single_error_line(own.run(*there))
    assert not own.run_dir.exists()


def test_what_cannot_be_planned_is_one_line_and_nothing_is_made(own: Quickstart, tmp_path: Path) -> None:
    refusal = "echo 'run_plan: error: no collection' >&2; exit 2"
    result = own.run("--data_dir", str(tmp_path / "my data"), FAKE_run_plan=refusal)
    assert single_error_line(result) == "run_plan: error: no collection"
    assert not own.run_dir.exists()


@pytest.mark.parametrize("behaviour", ["true", "echo 'run_plan: error: no collection' >&2; exit 2"])
def test_a_dry_run_leaves_no_file(own: Quickstart, tmp_path: Path, behaviour: str) -> None:
    (tmp_path / "temporary").mkdir()
    changes = {"TMPDIR": str(tmp_path / "temporary"), "FAKE_run_plan": behaviour}
    result = own.run("--data_dir", str(tmp_path / "my data"), "--dry_run", **changes)
    assert result.returncode == (0 if behaviour == "true" else 2)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_dry_run_without_packages_says_how_to_get_them(own: Quickstart, tmp_path: Path) -> None:
    del own.environment["PYTHON"]
    result = own.run("--data_dir", str(tmp_path / "my data"), "--dry_run")
    assert "run bash commands/setup_venv.sh first" in single_error_line(result)
