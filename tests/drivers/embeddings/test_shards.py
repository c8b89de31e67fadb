"""Embeddings on disk: shards that are whole or not there, what is found again, and every fault of a stored file."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.tokens.collection import Preprocessed, open_preprocessed
from drivers.embeddings import read_shards, store
from drivers.embeddings.distributed_search import retrieve
from drivers.embeddings.encode import (
    PassageShare,
    encode_passages,
    encode_to_shards,
    stored_share,
    texts_of,
    unfinished,
)
from drivers.embeddings.read_shards import read_blocks, stored_passages
from drivers.embeddings.shards import Shards, fault_of, publish_shard, rows_of_shard
from drivers.embeddings.store import EmbeddingSpec, describe_embeddings
from drivers.evaluate import ranking as evaluation
from drivers.evaluate.splits import splits_asked
from drivers.job.progress import UNMONITORED, Monitor, StopEncoding
from drivers.run_eval import main as run_eval
from model.encode import EncodingSettings, block_size, share_of
from model.encoders.static import StaticEncoder
from tests.exchanging import lease_of, take
from tests.processes_as_threads import ALONE, CPU, on_processes
from tests.utils.exchange.test_fencing import contents as published
from tests.utils.exchange.test_fencing import interrupted
from utils.distributed.world import World
from utils.errors import Fenced, UserError
from utils.exchange.atomic import dump_with_checksum, load_with_checksum, sha256_of
from utils.exchange.lease.held import Lease
from utils.exchange.retention import remove_other_embeddings
from utils.search.settings import SearchSettings

DIMS = 8
DEV_QUERY, TRAIN_QUERY = "dev-query", "train-query"


def made_shards(directory: Path, count: int = 100, rows: int = 32, storage: str = "fp32") -> Shards:
    directory.mkdir(exist_ok=True)
    return Shards(directory, "passages", count, DIMS, rows, storage, "ab" * 32, "cd" * 32)


def numbers_of(start: int, stop: int) -> np.ndarray:
    """Row r holds r, r + 1/8, r + 2/8, …: a float16 has them exactly up to 128."""
    return (np.arange(start, stop)[:, None] + np.arange(DIMS) / 8).astype(np.float32)


def publish_all(shards: Shards, block: int = 7) -> None:
    for number in range(len(shards)):
        start, stop = shards.bounds(number)
        publish_shard(shards, number, (numbers_of(a, min(a + block, stop)) for a in range(start, stop, block)))


# How texts are divided


@pytest.mark.parametrize("count", [0, 1, 32, 33, 300, 20_000, 1_000_003, 8_841_823])
@pytest.mark.parametrize("dims", [8, 128, 768])
def test_shards_are_whole_blocks_of_a_bounded_size(tmp_path: Path, count: int, dims: int) -> None:
    rows = rows_of_shard(count, dims, 32)
    assert rows % block_size(count) == 0
    assert rows * dims * 4 <= 128 * 2**20 or rows == block_size(count)
    shards = Shards(tmp_path, "passages", count, dims, rows, "fp32", "", "")
    bounds = [shards.bounds(number) for number in range(len(shards))]
    assert [row for start, stop in bounds for row in (start, stop)][1:-1:2] == [start for start, _ in bounds][1:]
    assert not count if not bounds else (bounds[0][0], bounds[-1][1]) == (0, count)
    if count >= 20_000:
        assert len(shards) >= 32, "many processes can share them"


def test_ms_marco_s_shards_are_of_the_size_that_file_systems_like() -> None:
    size = rows_of_shard(8_841_823, 768, 32) * 768 * 4
    assert 64e6 < size <= 256e6


# Writing and reading


@pytest.mark.parametrize("storage", ["fp32", "fp16"])
def test_a_shard_is_a_plain_npy_file_with_a_record(tmp_path: Path, storage: str) -> None:
    shards = made_shards(tmp_path, storage=storage)
    publish_all(shards)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"passages-{start:010d}.{kind}" for start in (0, 32, 64, 96) for kind in ("json", "npy")]
    held_MD = np.load(shards.path(3), mmap_mode="r")
    assert held_MD.dtype == {"fp32": np.float32, "fp16": np.float16}[storage] and not held_MD.flags.writeable
    np.testing.assert_array_equal(held_MD, numbers_of(96, 100))
    record = load_with_checksum(shards.record_path(3))
    assert record["sha256"] == sha256_of(shards.path(3)) and record["bytes"] == shards.path(3).stat().st_size
    assert record["model_sha256"] == "cd" * 32 and record["texts"] == [96, 100]
    assert [fault_of(shards, number) for number in range(4)] == [None] * 4


@pytest.mark.parametrize("storage", ["fp32", "fp16"])
@pytest.mark.parametrize("rows_at_once", [1, 5, 32, 33, 1000])
def test_blocks_go_over_the_shards(
    tmp_path: Path, storage: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_shards, "READ_ROWS", 3)
    shards = made_shards(tmp_path, storage=storage)
    publish_all(shards)
    for first, last in ((0, 4), (1, 3), (3, 4), (2, 2)):
        passages = stored_passages(shards, first, last)
        start, stop = min(first * 32, 100), min(last * 32, 100)
        assert (passages.count, passages.embedding_dim) == (stop - start, DIMS)
        for _ in range(2):
            blocks = [block.copy() for block in passages.blocks(rows_at_once)]
            assert all(block.dtype == np.float32 and len(block) <= rows_at_once for block in blocks)
            found_MD = np.concatenate([np.empty((0, DIMS)), *blocks])
            np.testing.assert_array_equal(found_MD, numbers_of(start, stop))
    addresses = {block.__array_interface__["data"][0] for block in read_blocks(shards, range(4), 100, rows_at_once)}
    assert len(addresses) == 1, "one buffer, whatever the size of the collection"


def test_float16_is_rounded_and_both_backends_search_the_rounded_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    passages_ND, queries_QD = (rng.standard_normal((n, DIMS)).astype(np.float32) for n in (100, 9))
    shards = made_shards(tmp_path, rows=100, storage="fp16")
    publish_shard(shards, 0, [passages_ND])
    products_QN = queries_QD.astype(np.float64) @ passages_ND.astype(np.float16).astype(np.float64).T
    share = PassageShare(stored_passages(shards, 0, 1), 0)
    for backend in ("torch", "faiss"):
        found = retrieve(ALONE, queries_QD, share, 100, 20, SearchSettings(backend))
        assert found is not None
        np.testing.assert_array_equal(found[1], np.argsort(-products_QN, 1)[:, :20])
        np.testing.assert_allclose(found[0], -np.sort(-products_QN, 1)[:, :20], rtol=1e-5, atol=1e-5)


def test_a_number_too_large_for_float16_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    shards = made_shards(tmp_path, count=2, storage="fp16")
    block_MD = np.full((2, DIMS), 65_519.0, np.float32)
    publish_shard(shards, 0, [block_MD])
    assert np.load(shards.path(0)).max() == 65_504
    for path in tmp_path.iterdir():
        path.unlink()
    for value in (65_520.0, -70_000.0):
        block_MD[1, 3] = value
        with pytest.raises(UserError, match=rf"holds {abs(value):,.0f}, --embedding_dtype fp16 goes up to 65,504"):
            publish_shard(shards, 0, [block_MD])
        assert not list(tmp_path.iterdir())
    publish_shard(replace(shards, storage="fp32"), 0, [block_MD])


def test_a_shard_that_is_left_half_written_is_not_there(tmp_path: Path) -> None:
    shards = made_shards(tmp_path)

    def blocks() -> Iterator[np.ndarray]:
        yield numbers_of(0, 16)
        raise StopEncoding

    with pytest.raises(StopEncoding):
        publish_shard(shards, 0, blocks())
    assert not list(tmp_path.iterdir())
    assert fault_of(shards, 0) == ""


# What is found again


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) * 2 // 3],
    "one byte short": lambda content: content[:-1],
    "one byte more": lambda content: content + b"\0",
    "first byte": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "a bit in the middle": lambda content: (
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 4]) + content[len(content) // 2 + 1 :]
    ),
    "last byte": lambda content: content[:-1] + bytes([content[-1] ^ 0x20]),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "gone"])
@pytest.mark.parametrize("kind", ["npy", "json"])
def test_a_damaged_shard_is_named_and_encoded_again(
    tmp_path: Path, damage: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = made_shards(tmp_path)
    publish_all(shards)
    path = shards.path(2).with_suffix(f".{kind}")
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(DAMAGES[damage](content))
    assert unfinished(ALONE, shards, UNMONITORED).tolist() == [2]
    said = capsys.readouterr().out
    if (kind, damage) == ("json", "gone"):
        assert said == "", "killed before its record: not damaged, just not finished"
    else:
        assert str(path) in said and "encoded again" in said and said.count("\n") == 1
    publish_shard(shards, 2, [numbers_of(64, 96)])
    assert path.read_bytes() == content
    assert not unfinished(ALONE, shards, UNMONITORED).size


def test_a_shard_of_another_key_is_not_used(tmp_path: Path) -> None:
    shards = made_shards(tmp_path)
    publish_all(shards)
    for other in (
        replace(shards, key="00" * 32),
        replace(shards, model_sha256="00" * 32),
        replace(shards, rows=64),
        replace(shards, count=99),
    ):
        number = len(other) - 1
        assert fault_of(other, number) == "", other
    assert fault_of(shards, 3) is None


RECIPE = EmbeddingSpec(
    model_sha256="5e" * 32,
    config={"model_type": "static", "_name_or_path": "/runs/a"},
    collection_fingerprint="c",
    tokenizer_fingerprint="t",
    passages=300,
    embedding_dim=DIMS,
    max_seq_length=32,
    max_query_length=16,
    budget_tokens=1024,
    compute="float32",
    storage="fp32",
    device="cpu",
)


def test_everything_that_decides_the_numbers_is_in_the_key() -> None:
    others = [
        replace(RECIPE, **{name: {"model_type": "other"} if name == "config" else f"{value}1"})
        for name, value in vars(RECIPE).items()
    ]
    keys = {spec.key for spec in (RECIPE, *others)}
    assert len(keys) == len(vars(RECIPE)) + 1
    assert replace(RECIPE, config={"model_type": "static", "_name_or_path": "/runs/b"}).key == RECIPE.key


def test_queries_of_another_selection_have_another_key(tmp_path: Path) -> None:
    one, other = (RECIPE.query_shards(tmp_path, TRAIN_QUERY, np.array(rows)) for rows in ([1, 2, 5], [1, 2, 6]))
    assert one.key != other.key and one.path(0) == other.path(0)
    publish_shard(one, 0, [numbers_of(0, 3)])
    assert fault_of(one, 0) is None and fault_of(other, 0) == ""


# Encoding on any number of ranks


@pytest.fixture
def collection(tiny_preprocessed: Path) -> Preprocessed:
    return open_preprocessed(tiny_preprocessed, 32, 16)


@pytest.fixture
def settings(collection: Preprocessed) -> EncodingSettings:
    return EncodingSettings(32, 16, 1024, None)


def make_encoder(collection: Preprocessed) -> StaticEncoder:
    torch.manual_seed(4)
    return StaticEncoder({"vocab_size": collection.manifest["vocab_size"], "embedding_size": DIMS})


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


@pytest.mark.parametrize("ranks", [2, 3, 16])
def test_any_number_of_ranks_writes_the_same_files_and_goes_on_from_another_s(
    collection: Preprocessed,
    settings: EncodingSettings,
    tmp_path: Path,
    ranks: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder, texts = make_encoder(collection), texts_of(collection.passages, settings)
    alone, shared = (replace(RECIPE, passages=300).passage_shards(tmp_path / name) for name in ("alone", "shared"))
    for shards in (alone, shared):
        shards.directory.mkdir()
    assert len(alone) == 10
    everything = np.arange(10)
    encode_to_shards(ALONE, encoder, texts, alone, everything, settings, UNMONITORED)
    batches: list[None] = []

    def leave() -> bool:
        batches.append(None)
        return len(batches) > 6

    with pytest.raises(StopEncoding):
        encode_to_shards(ALONE, encoder, texts, shared, everything, settings, Monitor(leave))
    finished = {path: path.stat().st_mtime_ns for path in shared.directory.iterdir()}
    assert 0 < len(finished) < 20 and all(path.is_file() for path in finished)

    def go_on(world: World) -> list[int]:
        numbers = unfinished(world, shared, UNMONITORED)
        encode_to_shards(world, encoder, texts, shared, numbers, settings, UNMONITORED)
        return numbers.tolist()

    numbers = on_processes(ranks, go_on, monkeypatch)
    assert numbers == [list(range(len(finished) // 2, 10))] * ranks
    assert contents(shared.directory) == contents(alone.directory)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_embeddings_in_memory_are_those_on_disk(
    collection: Preprocessed, settings: EncodingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, texts = make_encoder(collection), texts_of(collection.passages, settings)
    shards = RECIPE.passage_shards(tmp_path)
    encode_to_shards(ALONE, encoder, texts, shards, np.arange(10), settings, UNMONITORED)
    on_disk_ND = np.concatenate([np.load(shards.path(number)) for number in range(10)])
    parts = on_processes(4, lambda world: encode_passages(world, encoder, collection.passages, settings), monkeypatch)
    assert [part.start for part in parts] == [share_of(10, rank, 4)[0] * 32 for rank in range(4)]
    in_memory_ND = np.concatenate([block for part in parts for block in part.passages.blocks(1000)])
    assert in_memory_ND.tobytes() == on_disk_ND.tobytes()


@pytest.mark.parametrize("leaver", [0, 2])
@pytest.mark.parametrize("at", [0, 3, 8])
def test_all_processes_leave_an_evaluation_that_one_is_told_to_leave(
    collection: Preprocessed, leaver: int, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the queries, the passages, the search; and nobody is left waiting for it."""
    encoder = make_encoder(collection)
    settings = EncodingSettings(max_seq_length=32, max_query_length=16, budget_tokens=32 * 32, dtype=None)
    asked = [0] * 3

    def evaluate_on(world: World, at: float) -> tuple[bool, bool]:
        def leave() -> bool:
            asked[world.process] += 1
            return world.process == leaver and asked[world.process] > at

        monitor = Monitor(leave)
        splits = splits_asked(collection, ["dev"])
        embeddings = evaluation.encode_splits(world, encoder, splits, settings, monitor)
        if embeddings is None:
            return True, True
        search = SearchSettings("torch")
        rankings = evaluation.rank_splits(world, splits, embeddings, 10, search, monitor)
        return False, rankings is None

    assert on_processes(3, lambda world: evaluate_on(world, math.inf), monkeypatch) == [(False, False)] * 3
    most, asked[:] = asked[leaver], [0] * 3
    at = min(at, most - 1)  # the last is asked while searching
    results = on_processes(3, lambda world: evaluate_on(world, at), monkeypatch)
    assert results == [(at < most - 1, True)] * 3 and asked[leaver] == at + 1


