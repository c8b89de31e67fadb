"""A refresh's embeddings as a directory: what they were made of, whether they are complete, and opening them.

``step-S-KEY`` belongs to one model, one collection and one way to encode: KEY hashes all that decides the numbers. What
lies in it is right whoever wrote it, and shards of anything else lie elsewhere. ``embeddings.json``, written last, says
that all is there; --inference stops at that point, --load_gen and run_eval --embedding_dir start from it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.tokens.collection import PASSAGES, Preprocessed
from drivers.embeddings.read_shards import stored_passages
from drivers.embeddings.shards import PASSAGE_SHARDS, QUERY_SHARDS, Shards, fault_of, rows_of_shard
from drivers.job.resume import is_model_unknown
from model.encode import share_of
from utils.errors import UserError
from utils.exchange.atomic import (
    Stage,
    dump_with_checksum,
    load_with_checksum,
    publish_file,
    sha256_of,
    sha256_of_json,
    staging_path,
    write_text,
)
from utils.exchange.layout import EMBEDDINGS_RECORD, ROWS_END, embeddings_path
from utils.exchange.verify import Expected, Words, verify_files
from utils.exchange.wait import wait_until_visible
from utils.run_log import say
from utils.search.source import all_at_once

FORMAT = 1
ROWS_WORDS = Words(
    missing="{path} is missing, expected the rows of the queries; run with --inference again",
    sha256=f"{{path}}: its sha256 differs from {EMBEDDINGS_RECORD}'s: it is damaged; run with --inference again",
)


@dataclass(frozen=True)
class EmbeddingSpec:
    """All that decides the numbers of the embeddings, in addition to the texts chosen.

    The kind of device is part of it, its model is not: a job that resumes on another GPU would lose hours for the last
    bits of some numbers.
    """

    model_sha256: str
    config: dict[str, Any]
    collection_fingerprint: str
    tokenizer_fingerprint: str
    passages: int
    embedding_dim: int
    max_seq_length: int
    max_query_length: int
    budget_tokens: int
    compute: str
    storage: str
    device: str
    torch: str = torch.__version__
    format: int = FORMAT
    rows_per_passage: int = 1  # of which 1 is not hashed: keys are older than it

    @property
    def key(self) -> str:
        config = {name: value for name, value in self.config.items() if not name.startswith("_")}  # "_name_or_path"
        values = {**vars(self), "config": config, "dims": self.embedding_dim}  # the word of earlier versions
        omitted = {"embedding_dim"} | ({"rows_per_passage"} if self.rows_per_passage == 1 else set())
        return sha256_of_json({name: value for name, value in values.items() if name not in omitted})

    def passage_shards(self, directory: Path) -> Shards:
        rows = rows_of_shard(self.passages, self.rows_per_passage * self.embedding_dim, PASSAGE_SHARDS)
        key = sha256_of_json([self.key, PASSAGES, rows])
        about = (self.embedding_dim, rows, self.storage, key, self.model_sha256, self.rows_per_passage)
        return Shards(directory, PASSAGES, self.passages, *about)

    def query_shards(self, directory: Path, name: str, rows_Q: np.ndarray) -> Shards:
        """The queries ``rows_Q`` of a split."""
        rows = rows_of_shard(len(rows_Q), self.embedding_dim, QUERY_SHARDS)
        key = sha256_of_json([self.key, name, rows, sha256_of_rows(rows_Q)])
        return Shards(directory, name, len(rows_Q), self.embedding_dim, rows, self.storage, key, self.model_sha256)


def sha256_of_rows(rows_Q: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows_Q, np.int64).tobytes()).hexdigest()


def directory_of(root: Path, step: int, spec: EmbeddingSpec) -> Path:
    return embeddings_path(root, step, spec.key)


# Complete embeddings


def commit(
    directory: Path,
    all_shards: list[Shards],
    rows: dict[str, np.ndarray],
    record: dict[str, Any],
    stage: Stage = staging_path,
) -> None:
    """Publish the queries' rows and, last, the record: a directory with it is complete.

    Args:
        directory: of the embeddings.
        all_shards: what it holds, the passages among it.
        rows: int64 [Q] for each name of queries: which of the split's they are.
        record: where the embeddings come from: step, checkpoint, and the fingerprints of the collection.
        stage: gives a place for a file that is being written.
    """
    digests = {name: publish_rows(directory, name, rows_Q, stage) for name, rows_Q in rows.items()}
    held = {
        shards.name: {"count": shards.count, "rows": shards.rows, "key": shards.key}
        | ({"rows_sha256": digests[shards.name]} if shards.name in digests else {})
        for shards in all_shards
    }
    passages = next(shards for shards in all_shards if shards.name == PASSAGES)
    about = {"model_sha256": passages.model_sha256, "passages": passages.count, "dims": passages.embedding_dim}
    about["storage"] = passages.storage
    if passages.rows_per_text > 1:
        about["rows_per_passage"] = passages.rows_per_text
    write_text(directory / EMBEDDINGS_RECORD, dump_with_checksum({**record, **about, "shards": held}), stage)
    say(f"embeddings of {passages.count:,} passages in {directory}")


def publish_rows(directory: Path, name: str, rows_Q: np.ndarray, stage: Stage) -> str:
    """Which queries are embedded.

    Args:
        directory: of the embeddings; the file is ``NAME.rows.npy``.
        name: of the shards of queries.
        rows_Q: int64, the offset of each query among its split's.
        stage: gives a place for a file that is being written.

    Returns:
        The sha256 of the file.
    """
    path = directory / f"{name}{ROWS_END}"

    def write(staged: Path) -> str:
        np.save(staged, np.asarray(rows_Q, np.int64))
        return sha256_of(staged)

    return publish_file(path, write, stage)


def read_embeddings_record(directory: Path, collection: Preprocessed | None = None) -> dict[str, Any]:
    """What `commit` recorded. UserError where there are no complete embeddings, or not those of ``collection``.

    An earlier version may have left ``model_sha256`` blank; `describe_embeddings` says so.
    """
    path = directory / EMBEDDINGS_RECORD
    if not path.is_file():
        raise UserError(
            f"{directory} holds no complete embeddings ({EMBEDDINGS_RECORD} is missing); run with --inference"
        )
    try:
        record = load_with_checksum(path)
    except UserError as error:
        raise UserError(f"{error}; run with --inference again") from None
    if not record.get("model_sha256") and not is_model_unknown(record, "model_sha256"):
        raise UserError(f"{path} does not say which model made them, expected its sha256; run with --inference again")
    if collection is not None:
        check_same_collection(directory, record, collection)
    return record


def text_shape_of(record: dict[str, Any]) -> tuple[int, int]:
    """[R, D] of a passage of complete embeddings, which has up to R rows."""
    return record.get("rows_per_passage", 1), record["dims"]


def describe_embeddings(directory: Path) -> str:
    """Where complete embeddings come from."""
    record = read_embeddings_record(directory)
    unknown = ", which do not say which model made them (an earlier version did): not compared"
    origin = unknown if is_model_unknown(record, "model_sha256") else f", of {record.get('checkpoint')}"
    return f"embeddings: {directory}{origin}"


def check_same_collection(directory: Path, record: dict[str, Any], collection: Preprocessed) -> None:
    manifest = collection.manifest
    held = {
        "passages": len(collection.passages),
        "collection_fingerprint": manifest["collection_fingerprint"],
        "tokenizer_fingerprint": manifest["tokenizer"]["fingerprint"],
    }
    for key, value in held.items():
        found = record.get(key)
        if found != value:
            raise UserError(
                f"{directory} embeds another collection than {collection.directory}: its {key} is {str(found)[:12]}, "
                f"expected {str(value)[:12]}; run with --inference again, or give its --data_dir"
            )


def newest_embeddings(root: Path) -> Path:
    """The complete embeddings of the highest step under ``root``. UserError where there are none, two, or damaged."""
    steps = {
        path.parent: int(read_embeddings_record(path.parent)["step"])
        for path in root.glob(f"step-*/{EMBEDDINGS_RECORD}")
    }
    if not steps:
        raise UserError(f"{root} holds no complete embeddings, --load_gen needs them; run with --inference first")
    newest = sorted(directory for directory, step in steps.items() if step == max(steps.values()))
    if len(newest) > 1:
        names = " and ".join(directory.name for directory in newest)
        raise UserError(f"{root} holds {names}, embeddings of one step made in {len(newest)} ways; keep one of them")
    return newest[0]


def open_shards(directory: Path, name: str) -> Shards:
    """The shards of complete embeddings; their content is not looked at."""
    record = read_embeddings_record(directory)
    held = shards_of(directory, record, name)
    about = (record["dims"], held["rows"], record["storage"], held["key"], record["model_sha256"])
    return Shards(directory, name, held["count"], *about, record.get("rows_per_passage", 1) if name == PASSAGES else 1)


def shards_of(directory: Path, record: dict[str, Any], name: str) -> dict[str, Any]:
    """What the record of complete embeddings says of ``name``. UserError where they are not of that split's queries."""
    if name not in record["shards"]:
        raise UserError(
            f"{directory} embeds {', '.join(record['shards'])}, expected {name} among them; "
            "run with --inference and that --dev_split"
        )
    held: dict[str, Any] = record["shards"][name]
    return held


