"""drivers.plan.check_commands: what a submission refuses of the programs' flags, the collection and the first model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from drivers.plan.check_commands import SEPARATOR, check, commands_in
from tests import REPO
from tests.hub import Hub, fixture_hub
from utils.errors import UserError

__all__ = ["fixture_hub"]
WARMUP = ("--do_train", "--bm25_dir", "b", "--output_dir", "o", "--model_type", "hf")
GENERATOR = ("--training_dir", "t", "--init_model_dir", "m", "--output_dir", "o", "--model_type", "hf")


def refused(program: str, *argv: str | Path, splits: tuple[str, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        check(program, [*map(str, argv)], set(splits))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_commands_stand_between_separators() -> None:
    words = ["run_ann", "--max_steps", "9", "::", "run_eval", "--topk", "5"]
    assert list(commands_in(words)) == [["run_ann", "--max_steps", "9"], ["run_eval", "--topk", "5"]]
    assert list(commands_in(words[:3])) == [["run_ann", "--max_steps", "9"]]


def test_the_model_that_a_warmup_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*WARMUP, "--data_dir", tmp_path, "--model_name_or_path", tmp_path)
    assert "has no config.json" in refused("run_warmup", *words)
    (tmp_path / "config.json").write_text("{}")
    assert "holds no weights, expected one of model.safetensors" in refused("run_warmup", *words)
    (tmp_path / "model.safetensors").touch()
    check("run_warmup", [*map(str, words)], set())
    assert "there is no model ./none" in refused("run_warmup", *words[:-1], "./none")
    monkeypatch.setattr("utils.hub.has_hub", lambda: False)
    assert "there is no model lab/none" in refused("run_warmup", *words[:-1], "lab/none")
    assert "--model_type is 'bert', expected one of" in refused("run_warmup", *words, "--model_type", "bert")


def test_a_hub_model_whose_transformer_has_a_folder(tmp_path: Path, hub: Hub) -> None:
    model = tmp_path / "model"
    (model / "0_Transformer").mkdir(parents=True)
    modules = [{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "0_Transformer" / "config.json").write_text("{}")
    words = (*WARMUP, "--data_dir", str(tmp_path), "--model_name_or_path")
    check("run_warmup", [*words, hub.add(model, "lab/nested")], set())
    (hub.root / "lab" / "empty").mkdir()
    assert "there is no model lab/empty" in refused("run_warmup", *words, "lab/empty")


def test_the_split_that_is_measured(tiny_preprocessed: Path, tmp_path: Path) -> None:
    here, unmade = ("--data_dir", tiny_preprocessed), ("--data_dir", tmp_path)
    expected = "there is no split nosuch, expected one of dev, train of the collection"
    assert refused("run_ann_data_gen", *GENERATOR, *here, "--dev_split", "nosuch") == expected
    assert (
        refused("run_ann_data_gen", *GENERATOR, *unmade, "--dev_split", "nosuch", splits=("train", "dev")) == expected
    )
    check("run_ann_data_gen", [*map(str, (*GENERATOR, *here, "--dev_split", "dev"))], set())


def test_only_a_tokenizer_costs_the_import_of_torch(tmp_path: Path) -> None:
    trained = ("--data_dir", str(tmp_path), "--model_type", "hf", "--output_dir", "o", "--model_name_or_path", "m")
    commands = [
        ["run_warmup", "--do_train", "--bm25_dir", "b", *trained[:-2]],
        ["run_ann_data_gen", *GENERATOR, "--data_dir", str(tmp_path)],
        ["run_ann", "--ann_dir", "a", *trained],
        ["run_eval", *trained],
    ]
    words = [word for command in commands for word in (*command, SEPARATOR)]
    code = "import sys; from drivers.plan.check_commands import main; main(); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_raw_collection_and_its_tokenizer(tiny_collection: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    words = [*map(str, ("--data_dir", tiny_collection, "--out_data_dir", tmp_path / "out", "--model_type", "static"))]
    splits: set[str] = set()
    check("msmarco_data", [*words, "--model_name_or_path", str(tiny_tokenizer)], splits)
    assert splits == {"train", "dev"}
    assert "expected the one that holds the tokenizer" in refused(
        "msmarco_data", *words, "--model_name_or_path", "./no"
    )
    model = shutil.copytree(tiny_tokenizer, tmp_path / "model")
    (model / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": 40}')
    of_hf = ("msmarco_data", *words[:-1], "hf", "--model_name_or_path", model, "--max_seq_length", "41")
    assert "--max_seq_length is 41, the model has 40 positions" in refused(*of_hf)
    for name in ("qrels.train.tsv", "queries.train.tsv"):
        (tiny_collection / name).unlink()
    assert "no judged split train" in refused("msmarco_data", *words, "--model_name_or_path", tiny_tokenizer)
    shutil.rmtree(tiny_collection)
    assert "is not a directory" in refused("msmarco_data", *words, "--model_name_or_path", tiny_tokenizer)


def test_a_strategy_is_read_with_the_flags_next_to_it(tmp_path: Path) -> None:
    words = (*GENERATOR, "--data_dir", tmp_path, "--negative_strategy", "ranks:201-260", "--topk_training", 200)
    assert "is no window of the candidates (--topk_training 200)" in refused("run_ann_data_gen", *words)
    check("run_ann_data_gen", [*map(str, words), "--topk_training", "300"], set())