def test_a_process_that_leaves_while_it_verifies_counts_the_rest_as_missing(tmp_path: Path) -> None:
    shards = made_shards(tmp_path)
    publish_all(shards)
    looks: list[None] = []

    def leave() -> bool:
        looks.append(None)
        return len(looks) > 2

    assert unfinished(ALONE, shards, Monitor(leave)).tolist() == [2, 3]


# Complete embeddings: --inference writes them, --load_gen and run_eval --embedding_dir read them


def made_from(collection: Preprocessed, step: int = 30) -> dict[str, Any]:
    """What a generator records next to embeddings."""
    manifest = collection.manifest
    return {
        "step": step,
        "checkpoint": f"/runs/checkpoint-{step}",
        "collection_fingerprint": manifest["collection_fingerprint"],
        "tokenizer_fingerprint": manifest["tokenizer"]["fingerprint"],
    }


@pytest.fixture
def stored(collection: Preprocessed, tmp_path: Path) -> Path:
    """Embeddings of the tiny collection, row r of passages being all r; of two dev queries and three train queries."""
    directory = store.directory_of(tmp_path / "embeddings", 30, RECIPE)
    directory.mkdir(parents=True)
    rows = {DEV_QUERY: np.array([4, 9]), TRAIN_QUERY: np.array([1, 2, 7])}
    queries = [RECIPE.query_shards(directory, name, rows_Q) for name, rows_Q in rows.items()]
    passages = RECIPE.passage_shards(directory)
    for shards in queries:
        publish_shard(shards, 0, [np.full((shards.count, DIMS), 0.5, np.float32)])
    for number in range(len(passages)):
        start, stop = passages.bounds(number)
        publish_shard(passages, number, [np.arange(start, stop, dtype=np.float32)[:, None].repeat(DIMS, 1)])
    store.commit(directory, [*queries, passages], rows, made_from(collection))
    return directory


