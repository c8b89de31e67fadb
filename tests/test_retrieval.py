"""drivers.retrieval: searching over ranks' shares, embeddings on disk and their faults, and a disk that is full."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data.preprocessed import Preprocessed, open_preprocessed
from drivers import retrieval
from drivers.retrieval import PassageShare
from drivers.run_eval import main as run_eval
from model.embedding import share_of
from model.encoder import dims_of_config, new_encoder
from model.static import StaticEncoder
from utils.distributed import World
from utils.errors import UserError
from utils.search import SearchOptions

REPO = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
DIMS = 8


@pytest.fixture
def collection(tiny_preprocessed: Path) -> Preprocessed:
    return open_preprocessed(tiny_preprocessed, 32, 16)


def made_from(collection: Preprocessed, step: int = 30) -> dict[str, Any]:
    """What a generator records beside embeddings."""
    manifest = collection.manifest
    return {
        "step": step,
        "checkpoint": f"/runs/checkpoint-{step}",
        "model_sha256": "5e" * 32,
        "collection_fingerprint": manifest["collection_fingerprint"],
        "tokenizer_fingerprint": manifest["tokenizer"]["fingerprint"],
    }


@pytest.fixture
def stored(collection: Preprocessed, tmp_path: Path) -> Path:
    """Embeddings of the tiny collection in three shards, row r of passages being all r; of two dev queries."""
    directory = tmp_path / "embeddings" / "step-30"
    count = len(collection.passages)
    for rank in range(3):
        start, stop = share_of(count, rank, 3)
        with retrieval.new_array(directory / f"passages-{start:010d}.npy", (stop - start, DIMS), np.float32) as file:
            file[:] = np.arange(start, stop)[:, None]
    retrieval.save_queries(directory, "dev-query", np.array([4, 9]), np.full((2, DIMS), 0.5, np.float32))
    retrieval.commit_embeddings(directory, count, DIMS, made_from(collection))
    return directory


# Searching


def retrieve_on_ranks(
    queries_QD: np.ndarray, passages_ND: np.ndarray, cuts: list[int], k: int, patch: pytest.MonkeyPatch
) -> list[Any]:
    """`retrieve` on as many threads as there are shares, which meet in `gather_rows` as ranks do; their results."""
    ranks = len(cuts) - 1
    held: list[Any] = [None] * ranks
    results: list[Any] = [None] * ranks
    meeting = threading.Barrier(ranks, timeout=30)

    def gather_rows(world: World, rows_RX: np.ndarray) -> list[np.ndarray]:
        held[world.rank] = rows_RX
        meeting.wait()
        gathered = list(held)
        meeting.wait()
        return gathered

    def work(rank: int) -> None:
        share = PassageShare(passages_ND[cuts[rank] : cuts[rank + 1]], cuts[rank])
        world = World(rank, ranks, CPU)
        results[rank] = retrieval.retrieve(world, queries_QD, share, len(passages_ND), k, SearchOptions("torch"))

    patch.setattr(retrieval.distributed, "gather_rows", gather_rows)
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("cuts", [[0, 40], [0, 25, 40], [0, 0, 3, 40]])
@pytest.mark.parametrize("queries", [0, 1, 7])
def test_shares_merged_in_blocks_are_one_search(
    cuts: list[int], queries: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    queries_QD, passages_ND = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (queries, 40))
    monkeypatch.setattr(retrieval, "QUERIES_PER_EXCHANGE", 3)
    searches: list[int] = []
    search = retrieval.search

    def counted(queries_QD: np.ndarray, *others: Any) -> Any:
        searches.append(len(queries_QD))
        return search(queries_QD, *others)

    monkeypatch.setattr(retrieval, "search", counted)
    products_QN = queries_QD @ passages_ND.T
    expected = [sorted(range(40), key=lambda row: (-products_N[row], row))[:10] for products_N in products_QN]
    for scores_QK, offsets_QK in retrieve_on_ranks(queries_QD, passages_ND, cuts, 10, monkeypatch):
        assert offsets_QK.shape == (queries, 10)
        assert offsets_QK.tolist() == expected
        np.testing.assert_array_equal(scores_QK, np.take_along_axis(products_QN, offsets_QK, 1))
    assert searches == [queries] * (len(cuts) - 1), "each rank builds its index once"
    said = capsys.readouterr().out
    assert said == f"search: torch, exact, on cpu; {queries} queries, 40 passages, top 10\n"


def test_progress_is_told_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Recorder:
        def __init__(self, total: int, what: str) -> None:
            told.append((total, what))
            self.advance = told.append

        def close(self) -> None:
            told.append("closed")

    monkeypatch.setattr(retrieval, "Progress", Recorder)
    vectors = np.ones((3000, 2), np.float32)
    retrieval.retrieve(ALONE, vectors[:2000], PassageShare(vectors, 0), 3000, 5, SearchOptions("torch"))
    assert told[0] == (2000 * 3000, "query-passage pairs searched") and told[-1] == "closed"
    assert sum(told[1:-1]) == 2000 * 3000


# The index, before anything is encoded


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "static", "vocab_size": 30, "embedding_size": 12},
        {"model_type": "roberta", "hidden_size": 16, "embedding_size": 24},
        {"model_type": "roberta", "hidden_size": 16},
        {"model_type": "roberta", "hidden_size": 800},
        {"model_type": "roberta"},
    ],
)
def test_dims_are_those_of_the_model(config: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"vocab_size": 30, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**sizes, **config}))
    encoder = new_encoder("static" if config["model_type"] == "static" else "rdot_nll", str(path), {})
    assert dims_of_config(config) == encoder.dims


@pytest.mark.parametrize("size", [None, "wide", 0, -3])
def test_a_config_without_usable_dims(size: Any) -> None:
    with pytest.raises(UserError, match="embedding_size"):
        dims_of_config({"model_type": "static", "embedding_size": size})
    with pytest.raises(UserError, match="embedding_size"):
        dims_of_config({"model_type": "static"})


def test_cells_are_compared_with_the_smallest_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "static", "embedding_size": DIMS}))
    flags = SimpleNamespace(faiss_index="IVF40,Flat", nprobe=2, model_type="static", config_name="")
    retrieval.check_index_fits_model(flags, 64, str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="has 40 cells, one process holds 32 passages"):
        retrieval.check_index_fits_model(flags, 64, str(tmp_path))
    retrieval.check_index_fits(SimpleNamespace(faiss_index="IVF3,Flat", nprobe=0), 3, DIMS)  # one has all, one none
    flags.faiss_index = "PQ3"
    with pytest.raises(UserError, match="PQ3"):
        retrieval.check_index_fits_model(flags, 64, str(tmp_path))
    retrieval.check_index_fits_model(flags, 64, "somebody/hub-model")


# Embeddings on disk


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_shards_of_other_ranks_come_back(stored: Path, collection: Preprocessed, ranks: int) -> None:
    for rank in range(ranks):
        start, stop = share_of(len(collection.passages), rank, ranks)
        share = retrieval.load_passages(World(rank, ranks, CPU), stored, len(collection.passages))
        assert share.start == start
        np.testing.assert_array_equal(share.embeddings_MD, np.arange(start, stop)[:, None].repeat(DIMS, 1))
    rows_Q, queries_QD = retrieval.load_queries(stored, "dev-query")
    assert rows_Q.tolist() == [4, 9] and queries_QD.tolist() == [[0.5] * DIMS] * 2


def test_the_record_says_what_the_embeddings_were_made_of(stored: Path, collection: Preprocessed) -> None:
    record = retrieval.read_embeddings_record(stored, collection)
    assert record == {**made_from(collection), "passages": len(collection.passages), "dims": DIMS}
    newer = Path(shutil.copytree(stored, stored.parent / "step-200"))
    (newer / "embeddings.json").write_text(json.dumps({**record, "step": 200}))
    assert retrieval.newest_embeddings(stored.parent) == newer


@pytest.mark.parametrize("key", ["collection_fingerprint", "tokenizer_fingerprint", "passages"])
def test_embeddings_of_another_collection_are_refused(stored: Path, collection: Preprocessed, key: str) -> None:
    path = stored / "embeddings.json"
    record = json.loads(path.read_text())
    for other in ({**record, key: 7}, {name: value for name, value in record.items() if name != key}):
        path.write_text(json.dumps(other))
        with pytest.raises(UserError, match=key):
            retrieval.read_embeddings_record(stored, collection)


def read_all(directory: Path, collection: Preprocessed) -> None:
    retrieval.newest_embeddings(directory.parent)
    retrieval.read_embeddings_record(directory, collection)
    retrieval.load_queries(directory, "dev-query")
    retrieval.load_passages(ALONE, directory, len(collection.passages))


def overwritten(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) * 2 // 3],
    "one byte short": lambda content: content[:-3],
    "zeroed head": lambda content: overwritten(content, 0, bytes(20)),
    "header open": lambda content: overwritten(content, 11, b"(((("),
}


@pytest.mark.parametrize("name", ["embeddings.json", "dev-query.npy", "dev-query.rows.npy", "passages-*.npy"])
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
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("dev-query.npy", np.zeros((2, DIMS + 1), np.float32)),
        ("dev-query.npy", np.zeros((3, DIMS), np.float32)),
        ("dev-query.npy", np.zeros((2, DIMS), np.float64)),
        ("dev-query.rows.npy", np.zeros((2, 1), np.int64)),
        ("passages-0000000000.npy", np.zeros((100, 3), np.float32)),
    ],
)
def test_arrays_of_another_shape_are_refused(
    stored: Path, collection: Preprocessed, name: str, array: np.ndarray
) -> None:
    np.save(stored / name, array)
    with pytest.raises(UserError, match=r"holds .* expected .* run --inference again"):
        read_all(stored, collection)


def test_a_rank_without_passages_makes_no_file(collection: Preprocessed, tmp_path: Path) -> None:
    """Its file would have the name of the rank that starts where it stops."""
    encoder = StaticEncoder({"vocab_size": collection.manifest["vocab_size"], "embedding_size": DIMS})
    settings = retrieval.EncodingSettings(32, 16, collection.pad_token_id, 1024, None)
    cache = replace(collection.passages, offsets_N1=collection.passages.offsets_N1[:4])
    shares = [retrieval.encode_passages(World(rank, 2, CPU), encoder, cache, settings, tmp_path) for rank in (1, 0)]
    assert [len(share.embeddings_MD) for share in shares] == [3, 0]
    np.testing.assert_array_equal(np.load(tmp_path / "passages-0000000000.npy"), shares[0].embeddings_MD)


# A disk that is full


def refuse(number: int) -> Any:
    def posix_fallocate(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    return posix_fallocate


def test_an_array_that_cannot_be_filled_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npy"
    with pytest.raises(ZeroDivisionError), retrieval.new_array(path, (2,), np.float32):
        _ = 1 / 0
    assert not path.exists()
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space") as caught, retrieval.new_array(path, (2,), np.float32):
        pytest.fail("there is no space")
    assert caught.value.filename == str(path) and not path.exists()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_promise_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "a.npy"
    monkeypatch.setattr(os, "posix_fallocate", refuse(number))
    with retrieval.new_array(path, (2,), np.float32) as file:
        file[:] = 7
    assert np.load(path).tolist() == [7, 7]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(OSError, match="No space"), retrieval.new_array(path, (1000,), np.float32):
        pytest.fail("there is no space")
    assert not path.exists()


@contextlib.contextmanager
def small_disk(directory: Path, kibibytes: int) -> Iterator[Any]:
    """A file system of that size at ``directory``, or, for who may not mount one, a limit to be set on a process."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(directory)]
    if os.getuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield None
        finally:
            subprocess.run(["umount", str(directory)], check=True)
    else:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (kibibytes * 1024, kibibytes * 1024))


