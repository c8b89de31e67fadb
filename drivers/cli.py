"""The flags of the programs that load a model, each put together from the groups of utils/flag_groups.py.

They stand apart from the work so that ``--help`` and a mistyped flag answer before torch is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from model.encoders.spec import Pooling
from utils.exchange.evaluations import DEV
from utils.flag_groups import (
    AnceStrategyFlags,
    Bm25DirFlags,
    ComputeFlags,
    DevSplitFlags,
    ExchangeFlags,
    KeepFlags,
    ModelFlags,
    ModelTypeFlags,
    PreprocessedFlags,
    RefreshFlags,
    SearchFlags,
    SeedFlags,
    SelectionFlags,
    TrainingFlags,
)
from utils.flag_values import LARGEST_INTEGER, MOST_WORKERS, Group, Range, flag
from utils.flags import ProgramFlags

MOST_EPOCHS = 1_000_000
LARGEST_GROUP = 1000  # triples of one query in succession: more than a batch holds
LARGEST_SCALE = 1e6  # of scores; a product of embeddings times that stays a number of float32's


@dataclass(frozen=True, kw_only=True)
class GenerateFlags(
    ProgramFlags,
    PreprocessedFlags,
    DevSplitFlags,
    ModelTypeFlags,
    ComputeFlags,
    SelectionFlags,
    AnceStrategyFlags,
    KeepFlags,
    Bm25DirFlags,
    SearchFlags,
    RefreshFlags,
):
    """Encode the collection with the trainer's newest checkpoint, search it, publish negatives; repeat."""

    GROUP: ClassVar[Group] = "refresh"
    EXAMPLE: ClassVar[str] = (
        "python -m drivers.run_ann_data_gen --data_dir preprocessed --training_dir run/checkpoints \\\n    "
        "--init_model_dir warmup/checkpoint-1000 --output_dir run/ann_data --model_type rdot_nll \\\n    "
        "--negative_strategy top --topk_training 200 --negative_sample 20"
    )

    training_dir: str = flag(help="the trainer's --output_dir: checkpoints are taken from here", is_path=True)
    init_model_dir: str = flag(
        help="the model of refresh 0, before the trainer has published anything", is_path=True, group="model"
    )
    output_dir: str = flag(help="the trainer's --ann_dir: negatives are published here", is_path=True, group="job")
    ann_dir: str = flag("", "ignored: negatives go to --output_dir", is_path=True)
    last_checkpoint_dir: str = flag(
        "",
        "a checkpoint of --training_dir to count as used already (ANCE's way to resume); outside it: none is used",
        is_path=True,
    )
    end_output_num: int = flag(
        -1,
        "stop after refresh number N; 0 makes the initial data only; -1: no end",
        at_least=-1,
        at_most=LARGEST_INTEGER,
        decides="nothing",
    )
    limit_total_number: int = flag(
        100_000,
        "stop after this many refreshes (the fork's flag)",
        at_least=1,
        at_most=LARGEST_INTEGER,
        decides="nothing",
    )
    ann_chunk_factor: int = flag(
        5, "a refresh serves one of this many parts of the train queries; 0 or -1: all of them, as ANCE", at_least=-1
    )
    embedding_dtype: Literal["fp32", "fp16"] = flag(
        "fp32", "embeddings on disk; fp16 takes half the space: they are rounded, then searched in fp32 as rounded"
    )
    only_keep_latest_embedding_file: bool = flag(
        False, "remove a refresh's embeddings when the next is published", decides="nothing"
    )
    inference: bool = flag(False, "stop after writing the embeddings of the newest checkpoint", decides="nothing")
    load_gen: bool = flag(False, "make one refresh from the embeddings on disk, without a model", decides="nothing")

    IGNORED: ClassVar[dict[str, str]] = {"ann_dir": "negatives go to --output_dir"}