@pytest.mark.parametrize("ranks", [1, 2, 4, 16])
def test_any_number_of_ranks_reads_them(stored: Path, ranks: int) -> None:
    parts = []
    for rank in range(ranks):
        share = stored_share(World(rank, ranks, CPU), stored)
        assert share.start == sum(map(len, parts))
        parts.append(np.concatenate([np.empty((0, DIMS)), *(block.copy() for block in share.passages.blocks(1000))]))
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(300)[:, None].repeat(DIMS, 1))
    assert store.read_query_rows(stored, TRAIN_QUERY).tolist() == [1, 2, 7]
    assert store.read_queries(stored, DEV_QUERY).tolist() == [[0.5] * DIMS] * 2


def test_queries_of_another_split_than_is_embedded_are_refused(stored: Path) -> None:
    for read in (store.read_queries, store.read_query_rows):
        with pytest.raises(UserError, match="embeds dev-query, train-query, passages, expected test-query among them"):
            read(stored, "test-query")


def test_the_record_says_what_the_embeddings_were_made_of(stored: Path, collection: Preprocessed) -> None:
    record = store.read_embeddings_record(stored, collection)
    assert record | made_from(collection) == record
    assert (record["passages"], record["dims"], record["storage"]) == (300, DIMS, "fp32")
    assert record["model_sha256"] == RECIPE.model_sha256
    nameless = Path(shutil.copytree(stored, stored.parent.parent / "nameless"))
    (nameless / "embeddings.json").write_text(dump_with_checksum({**record, "model_sha256": ""}))
    assert store.describe_embeddings(stored) == f"embeddings: {stored}, of {record['checkpoint']}"
    assert store.read_embeddings_record(nameless, collection)["model_sha256"] == "", "an earlier version's"
    assert "which do not say which model made them (an earlier version did)" in describe_embeddings(nameless)
    without = {name: value for name, value in record.items() if name != "model_sha256"}
    for ours in ({**record, "model_sha256": "", "initial_config_sha256": "c"}, without):
        (nameless / "embeddings.json").write_text(dump_with_checksum(ours))
        with pytest.raises(UserError, match=r"does not say which model made them, .* run with --inference again"):
            store.read_embeddings_record(nameless, collection)


