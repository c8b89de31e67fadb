"""drivers.run_plan: what it finds of a folder and of a model, and its one line where there is nothing to find."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.sources.base import SourceRequest
from data.sources.registry import open_source
from drivers import run_plan
from drivers.job.text_lengths import find_lengths
from drivers.plan.facts import ModelFacts
from drivers.plan.inspect_inputs import NOT_GIVEN, inspect_collection, inspect_model
from tests.beir import write_beir
from tests.conftest import TINY_DEV_QUERIES, TINY_PASSAGES, TINY_TRAIN_QUERIES
from tests.drivers.test_run_bm25 import call
from utils.errors import UserError
from utils.exchange.model_files import LENGTHS
from utils.flag_groups.texts import DEFAULT_LENGTHS


def folder_of(directory: Path, splits: dict[str, dict[str, list[str]]]) -> Path:
    """A BEIR folder of ten documents; ``splits`` is {split: {query: its relevant documents}}."""
    documents = [{"_id": f"d{n}", "title": "A title", "text": "some words here " * (n + 1)} for n in range(10)]
    queries = [{"_id": query, "text": f"words of {query}"} for queries in splits.values() for query in queries]
    qrels = {
        split: [(query, document, "1") for query, documents in judged.items() for document in documents]
        for split, judged in splits.items()
    }
    return write_beir(directory, documents, queries, qrels)


TOWER = {"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 16, "max_position_embeddings": 64}
SPLITS = {"train": {"q1": ["d1", "d2", "d3"], "q2": ["d4"]}, "test": {"q3": ["d5"]}}


@pytest.fixture
def model_dir(tiny_tokenizer: Path, tmp_path: Path) -> Path:
    directory = Path(shutil.copytree(tiny_tokenizer, tmp_path / "model"))
    (directory / "config.json").write_text('{"model_type": "static", "embedding_size": 8, "max_seq_length": 20}')
    (directory / "model.safetensors").touch()
    return directory


def planned(data_dir: Path, output: Path, **flags: object) -> dict[str, str]:
    call(run_plan.main, data_dir=data_dir, output=output, **flags)
    rows = [line.split("\t") for line in output.read_text().splitlines()]
    assert all(len(row) == 3 for row in rows)
    return {name: value for name, value, _ in rows}


def test_a_beir_folder(tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder_of(tmp_path / "data", SPLITS)
    plan = planned(data, tmp_path / "plan.tsv", model_name_or_path=model_dir, cores=2)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("collection: beir, about 10 passages of ")
    assert said[0].endswith("judged queries: train 2, test 1; 2.0 relevant for a train query")
    assert said[1:3] == ["model: static", "machine: 2 cores"]
    assert (plan["model_type"], plan["model"], plan["splits"]) == ("static", str(model_dir), "test train")
    assert (plan["max_seq_length"], plan["topk_training"], plan["batch"]) == ("20", "5", "2")


def test_lengths_have_the_model_s_prefixes(tmp_path: Path, model_dir: Path) -> None:
    source = open_source(SourceRequest(folder_of(tmp_path / "data", SPLITS)))
    bare = inspect_collection(source, str(model_dir), "static")
    config = json.loads((model_dir / "config.json").read_text())
    config |= {"text_profile": "hf", "query_prefix": "? ? ? ? ", "passage_prefix": "! ! "}
    (model_dir / "config.json").write_text(json.dumps(config))
    found = inspect_collection(source, str(model_dir), "static")
    assert np.array_equal(found.passage_lengths.tokens_T, bare.passage_lengths.tokens_T + 2)
    assert np.array_equal(found.query_lengths.tokens_T, bare.query_lengths.tokens_T + 4)
    given = {"text_profile": "hf", "query_prefix": "? ", "passage_prefix": None}
    found = inspect_collection(source, str(model_dir), "static", given)
    assert np.array_equal(found.passage_lengths.tokens_T, bare.passage_lengths.tokens_T + 2)
    assert np.array_equal(found.query_lengths.tokens_T, bare.query_lengths.tokens_T + 1)


def test_the_plan_takes_the_text_profile_that_is_given(tmp_path: Path, model_dir: Path) -> None:
    data, line = folder_of(tmp_path / "data", SPLITS), "^--text_profile star needs the special tokens <s> </s>, the tok"
    with pytest.raises(UserError, match=line):
        planned(data, tmp_path / "plan.tsv", model_name_or_path=model_dir, text_profile="star")


def test_the_profile_that_is_given_makes_the_queries_length(tmp_path: Path) -> None:
    """Of a model without a record; and the plan's length is the one that preprocessing takes with that profile."""
    (tmp_path / "config.json").write_text(json.dumps(TOWER))
    assert inspect_model(tmp_path).query_tokens == 0
    assert inspect_model(tmp_path, {**NOT_GIVEN, "text_profile": "tct-colbert"}).query_tokens == 36


