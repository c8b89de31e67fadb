"""The flags of the programs that train: run_ann, run_warmup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from utils.flag_groups.exchange import ExchangeFlags, RefreshFlags
from utils.flag_groups.model import ModelFlags
from utils.flag_groups.negatives import Bm25DirFlags
from utils.flag_groups.search import SearchFlags
from utils.flag_groups.texts import ChangeTextFlags, DevSplitFlags, PreprocessedFlags
from utils.flag_groups.training import TrainingFlags
from utils.flag_values import LARGEST_INTEGER, Group, Range, flag
from utils.flags import ProgramFlags

MOST_EPOCHS = 1_000_000
LARGEST_GROUP = 1000  # triples of one query in succession: more than a batch holds
LARGEST_SCALE = 1e6  # of scores; a product of embeddings times that stays a number of float32's


@dataclass(frozen=True, kw_only=True)
class AnnFlags(ProgramFlags, PreprocessedFlags, ChangeTextFlags, ModelFlags, TrainingFlags, RefreshFlags):
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
    ChangeTextFlags,
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

    tied: bool = flag(
        False, "dpr: queries and passages have one tower; default the model's own", decides="nothing", group="model"
    )
    query_model_name_or_path: str = flag(
        "",
        "dpr: what the queries' tower begins as, where it is another than the passages'",
        is_path=True,
        group="model",
    )
    head_dim: int = flag(
        0,
        "hf: a new linear layer behind the pooling, to so many numbers; 0: none",
        at_least=0,
        decides="nothing",
        group="model",
    )
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
