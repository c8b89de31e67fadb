"""What stands around a train query: its positives, each arm's negatives, other passages; and their embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path

import numpy as np

from data.mining.negative_lists import NegativeLists, check_offsets, read_negative_lists
from data.tokens.collection import Preprocessed
from data.tokens.text_agreement import check_texts
from data.tokens.verify import check_inputs
from drivers.cli.evaluate import NeighbourhoodFlags
from drivers.embeddings.encode import chosen_texts
from drivers.job.encoder_setup import check_model_directory, open_to_encode
from drivers.job.model_identity import check_checkpoint
from drivers.job.settings import ModelJob, compute_settings, lengths_of, model_job, model_settings, places_of_model
from drivers.job.setup import check_output_dirs, open_collection, start_program
from drivers.job.text_lengths import describe_lengths
from model.encode import EncodingSettings, encode_blocks
from model.encoders.base import Encoder
from utils.distributed import agreement, process_group
from utils.distributed.world import World
from utils.errors import UserError
from utils.exchange.evaluations import TRAIN
from utils.exchange.negatives import check_as_recorded
from utils.flag_values import expand_path
from utils.flags import flags_json
from utils.ir.query_map import (
    BACKGROUND,
    KINDS,
    NEGATIVE,
    NOT_NEGATIVE,
    POSITIVE,
    QUERY,
    Neighbourhood,
    write_neighbourhood,
)
from utils.run_log import say


@dataclass(frozen=True)
class Chosen:
    """A `Neighbourhood` before it is embedded, and the query's offset."""

    query: int
    query_id: str
    arms: tuple[str, ...]
    passage_N: np.ndarray
    kind_N: np.ndarray
    rank_AN: np.ndarray


@dataclass(frozen=True)
class QueryMapJob(ModelJob):
    """What preflight resolved; ``seed`` has drawn the background."""

    collection: Preprocessed
    chosen: Chosen
    files: dict[str, Path]
    output_dir: Path
    seed: int


def preflight(flags: NeighbourhoodFlags) -> QueryMapJob:
    """Choose the texts, and find what would fail later. UserError for anything that would."""
    lengths = lengths_of(flags, places_of_model(flags))
    model = model_settings(flags, flags.model_name_or_path)
    common = model_job(flags, lengths, model, compute_settings(flags))
    if not flags.model_name_or_path:
        raise UserError("--model_name_or_path is missing, expected the checkpoint that embeds the texts")
    files = named_files(flags.negatives)
    check_model_directory(model, flags.dry_run)
    check_output_dirs(flags.output_dir)
    collection = open_collection(flags.data_dir, lengths, model.tokenizer, flags.dry_run)
    check_texts(collection, common.texts)
    check_inputs(collection)
    return QueryMapJob(
        **vars(common),
        collection=collection,
        chosen=choose(flags, files, collection),
        files=files,
        output_dir=Path(flags.output_dir),
        seed=flags.seed,
    )


def choose(flags: NeighbourhoodFlags, files: dict[str, Path], collection: Preprocessed) -> Chosen:
    """The query and the texts around it. UserError where the files have none of it."""
    arms = read_arms(files, collection)
    query = choose_query(flags.query, arms, files, collection.queries(TRAIN).original_ids())
    return choose_texts(query, arms, collection, flags.background, np.random.default_rng([flags.seed, query]))


def resolved_of(job: QueryMapJob) -> dict[str, str]:
    """What a --dry_run says next to the flags."""
    return {"resolved_query": job.chosen.query_id}


def run(job: QueryMapJob) -> None:
    """Load, embed, write. Several processes all embed these few texts; the first writes them."""
    world, _ = start_program("run_neighbourhood", job.compute, flags_json(job.flag_values))
    agreement.on_process0(world, partial(check_checkpoint, job.model))
    if world.is_first:
        say(describe_lengths(job.lengths, job.collection))
        say(check_texts(job.collection, job.texts))
    encoder = open_to_encode(job.encoder, job.model.name_or_path, job.collection, world)
    embedding_ND = embed(encoder, job.collection, job.chosen, job.encoder.encoding, world)
    agreement.on_process0(world, partial(write, job, embedding_ND))
    process_group.stop(world)


