"""A smaller collection out of a raw one, in MS MARCO's format, that keeps the positives of the queries it keeps.

    python -m data.create_subset --data_dir RAW --out_data_dir RAW10 --data_type 1 --fraction 0.1 --seed 42

Kept are a fraction of the judged train queries with every passage judged for them, the queries, qrels and judged
passages of every other split whole, and a fraction of all other passages. Whether an id is kept depends on the seed and
the id alone, not on the order of a file, and what a fraction keeps, a larger one keeps too. The passages are streamed:
what is held is the qrels, and eight bytes per passage to find a repeated id. Any source is read (--source); what
MS MARCO's format cannot hold (splits that it has no names for, titles of passages) is an error.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TextIO, TypedDict

from data.sources.atomic_dir import check_can_write, publish, staged_directory
from data.sources.base import Passage, Source, source_files
from data.sources.flags import SourceFlags
from data.sources.msmarco import DOCUMENT_TYPE, LEADERBOARD, PASSAGE_TYPE, RAW_NAMES, MsMarco
from data.sources.qrels import Judgements, check_known, read_judgements
from data.sources.registry import open_source
from utils.errors import UserError, run_program
from utils.exchange.atomic import write_json
from utils.exchange.evaluations import TRAIN
from utils.exchange.layout import SUBSET_RECORD
from utils.flag_groups.common import SeedFlags
from utils.flag_values import Group, flag
from utils.flags import answer_dry_run, parse_flags
from utils.run_log import Progress, say

NOT_CARRIED_OVER = ("triples.train.small.tsv", "top1000.dev")
OWN_FORMAT = "take the subset in the collection's own format"
HASH_BYTES = 8
PROGRESS_EVERY = 10_000


@dataclass(frozen=True, kw_only=True)
class SubsetFlags(SeedFlags, SourceFlags):
    """Take a seeded fraction of a raw collection, with every positive of the queries kept."""

    GROUP: ClassVar[Group] = "data"
    EXAMPLE: ClassVar[str] = (
        "python -m data.create_subset --data_dir raw --out_data_dir subset --data_type 1 --fraction 0.1"
    )

    out_data_dir: str = flag(help="directory for the subset, under MS MARCO's names, not gzipped", is_path=True)
    fraction: float = flag(help="share of the train queries and of the unjudged passages to keep", above=0, at_most=1)
    allow_missing: bool = flag(False, "continue where over one in a hundred qrels names an unknown query or passage")


@dataclass(frozen=True)
class SubsetSettings:
    """Which share is kept, by which seed, and whether many qrels may name what is not there."""

    fraction: float
    seed: int
    allow_missing: bool = False


def is_kept(kind: str, text_id: str, seed: int, fraction: float) -> bool:
    """Whether an id is kept.

    Args:
        kind: "query" or "passage": their draws are independent.
        text_id: The id.
        seed: The subset's.
        fraction: The share to keep, from 0 to 1.
    Returns:
        Whether a seeded hash of the id, uniform in [0, 1), is below ``fraction``.
    """
    key = f"{kind} {seed}".encode()
    digest = hashlib.blake2b(text_id.encode(), digest_size=HASH_BYTES, key=key).digest()
    return int.from_bytes(digest) < fraction * 2 ** (8 * HASH_BYTES)


class SubsetRecord(TypedDict):
    """subset.json."""

    fraction: float
    seed: int
    data_type: int
    files: dict[str, dict[str, int]]
    judged_passages: dict[str, int]
    not_carried_over: list[str]


@dataclass(frozen=True)
class SplitSubset:
    """What of one split goes into the subset, and how many records of its files that is."""

    kept: Judgements
    counts: dict[str, dict[str, int]]


def kept_and_dropped(kept: int, total: int) -> dict[str, int]:
    return {"kept": kept, "dropped": total - kept}


def open_new(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", newline="\n", buffering=1 << 20)


def written_type(source: Source) -> int:
    """Which of MS MARCO's two formats the subset is written in: its own, or for another source that of the passages.

    UserError where that format has not the source's splits.
    """
    if isinstance(source, MsMarco):
        return source.data_type
    judged = {split: names.qrels is not None for split, names in RAW_NAMES[PASSAGE_TYPE].splits.items()}
    other = [split for split, files in source.split_files.items() if judged.get(split) != (files.qrels is not None)]
    if other:
        raise UserError(
            f"{source.passages_file}: its splits are {', '.join(source.split_files)}, a subset is written in MS "
            f"MARCO's format, which has {', '.join(judged)}, all but {LEADERBOARD} with qrels: {OWN_FORMAT}"
        )
    return PASSAGE_TYPE


def line_of(*fields: str) -> str:
    """UserError where a field holds what ends it or its line, or all text is blank: the format cannot have that."""
    if not fields[0].strip() or not any(map(str.strip, fields[1:])):
        raise UserError(f"{fields[0]!r} has no id or no text, which MS MARCO's format cannot hold: {OWN_FORMAT}")
    if any("\t" in field or "\n" in field for field in fields):
        raise UserError(
            f"the text of {fields[0]!r} has a tab or a line end, which MS MARCO's format cannot hold: {OWN_FORMAT}"
        )
    return "\t".join(fields) + "\n"


def line_of_passage(passage: Passage, data_type: int) -> str:
    """UserError where the format has no column for what the passage has."""
    if data_type == DOCUMENT_TYPE:
        return line_of(passage.passage_id, passage.url or "", passage.title or "", passage.text)
    if passage.title is not None or passage.url is not None:
        raise UserError(
            f"{passage.passage_id!r} has a {'title' if passage.title is not None else 'url'}, which MS MARCO's "
            f"passages have not: {OWN_FORMAT}"
        )
    return line_of(passage.passage_id, passage.text)


def write_split(source: Source, split: str, staged: Path, settings: SubsetSettings) -> SplitSubset:
    """Write the queries and qrels of a split: of train the chosen queries that are judged, every other whole.

    Args:
        source: The collection.
        split: One of its splits, by name.
        staged: The directory to write in.
        settings: Which share is kept.
    Raises:
        UserError: over 1% of the qrels name an unknown query, or no query is left.
    """
    files, names, is_whole = source.split_files[split], RAW_NAMES[written_type(source)].splits[split], split != TRAIN
    judgements, _ = read_judgements(source.qrels(split))
    judged = {query_id for query_id, _ in judgements}
    unseen, written, total = set(judged), set(), 0
    with open_new(staged / names.queries) as file:
        for query_id, text in source.queries(split):
            total += 1
            unseen.discard(query_id)
            if is_whole or (query_id in judged and is_kept("query", query_id, settings.seed, settings.fraction)):
                written.add(query_id)
                file.write(line_of(query_id, text))
    counts = {names.queries: kept_and_dropped(len(written), total)}
    if files.qrels is None or names.qrels is None:
        return SplitSubset({}, counts)
    check_all_known(files.qrels, judgements, "query", [q for q, _ in judgements if q in unseen], settings)
    kept = {pair: relevance for pair, relevance in judgements.items() if is_whole or pair[0] in written}
    with open_new(staged / names.qrels) as file:
        file.writelines(f"{query}\t0\t{passage}\t{relevance}\n" for (query, passage), relevance in kept.items())
    if not kept:
        raise UserError(
            f"{files.queries}: no judged query is among the {settings.fraction:g} kept of {len(judged)}; "
            "raise --fraction, or take another --seed"
        )
    counts[names.qrels] = kept_and_dropped(len(kept), len(judgements))
    return SplitSubset(kept, counts)


def write_passages(
    source: Source, staged: Path, judged: set[str], settings: SubsetSettings
) -> tuple[dict[str, dict[str, int]], set[str]]:
    """Copy the passages in ``judged`` and a fraction of the others.

    Args:
        source: The collection.
        staged: The directory to write in.
        judged: Ids of the passages that are kept whatever their hash.
        settings: Which share of the others is kept.
    Returns:
        How many passages were kept and dropped, by the file's name; and those of ``judged`` that were not found.
    Raises:
        UserError: a passage has what the format cannot hold.
    """
    data_type = written_type(source)
    name = RAW_NAMES[data_type].passages
    missing, total, kept = set(judged), 0, 0
    progress = Progress(source.estimate_passages(), "passages")
    with open_new(staged / name) as file:
        for total, passage in enumerate(source.passages(), 1):
            is_judged = passage.passage_id in judged
            if is_judged:
                missing.discard(passage.passage_id)
            if is_judged or is_kept("passage", passage.passage_id, settings.seed, settings.fraction):
                kept += 1
                file.write(line_of_passage(passage, data_type))
            if total % PROGRESS_EVERY == 0:
                progress.advance(PROGRESS_EVERY)
    progress.close()
    return {name: kept_and_dropped(kept, total)}, missing


def check_all_known(
    origin: Path | str | None, judgements: Judgements, kind: str, unknown: list[str], settings: SubsetSettings
) -> None:
    """Say it where judgements name what is not there.

    Args:
        origin: Where the judgements come from, for the message.
        judgements: All of them.
        kind: What they name, "query" or "passage".
        unknown: The id that each such judgement names.
        settings: Whether over 1% may.
    Raises:
        UserError: over 1% do, and may not.
    """
    if message := check_known(origin, len(judgements), {kind: unknown}, settings.allow_missing):
        say(message)


def create_subset(source: Source, out_dir: Path, settings: SubsetSettings) -> SubsetRecord:
    """Write the subset whole or not at all; the account of it that goes into subset.json."""
    with staged_directory(out_dir) as staged:
        splits = {split: write_split(source, split, staged, settings) for split in source.split_files}
        judged = {passage_id for subset in splits.values() for _, passage_id in subset.kept}
        files, missing = write_passages(source, staged, judged, settings)
        for split, subset in splits.items():
            unknown = [passage_id for _, passage_id in subset.kept if passage_id in missing]
            check_all_known(source.split_files[split].qrels, subset.kept, "passage", unknown, settings)
            files |= subset.counts
        next_to_it = {path.name for file in source_files(source) for path in file.parent.iterdir()}
        left = [name for name in NOT_CARRIED_OVER if {name, f"{name}.gz"} & next_to_it]
        record: SubsetRecord = {
            "fraction": settings.fraction,
            "seed": settings.seed,
            "data_type": written_type(source),
            "files": files,
            "judged_passages": {"kept": len(judged) - len(missing), "not in the collection": len(missing)},
            "not_carried_over": left,
        }
        write_json(staged / SUBSET_RECORD, record)
        publish(staged, out_dir, [*files, SUBSET_RECORD])
    return record


def check_out_dir(source: Source, out_dir: Path) -> None:
    """UserError where the subset would overwrite a collection, its own source above all, or cannot be written."""
    passages = RAW_NAMES[written_type(source)].passages
    taken = [name for name in (SUBSET_RECORD, passages, f"{passages}.gz") if (out_dir / name).exists()]
    if taken:
        raise UserError(f"{out_dir} already holds {taken[0]}; remove it or choose another directory")
    check_can_write(out_dir)


def main() -> None:
    """Parse, preflight, copy, and say what was kept."""
    flags = parse_flags(SubsetFlags, "create_subset")
    source, out_dir = open_source(flags.source_request), Path(flags.out_data_dir)
    settings = SubsetSettings(flags.fraction, flags.seed, flags.allow_missing)
    check_out_dir(source, out_dir)
    if flags.dry_run:
        for split in source.split_files:
            read_judgements(source.qrels(split))
    if answer_dry_run(flags, files=[str(path) for path in source_files(source)]):
        return
    record = create_subset(source, out_dir, settings)
    for name, counts in record["files"].items():
        say(f"{name}: kept {counts['kept']:,}, dropped {counts['dropped']:,}")
    for name in record["not_carried_over"]:
        say(f"{name}: not carried over, since it names passages that were dropped")
    say(f"wrote {out_dir}, fraction {settings.fraction:g}, seed {settings.seed}")


if __name__ == "__main__":
    run_program("create_subset", main)
