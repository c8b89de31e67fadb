"""Writes a run's negatives, or the candidates they were chosen from, with their texts as other trainers read them.

    python -m data.export --format tevatron --training_data RUN/ann_data/ann_training_data_3 --data_dir PREPROCESSED \\
        --raw_data_dir RAW --output negatives.jsonl

The lines are in the order of the file that is exported, whole or not at all. The texts are those of the raw collection,
not cut; the passages among them lie on disk until they are written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from data.formats.examples import Example, examples_of
from data.formats.registry import FORMATS, ExportFormat, RecordsOf
from data.formats.texts import ExportTexts, write_passage_texts
from data.mining.candidates import Candidates, read_candidates
from data.mining.negative_lists import check_offsets, read_negative_lists
from data.sources.atomic_dir import check_can_write
from data.sources.base import Source, SourceRequest
from data.sources.registry import SOURCES, open_source, request_of_record
from data.tokens.collection import Preprocessed, open_preprocessed
from data.tokens.raw_texts import query_texts
from data.tokens.verify import check_inputs
from utils.declared.words import words_help
from utils.errors import UserError, run_program
from utils.exchange.atomic import publish_file
from utils.exchange.evaluations import TRAIN
from utils.exchange.layout import candidates_number
from utils.exchange.negatives import check_as_recorded, read_kept_candidates
from utils.flag_values import Group, flag
from utils.flags import ProgramFlags, answer_dry_run, parse_flags
from utils.ir.trec import write_run
from utils.run_log import Progress, say
from utils.search.ranked_lists import without_own

JSON_LINES = ".jsonl"  # other names are passed over by FlagEmbedding


@dataclass(frozen=True, kw_only=True)
class ExportFlags(ProgramFlags):
    """Write a run's negatives or candidates, with their texts, as another trainer reads them."""

    GROUP: ClassVar[Group] = "data"
    EXAMPLE: ClassVar[str] = (
        "python -m data.export --format tevatron --training_data run/ann_data/ann_training_data_3 \\\n    "
        "--data_dir preprocessed --raw_data_dir raw --output negatives.jsonl"
    )

    format: str = flag(help=partial(words_help, FORMATS))
    training_data: str = flag("", "an ann_training_data_N, ours or ANCE's", is_path=True)
    candidates: str = flag(
        "",
        "an ann_candidates_N.npz (--keep_candidates): what --scores takes; without --training_data, the negatives are "
        "all that are no known positive",
        is_path=True,
    )
    data_dir: str = flag(help="preprocessed directory that they are of, written by data.msmarco_data", is_path=True)
    raw_data_dir: str = flag(
        "", "raw directory that it was made from, for the texts; none for a dataset of ir_datasets", is_path=True
    )
    output: str = flag(help="file to write: a .jsonl, but for trec", is_path=True, group="job")
    negative_sample: int = flag(0, "negatives of a query, the first of its list; 0: all", at_least=0, group="negatives")
    scores: bool = flag(
        False,
        "with the candidates' scores, as a teacher's: passages without one are omitted, and queries left without "
        "a positive or a negative",
        group="negatives",
    )


@dataclass(frozen=True)
class ExportJob:
    """What is exported, and how. ``source`` is None for a run, which has no texts."""

    format: ExportFormat
    ranked: Candidates
    scored_by: Candidates | None
    collection: Preprocessed
    source: Source | None
    output: Path
    tag: str
    negative_sample: int

    def examples(self) -> Iterator[Example]:
        """Those that the format can hold."""
        positives = self.collection.qrels(TRAIN).positives()
        own_Q = self.collection.own_passage_Q(TRAIN, self.ranked.query_Q)
        lists = without_own(self.ranked.passage_QK, self.ranked.score_QK, own_Q, self.ranked.passage_QK.shape[1])
        ranked = Candidates(self.ranked.query_Q, *lists)
        for example in examples_of(ranked, positives, self.negative_sample, self.scored_by):
            if example.positives and len(example.negatives) >= self.fewest:
                yield example

    @property
    def fewest(self) -> int:
        """Negatives that a query must have."""
        if not self.format.is_rectangular:
            return 1
        return self.negative_sample or self.ranked.passage_QK.shape[1]


def preflight(flags: ExportFlags) -> ExportJob:
    """UserError for what cannot be read, or meant."""
    declared, output = FORMATS.get(flags.format), Path(flags.output)
    if declared is None:
        raise UserError(f"--format is {flags.format}, expected one of {', '.join(FORMATS)}")
    check_words(flags, declared, output)
    collection = open_preprocessed(flags.data_dir, max_seq_length=1, max_query_length=1)
    check_inputs(collection)
    source = None
    if declared.records is not None:
        source = open_source(request_with_texts(flags, collection))
    candidates = open_candidates(Path(flags.candidates), collection) if flags.candidates else None
    ranked = open_negatives(Path(flags.training_data), collection) if flags.training_data else candidates
    assert ranked is not None
    return ExportJob(
        format=declared,
        ranked=ranked,
        scored_by=candidates if flags.scores else None,
        collection=collection,
        source=source,
        output=output,
        tag=Path(flags.training_data or flags.candidates).name.removesuffix(".npz"),
        negative_sample=flags.negative_sample,
    )


