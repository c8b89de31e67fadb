"""Fuse two runs: read both, add their scores, and write one."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from data.sources.atomic_dir import check_can_write
from drivers.cli.evaluate import FuseFlags
from drivers.evaluate.splits import check_run
from utils.errors import UserError
from utils.flags import flags_json
from utils.ir.fusion import fuse_runs
from utils.ir.runs import Entries, check_has_scores, read_entries, remark_on_ranks
from utils.ir.trec import write_run
from utils.run_log import header, say

TAG = "fusion"  # the run's last column


@dataclass(frozen=True)
class FuseJob:
    """What preflight resolved.

    Args:
        flag_values: the flags by name, for the log and a --dry_run.
        first, second: the runs.
        weight: what the second's scores are multiplied by.
        topk: passages of a query that are written.
        output: the run to write.
    """

    flag_values: Mapping[str, object]
    first: Path
    second: Path
    weight: float
    topk: int
    output: Path


def preflight(flags: FuseFlags) -> FuseJob:
    """UserError where there are not two runs with scores, or the output cannot be written or is there."""
    if len(flags.run) != 2:
        raise UserError(f"--run has {len(flags.run)} of them, expected two runs: BM25's, then the dense one's")
    first, second = map(Path, flags.run)
    for path in (first, second):
        check_run(path, "--run")
        check_has_scores(path)
    output = Path(flags.output)
    if output.exists():
        raise UserError(f"{output} exists; remove it or choose another --output")
    if output.suffix == ".gz":
        raise UserError(f"--output is {output}, expected a name without .gz: the run is written as plain text")
    check_can_write(output.parent)
    return FuseJob(asdict(flags), first, second, flags.weight, flags.topk, output)


def run(job: FuseJob) -> None:
    """Read both runs, fuse them, and write the result whole. UserError where they have no query in common."""
    for line in header("run_fuse", secrets.token_hex(6), flags_json(job.flag_values), ["cpu"]):
        say(line)
    first, second = read_entries(job.first), read_entries(job.second)
    for path, entries in ((job.first, first), (job.second, second)):
        say(describe_entries(path, entries))
    names = [{*found.query_ids_Q} for found in (first, second)]
    if not names[0] & names[1]:
        raise UserError(
            f"{job.first} and {job.second} have no query in common (one has {first.query_ids_Q[0]!r}, the other "
            f"{second.query_ids_Q[0]!r}); give two runs of one split"
        )
    for path, alone in ((job.first, names[0] - names[1]), (job.second, names[1] - names[0])):
        if alone:
            say(f"warning: {path} alone has {len(alone):,} of the queries; their lists keep its order")
    fused = fuse_runs(first, second, job.weight, job.topk)
    write_run(job.output, fused.query_ids, fused.passage_ids, fused.passages_QK, fused.scores_QK, TAG)
    written = int((fused.passages_QK >= 0).sum())
    say(f"wrote {job.output}: {written:,} passages of {len(fused.query_ids):,} queries")


def describe_entries(path: Path, entries: Entries) -> str:
    """How long a run is, and whether its ranks agree with its scores."""
    parts = [f"{path}: {len(entries.row_E):,} passages of {len(entries.query_ids_Q):,} queries"]
    if reordered := entries.reordered(entries.best_first()):
        parts.append(remark_on_ranks(reordered))
    return "; ".join(parts)
