"""The flags of the programs that measure a model or a run: run_eval, run_fuse, run_neighbourhood."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from utils.declared.answers import ANSWER_MATCHES, STRING
from utils.declared.model_types import MODEL_TYPES
from utils.declared.words import words_help
from utils.flag_groups.common import SeedFlags
from utils.flag_groups.model import ComputeFlags, ModelFlags
from utils.flag_groups.search import SearchFlags
from utils.flag_groups.texts import PreprocessedFlags
from utils.flag_values import Group, flag
from utils.flags import ProgramFlags
from utils.ir.notation import LARGEST_GRADE, measures_help

TOPK = 1000  # passages that an evaluation returns per query, where --topk does not say


@dataclass(frozen=True, kw_only=True)
class EvalFlags(ProgramFlags, PreprocessedFlags, ModelFlags, ComputeFlags, SearchFlags):
    """Rank the whole collection, and optionally rerank given candidates; or evaluate anyone's runs (--run)."""

    GROUP: ClassVar[Group] = "evaluation"
    EXAMPLE: ClassVar[str] = (
        "python -m drivers.run_eval --data_dir preprocessed --model_type rdot_nll \\\n    "
        "--model_name_or_path run/checkpoints/checkpoint-10000 --output_dir run/eval"
    )

    output_dir: str = flag(help="where metrics.json and the run files are written", is_path=True, group="job")
    model_type: str = flag("", partial(words_help, MODEL_TYPES), aliases=["--train_model_type"], group="model")
    split: list[str] | None = flag(
        None, "whose queries: one or more splits of --data_dir; default: dev, else the first other than train"
    )
    metrics: str = flag("", measures_help)
    relevance_level: int | None = flag(
        None,
        "the lowest grade that is relevant to measures that know no grades, in all splits; default: each split's own, "
        "2 of TREC DL's passages, else 1",
        at_least=1,
        at_most=LARGEST_GRADE,
    )
    run: list[str] | None = flag(
        None,
        "runs to evaluate in place of a model, TREC's six columns or MS MARCO's three (query, passage, rank); the "
        "results of NAME.trec are in OUTPUT_DIR/NAME",
        is_path=True,
    )
    overlap_run: str = flag(
        "", "a run, BM25's mostly: the share of the first 100 returned that are among its first 100", is_path=True
    )
    embedding_dir: str = flag(
        "", "embeddings of run_ann_data_gen --inference to rank with, in place of a model", is_path=True
    )
    rerank_file: str = flag("", "candidates to rerank: top1000.dev or a TREC run", is_path=True)
    raw_data_dir: str = flag(
        "",
        "raw collection that --data_dir was made from: measures coverage@20 and @100, the share of questions with an "
        "answer in the text of one of their first passages; of DPR's files, which have answers",
        is_path=True,
    )
    answer_match: str = flag(STRING, partial(words_help, ANSWER_MATCHES), choices=ANSWER_MATCHES)
    topk: int | None = flag(
        None,
        f"passages of a query that are returned and measured, of longer lists of --run the first; metrics of a deeper "
        f"cut-off are omitted; default: {TOPK}, of --run all",
        at_least=1,
    )
    ann_dir: str = flag(
        "", "a generator's --output_dir: say how far its last negatives are what is returned", is_path=True
    )


@dataclass(frozen=True, kw_only=True)
class FuseFlags(ProgramFlags):
    """Add the scores of two runs, BM25's and a dense one's, and rank by the sum."""

    GROUP: ClassVar[Group] = "search"
    EXAMPLE: ClassVar[str] = (
        "python -m drivers.run_fuse --run bm25/dev.trec dense/dev.trec --weight 1.1 --output both.trec"
    )

    run: list[str] = flag(
        help="the two runs, TREC's six columns: BM25's, then the dense one's, whose scores are multiplied by --weight",
        is_path=True,
        group="data",
    )
    output: str = flag(help="the run to write, TREC's six columns", is_path=True, group="job")
    weight: float = flag(
        1.1, "what the second run's scores are multiplied by; DPR's paper has 1.1", at_least=0, at_most=1e6
    )
    topk: int = flag(TOPK, "passages of a query that are written, the best", at_least=1)


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