def check_words(flags: ExportFlags, declared: ExportFormat, output: Path) -> None:
    """UserError where flags are missing, or do not go together."""
    if not flags.training_data and not flags.candidates:
        raise UserError("nothing to export: give --training_data, --candidates, or both")
    if output.exists():
        raise UserError(f"{output} exists; remove it or choose another --output")
    check_can_write(output.parent)
    if declared.records is None:
        if flags.scores or flags.negative_sample:
            raise UserError("--format trec writes lists and scores as they are; omit --scores and --negative_sample")
        return
    if output.suffix != JSON_LINES:
        raise UserError(f"--output is {output}, expected a name that ends in {JSON_LINES}: trainers look at it")
    if flags.scores and not flags.candidates:
        raise UserError("--scores needs --candidates: the ann_candidates_N.npz of the same refresh (--keep_candidates)")
    if declared.is_rectangular and not flags.training_data and not flags.negative_sample:
        raise UserError(f"--format {flags.format} has equally many negatives in each line: give --negative_sample")


def request_with_texts(flags: ExportFlags, collection: Preprocessed) -> SourceRequest:
    """The collection's source. UserError where its texts are in a directory, and none is given."""
    request = request_of_record(collection.manifest, flags.raw_data_dir)
    source = SOURCES.get(request.word)
    if source is not None and source.is_in_directory and request.directory is None:
        raise UserError(f"--format {flags.format} needs the texts: give the raw directory as --raw_data_dir")
    return request


def open_negatives(path: Path, collection: Preprocessed) -> Candidates:
    """Negatives as lists of passages. UserError where they are damaged, or of another collection."""
    if not path.is_file():
        raise UserError(f"{path} is missing, expected an ann_training_data_N; is it the right --training_data?")
    check_as_recorded(path)
    lists = read_negative_lists(path)
    check_offsets(lists, len(collection.queries(TRAIN)), len(collection.passages), path)
    return Candidates(lists.query_Q, lists.negative_QN, lists.score_QN)


def open_candidates(path: Path, collection: Preprocessed) -> Candidates:
    """UserError where they are damaged, or of another collection."""
    refresh = read_kept_candidates(path.parent, candidates_number(path))
    if refresh.record.get("collection_fingerprint") != collection.manifest["collection_fingerprint"]:
        raise UserError(f"{path} is of another collection than {collection.directory}; give the one it was made from")
    return read_candidates(path)


def run(job: ExportJob) -> None:
    """Write the file, and say how many lines it has and how many queries it lacks."""
    if job.source is None or job.format.records is None:
        export_run(job)
        return
    write = partial(write_records, job=job, source=job.source, records=job.format.records)
    lines, queries = publish_file(job.output, write)
    omitted = len(job.ranked.query_Q) - queries
    without = f"; {omitted:,} omitted, without a positive or {job.fewest} negatives" if omitted else ""
    say(f"wrote {job.output}: {lines:,} lines of {queries:,} queries{without}")


def export_run(job: ExportJob) -> None:
    """The lists as they are, known positives and all. UserError where a list is not in the order of its scores."""
    check_scores_descend(job.ranked, job.tag)
    query_ids = job.collection.queries(TRAIN).original_ids()
    ids = [query_ids[query] for query in job.ranked.query_Q.tolist()]
    passage_ids = job.collection.passages.stored_ids()
    write_run(job.output, ids, passage_ids, job.ranked.passage_QK, job.ranked.score_QK, job.tag)
    say(f"wrote {job.output}: {len(ids):,} queries")


def check_scores_descend(ranked: Candidates, name: str) -> None:
    """UserError where a list's scores ascend: a run's order is that of its scores, so others would be written.

    Passages that no search has returned have the score 0, and come last whatever is above them.
    """
    is_worse_QK = (ranked.score_QK[:, 1:] > ranked.score_QK[:, :-1]) & (ranked.passage_QK[:, 1:] >= 0)
    if ascending := int(is_worse_QK.any(axis=1).sum()):
        raise UserError(
            f"{name}: {ascending:,} of {len(ranked.query_Q):,} lists are not in the order of their scores, expected "
            "descending ones for --format trec; export them in another format"
        )


def write_records(staged: Path, job: ExportJob, source: Source, records: RecordsOf) -> tuple[int, int]:
    """Write the lines of JSON.

    Args:
        staged: The file; another is made next to it.
        job: What is exported.
        source: The raw collection.
        records: Makes the lines of a query.
    Returns:
        How many lines, of how many queries.
    Raises:
        UserError: no query has what the format needs, or the raw collection is another.
    """
    is_wanted_N = np.zeros(len(job.collection.passages), bool)
    for example in job.examples():
        is_wanted_N[example.positives] = is_wanted_N[example.negatives] = True
    if not is_wanted_N.any():
        raise UserError(
            f"{job.output}: none of the {len(job.ranked.query_Q):,} queries has a positive and {job.fewest} negatives; "
            "export other lists"
        )
    queries, query_ids = query_texts(source, job.collection, TRAIN), job.collection.queries(TRAIN).original_ids()
    passages = staged.with_name("passages")
    end_N1 = write_passage_texts(passages, source, job.collection, is_wanted_N)
    lines = queries_written = 0
    progress = Progress(len(job.ranked.query_Q), "queries written")
    with passages.open("rb") as file, staged.open("w", encoding="utf-8", newline="\n") as written:
        texts = ExportTexts(query_ids, queries, file, end_N1)
        for example in job.examples():
            for record in records(example, texts):
                written.write(json.dumps(record, ensure_ascii=False) + "\n")
                lines += 1
            queries_written += 1
            progress.advance()
    progress.close()
    return lines, queries_written


def main() -> None:
    """Parse, look at what is given, export."""
    flags = parse_flags(ExportFlags, "export")
    job = preflight(flags)
    if not answer_dry_run(flags, queries=len(job.ranked.query_Q)):
        run(job)


if __name__ == "__main__":
    run_program("export", main)
