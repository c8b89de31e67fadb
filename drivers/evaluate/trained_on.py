"""The negatives that an evaluated model was trained on last."""

from __future__ import annotations

from pathlib import Path

from data.mining.negative_lists import NegativeLists, check_offsets, read_negative_lists
from data.tokens.collection import Preprocessed
from utils.errors import UserError
from utils.exchange.evaluations import TRAIN
from utils.exchange.layout import JobLayout
from utils.exchange.markers import read_done
from utils.exchange.negatives import Refresh, newest_refresh, read_refresh


def last_negatives(ann_dir: Path, model: str, collection: Preprocessed) -> tuple[int, NegativeLists]:
    """Number and lists of the last refresh that the model's trainer switched to; the newest where that is not known.

    Args:
        ann_dir: a generator's output.
        model: a checkpoint, or "" for embeddings, which do not say who trained it.
        collection: what the negatives must be of.

    Raises:
        UserError: there is none, the one that was in use is damaged, or it is of another collection.
    """
    refresh = last_refresh(ann_dir, model)
    theirs, ours = refresh.record.get("collection_fingerprint"), collection.manifest["collection_fingerprint"]
    if theirs not in (None, ours):
        raise UserError(f"{refresh.path} is of another collection than --data_dir {collection.directory}; give its own")
    lists = read_negative_lists(refresh.path)
    check_offsets(lists, len(collection.queries(TRAIN)), len(collection.passages), refresh.path)
    return refresh.number, lists


def last_refresh(ann_dir: Path, model: str) -> Refresh:
    """The same before it is read."""
    done = read_done(Path(model).parent) if model else None
    taken = (done or {}).get("taken") or [{}]
    number = taken[-1].get("refresh")
    is_known = number is not None and JobLayout(ann_dir).record(number).exists()
    refresh = read_refresh(ann_dir, number) if is_known else newest_refresh(ann_dir, number)
    if refresh is not None:
        return refresh
    if number is None:
        raise UserError(f"--ann_dir {ann_dir} has no negatives, expected a generator's output; or omit it")
    raise UserError(
        f"--ann_dir {ann_dir} has no refresh {number}, which {JobLayout(Path(model).parent).done} says was "
        "the last in use; give the output of that run's generator, or omit it"
    )
