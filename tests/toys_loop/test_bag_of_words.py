"""The encoder with two towers goes through the programs, which know nothing of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from data.tokens.collection import open_preprocessed
from tests.texts import listed
from tests.toys_loop.toy_loop import toy_loop, train_encoder


@pytest.mark.slow
def test_two_towers_go_through_the_loop(shared_collection: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    made = toy_loop("bag_of_words", tmp_path, shared_collection, tiny_tokenizer, "--data_type", 1)
    last = train_encoder(made, "bag_of_words", {"embedding_size": 16})
    first = load_file(tmp_path / "warmup" / "checkpoint-6" / "model.safetensors")
    towers = load_file(last / "model.safetensors")
    assert set(towers) == {"query.weight", "passage.weight"}
    assert all(np.abs(towers[name] - first[name]).max() > 0 for name in towers), "both have learned"
    arm = tmp_path / "arms" / "top"
    logged = json.loads((arm / "checkpoints" / "metrics.jsonl").read_text().splitlines()[1])
    assert logged["gradient_query"] > 0 and logged["gradient_passage"] > 0, "each tower is a layer of its own"

    collection = open_preprocessed(tmp_path / "preprocessed", 32, 16)

    def means(side: str, texts: list[list[int]]) -> np.ndarray:
        return np.stack([towers[f"{side}.weight"][text].mean(0) for text in texts])

    query_Q = collection.qrels("dev").queries_with_positive()
    queries_QD = means("query", listed(*collection.queries("dev").gather(query_Q, 16)))
    passages_ND = means("passage", listed(*collection.passages.gather(np.arange(300), 32)))
    best_Q = (queries_QD @ passages_ND.T).argmax(1)
    query_ids, passage_ids = collection.queries("dev").original_ids(), collection.passages.original_ids()
    run = [line.split() for line in (arm / "eval" / "dev.trec").read_text().splitlines()]
    found = {query: passage for query, _, passage, rank, *_ in run if rank == "1"}
    assert found == {query_ids[q]: passage_ids[p] for q, p in zip(query_Q, best_Q, strict=True)}
