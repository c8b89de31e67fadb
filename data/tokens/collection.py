"""The preprocessed directory as the drivers see it: token caches, qrels by offset, the manifest that vouches for them.

``manifest.json`` is written last, so a directory that has one is complete. It says how long texts may be,
which tokenizer made them, how many there are and what was dropped on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.sources.ir_datasets import MSMARCO_DOCUMENTS
from data.sources.msmarco import DOCUMENT_TYPE, PASSAGE_TYPE
from data.sources.qrels import Qrels, qrel_name, query_name, sorted_qrels
from data.tokens.token_cache import TokenCache, open_token_cache
from data.tokens.tokenizer import tokenizer_files, tokenizer_fingerprint
from utils.declared.text_profiles import DEFAULT_PROFILE, EARLIER
from utils.declared.text_settings import TextSettings, read_text_record
from utils.errors import UserError
from utils.exchange.atomic import read_json
from utils.exchange.evaluations import DEV, TRAIN
from utils.exchange.layout import COLLECTION_MANIFEST as MANIFEST
from utils.ir.notation import LARGEST_GRADE

FORMAT_VERSION = 1
PASSAGES = "passages"
RELEVANCE_LEVELS = "relevance_levels"  # key of the manifest: by split, of those where it is not 1
QUERIES_SHA256 = "queries_sha256"  # key of the manifest: by split, of `raw_texts.hash_of_queries`
OWN_PASSAGES = "own_passages"  # key of the manifest: by split, [query, passage] of the queries that are a passage
REQUIRED_KEYS = ("max_seq_length", "max_query_length", "pad_token_id", "tokenizer", "counts", "collection_fingerprint")


def read_qrel_offsets(path: Path) -> Qrels:
    """Read ``query_offset \\t passage_offset \\t relevance``. UserError where it is missing or holds anything else."""
    try:
        empty = path.stat().st_size == 0
        rows_R3 = (
            np.empty((0, 3), np.int64) if empty else np.loadtxt(path, np.int64, comments=None, delimiter="\t", ndmin=2)
        )
    except FileNotFoundError:
        raise UserError(f"{path} is missing, expected the qrels by offset; run data.msmarco_data again") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}), expected three integers a line; preprocess again") from None
    if rows_R3.shape[1] != 3:
        raise UserError(f"{path} has {rows_R3.shape[1]} columns, expected 3 (query, passage, relevance)")
    too_large_R = (rows_R3[:, 2] < -LARGEST_GRADE) | (rows_R3[:, 2] > LARGEST_GRADE)
    if too_large_R.any():
        raise UserError(
            f"{path} has a relevance of {rows_R3[too_large_R, 2][0]}, expected {-LARGEST_GRADE} to {LARGEST_GRADE}; "
            "preprocess again"
        )
    return sorted_qrels(rows_R3)


@dataclass(frozen=True)
class Preprocessed:
    """A complete preprocessed directory."""

    directory: Path
    manifest: dict[str, Any]
    passages: TokenCache

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, in the order in which the source has them: those whose queries are counted."""
        suffix = query_name("")
        return tuple(name.removesuffix(suffix) for name in self.manifest["counts"] if name.endswith(suffix))

    def has_qrels(self, split: str) -> bool:
        """Whether anybody has judged the split: else its queries can be searched, and nothing measured."""
        return qrel_name(split) in self.manifest["counts"]

    @property
    def is_of_documents(self) -> bool:
        """Whether it is MS MARCO's documents, whose figures are at rank 100."""
        dataset = str(self.manifest.get("dataset", ""))
        return bool(self.manifest.get("data_type") == DOCUMENT_TYPE) or dataset.startswith(MSMARCO_DOCUMENTS)

    def relevance_level(self, split: str) -> int:
        """The lowest grade that measures without grades call relevant, as the split's source has it."""
        return int(self.manifest.get(RELEVANCE_LEVELS, {}).get(split, 1))

    def own_passages(self, split: str) -> dict[int, int]:
        """{query: passage} by offset, of the queries that are a passage themselves: no answer to be ranked."""
        return dict(self.manifest.get(OWN_PASSAGES, {}).get(split, []))

    def own_passage_Q(self, split: str, query_Q: np.ndarray) -> np.ndarray:
        """`own_passages` of these queries as int64; -1 where there is none."""
        own = self.own_passages(split)
        return np.array([own.get(query, -1) for query in query_Q.tolist()], np.int64)

    def excluded_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """What is no negative of a train query: int64 (query_P, passage_P), sorted; known positives, own passages."""
        own_O2 = np.array(sorted(self.own_passages(TRAIN).items()), np.int64).reshape(-1, 2)
        query_P, passage_P = (
            np.concatenate([known, own_O]) for known, own_O in zip(self.qrels(TRAIN).positives(), own_O2.T, strict=True)
        )
        order = np.lexsort((passage_P, query_P))
        return query_P[order], passage_P[order]

    def check_split(self, split: str) -> None:
        """UserError where there is no such split; it names those there are."""
        if split not in self.splits:
            raise UserError(f"{self.directory} has no split {split}, expected one of {', '.join(self.splits)}")

    def dev_split(self, asked: str = "") -> str:
        """The split that is measured while training: --dev_split where ``asked`` is not "".

        Else the first of `judged_splits`. UserError where there is none.
        """
        if asked:
            self.check_split(asked)
        others = self.judged_splits()
        if not others or (asked and asked not in others):
            raise UserError(
                f"{self.directory}: nothing to measure on while training: expected a split other than train that has "
                f"qrels, there is {', '.join(others) or 'none'}; name one by --dev_split"
            )
        return asked or others[0]

    def judged_splits(self) -> list[str]:
        """Those with qrels that are not trained on, ``dev`` first."""
        others = [split for split in self.splits if split != TRAIN and self.has_qrels(split)]
        return sorted(others, key=lambda split: split != DEV)

    def queries(self, split: str) -> TokenCache:
        """UserError where there is no such split, or the cache is damaged or not of the manifest's size."""
        self.check_split(split)
        return self._open(query_name(split))

    def qrels(self, split: str) -> Qrels:
        """Those of a split; none of one that nobody has judged.

        UserError where there is no such split, the file is damaged, or it names rows that are not there.
        """
        self.check_split(split)
        if not self.has_qrels(split):
            return sorted_qrels(np.empty((0, 3), np.int64))
        name = qrel_name(split)
        qrels = read_qrel_offsets(self.directory / f"{name}.tsv")
        counts = self.manifest["counts"]
        check_count(self.directory, name, len(qrels.query_R), counts)
        for kind, offsets_R, key in (
            ("query", qrels.query_R, query_name(split)),
            ("passage", qrels.passage_R, PASSAGES),
        ):
            if offsets_R.size and not (offsets_R.min() >= 0 and offsets_R.max() < counts[key]):
                raise UserError(
                    f"{self.directory / name}.tsv: {kind} offsets {offsets_R.min()} to {offsets_R.max()}, "
                    f"expected below {counts[key]}; run data.msmarco_data again"
                )
        return qrels

    def _open(self, name: str) -> TokenCache:
        cache = open_token_cache(self.directory, name)
        check_count(self.directory, name, len(cache), self.manifest["counts"])
        return cache

    @property
    def text_settings(self) -> TextSettings:
        """How its texts became tokens. UserError where the manifest is damaged, or of a newer version."""
        record = read_text_record(self.manifest, self.directory / MANIFEST)
        return TextSettings(**{"text_profile": as_recorded(EARLIER, self.manifest) or EARLIER, **record})

    @property
    def pad_token_id(self) -> int:
        return int(self.manifest["pad_token_id"])


