"""What a warmup trains on, BM25's negatives or a file of text triples, and how a run records it."""

from __future__ import annotations

from pathlib import Path

from data.mining.negative_lists import NegativeLists, check_offsets, read_negative_lists
from data.tokens.collection import Preprocessed
from data.training.text_triples import check_triples, read_text_triples
from drivers.job.model_identity import ModelSettings, identity_of
from drivers.job.run_config import is_of_this_job
from utils.errors import UserError
from utils.exchange import atomic
from utils.exchange.evaluations import TRAIN
from utils.exchange.layout import JobLayout
from utils.exchange.markers import read_run
from utils.exchange.negatives import read_refresh
from utils.run_log import say
from utils.text_files import may_have_had


def training_source(
    collection: Preprocessed, bm25_dir: str, triples: str, is_dry_run: bool
) -> tuple[NegativeLists | None, Path | None]:
    """BM25 negatives, or the path of a triples file.

    Args:
        collection: what the negatives must be of.
        bm25_dir: the output of drivers.run_bm25, or "".
        triples: the file, or "".
        is_dry_run: checks the whole file here: a job does it later, saying so.

    Raises:
        UserError: where not exactly one is given, or it cannot be trained on.
    """
    if bool(bm25_dir) == bool(triples):
        found = "both are" if triples else "neither is"
        raise UserError(f"train on --bm25_dir or on --triples: {found} given, expected one of them")
    if triples:
        path = Path(triples)
        if not path.is_file() or path.stat().st_size == 0:
            raise UserError(f"{path} is missing or empty, expected lines of query, positive and negative text")
        next(read_text_triples(path))
        if is_dry_run:  # a job does it later, saying so
            check_triples(path)
        return None, path
    if not (record := JobLayout(Path(bm25_dir)).record(0)).is_file():
        raise UserError(f"{record} is missing, expected BM25's negatives there: run drivers.run_bm25")
    refresh = read_refresh(Path(bm25_dir), 0)
    lists = read_negative_lists(refresh.path)
    check_offsets(lists, len(collection.queries(TRAIN)), len(collection.passages), refresh.path)
    return lists, None


def source_record(model: ModelSettings, bm25_dir: Path, triples_bytes: int | None) -> dict[str, object]:
    """What the warmup starts from and trains on, by what it is and not where it lies."""
    if triples_bytes is not None:  # of 27 GB at MS MARCO: the size has to do
        source: dict[str, object] = {"triples_bytes": triples_bytes}
    else:
        source = {"negatives_sha256": atomic.sha256_of(JobLayout(bm25_dir).negatives(0))}
    config = Path(model.config_name)
    # Of a directory the identity has it.
    if not model.config_name or not config.is_dir():
        source["config_sha256"] = atomic.sha256_of(config) if config.is_file() else ""
    return {**source, **identity_of(model)}


def size_of_triples(triples: Path, output_dir: Path, overwrites: bool) -> int:
    """In bytes; as the directory's run has it where only the end of the last line has been fixed since.

    Of a run that is removed (``overwrites``) nothing is taken.
    """
    run = read_run(output_dir) or {}
    is_removed = overwrites and not is_of_this_job(run)
    recorded = (run.get("science") or {}).get("triples_bytes")
    if not is_removed and isinstance(recorded, int) and may_have_had(triples, recorded):
        return recorded
    return triples.stat().st_size


def say_of_size(triples: Path, recorded: int) -> None:
    """A line where the size recorded by the run is not the file's own."""
    if recorded != (size := triples.stat().st_size):
        say(
            f"{triples} has {size:,} bytes, the run began with {recorded:,}: taken as the same file, of which the last "
            "line's end was fixed since"
        )
