"""How much disk a program will need, estimated before it writes anything, with the terms of the sum.

The estimates are of the files' sizes; a quota is not seen. What the program's own earlier versions occupy already is
not needed again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.encoders.base import Encoder
from utils.errors import UserError
from utils.exchange.atomic import numbered
from utils.exchange.layout import CHECKPOINT_PATTERN, JobLayout
from utils.exchange.retention import KEEP_CHECKPOINTS
from utils.exchange.verify import size_of
from utils.system import disk_used, free_bytes, in_bytes

STATES_PER_WEIGHT = 2  # Adam's and LAMB's two moments
SMALL_FILES_BYTES = 64 * 2**10  # of a checkpoint: config, schedule, random states, manifest
NEGATIVE_BYTES, LINE_BYTES = 22, 30  # of ann_training_data: offset, rank and score; query and positive
CANDIDATE_BYTES, CANDIDATES_QUERY_BYTES = 8, 4  # of ann_candidates: offset and score; query
RUN_LINE_BYTES = 32  # of a TREC run's line, in addition to its two ids
UNKNOWN_REFRESHES = 10  # assumed where the flags name no end


@dataclass(frozen=True)
class Item:
    label: str
    bytes: int


def weight_bytes(encoder: Encoder) -> int:
    """As saved: LoRA's adapters alone, where there are some."""
    weights = encoder.state_dict()
    saved = (weights[name] for name in weights if encoder.adapter_base is None or ".lora_" in name)
    return sum(tensor.numel() * tensor.element_size() for tensor in saved)


def optimiser_bytes(encoder: Encoder) -> int:
    return STATES_PER_WEIGHT * sum(p.numel() * p.element_size() for p in encoder.parameters() if p.requires_grad)


def checkpoints_at_once(published: int, unused: int = 0) -> int:
    """How many checkpoints a trainer that publishes ``published`` of them has at most, the one being written included.

    The last three, the best, the one the newest negatives are from, and the one being written. ``unused`` (lockstep)
    is how many may lie between the newest negatives and the trainer.
    """
    return min(published, max(KEEP_CHECKPOINTS, unused) + 3)


def publishing_steps(steps: int, *periods: int) -> int:
    """How many of the steps 1..``steps`` are a multiple of a period, or the last; one or two periods, above 0."""
    both = steps // math.lcm(*periods) if len(periods) > 1 else 0
    is_one_already = any(steps % period == 0 for period in periods)
    return sum(steps // period for period in periods) - both + (not is_one_already)


def checkpoint_item(encoder: Encoder, tokenizer: Sequence[Path], checkpoints: int) -> Item:
    weights, states = weight_bytes(encoder), optimiser_bytes(encoder)
    rest = SMALL_FILES_BYTES + sum(size_of(path) or 0 for path in tokenizer)
    each = weights + states + rest
    parts = f"weights {in_bytes(weights)} + optimiser {in_bytes(states)} + tokenizer and others {in_bytes(rest)}"
    return Item(f"{checkpoints} checkpoints x {in_bytes(each)} ({parts})", checkpoints * each)


def negatives_item(queries: int, negatives: int, refreshes: int) -> Item:
    """``queries`` of a refresh with ``negatives`` each."""
    each = queries * (negatives * NEGATIVE_BYTES + LINE_BYTES)
    return Item(f"negatives {in_bytes(each)} x {refreshes} refreshes", refreshes * each)


def candidates_item(queries: int, candidates: int, refreshes: int) -> Item:
    each = queries * (candidates * CANDIDATE_BYTES + CANDIDATES_QUERY_BYTES)
    return Item(f"candidates {in_bytes(each)} x {refreshes} refreshes", refreshes * each)


def embeddings_item(rows: int, embedding_dim: int, bytes_per_value: int, refreshes: int, only_latest: bool) -> Item:
    """The space for the embeddings of a run.

    Args:
        rows: of a refresh, of passages and queries together.
        embedding_dim: numbers in a row.
        bytes_per_value: 2 or 4.
        refreshes: how many the run makes.
        only_latest: the old embeddings are kept only while the new ones are made, else all of them are.
    """
    each = rows * embedding_dim * bytes_per_value
    sets = min(refreshes, 2) if only_latest else refreshes
    advice = "" if sets <= 2 else " (--only_keep_latest_embedding_file keeps 2)"
    return Item(f"embeddings {in_bytes(each)} x {sets}{advice}", sets * each)


def run_item(queries: int, depth: int, id_bytes: int) -> Item:
    """A TREC run of ``depth`` passages a query; ``id_bytes`` is the length of a query's and a passage's id."""
    return Item(f"run of {queries:,} x {depth:,} lines", queries * depth * (RUN_LINE_BYTES + id_bytes))


def reusable_checkpoint_bytes(output_dir: Path) -> int:
    """Bytes of the checkpoints that lie there, which are removed as new ones come."""
    steps = numbered(output_dir, CHECKPOINT_PATTERN)
    return sum(disk_used(JobLayout(output_dir).checkpoint(step)) for step in steps)


def check_space(directory: Path, items: Sequence[Item], reusable_bytes: int = 0) -> str:
    """UserError where ``directory`` has no space for the terms, of which ``reusable_bytes`` are there already."""
    total = sum(item.bytes for item in items)
    needed, free = max(0, total - reusable_bytes), free_bytes(directory)
    already = (
        f" less {in_bytes(min(reusable_bytes, total))} there already = {in_bytes(needed)}" if reusable_bytes else ""
    )
    line = (
        f"space: {' + '.join(item.label for item in items)} = {in_bytes(total)}{already} needed, "
        f"{in_bytes(free)} free in {directory}"
    )
    if needed > free:
        raise UserError(f"{line}: free some, or choose a directory on another disk")
    return line
