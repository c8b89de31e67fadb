"""Two towers through the real programs: a warmup from two encoders, an arm with one tower frozen, its evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from data.tokens.collection import open_preprocessed
from tests.drivers.test_resume import from_the_middle
from tests.fingerprint import loop
from tests.fingerprint.programs import Programs
from tests.forked import fork_server, run
from tests.texts import listed
from tests.toys_loop.toy_loop import write_triples
from utils.exchange.atomic import sha256_of
from utils.exchange.layout import JobLayout

pytestmark = pytest.mark.slow
LEARNING = ("--optimizer", "adamW", "--learning_rate", "1e-3")
FROZEN = ("--freeze", "passage")


def write_bert(made: loop.Loop, name: str, seed: int) -> Path:
    """With dropout, and the tokenizer's files."""
    directory = made.path(name)
    shutil.copytree(made.path("tokenizer"), directory)
    manifest = json.loads(made.path("preprocessed", "manifest.json").read_text())
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(seed)
    config = BertConfig(**sizes, vocab_size=manifest["vocab_size"], max_position_embeddings=40, initializer_range=0.1)
    BertModel(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def made(
    shared_collection: Path, tiny_preprocessed: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> loop.Loop:
    directory = tmp_path_factory.mktemp("towers")
    for name, target in (
        ("raw", shared_collection),
        ("preprocessed", tiny_preprocessed),
        ("tokenizer", tiny_tokenizer),
    ):
        (directory / name).symlink_to(target)
    made = loop.Loop(directory, Programs(fork_server()))
    places = ("--model_name_or_path", write_bert(made, "passages", 1))
    places += ("--query_model_name_or_path", write_bert(made, "queries", 2))
    source = ("--triples", write_triples(directory))
    loop.warm_up(made, "warmup", "dpr", *places, *LEARNING, "--loss", "in_batch", source=source)
    loop.train_and_generate(made, "top", "dpr", "warmup", *loop.batch(1), *LEARNING, *FROZEN)
    return made


def weights(checkpoint: Path, tower: str) -> dict[str, torch.Tensor]:
    stored = load_file(checkpoint / "model.safetensors")
    return {name.partition(".")[2]: tensor for name, tensor in stored.items() if name.startswith(f"{tower}.")}


def warmed_up(made: loop.Loop) -> Path:
    return made.path("warmup", f"checkpoint-{loop.WARMUP_STEPS}")


def last_of(made: loop.Loop) -> Path:
    return JobLayout(made.path("arms", "top", "checkpoints")).checkpoint(loop.STEPS)


def test_both_towers_learn_from_what_each_began_as(made: loop.Loop) -> None:
    for tower, name in (("question_model", "queries"), ("ctx_model", "passages")):
        first, trained = load_file(made.path(name, "model.safetensors")), weights(warmed_up(made), tower)
        distances = {name: float((tensor - first[name]).abs().max()) for name, tensor in trained.items()}
        assert 0 < max(distances.values()) < 0.1
        assert distances["encoder.layer.0.output.dense.weight"] > 0
    recorded = json.loads(made.path("warmup", "RUN.json").read_text())["science"]
    for key, name in (("initial_model_sha256", "passages"), ("initial_query_model_sha256", "queries")):
        assert recorded[key] == sha256_of(made.path(name, "model.safetensors"))


def test_a_frozen_tower_stays_bit_by_bit_and_has_no_optimiser_state(made: loop.Loop) -> None:
    stays, learns = (
        {name: torch.equal(tensor, weights(last_of(made), tower)[name]) for name, tensor in before.items()}
        for tower in ("ctx_model", "question_model")
        for before in [weights(warmed_up(made), tower)]
    )
    assert all(stays.values()) and not any(learns[name] for name in learns if name.endswith("dense.weight"))
    assert len(torch.load(last_of(made) / "optimizer.pt", weights_only=True)["state"]) == len(learns)
    lines = (made.path("arms", "top", "checkpoints") / "metrics.jsonl").read_text().splitlines()
    measured = {name for name in json.loads(lines[1]) if name.startswith("gradient_")}
    assert measured == {f"gradient_query_{name}" for name in ("embeddings", "layer_0", "layer_1")}
    said = made.path("arms", "top", "trainer.out").read_text()
    assert "numbers; the others stay" in said and "packed without padding" in said


def test_the_evaluation_is_of_transformers_two_models(made: loop.Loop) -> None:
    """By BertModel, each text by itself: the best passage of every dev query."""
    collection = open_preprocessed(made.path("preprocessed"), 32, 16)

    def first_states(tower: str, texts: list[list[int]]) -> np.ndarray:
        config = json.loads((last_of(made) / "config.json").read_text())[tower]
        model = BertModel(BertConfig(**config), add_pooling_layer=False).eval()
        model.load_state_dict(weights(last_of(made), tower))
        with torch.no_grad():
            return np.stack([model(torch.tensor([text])).last_hidden_state[0, 0].numpy() for text in texts])

    query_Q = collection.qrels("dev").queries_with_positive()
    queries_QD = first_states("question_model", listed(*collection.queries("dev").gather(query_Q, 16)))
    passages_ND = first_states("ctx_model", listed(*collection.passages.gather(np.arange(300), 32)))
    scores_QN = queries_QD @ passages_ND.T
    query_ids, passage_ids = collection.queries("dev").original_ids(), collection.passages.original_ids()
    run = [line.split() for line in (made.path("arms", "top", "eval") / "dev.trec").read_text().splitlines()]
    found = {query: (passage, float(score)) for query, _, passage, rank, score, _ in run if rank == "1"}
    for row, query in zip(scores_QN, query_Q, strict=True):
        passage, score = found[query_ids[query]]
        assert score == pytest.approx(row.max(), rel=1e-2)  # searched as bfloat16 may have encoded it
        assert row[passage_ids.index(passage)] > row.max() - 0.02 * abs(row.max())


def test_a_run_with_a_frozen_tower_resumes_to_the_same_bytes(made: loop.Loop, tmp_path: Path) -> None:
    arm = made.path("arms", "top")
    parts = from_the_middle(arm / "checkpoints", tmp_path / "parts", 4)
    command = loop.trainer(made, arm, "dpr", warmed_up(made), *loop.lockstep(0), *loop.batch(1), *LEARNING)
    flags = [str(word) for word in command]
    said = run(*flags, "--freeze", "query", "--output_dir", parts, code=3)
    assert "freeze passage there, query here" in said
    said = run(*flags, "--output_dir", parts, code=3)
    assert "freeze passage there, None here" in said
    run(*flags, *FROZEN, "--output_dir", parts)
    for name in ("model.safetensors", "optimizer.pt", "config.json"):
        assert sha256_of(JobLayout(parts).checkpoint(loop.STEPS) / name) == sha256_of(last_of(made) / name)


def test_flags_of_towers_are_refused_for_other_model_types(made: loop.Loop, tmp_path: Path) -> None:
    base = ("drivers.run_warmup", "--do_train", *map(str, loop.common(made, "rdot_nll")), "--output_dir", tmp_path)
    for flags in (("--freeze", "query"), ("--tied",), ("--query_model_name_or_path", made.path("queries"))):
        output = run(*base, "--model_name_or_path", made.path("passages"), *flags, code=2)
        assert f"error: {flags[0]} is for two towers (dpr), --model_type rdot_nll has one encoder; omit it" in output


def test_another_model_for_the_queries_of_tied_towers_is_refused(made: loop.Loop, tmp_path: Path) -> None:
    base = ("drivers.run_warmup", "--do_train", *map(str, loop.common(made, "dpr")), "--output_dir", tmp_path / "out")
    models = ("--model_name_or_path", made.path("passages"), "--query_model_name_or_path", made.path("queries"))
    output = run(*base, *models, "--tied", code=2)
    assert "error: --query_model_name_or_path is given with --tied, which is one encoder for both; omit one" in output
    assert not (tmp_path / "out").exists()
