"""The encoder with several rows for a passage goes through the programs, which know nothing of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from data.mining.negative_lists import read_negative_lists
from data.tokens.collection import open_preprocessed
from tests.fingerprint import loop
from tests.texts import listed
from tests.toys_loop.toy_loop import toy_loop, train_encoder

LENGTHS = (32, 16)


def scores_by_hand(table: np.ndarray, queries: list[list[int]], passages: list[list[int]]) -> np.ndarray:
    """[Q, N]: of each passage's pieces of twelve tokens the best."""
    queries_QD = np.stack([table[query].mean(0) for query in queries])
    scores = []
    for passage in passages:
        rows = [table[passage[first : first + 12]].mean(0) for first in range(0, len(passage), 12)]
        scores.append((queries_QD @ np.stack(rows).T).max(1))
    return np.stack(scores, 1)


@pytest.mark.slow
def test_three_rows_go_through_the_loop(shared_collection: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    made = toy_loop("three_rows", tmp_path, shared_collection, tiny_tokenizer, "--data_type", 1)
    last = train_encoder(made, "three_rows", {"embedding_size": 16})
    collection, arm = open_preprocessed(tmp_path / "preprocessed", *LENGTHS), tmp_path / "arms" / "top"
    passages = listed(*collection.passages.gather(np.arange(300), LENGTHS[0]))
    counts = [-(-len(passage) // 12) for passage in passages]
    assert set(counts) == {2, 3}, "else nothing shows that rows may be missing"

    # What was searched for the last negatives: a passage once, by its best row.
    refresh = loop.STEPS // loop.WINDOW - 1
    record = json.loads((arm / "ann_data" / f"ann_ndcg_{refresh}").read_text())
    table = load_file(Path(record["checkpoint"]) / "model.safetensors")["embeddings.weight"]
    lists = read_negative_lists(arm / "ann_data" / f"ann_training_data_{refresh}")
    queries = listed(*collection.queries("train").gather(lists.query_Q, LENGTHS[1]))
    expected_QN = scores_by_hand(table, queries, passages)
    positives = collection.qrels("train").as_dict()
    for place, query in enumerate(lists.query_Q.tolist()):
        best = [p for p in np.argsort(-expected_QN[place], kind="stable").tolist() if not positives[query].get(p)]
        found = lists.negative_QN[place]
        assert found[found >= 0].tolist() == best[: (found >= 0).sum()]

    # What lies on disk: the rows that are there, and how many each passage has.
    (embeddings,) = (arm / "ann_data" / "embeddings").glob(f"step-{record['step']}-*")
    assert json.loads((embeddings / "embeddings.json").read_text())["rows_per_passage"] == 3
    stored_M = np.concatenate([np.load(path) for path in sorted(embeddings.glob("passages-*.rows.npy"))])
    assert stored_M.tolist() == counts
    shards = [path for path in sorted(embeddings.glob("passages-*.npy")) if ".rows" not in path.name]
    assert sum(len(np.load(path)) for path in shards) == sum(counts)

    # The evaluation, of the last model, in memory.
    table = load_file(last / "model.safetensors")["embeddings.weight"]
    query_Q = collection.qrels("dev").queries_with_positive()
    dev = scores_by_hand(table, listed(*collection.queries("dev").gather(query_Q, LENGTHS[1])), passages)
    query_ids, passage_ids = collection.queries("dev").original_ids(), collection.passages.original_ids()
    run = [line.split() for line in (arm / "eval" / "dev.trec").read_text().splitlines()]
    found_first = {query: passage for query, _, passage, rank, *_ in run if rank == "1"}
    assert found_first == {query_ids[q]: passage_ids[dev[i].argmax()] for i, q in enumerate(query_Q)}