def as_recorded(profile: str | None, manifest: dict[str, Any]) -> str | None:
    """What versions before profiles did is `DEFAULT_PROFILE` for passages that have no fields to join."""
    is_plain = str(manifest.get("data_type")) == str(PASSAGE_TYPE)
    return DEFAULT_PROFILE if profile == EARLIER and is_plain else profile


def check_count(directory: Path, name: str, count: int, counts: dict[str, int]) -> None:
    """A cache has as many rows as the manifest says.

    Args:
        directory: The preprocessed directory, for the message.
        name: The cache's: passages, train-query, …
        count: Its rows.
        counts: The manifest's, by name.
    Raises:
        UserError: the manifest has none of this name, or another.
    """
    if counts.get(name) != count:
        raise UserError(
            f"{directory}: {name} has {count} rows, {MANIFEST} says {counts.get(name)}; "
            "run data.msmarco_data again, into an empty directory"
        )


def read_manifest(directory: Path) -> dict[str, Any]:
    """UserError where there is none, or one that this version does not read."""
    path = directory / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{directory} has no {MANIFEST}, expected a preprocessed directory: if it is the raw one, "
            "or preprocessing was stopped, run data.msmarco_data"
        )
    manifest = read_json(path)
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: format version {version}, expected {FORMAT_VERSION}; run data.msmarco_data again")
    missing = [key for key in REQUIRED_KEYS if key not in manifest]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: it is damaged; run data.msmarco_data again")
    return manifest


def open_preprocessed(directory: str | Path, max_seq_length: int, max_query_length: int) -> Preprocessed:
    """Open a directory written by data.msmarco_data.

    Raises UserError where it is not one, is damaged, or was cut at fewer tokens than asked for.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    for what, key, asked in (
        ("passages", "max_seq_length", max_seq_length),
        ("queries", "max_query_length", max_query_length),
    ):
        if asked > manifest[key]:
            raise UserError(
                f"{directory}: {what} were cut at {manifest[key]} tokens, --{key} is {asked}: "
                f"pass --{key} {manifest[key]} or less, or preprocess again"
            )
    preprocessed = Preprocessed(directory, manifest, open_token_cache(directory, PASSAGES))
    check_count(directory, PASSAGES, len(preprocessed.passages), manifest["counts"])
    for split in preprocessed.splits:
        preprocessed.queries(split)
    return preprocessed


def check_tokenizer(preprocessed: Preprocessed, tokenizer_directory: str | Path) -> None:
    """UserError where the tokenizer is not the one that the cache was made with."""
    recorded = preprocessed.manifest["tokenizer"]
    files = tokenizer_files(tokenizer_directory)
    if files and files == recorded["files"]:
        return
    found = tokenizer_fingerprint(tokenizer_directory)
    if found != recorded["fingerprint"]:
        raise UserError(
            f"the tokenizer of {tokenizer_directory} is {found[:12]}, {preprocessed.directory} was made with "
            f"{recorded['fingerprint'][:12]}: take the model that fits, or preprocess again with this tokenizer"
        )
