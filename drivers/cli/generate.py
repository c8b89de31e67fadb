"""The flags of the programs that write negatives: run_ann_data_gen, run_bm25."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from utils.declared.stemmers import STEMMERS
from utils.declared.words import words_help
from utils.flag_groups.exchange import RefreshFlags
from utils.flag_groups.model import ComputeFlags, ModelTypeFlags
from utils.flag_groups.negatives import AnceStrategyFlags, Bm25DirFlags, KeepFlags, SelectionFlags
from utils.flag_groups.search import SearchFlags
from utils.flag_groups.texts import ChangeTextFlags, DevSplitFlags, PreprocessedFlags
from utils.flag_values import LARGEST_INTEGER, MOST_WORKERS, Group, flag
from utils.flags import ProgramFlags


@dataclass(frozen=True, kw_only=True)
class GenerateFlags(
    ProgramFlags,
    PreprocessedFlags,
    ChangeTextFlags,
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
class Bm25Flags(ProgramFlags, DevSplitFlags, SelectionFlags, KeepFlags):
    """Search a collection with BM25: a TREC run and metrics for the dev split, negatives for train."""

    GROUP: ClassVar[Group] = "data"
    EXAMPLE: ClassVar[str] = "python -m drivers.run_bm25 --raw_data_dir raw --data_dir preprocessed --output_dir bm25"

    raw_data_dir: str = flag(
        "", "raw collection, the one --data_dir was made from; none for a dataset of ir_datasets", is_path=True
    )
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
    stemmer: str = flag("none", partial(words_help, STEMMERS), group="search")
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
