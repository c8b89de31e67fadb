"""What stands around a train query: its positives, each arm's negatives, other passages; and their embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from data.mining.negative_lists import NegativeLists, check_offsets, read_negative_lists
from data.tokens.collection import Preprocessed
from drivers.embeddings.encode import chosen_texts
from model.encode import EncodingSettings, encode_blocks
from utils.distributed import World
from utils.errors import UserError
from utils.exchange.negatives import check_as_recorded
from utils.flag_values import expand_path
from utils.ir.query_map import BACKGROUND, NEGATIVE, NOT_NEGATIVE, POSITIVE, QUERY


@dataclass(frozen=True)
class Chosen:
    """A `Neighbourhood` before it is embedded, and the query's offset."""

    query: int
    query_id: str
    arms: tuple[str, ...]
    passage_N: np.ndarray
    kind_N: np.ndarray
    rank_AN: np.ndarray


def named_files(words: list[str]) -> dict[str, Path]:
    """The files of negatives by their arm's name. UserError where a word is not NAME=FILE, or the file is not there."""
    files: dict[str, Path] = {}
    for word in words:
        name, _, path = word.partition("=")
        if not (name and path):
            raise UserError(f"--negatives {word} is not NAME=FILE; write for example top=ANN_DIR/ann_training_data_0")
        if name in files:
            raise UserError(f"--negatives names {name} twice; give each file a name of its own")
        try:
            files[name] = Path(expand_path(path))
        except ValueError as error:
            raise UserError(f"--negatives {name}= {error}") from None
        if not files[name].is_file():
            raise UserError(f"--negatives {word}: there is no file {files[name]}, expected an ann_training_data_N")
    return files


def read_arms(files: dict[str, Path], collection: Preprocessed) -> dict[str, NegativeLists]:
    """The queries that have negatives, in each file. UserError where one is damaged, or of another collection."""
    arms = {}
    for name, path in files.items():
        check_as_recorded(path)
        lists = read_negative_lists(path)
        check_offsets(lists, len(collection.queries("train")), len(collection.passages), path)
        arms[name] = lists.with_negatives()
    return arms


def choose_query(wanted_id: str, arms: dict[str, NegativeLists], files: dict[str, Path], query_ids: list[str]) -> int:
    """The offset of the train query ``wanted_id``; where that is empty, the lowest that all arms have negatives of.

    UserError where there is no such query, or an arm has no negatives of it.
    """
    if not wanted_id:
        shared: np.ndarray = reduce(np.intersect1d, (lists.query_Q for lists in arms.values()))
        if len(shared) == 0:
            raise UserError(
                f"no query has negatives in all of {', '.join(map(str, files.values()))}, expected refreshes of the "
                "same part of the train queries; take files of one refresh number and --ann_chunk_factor"
            )
        return int(shared[0])
    if wanted_id not in query_ids:
        raise UserError(f"--query {wanted_id} is none of the {len(query_ids)} train queries; give one's own id")
    query = query_ids.index(wanted_id)
    for name, lists in arms.items():
        if query not in lists.query_Q:
            raise UserError(
                f"--query {wanted_id} has no negatives in {files[name]}; take one that has, or leave --query out"
            )
    return query


def draw_background(rng: np.random.Generator, passages: int, taken: np.ndarray, count: int) -> np.ndarray:
    """``count`` different offsets below ``passages``, sorted, none of them in ``taken``; all there are, where fewer."""
    drawn = rng.choice(passages, min(passages, count + len(taken)), replace=False)
    return np.sort(drawn[~np.isin(drawn, taken)][:count])


def choose_texts(
    query: int, arms: dict[str, NegativeLists], collection: Preprocessed, background: int, rng: np.random.Generator
) -> Chosen:
    """The query, its positives, all arms' negatives of it and the ``background``, each part by offset.

    UserError where the query has no positive.
    """
    query_P, passage_P = collection.qrels("train").positives()
    positives = passage_P[query_P == query]
    if len(positives) == 0:
        raise UserError(
            f"train query {query} of {collection.directory} has no positive, the files of --negatives have negatives "
            "of it: they were made from another --data_dir"
        )
    listed = [negatives_of(lists, query) for lists in arms.values()]
    negatives = np.setdiff1d(np.concatenate([passages for passages, _ in listed]), positives)
    taken = np.concatenate([positives, negatives])
    others = draw_background(rng, len(collection.passages), taken, background)
    passage_N = np.concatenate([[-1], taken, others])
    kinds = np.array([QUERY, POSITIVE, NEGATIVE, BACKGROUND], np.int8)
    rank_AN = np.full((len(arms), len(passage_N)), NOT_NEGATIVE, np.int32)
    place_of = {passage: place for place, passage in enumerate(passage_N.tolist())}
    for arm, (passages, ranks) in enumerate(listed):
        rank_AN[arm, [place_of[passage] for passage in passages.tolist()]] = ranks
    kind_N = kinds.repeat([1, len(positives), len(negatives), len(others)])
    return Chosen(query, collection.queries("train").original_ids()[query], tuple(arms), passage_N, kind_N, rank_AN)


def negatives_of(lists: NegativeLists, query: int) -> tuple[np.ndarray, np.ndarray]:
    """The query's negatives and their ranks; one line per query is the rule, ANCE's files may have more."""
    rows = lists.query_Q == query
    is_there = lists.negative_QN[rows] >= 0
    return lists.negative_QN[rows][is_there], lists.rank_QN[rows][is_there]


def embed(
    encoder: Any, collection: Preprocessed, chosen: Chosen, settings: EncodingSettings, world: World
) -> np.ndarray:
    """float32 [N, D]: the embeddings of the chosen texts."""
    queries = chosen_texts(
        collection.queries("train"), np.array([chosen.query]), settings.max_query_length, settings.pad_id
    )
    passages = chosen_texts(collection.passages, chosen.passage_N[1:], settings.max_seq_length, settings.pad_id)
    blocks = [
        block_MD
        for texts in (queries, passages)
        for block_MD in encode_blocks(
            encoder, texts, (0, texts.count), settings.budget_tokens, world.device, settings.dtype
        )
    ]
    return np.concatenate(blocks)