def test_inference_never_takes_shards_of_an_unknown_model(stored: Path) -> None:
    """Wherever they lie, also under the name that the known model's have."""
    unknown = replace(RECIPE, model_sha256="")
    shutil.rmtree(stored)
    stored.mkdir()
    publish_all(unknown.passage_shards(stored))
    known = RECIPE.passage_shards(stored)
    assert [fault_of(known, number) for number in range(len(known))] == [""] * len(known)
    assert store.directory_of(stored.parent, 30, unknown) != stored


def test_the_embeddings_of_the_highest_step_are_the_newest(stored: Path, collection: Preprocessed) -> None:
    record = store.read_embeddings_record(stored, collection)
    newer = Path(shutil.copytree(stored, stored.parent / "step-200-0123456789abcdef"))
    (newer / "embeddings.json").write_text(dump_with_checksum({**record, "step": 200}))
    assert store.newest_embeddings(stored.parent) == newer
    (newer.parent / "mine").mkdir()
    lease = lease_of(stored.parent.parent, "generator")
    remove_other_embeddings(lease, newer)
    assert sorted(stored.parent.iterdir()) == [newer.parent / "mine", newer]
    assert not list(lease.staging.iterdir())


LATE: dict[str, Callable[[Lease], object]] = {
    "shard": lambda lease: publish_shard(of_step(lease, 2), 1, [numbers_of(32, 64)], lease.stage),
    "record": lambda lease: store.commit(
        of_step(lease, 2).directory, [of_step(lease, 2)], {DEV_QUERY: np.array([1])}, {"step": 2}, lease.stage
    ),
    "remove": lambda lease: remove_other_embeddings(lease, of_step(lease, 2).directory),
}


