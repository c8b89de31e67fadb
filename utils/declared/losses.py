"""The words of --loss, each declared once; model/train/objectives.py has what they compute."""

from __future__ import annotations

from dataclasses import dataclass

from utils.declared.papers import ANCE, DPR


@dataclass(frozen=True)
class Loss:
    """A word of --loss; model.train.objectives.OBJECTIVES has what it computes.

    ``is_over_batch``: a triple is scored against the passages of its whole micro-batch, of all processes. Its batches
    then say which of them (`data.training.batches.in_batch_mask`), a step gathers their embeddings, and a run resumes
    only with its step divided as it was. Otherwise it is a mean over triples that do not know of each other.
    """

    word: str
    description: str
    paper: str
    is_over_batch: bool = False


LOSSES = {
    declared.word: declared
    for declared in (
        Loss("pairwise", "ANCE's NLL of one positive and one negative", f"{ANCE}, section 3"),
        Loss("in_batch", "softmax over the whole batch", DPR, is_over_batch=True),
    )
}
DEFAULT_LOSS = "pairwise"