def test_lengths_are_those_of_the_later_programs(tmp_path: Path) -> None:
    """Which pass over sentence-transformers' files next to weights that hold the head."""
    config = TOWER | {"model_type": "roberta", "pad_token_id": 1, "architectures": ["RobertaDot_NLL_LN"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"},
               {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]  # fmt: skip
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 33}')
    found = inspect_model(tmp_path)
    assert (found.max_seq_length, found.max_query_length) == (None, None)
    assert find_lengths(dict.fromkeys(LENGTHS), [str(tmp_path)], tmp_path, is_dry_run=True).by_name == DEFAULT_LENGTHS


def test_the_first_judged_queries_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those among the first ones: here these have no relevant passage."""
    data = folder_of(tmp_path / "data", SPLITS | {"train": {f"q{n}": ["d1"] for n in range(4)}})
    judgements = "q0\td1\t0\nq1\td1\t0\nq2\td1\t1\nq3\td1\t1\n"
    (data / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + judgements)
    monkeypatch.setattr("drivers.plan.inspect_inputs.SAMPLE", 2)
    found = inspect_collection(open_source(SourceRequest(data)), "", "static")
    assert found.query_lengths.tokens_T.tolist() == [2 + round(1.5 * 3)] * 2


def test_ms_marco_s_files(shared_collection: Path, tmp_path: Path) -> None:
    plan = planned(shared_collection, tmp_path / "plan.tsv")
    assert (plan["model_type"], plan["model"], plan["dev_split"]) == ("static", "", "dev")
    found = inspect_collection(open_source(SourceRequest(shared_collection)), "", "static")
    assert (found.passages, found.queries) == (TINY_PASSAGES, {"train": TINY_TRAIN_QUERIES, "dev": TINY_DEV_QUERIES})
    lengths = [
        len(line.split("\t")[1].split()) for line in (shared_collection / "collection.tsv").read_text().splitlines()
    ]
    assert np.array_equal(found.passage_lengths.tokens_T, np.sort([2 + round(1.5 * words) for words in lengths]))


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        ({"model_type": "static", "embedding_size": 8}, ModelFacts("static")),
        ({"model_type": "bert", "num_hidden_layers": 6, "hidden_size": 384, "max_position_embeddings": 512},
         ModelFacts("hf", None, 512, 6, 384)),
        ({"model_type": "distilbert", "n_layers": 3, "dim": 768, "max_position_embeddings": 512},
         ModelFacts("hf", None, 512, 3, 768)),
        ({"model_type": "dpr", "question_model": TOWER, "ctx_model": TOWER, "max_seq_length": 40},
         ModelFacts("dpr", 40, 64, 2, 16)),
    ],
)  # fmt: skip
def test_a_model_s_config(config: dict[str, object], facts: ModelFacts, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert inspect_model(tmp_path) == facts


def test_sentence_transformers_length_and_ance_s_head(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    (tmp_path / "config.json").write_text('{"model_type": "roberta", "num_hidden_layers": 2, "hidden_size": 8}')
    (tmp_path / "modules.json").write_text(json.dumps([
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]))  # fmt: skip
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 77, "query_length": 33}')
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 8, "pooling_mode_mean_tokens": true}'
    )
    found = inspect_model(tmp_path)
    assert (found.model_type, found.layers, found.width) == ("hf", 2, 8)
    assert (found.max_seq_length, found.max_query_length) == (77, 33)
    save_file({"embeddingHead.weight": np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors")
    assert inspect_model(tmp_path).model_type == "rdot_nll"


def test_what_cannot_be_planned_is_one_line_and_nothing_is_written(tmp_path: Path, model_dir: Path) -> None:
    def refused(data_dir: Path, **flags: object) -> str:
        with pytest.raises(UserError) as caught:
            planned(data_dir, tmp_path / "plan.tsv", **flags)
        assert "\n" not in str(caught.value) and not (tmp_path / "plan.tsv").exists()
        return str(caught.value)

    data = folder_of(tmp_path / "data", {"test": SPLITS["test"]})
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "notes.txt").write_text("hello\n")
    assert "has no collection, expected" in refused(unknown)
    assert "no train split" in refused(data, model_name_or_path=model_dir)
    both = folder_of(tmp_path / "both", SPLITS)
    assert "there is no model" in refused(both, model_name_or_path=tmp_path / "nowhere")
    assert "has no config.json" in refused(both, model_name_or_path=unknown)
    (unknown / "config.json").write_text('{"model_type": "no_such_architecture"}')
    assert "no_such_architecture" in refused(both, model_name_or_path=unknown)
    assert "nothing to evaluate" in refused(data, evaluate=True)
    shutil.copyfile(model_dir / "config.json", unknown / "config.json")
    assert "holds no weights, expected one of" in refused(both, model_name_or_path=unknown)
    (unknown / "model.safetensors").touch()
    assert "tokenizer" in refused(both, model_name_or_path=unknown)
    (both / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n")
    assert f"{both / 'qrels' / 'test.tsv'} judges no query" in refused(both)
    (both / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nother\td1\t1\n")
    assert "name what is not there: 1 an unknown query (as 'other')" in refused(both)
    (both / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t0\n")
    assert "no train query has a positive" in refused(both)
    plan = planned(data, tmp_path / "plan.tsv", model_name_or_path=model_dir, evaluate=True)
    assert plan["splits"] == "test" and "max_steps" not in plan