def of_step(lease: Lease, step: int) -> Shards:
    directory = lease.directory / "embeddings" / f"step-{step}-{step:016x}"
    directory.mkdir(parents=True, exist_ok=True)
    return made_shards(directory)


@pytest.mark.parametrize("what", LATE)
def test_a_paused_generator_changes_no_embeddings_after_another_took_over(tmp_path: Path, what: str) -> None:
    """Before any of its steps on the disk the other takes over, and has embeddings of another step."""
    endings: list[bool] = []
    for at in range(1, 200):
        loser = take(tmp_path / str(at), "generator")
        for step in (1, 2):
            publish_shard(of_step(loser, step), 0, [numbers_of(0, 32)], loser.stage)
        seen: dict[str, bytes | None] = {}

        def take_over(directory: Path = loser.directory, seen: dict[str, bytes | None] = seen) -> None:
            winner = take(directory, "generator")
            publish_shard(of_step(winner, 3), 0, [numbers_of(0, 32)], winner.stage)
            seen.update(published(directory))

        fenced = False
        with interrupted(loser.directory, at, take_over) as done:
            try:
                LATE[what](loser)
            except Fenced:
                fenced = True
        if not done:
            break
        assert published(loser.directory) == seen, f"after the other took over before its step {at}, {done}"
        assert not list(loser.directory.glob("embeddings/**/.staging"))
        endings.append(fenced)
    assert at > 4 and endings[0], "never paused"
    assert endings == sorted(endings, reverse=True), "fenced up to its last change, and not after it"