@dataclass(frozen=True, kw_only=True)
class AnnFlags(ProgramFlags, PreprocessedFlags, ModelFlags, TrainingFlags, RefreshFlags):
    """Train on the newest ANN negatives, switching to newer ones as they appear; publish checkpoints."""

    EXAMPLE: ClassVar[str] = (
        "python -m drivers.run_ann --data_dir preprocessed --ann_dir run/ann_data \\\n    "
        "--output_dir run/checkpoints --model_type rdot_nll --model_name_or_path warmup/checkpoint-1000 \\\n    "
        "--learning_rate 1e-6 --max_steps 10000"
    )

    ann_dir: str = flag(
        help="the generator's --output_dir: negatives are taken from here", is_path=True, group="negatives"
    )
    triplet: bool = flag(False, "ignored: training is always on triples", decides="nothing")
    single_warmup: bool = flag(
        False, "one learning-rate schedule for the whole run, not a new one per refresh", group="optimisation"
    )
    group_size: int = flag(
        0,
        "triples of a query that follow each other, the same in every arm; 0: all its negatives once, as ANCE",
        at_least=0,
        at_most=LARGEST_GROUP,
        group="negatives",
    )
    max_staleness_steps: int = flag(
        0,
        "warn at half, and stop (exit code 4) once the negatives are of a model that many steps old; 0: no limit",
        at_least=0,
        at_most=LARGEST_INTEGER,
        decides="nothing",
        group="refresh",
    )
    replay: str = flag(
        "",
        "journal.jsonl of an earlier run: switch to the same negatives at the same steps",
        is_path=True,
        group="refresh",
    )

    IGNORED: ClassVar[dict[str, str]] = {"triplet": "training is always on triples"}


@dataclass(frozen=True, kw_only=True)
class WarmupFlags(
    ProgramFlags,
    PreprocessedFlags,
    DevSplitFlags,
    ModelFlags,
    TrainingFlags,
    Bm25DirFlags,
    SearchFlags,
    ExchangeFlags,
):
    """Train the first checkpoint, on BM25 negatives or on a triples file."""

    GROUP: ClassVar[Group] = "evaluation"
    EXAMPLE: ClassVar[str] = (
        "python -m drivers.run_warmup --data_dir preprocessed --bm25_dir bm25 --output_dir warmup \\\n    "
        "--do_train --model_type rdot_nll --model_name_or_path roberta-base --loss in_batch \\\n    "
        "--max_steps 1000"
    )

    do_train: bool = flag(False, "train", decides="nothing", group="optimisation")
    do_eval: bool = flag(False, "evaluate --model_name_or_path, or the last checkpoint trained", decides="nothing")
    evaluate_during_training: bool = flag(
        False, "evaluate every logging_steps * logging_steps_per_eval steps", decides="nothing"
    )
    eval_type: Literal["full"] = flag("full", "always: rerank and rank the whole collection", decides="nothing")
    eval_all_checkpoints: bool = flag(False, "with --do_eval: every checkpoint in --output_dir", decides="nothing")
    logging_steps_per_eval: int = flag(
        10, "log lines per evaluation", at_least=1, at_most=LARGEST_INTEGER, decides="nothing"
    )
    scheduler: Literal["linear"] = flag("linear", "the learning-rate schedule, always")
    num_train_epochs: float = flag(
        3.0,
        "passes over the training data, where --max_steps is not given",
        at_least=0,
        at_most=MOST_EPOCHS,
        group="optimisation",
    )
    expected_train_size: int = flag(
        100_000,
        "triples in the file, to compute the steps of an epoch from",
        at_least=1,
        at_most=LARGEST_INTEGER,
        group="optimisation",
    )
    overwrite_cache: bool = flag(False, "ignored: there is no cache of features", decides="nothing")
    triples: str = flag(
        "", "triples.train.small.tsv (query, positive, negative as text), plain or gzipped", is_path=True, group="data"
    )
    rerank_file: str = flag(
        "", "candidates to rerank: top1000.dev or a TREC run; default BM25_DIR/DEV_SPLIT.trec", is_path=True
    )
    group_size: int = flag(
        1,
        "triples of a query that follow each other; 0: all its negatives once",
        at_least=0,
        at_most=LARGEST_GROUP,
        group="negatives",
    )

    pooling: Pooling | None = flag(None, "rdot_nll: first token (ANCE's) or mean; default the model's", group="model")
    score_scale: float | None = flag(
        None,
        "factor on every score; default the model's own, 1 (ANCE's) for a new one",
        at_least=1 / LARGEST_SCALE,
        at_most=LARGEST_SCALE,
        group="model",
    )

    DEFAULTS: ClassVar[dict[str, Any]] = {"max_steps": -1}
    RANGES: ClassVar[dict[str, Range]] = {"max_steps": Range(at_least=-1, at_most=LARGEST_INTEGER)}
    IGNORED: ClassVar[dict[str, str]] = {"overwrite_cache": "there is no cache of features"}