def check_all_shards(process: int, processes: int, directory: Path) -> None:
    """UserError where a shard is missing or damaged; each process reads its share of them."""
    for name in read_embeddings_record(directory)["shards"]:
        shards = open_shards(directory, name)
        for number in range(*share_of(len(shards), process, processes)):
            fault = fault_of(shards, number)
            if fault is not None:
                fault = fault or f"{shards.record_path(number)} is missing, or of other embeddings"
                raise UserError(f"{fault}; run with --inference again")


def wait_for_shards(shards: Shards, first: int, last: int) -> None:
    """Another host may have published them a moment ago."""
    for number in range(first, last):
        wait_until_visible(shards.path(number))
        if shards.rows_per_text > 1:
            wait_until_visible(shards.counts_path(number))


def read_queries(directory: Path, name: str) -> np.ndarray:
    """float32 [Q, D] of complete embeddings."""
    shards = open_shards(directory, name)
    wait_for_shards(shards, 0, len(shards))
    return all_at_once(stored_passages(shards, 0, len(shards)))


def read_query_rows(directory: Path, name: str) -> np.ndarray:
    """int64 [Q]: which queries are embedded. UserError where the file is missing or damaged."""
    path = directory / f"{name}{ROWS_END}"
    expected = shards_of(directory, read_embeddings_record(directory), name)["rows_sha256"]
    verify_files({path: Expected(None, expected)}, ROWS_WORDS)
    return np.load(path, allow_pickle=False)