def test_two_of_one_step_are_not_chosen_from(stored: Path) -> None:
    shutil.copytree(stored, stored.parent / "step-30-0123456789abcdef")
    with pytest.raises(UserError, match="one step made in 2 ways"):
        store.newest_embeddings(stored.parent)


@pytest.mark.parametrize("key", ["collection_fingerprint", "tokenizer_fingerprint", "passages"])
def test_embeddings_of_another_collection_are_refused(stored: Path, collection: Preprocessed, key: str) -> None:
    path = stored / "embeddings.json"
    record = load_with_checksum(path)
    for other in ({**record, key: 7}, {name: value for name, value in record.items() if name != key}):
        path.write_text(dump_with_checksum(other))
        with pytest.raises(UserError, match=key):
            store.read_embeddings_record(stored, collection)


def read_all(directory: Path, collection: Preprocessed) -> None:
    store.newest_embeddings(directory.parent)
    store.read_embeddings_record(directory, collection)
    store.read_query_rows(directory, DEV_QUERY)
    store.check_all_shards(0, 1, directory)


@pytest.mark.parametrize("name", ["embeddings.json", "dev-query-0*.npy", "dev-query.rows.npy", "passages-*.npy"])
@pytest.mark.parametrize("damage", [*DAMAGES, "gone"])
def test_damaged_files_are_named(stored: Path, collection: Preprocessed, name: str, damage: str) -> None:
    read_all(stored, collection)
    path = sorted(stored.glob(name))[-1]
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(DAMAGES[damage](content))
    with pytest.raises(UserError) as caught:
        read_all(stored, collection)
    assert str(path if damage != "gone" else stored.parent) in str(caught.value)
    assert "\n" not in str(caught.value) and "--inference" in str(caught.value)


@pytest.mark.parametrize("size", [0, 40, 128, 140])
def test_a_file_that_is_cut_while_it_is_searched_is_named(stored: Path, size: int) -> None:
    share = stored_share(ALONE, stored)
    path = sorted(stored.glob("passages-*.npy"))[3]
    os.truncate(path, size)
    with pytest.raises(UserError, match=path.name):
        list(share.passages.blocks(1000))


# The evaluation's preflight


def evaluate(monkeypatch: pytest.MonkeyPatch, data_dir: Path, *flags: str | Path) -> None:
    words = ["--data_dir", data_dir, "--model_type", "static", "--max_seq_length", "32", "--max_query_length", "16"]
    monkeypatch.setattr(sys, "argv", ["run_eval", *map(str, words), *map(str, flags)])
    run_eval()


def test_the_evaluation_finds_faults_in_a_dry_run(
    tiny_preprocessed: Path, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = (tiny_preprocessed, "--dry_run", "--embedding_dir", stored)
    evaluate(monkeypatch, *common, "--output_dir", tmp_path / "out")
    with pytest.raises(UserError, match="has 400 cells, one process holds 300 embeddings"):
        evaluate(monkeypatch, *common, "--output_dir", tmp_path / "out", "--faiss_index", "IVF400,Flat")
    with pytest.raises(UserError, match="is a file, expected a directory"):
        evaluate(monkeypatch, *common, "--output_dir", stored / "embeddings.json" / "out")
    assert not (tmp_path / "out").exists()
    (stored / "embeddings.json").write_text("{")
    with pytest.raises(UserError, match=r"embeddings\.json is not JSON"):
        evaluate(monkeypatch, *common, "--output_dir", tmp_path / "out")