@dataclass(frozen=True, kw_only=True)
class EvalFlags(ProgramFlags, PreprocessedFlags, ModelFlags, ComputeFlags, SearchFlags):
    """Rank the whole collection, and optionally rerank given candidates; write metrics and TREC runs."""

    GROUP: ClassVar[Group] = "evaluation"
    EXAMPLE: ClassVar[str] = (
        "python -m drivers.run_eval --data_dir preprocessed --model_type rdot_nll \\\n    "
        "--model_name_or_path run/checkpoints/checkpoint-10000 --output_dir run/eval"
    )

    output_dir: str = flag(help="where metrics.json and the run files are written", is_path=True, group="job")
    split: str = flag(DEV, "whose queries: any split of --data_dir")
    embedding_dir: str = flag(
        "", "embeddings of run_ann_data_gen --inference to rank with, in place of a model", is_path=True
    )
    rerank_file: str = flag("", "candidates to rerank: top1000.dev or a TREC run", is_path=True)
    topk: int = flag(1000, "passages returned per query; metrics of a deeper cut-off are omitted", at_least=1)
    ann_dir: str = flag(
        "", "a generator's --output_dir: say how far its last negatives are what is returned", is_path=True
    )


@dataclass(frozen=True, kw_only=True)
class NeighbourhoodFlags(ProgramFlags, PreprocessedFlags, ModelFlags, SeedFlags, ComputeFlags):
    """Embed a train query, its positives, its negatives of several arms, and other passages."""

    GROUP: ClassVar[Group] = "data"
    EXAMPLE: ClassVar[str] = (
        "python -m drivers.run_neighbourhood --data_dir preprocessed --model_type rdot_nll \\\n    "
        "--model_name_or_path run/checkpoints/checkpoint-10000 --output_dir run/neighbourhood \\\n    "
        "--negatives top=run/ann_data/ann_training_data_0"
    )

    negatives: list[str] = flag(help="NAME=FILE: an arm's name, and its ann_training_data_N", group="negatives")
    output_dir: str = flag(help="where the embeddings and their record are written", is_path=True, group="job")
    query: str = flag("", "the collection's own id of a train query; default: the first that all files have")
    background: int = flag(300, "other passages, drawn at random from the collection", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Bm25Flags(ProgramFlags, DevSplitFlags, SelectionFlags, KeepFlags):
    """Search a collection with BM25: a TREC run and metrics for the dev split, negatives for train."""

    GROUP: ClassVar[Group] = "data"
    EXAMPLE: ClassVar[str] = "python -m drivers.run_bm25 --raw_data_dir raw --data_dir preprocessed --output_dir bm25"

    raw_data_dir: str = flag(help="raw collection, the one --data_dir was made from", is_path=True)
    data_dir: str = flag(help="preprocessed directory, written by data.msmarco_data", is_path=True)
    output_dir: str = flag(
        help="directory for dev.trec, metrics.json, ann_training_data_0 and ann_ndcg_0", is_path=True, group="job"
    )
    k1: float = flag(
        0.9,
        "BM25's k1, how slowly a repeated word stops counting; Anserini's value for MS MARCO",
        at_least=0,
        at_most=1000,
        group="search",
    )
    b: float = flag(
        0.4,
        "BM25's b, how much its length is held against a passage; Anserini's value",
        at_least=0,
        at_most=1,
        group="search",
    )
    topk_dev: int = flag(
        1000,
        "passages in the run of a dev query; metrics of a deeper cut-off are omitted",
        at_least=1,
        group="evaluation",
    )
    workers: int = flag(
        0,
        "processes that search a large collection; 0 is one for each core",
        at_least=0,
        at_most=MOST_WORKERS,
        group="job",
    )

    DEFAULTS: ClassVar[dict[str, Any]] = {"topk_training": 200, "negative_sample": 20, "negative_strategy": "random"}