def test_the_generator_on_a_full_disk(tiny_preprocessed: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    model, disk = tmp_path / "model", tmp_path / "disk"
    model.mkdir()
    vocab_size = json.loads((tiny_preprocessed / "manifest.json").read_text())["vocab_size"]
    StaticEncoder({"vocab_size": vocab_size, "embedding_size": 512}).save_pretrained(model)  # 600 KiB of embeddings
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_tokenizer / name, model / name)
    command = [
        sys.executable, "-m", "drivers.run_ann_data_gen", "--data_dir", tiny_preprocessed, "--training_dir",
        tmp_path / "none", "--init_model_dir", model, "--model_type", "static", "--max_seq_length", "32",
        "--max_query_length", "16", "--output_dir", disk, "--end_output_num", "0", "--topk_training", "50",
        "--negative_strategy", "top",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with small_disk(disk, 400) as limit:
        done = subprocess.run(
            list(map(str, command)),
            cwd=REPO,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            preexec_fn=limit,
        )
        left = [path.name for path in disk.rglob("*.npy")]
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert len(done.stderr.splitlines()) == 1 and "no space left writing" in done.stderr
    assert "passages-0000000000.npy" in done.stderr and not left


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
    with pytest.raises(UserError, match="has 400 cells, one process holds 300 passages"):
        evaluate(monkeypatch, *common, "--output_dir", tmp_path / "out", "--faiss_index", "IVF400,Flat")
    with pytest.raises(UserError, match="is a file, expected a directory"):
        evaluate(monkeypatch, *common, "--output_dir", stored / "embeddings.json" / "out")
    assert not (tmp_path / "out").exists()
    (stored / "embeddings.json").write_text("{")
    with pytest.raises(UserError, match=r"embeddings\.json is not JSON"):
        evaluate(monkeypatch, *common, "--output_dir", tmp_path / "out")
