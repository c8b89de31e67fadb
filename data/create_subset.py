"""A smaller collection out of a raw one, in its own format, that keeps the positives of the queries it keeps.

    python -m data.create_subset --data_dir RAW --out_data_dir RAW10 --data_type 1 --fraction 0.1 --seed 42

Kept are a fraction of the judged train queries with every passage judged for them, the queries, qrels and judged
passages of every other split whole, and a fraction of all other passages. Whether an id is kept depends on the seed and
the id alone, not on the order of a file, and what a fraction keeps, a larger one keeps too. The passages are streamed:
what is held is the qrels, the ids of queries, and eight bytes per passage to find a repeated id. A subset of a BEIR
folder is a BEIR folder. Any other source (--source) is written in MS MARCO's format; what that cannot hold (splits that
it has no names for, titles of passages) is an error.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TextIO, TypedDict

from data.sources.atomic_dir import check_can_write, publish, staged_directory
from data.sources.base import Source, source_files
from data.sources.flags import SourceFlags
from data.sources.qrels import Judgements, check_known, read_judgements
from data.sources.registry import open_source
from data.subset_files import SubsetFiles, files_of_subset
from utils.errors import UserError, run_program
from utils.exchange.atomic import write_json
from utils.exchange.evaluations import TRAIN
from utils.exchange.layout import SUBSET_RECORD
from utils.flag_groups.common import SeedFlags
from utils.flag_values import Group, flag
from utils.flags import answer_dry_run, parse_flags
from utils.run_log import Progress, say

NOT_CARRIED_OVER = ("triples.train.small.tsv", "top1000.dev")
HASH_BYTES = 8
PROGRESS_EVERY = 10_000


@dataclass(frozen=True, kw_only=True)
class SubsetFlags(SeedFlags, SourceFlags):
    """Take a seeded fraction of a raw collection, with every positive of the queries kept."""

    GROUP: ClassVar[Group] = "data"
    EXAMPLE: ClassVar[str] = (
        "python -m data.create_subset --data_dir raw --out_data_dir subset --data_type 1 --fraction 0.1"
    )

    out_data_dir: str = flag(
        help="directory for the subset, a BEIR folder of one, else under MS MARCO's names; not gzipped", is_path=True
    )
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
    """subset.json, which also says of which layout the files are."""

    fraction: float
    seed: int
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


def open_to_append(path: Path) -> TextIO:
    path.parent.mkdir(exist_ok=True)
    return path.open("a", encoding="utf-8", newline="\n", buffering=1 << 20)


def write_split(
    source: Source, split: str, staged: Path, layout: SubsetFiles, is_written: dict[str, bool], settings: SubsetSettings
) -> SplitSubset:
    """Write the queries and qrels of a split: of train the chosen queries that are judged, every other whole.

    Args:
        source: The collection.
        split: One of its splits, by name.
        staged: The directory to write in.
        layout: The files to write.
        is_written: The queries of other splits that have the same file, and whether it holds them; is added to.
        settings: Which share is kept.
    Raises:
        UserError: over 1% of the qrels name an unknown query, or no query is left.
    """
    files, names, is_whole = source.split_files[split], layout.splits[split], split != TRAIN
    judgements, _ = read_judgements(source.qrels(split))
    judged = {query_id for query_id, _ in judgements}
    unseen, chosen = set(judged), set()
    with open_to_append(staged / names.queries) as file:
        for query_id, text in source.queries(split):
            unseen.discard(query_id)
            if is_whole or (query_id in judged and is_kept("query", query_id, settings.seed, settings.fraction)):
                chosen.add(query_id)
                if not is_written.get(query_id):
                    file.write(layout.query_line(query_id, text))
            is_written[query_id] = query_id in chosen or is_written.get(query_id, False)
    counts = {names.queries: kept_and_dropped(sum(is_written.values()), len(is_written))}
    if files.qrels is None or names.qrels is None:
        return SplitSubset({}, counts)
    check_all_known(files.qrels, judgements, "query", [q for q, _ in judgements if q in unseen], settings)
    kept = {pair: relevance for pair, relevance in judgements.items() if is_whole or pair[0] in chosen}
    with open_to_append(staged / names.qrels) as file:
        file.write(layout.qrels_header)
        file.writelines(layout.qrel_line(*pair, relevance) for pair, relevance in kept.items())
    if not kept:
        raise UserError(
            f"{files.queries}: no judged query is among the {settings.fraction:g} kept of {len(judged)}; "
            "raise --fraction, or take another --seed"
        )
    counts[names.qrels] = kept_and_dropped(len(kept), len(judgements))
    return SplitSubset(kept, counts)


def write_passages(
    source: Source, staged: Path, layout: SubsetFiles, judged: set[str], settings: SubsetSettings
) -> tuple[dict[str, dict[str, int]], set[str]]:
    """Copy the passages in ``judged`` and a fraction of the others.

    Args:
        source: The collection.
        staged: The directory to write in.
        layout: The files to write.
        judged: Ids of the passages that are kept whatever their hash.
        settings: Which share of the others is kept.
    Returns:
        How many passages were kept and dropped, by the file's name; and those of ``judged`` that were not found.
    Raises:
        UserError: a passage has what the format cannot hold.
    """
    missing, total, kept = set(judged), 0, 0
    progress = Progress(source.estimate_passages(), "passages")
    with open_to_append(staged / layout.passages) as file:
        for total, passage in enumerate(source.passages(), 1):
            is_judged = passage.passage_id in judged
            if is_judged:
                missing.discard(passage.passage_id)
            if is_judged or is_kept("passage", passage.passage_id, settings.seed, settings.fraction):
                kept += 1
                file.write(layout.passage_line(passage))
            if total % PROGRESS_EVERY == 0:
                progress.advance(PROGRESS_EVERY)
    progress.close()
    return {layout.passages: kept_and_dropped(kept, total)}, missing


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
    layout, is_written = files_of_subset(source), dict[str, dict[str, bool]]()
    with staged_directory(out_dir) as staged:
        splits = {}
        for split in source.split_files:
            of_file = is_written.setdefault(layout.splits[split].queries, {})
            splits[split] = write_split(source, split, staged, layout, of_file, settings)
        judged = {passage_id for subset in splits.values() for _, passage_id in subset.kept}
        files, missing = write_passages(source, staged, layout, judged, settings)
        for split, subset in splits.items():
            unknown = [passage_id for _, passage_id in subset.kept if passage_id in missing]
            check_all_known(source.split_files[split].qrels, subset.kept, "passage", unknown, settings)
            files |= subset.counts
        next_to_it = {path.name for file in source_files(source) for path in file.parent.iterdir()}
        left = [name for name in NOT_CARRIED_OVER if {name, f"{name}.gz"} & next_to_it]
        record: SubsetRecord = {
            "fraction": settings.fraction,
            "seed": settings.seed,
            "files": files,
            "judged_passages": {"kept": len(judged) - len(missing), "not in the collection": len(missing)},
            "not_carried_over": left,
        }
        write_json(staged / SUBSET_RECORD, {**record, **layout.record})
        publish(staged, out_dir, [*files, SUBSET_RECORD])
    return record


def check_out_dir(source: Source, out_dir: Path) -> None:
    """UserError where the subset would overwrite a collection, its own source above all, or cannot be written."""
    collection_files = (name for file in files_of_subset(source).collection_files for name in (file, f"{file}.gz"))
    taken = [name for name in (SUBSET_RECORD, *collection_files) if (out_dir / name).exists()]
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
