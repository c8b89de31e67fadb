"""From raw files, MS MARCO's or others', to the preprocessed directory that the drivers read.

    python -m data.msmarco_data --data_dir RAW --out_data_dir OUT --data_type 1 \\
        --model_type rdot_nll --model_name_or_path TOKENIZER_DIR

--data_type names the source (data/sources/registry.py), and the source has the splits. Passages keep the order of their
file: a passage's offset is its line. Queries are kept where their split's qrels name them, so that no later program
encodes or searches one without a judgement; what is dropped is counted. Text is streamed: the tokenizer works on all
cores while the next batch is read and the last one written. What is held is the judged queries, the qrels and eight
bytes per passage.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from data.sources.atomic_dir import check_can_write, publish, staged_directory
from data.sources.base import Source, source_files
from data.sources.qrels import ResolvedSplit, qrel_name, query_name, read_split, resolve
from data.sources.registry import SOURCES, open_source
from data.tokens.collection import FORMAT_VERSION, MANIFEST, PASSAGES
from data.tokens.token_cache import TokenCacheWriter, cache_files
from data.tokens.tokenizer import (
    check_tokenizer_cuts,
    encoded_queries,
    encoded_texts,
    fingerprint_of,
    load_tokenizer,
    tokenized,
    tokenizer_files,
)
from utils.declared.words import words_help
from utils.errors import UserError, run_program
from utils.exchange.atomic import write_json
from utils.exchange.verify import signature_of
from utils.flag_groups.model import ModelTypeFlags
from utils.flag_groups.texts import TextFlags
from utils.flag_values import MOST_WORKERS, Group, flag
from utils.flags import ProgramFlags, answer_dry_run, parse_flags
from utils.run_log import Progress, say
from utils.text_files import estimate_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class PreprocessFlags(ModelTypeFlags, TextFlags, ProgramFlags):
    """Tokenize a raw collection into a preprocessed directory."""

    GROUP: ClassVar[Group] = "data"
    EXAMPLE: ClassVar[str] = (
        "python -m data.msmarco_data --data_dir raw --out_data_dir preprocessed --data_type 1 \\\n    "
        "--model_type rdot_nll --model_name_or_path roberta-base"
    )

    data_dir: str = flag(help="directory of the raw files, plain or gzipped, under MS MARCO's names", is_path=True)
    out_data_dir: str = flag(help="directory to write; refused if it already holds a complete collection", is_path=True)
    model_name_or_path: str = flag("", "directory (or hub name) that holds the tokenizer", is_path=True, group="model")
    data_type: str = flag("0", partial(words_help, SOURCES))
    allow_missing: bool = flag(False, "continue where over one in a hundred qrels names an unknown query or passage")
    workers: int = flag(0, "threads that tokenize; 0 takes every core", at_least=0, at_most=MOST_WORKERS, group="job")

    IGNORED: ClassVar[dict[str, str]] = {"config_name": "the tokenizer alone decides how a text becomes tokens"}


@dataclass(frozen=True)
class PreprocessSettings:
    """How a text becomes tokens, and whether many qrels may name what is not there. Lengths are in tokens."""

    tokenizer_dir: str
    max_seq_length: int
    max_query_length: int
    max_doc_character: int = 10_000
    allow_missing: bool = False


def preprocess(
    source: Source, tokenizer: PreTrainedTokenizerBase, out_dir: Path, settings: PreprocessSettings
) -> dict[str, Any]:
    """Write a preprocessed directory, whole or not at all.

    Args:
        source: The raw collection.
        tokenizer: That of ``settings.tokenizer_dir``.
        out_dir: The directory to write.
        settings: How a text becomes tokens.
    Returns:
        The manifest.
    Raises:
        UserError: something cannot be read, or qrels are of another collection.
    """
    manifest = describe(source, tokenizer, settings)
    with staged_directory(out_dir) as staged:
        check_not_complete(out_dir)
        splits = [read_split(source, split, settings.allow_missing) for split in source.split_files]
        wanted = set().union(*(data.passage_ids() for data in splits))
        passages, offset_of = write_passages(source, tokenizer, staged, settings, wanted)
        manifest |= {"counts": {PASSAGES: passages}, "dropped": {}}
        for data in splits:
            resolved = resolve(source.split_files[data.split].qrels, data, offset_of, settings.allow_missing)
            manifest["counts"] |= write_split(resolved, tokenizer, staged, settings.max_query_length)
            manifest["dropped"] |= resolved.dropped
        names = output_files(source.split_files)
        manifest["files"] = {name: signature_of(staged / name) for name in names}
        manifest["collection_fingerprint"] = hashlib.sha256(
            json.dumps(manifest["files"], sort_keys=True).encode()
        ).hexdigest()
        write_json(staged / MANIFEST, manifest)
        publish(staged, out_dir, [*names, MANIFEST])
    return manifest


def check_not_complete(out_dir: Path) -> None:
    if (out_dir / MANIFEST).exists():
        raise UserError(f"{out_dir} holds a complete collection ({MANIFEST}); remove it or choose another directory")


def describe(source: Source, tokenizer: PreTrainedTokenizerBase, settings: PreprocessSettings) -> dict[str, Any]:
    """The manifest's account of how the collection was made."""
    return {
        "format_version": FORMAT_VERSION,
        "data_type": source.data_type,
        "max_seq_length": settings.max_seq_length,
        "max_query_length": settings.max_query_length,
        "max_doc_character": settings.max_doc_character,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": vocabulary_size(tokenizer),
        "tokenizer": {"fingerprint": fingerprint_of(tokenizer), "files": tokenizer_files(settings.tokenizer_dir)},
        "sources": {path.name: {"bytes": path.stat().st_size} for path in source_files(source)},
    }


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest token id."""
    return max(tokenizer.get_vocab().values()) + 1


def write_passages(
    source: Source, tokenizer: PreTrainedTokenizerBase, staged: Path, settings: PreprocessSettings, wanted: set[str]
) -> tuple[int, dict[str, int]]:
    """Write the passages' token cache.

    Args:
        source: The raw collection.
        tokenizer: Makes a text's tokens.
        staged: The directory to write in.
        settings: At how many characters and tokens a text is cut.
        wanted: Ids of the passages whose offsets are asked for.
    Returns:
        How many passages there are; and {passage_id: offset} of ``wanted``, -1 for the missing.
    Raises:
        UserError: a passage cannot be read.
    """
    offset_of = dict.fromkeys(wanted, -1)
    texts = encoded_texts(source, settings.max_doc_character)
    progress = Progress(estimate_lines(source.passages_file), "passages")
    with TokenCacheWriter(staged, PASSAGES, vocabulary_size(tokenizer)) as writer:
        for ids, rows in tokenized(texts, tokenizer, settings.max_seq_length):
            for offset, passage_id in enumerate(ids, writer.rows):
                if passage_id in offset_of:
                    offset_of[passage_id] = offset
            writer.append(ids, rows)
            progress.advance(len(ids))
    progress.close()
    return writer.rows, offset_of


def write_split(
    resolved: ResolvedSplit, tokenizer: PreTrainedTokenizerBase, staged: Path, max_query_length: int
) -> dict[str, int]:
    """Write a split's queries and qrels.

    Args:
        resolved: The split.
        tokenizer: Makes a text's tokens.
        staged: The directory to write in.
        max_query_length: Tokens kept of a query.
    Returns:
        How many queries and qrels there are, by the manifest's names.
    """
    queries, qrels = query_name(resolved.split), qrel_name(resolved.split)
    with TokenCacheWriter(staged, queries, vocabulary_size(tokenizer)) as writer:
        for ids, rows in tokenized(encoded_queries(resolved.queries.items()), tokenizer, max_query_length):
            writer.append(ids, rows)
    with (staged / f"{qrels}.tsv").open("w", encoding="utf-8") as file:
        for query, passages in resolved.qrels.as_dict().items():
            file.writelines(f"{query}\t{passage}\t{relevance}\n" for passage, relevance in passages.items())
    return {queries: writer.rows, qrels: len(resolved.qrels.query_R)}


def output_files(splits: Iterable[str]) -> list[str]:
    """All files of a preprocessed directory but its manifest."""
    splits = list(splits)
    caches = [PASSAGES, *map(query_name, splits)]
    return [file for name in caches for file in cache_files(name)] + [f"{qrel_name(split)}.tsv" for split in splits]


def summary(out_dir: Path, manifest: dict[str, Any], seconds: float) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in manifest["counts"].items())
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in manifest["dropped"].items() if count)
    rate = manifest["counts"][PASSAGES] / max(seconds, 1e-9)
    return f"wrote {out_dir}: {counts}; dropped: {dropped or 'nothing'}; {seconds:.1f} seconds, {rate:,.0f} passages/s"


def main() -> None:
    """Parse, preflight, preprocess, and say what was written and dropped."""
    flags = parse_flags(PreprocessFlags, "msmarco_data")
    settings = settings_of(flags)
    source, out_dir = open_source(flags.data_type, Path(flags.data_dir)), Path(flags.out_data_dir)
    check_not_complete(out_dir)
    check_can_write(out_dir)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    if flags.workers:
        os.environ["RAYON_NUM_THREADS"] = str(flags.workers)  # read once, when the library first works in parallel
    tokenizer = load_tokenizer(settings.tokenizer_dir)
    check_tokenizer_cuts(tokenizer, settings.max_seq_length, settings.max_query_length)
    if flags.dry_run:
        for split in source.split_files:
            read_split(source, split, settings.allow_missing)
    files = [str(path) for path in source_files(source)]
    if answer_dry_run(flags, data_type=source.data_type, tokenizer=fingerprint_of(tokenizer), files=files):
        return
    started = time.monotonic()
    manifest = preprocess(source, tokenizer, out_dir, settings)
    say(summary(out_dir, manifest, time.monotonic() - started))


def settings_of(flags: PreprocessFlags) -> PreprocessSettings:
    tokenizer_dir = flags.tokenizer_name or flags.model_name_or_path
    if not tokenizer_dir:
        raise UserError("no tokenizer: give its directory as --model_name_or_path or --tokenizer_name")
    lengths = (flags.max_seq_length, flags.max_query_length, flags.max_doc_character)
    return PreprocessSettings(tokenizer_dir, *lengths, flags.allow_missing)


if __name__ == "__main__":
    run_program("msmarco_data", main)
