"""MRR@10 of a warmup's model: by reranking given candidates, and over the whole collection."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.tokens.collection import Preprocessed
from drivers.embeddings.distributed_search import check_index_fits
from drivers.evaluate.checks import check_candidates
from drivers.evaluate.ranking import encode_splits, rank_splits, rerank_split
from drivers.evaluate.splits import queries_with_positive, read_candidates_of
from drivers.job.encoder_setup import EncoderSettings, open_to_encode
from drivers.job.model_identity import ModelSettings, check_checkpoint
from drivers.job.progress import UNMONITORED, Monitor
from drivers.train.trainer import Trainer
from model.encode import EncodingSettings
from model.encoders.base import Encoder
from utils.distributed import agreement
from utils.distributed.world import World
from utils.exchange.layout import EvaluationLayout
from utils.exchange.stop import StopRequested
from utils.ir.metrics import deepest_cutoff
from utils.run_log import say
from utils.search.settings import SearchSettings

EVALUATION_DEPTH = 10  # of MRR@10


@dataclass(frozen=True)
class EvaluationSettings:
    """What a model is measured on: the judged queries of ``split``, whose ``candidates_QK``, if any, are reranked."""

    collection: Preprocessed
    split: str
    candidates_QK: np.ndarray | None
    encoding: EncodingSettings
    search: SearchSettings


def candidates_to_rerank(collection: Preprocessed, split: str, rerank_file: str, bm25_dir: str) -> np.ndarray | None:
    """What is reranked; read before training, so that a bad line is found before it.

    Args:
        collection, split: whose queries and passages.
        rerank_file: a TREC run, "" for BM25's.
        bm25_dir: BM25's directory, "" for none.

    Returns:
        int64 [Q, K] offsets of passages, None where neither is given.

    Raises:
        UserError: the file is missing or names what is not there.
    """
    if not (rerank_file or bm25_dir):
        return None
    path = Path(rerank_file) if rerank_file else EvaluationLayout(Path(bm25_dir)).ranking(split)
    check_candidates(path)
    ranked = queries_with_positive(collection, split)
    return read_candidates_of(path, [ranked], collection.passages.stored_ids())[0]


def say_of_short_lists(candidates_QK: np.ndarray, passages: int) -> None:
    """A line where they have too few of the collection's ``passages`` to be measured."""
    longest = candidates_QK.shape[1]
    if deepest_cutoff(longest, passages) < EVALUATION_DEPTH:
        say(f"warning: no list of candidates is longer than {longest}: there is no reranking MRR@10, nan is logged")


def evaluate_mrr(
    settings: EvaluationSettings, world: World, encoder: Encoder, monitor: Monitor = UNMONITORED
) -> tuple[float, float] | None:
    """MRR@10 over the split.

    Args:
        settings: what is measured on.
        world: all processes together.
        encoder: on this process's device.
        monitor: told how far it is; it may stop the work.

    Returns:
        Reranking the given candidates (nan without ten), and ranking the whole collection. None on all processes where
        one was told to stop.
    """
    collection, split = settings.collection, settings.split
    check_index_fits(settings.search, len(collection.passages), encoder.spec.text_shape("passage"))
    ranked = queries_with_positive(collection, split)
    embeddings = encode_splits(world, encoder, [ranked], settings.encoding, monitor)
    if embeddings is None:
        return None
    candidates_QK = settings.candidates_QK
    rankings = rank_splits(world, [ranked], embeddings, EVALUATION_DEPTH, settings.search, monitor)
    if rankings is None:
        return None
    (ranking,) = rankings
    if candidates_QK is None:
        return math.nan, ranking.metrics["mrr@10"]
    reranking = rerank_split(world, ranked, embeddings, candidates_QK)
    return reranking.metrics.get("mrr@10", math.nan), ranking.metrics["mrr@10"]


def evaluate_checkpoints(
    settings: EvaluationSettings, encoder: EncoderSettings, model: ModelSettings, paths: list[Path], world: World
) -> None:
    """Evaluate some checkpoints, and say what is found.

    Args:
        settings: what they are measured on.
        encoder: how they are opened.
        model: the one that preflight has verified; the files of others are verified here.
        paths: the checkpoints' directories.
        world: all processes together.
    """
    for path in paths:
        if path != Path(model.name_or_path):
            agreement.decide_on_process0(world, partial(check_checkpoint, model.at(path)))
        found = evaluate_mrr(settings, world, open_to_encode(encoder, str(path), settings.collection, world))
        assert found is not None, "nobody was told to leave"
        rerank_mrr, full_mrr = found
        if world.is_first:
            say(f"{path.name} Reranking/Full ranking mrr: {rerank_mrr}/{full_mrr}")


@dataclass
class Evaluations:
    """Next to training, at each step that ``every_steps`` divides; without ``settings`` there are none.

    ``is_due``: that of the newest step has not ended, because a stop came first: the next job begins with it.
    """

    settings: EvaluationSettings | None
    trainer: Trainer
    every_steps: int
    is_due: bool

    def after_step(self) -> None:
        self.is_due = True
        self.evaluate_if_due()

    def evaluate_if_due(self) -> None:
        """StopRequested on all processes where one was asked to stop meanwhile."""
        if self.is_due and self.settings is not None and self.trainer.state.step % self.every_steps == 0:
            evaluate_meanwhile(self.settings, self.trainer)
        self.is_due = False


def evaluate_meanwhile(settings: EvaluationSettings, trainer: Trainer) -> None:
    """Evaluate the model as it is now, say and log it; StopRequested as above."""
    state, session = trainer.state, trainer.session
    monitor = Monitor(
        should_stop=lambda: bool(session.stop.requested()),
        set_status=lambda doing: session.set_status(doing=doing, rate=None, eta_seconds=None),
    )
    found = evaluate_mrr(settings, state.world, state.encoder, monitor)
    if found is None:
        raise StopRequested(session.stop.reason())
    agreement.on_process0(state.world, partial(log_evaluation, trainer, *found))


def log_evaluation(trainer: Trainer, rerank_mrr: float, full_mrr: float) -> None:
    assert trainer.log is not None
    say(f"Reranking/Full ranking mrr: {rerank_mrr}/{full_mrr}")
    trainer.log.record(trainer.state.step, reranking_mrr=rerank_mrr, full_ranking_mrr=full_mrr)