def write(job: QueryMapJob, embedding_ND: np.ndarray) -> None:
    """Both files, the record last."""
    chosen = job.chosen
    files = tuple("/".join(path.parts[-4:]) for path in job.files.values())  # seed/arm/ann_data/name
    arrays = (embedding_ND, chosen.passage_N, chosen.kind_N, chosen.rank_AN)
    found = Neighbourhood(chosen.query_id, chosen.arms, files, job.model.name_or_path, *arrays)
    counts = {name: found.count(kind) for kind, name in enumerate(KINDS)}
    texts = ", ".join(f"{count} {name}" for name, count in counts.items())
    say(f"query {found.query_id}: {texts} texts; arms {', '.join(found.arms)}")
    origin = {"seed": job.seed, "collection_fingerprint": job.collection.manifest["collection_fingerprint"]}
    path = write_neighbourhood(job.output_dir, found, {"counts": counts, **origin})
    say(f"finished {path}")


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
        check_offsets(lists, len(collection.queries(TRAIN)), len(collection.passages), path)
        arms[name] = lists.with_negatives()
    return arms


def choose_query(wanted_id: str, arms: dict[str, NegativeLists], files: dict[str, Path], query_ids: list[str]) -> int:
    """The train query that is drawn.

    Args:
        wanted_id: its own id; "" for the lowest offset that all arms have negatives of.
        arms: each arm's negatives, of queries that have some.
        files: the files that they are from, by the same names.
        query_ids: every train query's own id by its offset.

    Returns:
        Its offset.

    Raises:
        UserError: where there is no such query, or an arm has no negatives of it.
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
                f"--query {wanted_id} has no negatives in {files[name]}; take one that has, or omit --query"
            )
    return query


def draw_background(rng: np.random.Generator, passages: int, taken: np.ndarray, count: int) -> np.ndarray:
    """Passages at random, without repeats.

    Args:
        rng: drawn from once.
        passages: how many there are; offsets are below it.
        taken: int64, the offsets that are not drawn.
        count: how many are wanted.

    Returns:
        int64 [count], ascending; fewer where there are no more.
    """
    drawn = rng.choice(passages, min(passages, count + len(taken)), replace=False)
    return np.sort(drawn[~np.isin(drawn, taken)][:count])


def choose_texts(
    query: int, arms: dict[str, NegativeLists], collection: Preprocessed, background: int, rng: np.random.Generator
) -> Chosen:
    """The query, its positives, all arms' negatives of it and the background, each part by offset.

    Args:
        query: the train query's offset.
        arms: each arm's negatives; what is a positive too counts as one.
        collection: the train qrels and queries, and how many passages there are.
        background: how many other passages.
        rng: draws these.

    Raises:
        UserError: where the query has no positive.
    """
    query_P, passage_P = collection.qrels(TRAIN).positives()
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
    return Chosen(query, collection.queries(TRAIN).original_ids()[query], tuple(arms), passage_N, kind_N, rank_AN)


def negatives_of(lists: NegativeLists, query: int) -> tuple[np.ndarray, np.ndarray]:
    """The query's negatives and their ranks; one line per query is the rule, ANCE's files may have more."""
    rows = lists.query_Q == query
    is_there = lists.negative_QN[rows] >= 0
    return lists.negative_QN[rows][is_there], lists.rank_QN[rows][is_there]


def embed(
    encoder: Encoder, collection: Preprocessed, chosen: Chosen, settings: EncodingSettings, world: World
) -> np.ndarray:
    """The embeddings of the chosen texts; of a passage's rows the one that is best for the query.

    Args:
        encoder: on this process's device.
        collection: the tokens of the train queries and of the passages.
        chosen: the query, first, and N - 1 passages.
        settings: lengths in tokens, tokens of a batch, and the type to compute in.
        world: for this process's device; each process embeds all of them.

    Returns:
        float32 [N, D]
    """
    queries = chosen_texts(collection.queries(TRAIN), np.array([chosen.query]), settings.max_query_length, "query")
    passages = chosen_texts(collection.passages, chosen.passage_N[1:], settings.max_seq_length, "passage")
    query_1D, rows_ND = (
        np.concatenate(
            list(encode_blocks(encoder, texts, (0, texts.count), settings.budget_tokens, world.device, settings.dtype))
        )
        for texts in (queries, passages)
    )
    if rows_ND.ndim == 3:
        best_N = np.nanargmax(rows_ND @ query_1D[0], axis=1)
        rows_ND = rows_ND[np.arange(len(rows_ND)), best_N]
    return np.concatenate([query_1D, rows_ND])
