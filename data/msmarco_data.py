"""From raw files, MS MARCO's or others', to the preprocessed directory that the drivers read.

    python -m data.msmarco_data --data_dir RAW --out_data_dir OUT --data_type 1 \\
        --model_type rdot_nll --model_name_or_path TOKENIZER_DIR

--source names the format (data/sources/registry.py), and the source has the splits: all are written. Passages keep the
order of their file: a passage's offset is its line. Of the train queries those are kept that have a positive, so that
no later program encodes or searches one that teaches nothing; of every other split all, so that those that nobody has
judged are in its run as well. What is dropped is counted. Text is streamed: the tokenizer works on all cores while the
next batch is read and the last one written. What is held is the queries, the qrels and eight bytes per passage.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from data.sources.atomic_dir import check_can_write, publish, staged_directory
from data.sources.base import Source, source_files
from data.sources.flags import SourceFlags
from data.sources.own_passages import PassageScan
from data.sources.qrels import ResolvedSplit, qrel_name, query_name, read_split, resolve
from data.sources.registry import describe_source, open_source
from data.tokens.collection import FORMAT_VERSION, MANIFEST, OWN_PASSAGES, PASSAGES, QUERIES_SHA256, RELEVANCE_LEVELS
from data.tokens.raw_texts import hash_of_queries
from data.tokens.text_agreement import text_settings_for
from data.tokens.text_profile import TextPreparer, check_lengths, text_preparer
from data.tokens.token_cache import TokenCacheWriter, cache_files
from data.tokens.tokenizer import fingerprint_of, load_tokenizer, tokenized, tokenizer_files
from utils.declared.text_settings import DEFAULT_TEXTS, TEXT_KEYS, TextSettings
from utils.errors import UserError, run_program
from utils.exchange.atomic import write_json
from utils.exchange.evaluations import TRAIN
from utils.exchange.model_files import LENGTHS
from utils.exchange.verify import signature_of
from utils.flag_groups.model import ModelTypeFlags
from utils.flag_groups.texts import LengthFlags, TextSettingFlags
from utils.flag_values import MOST_WORKERS, Group, flag
from utils.flags import answer_dry_run, parse_flags
from utils.hub import describe_unknown_modules
from utils.model_texts import lengths_for
from utils.run_log import Progress, say

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

WITHOUT_TEXT = f"{PASSAGES} without text"


@dataclass(frozen=True, kw_only=True)
class PreprocessFlags(ModelTypeFlags, LengthFlags, TextSettingFlags, SourceFlags):
    """Tokenize a raw collection into a preprocessed directory."""

    GROUP: ClassVar[Group] = "data"
    EXAMPLE: ClassVar[str] = (
        "python -m data.msmarco_data --data_dir raw --out_data_dir preprocessed \\\n    "
        "--model_type rdot_nll --model_name_or_path roberta-base"
    )

    out_data_dir: str = flag(help="directory to write; refused if it already holds a complete collection", is_path=True)
    model_name_or_path: str = flag("", "directory (or hub name) that holds the tokenizer", is_path=True, group="model")
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
    texts: TextSettings = DEFAULT_TEXTS


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
    preparer = text_preparer(settings.texts, tokenizer, settings.max_doc_character)
    with staged_directory(out_dir) as staged:
        check_not_complete(out_dir)
        splits = [read_split(source, split, settings.allow_missing) for split in source.split_files]
        wanted = set().union(*(data.passage_ids() for data in splits))
        scan = PassageScan(query for data in splits for query in data.queries.items())
        passages, offset_of = write_passages(source, preparer, staged, settings, wanted, scan)
        manifest |= {"counts": {PASSAGES: passages}, "dropped": {}, "kept": {WITHOUT_TEXT: scan.without_text}}
        manifest[QUERIES_SHA256] = {}
        for data in splits:
            origin = source.split_files[data.split].qrels
            resolved = resolve(origin, data, offset_of, scan.own, settings.allow_missing)
            manifest["counts"] |= write_split(resolved, preparer, staged, settings.max_query_length)
            manifest[QUERIES_SHA256][data.split] = hash_of_queries(resolved.queries.items())
            manifest["dropped"] |= resolved.dropped
            manifest["kept"] |= resolved.kept
            if resolved.own_passage:
                manifest.setdefault(OWN_PASSAGES, {})[data.split] = list(resolved.own_passage.items())
        names = output_files(manifest["counts"])
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
        **source.record,
        "max_seq_length": settings.max_seq_length,
        "max_query_length": settings.max_query_length,
        "max_doc_character": settings.max_doc_character,
        **settings.texts.record(),
        RELEVANCE_LEVELS: {
            split: files.relevance_level for split, files in source.split_files.items() if files.relevance_level != 1
        },
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": vocabulary_size(tokenizer.backend_tokenizer),
        "tokenizer": {"fingerprint": fingerprint_of(tokenizer), "files": tokenizer_files(settings.tokenizer_dir)},
        "sources": {path.name: {"bytes": path.stat().st_size} for path in source_files(source)},
    }


def vocabulary_size(backend: Tokenizer) -> int:
    """One more than the largest token id."""
    return max(backend.get_vocab().values()) + 1


def write_passages(
    source: Source,
    preparer: TextPreparer,
    staged: Path,
    settings: PreprocessSettings,
    wanted: set[str],
    scan: PassageScan,
) -> tuple[int, dict[str, int]]:
    """Write the passages' token cache.

    Args:
        source: The raw collection.
        preparer: What the tokenizer is given of a passage, and the tokenizer.
        staged: The directory to write in.
        settings: At how many tokens a text is cut.
        wanted: Ids of the passages whose offsets are asked for.
        scan: Looks at every passage as it is read.
    Returns:
        How many passages there are; and {passage_id: offset} of ``wanted``, -1 for the missing.
    Raises:
        UserError: a passage cannot be read.
    """
    offset_of = dict.fromkeys(wanted, -1)
    passages = scan.scanned(source.passages())
    texts = ((passage.passage_id, preparer.passage(passage)) for passage in passages)
    progress = Progress(source.estimate_passages(), "passages")
    with TokenCacheWriter(staged, PASSAGES, vocabulary_size(preparer.backend)) as writer:
        for ids, rows in tokenized(texts, preparer.backend, settings.max_seq_length):
            for offset, passage_id in enumerate(ids, writer.rows):
                if passage_id in offset_of:
                    offset_of[passage_id] = offset
            writer.append(ids, rows)
            progress.advance(len(ids))
    progress.close()
    return writer.rows, offset_of


def write_split(resolved: ResolvedSplit, preparer: TextPreparer, staged: Path, max_query_length: int) -> dict[str, int]:
    """Write a split's queries and qrels.

    Args:
        resolved: The split.
        preparer: What the tokenizer is given of a query, and the tokenizer.
        staged: The directory to write in.
        max_query_length: Tokens kept of a query.
    Returns:
        How many queries and qrels there are, by the manifest's names; no qrels of a split that nobody has judged.
    """
    queries, qrels = query_name(resolved.split), qrel_name(resolved.split)
    texts = ((query_id, preparer.query(text)) for query_id, text in resolved.queries.items())
    with TokenCacheWriter(staged, queries, vocabulary_size(preparer.backend)) as writer:
        for ids, rows in tokenized(texts, preparer.backend, max_query_length):
            writer.append(ids, rows)
    if not resolved.is_judged:
        return {queries: writer.rows}
    with (staged / f"{qrels}.tsv").open("w", encoding="utf-8") as file:
        for query, passages in resolved.qrels.as_dict().items():
            file.writelines(f"{query}\t{passage}\t{relevance}\n" for passage, relevance in passages.items())
    return {queries: writer.rows, qrels: len(resolved.qrels.query_R)}


def output_files(counts: Iterable[str]) -> list[str]:
    """All files of a preprocessed directory but its manifest, by the names that the manifest counts."""
    qrels = [name for name in counts if name.endswith(qrel_name(""))]
    caches = [name for name in counts if name not in qrels]
    return [file for name in caches for file in cache_files(name)] + [f"{name}.tsv" for name in qrels]


def summary(out_dir: Path, manifest: dict[str, Any], seconds: float) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in manifest["counts"].items())
    dropped, kept = (
        ", ".join(f"{count:,} {reason}" for reason, count in manifest[key].items() if count)
        for key in ("dropped", "kept")
    )
    kept = f"; kept: {kept}" if kept else ""
    rate = manifest["counts"][PASSAGES] / max(seconds, 1e-9)
    took = f"{seconds:.1f} seconds, {rate:,.0f} passages/s"
    return f"wrote {out_dir}: {counts}; dropped: {dropped or 'nothing'}{kept}; {took}"


def say_source(source: Source) -> None:
    """What was found of the collection before any of it is tokenized."""
    say(describe_source(source))
    if TRAIN not in source.split_files:
        say("no split train: this collection can be searched and evaluated, not trained on")
    for remark in source.remarks():
        say(remark)


def main() -> None:
    """Parse, preflight, preprocess, and say what was found, written and dropped."""
    flags = parse_flags(PreprocessFlags, "msmarco_data")
    given = {key: getattr(flags, key) for key in TEXT_KEYS}
    texts, reason = text_settings_for(flags.model_name_or_path, flags.model_type, given)
    settings, lengths_from = settings_of(flags, texts)
    source, out_dir = open_source(flags.source_request), Path(flags.out_data_dir)
    check_not_complete(out_dir)
    check_can_write(out_dir)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    if flags.workers:
        os.environ["RAYON_NUM_THREADS"] = str(flags.workers)  # read once, when the library first works in parallel
    tokenizer = load_tokenizer(settings.tokenizer_dir)
    if unknown := describe_unknown_modules(flags.model_name_or_path, flags.model_type):
        say(f"warning: {unknown}", sys.stderr)
    text_preparer(texts, tokenizer, settings.max_doc_character)
    check_lengths(texts, tokenizer, settings.max_seq_length, settings.max_query_length)
    if flags.dry_run:
        for split in source.split_files:
            read_split(source, split, settings.allow_missing)
    files = [str(path) for path in source_files(source)]
    found = {**source.record, "splits": list(source.split_files), "files": files}
    found |= {**texts.record(), "text_profile_from": reason}
    found |= {name: getattr(settings, name) for name in LENGTHS}
    if answer_dry_run(flags, tokenizer=fingerprint_of(tokenizer), **found):
        return
    say_source(source)
    say(f"texts: profile {texts.text_profile} ({reason}){texts.prefixes()}")
    longest = f"passages up to {settings.max_seq_length} tokens, queries up to {settings.max_query_length}"
    say(f"lengths: {longest} ({lengths_from})")
    started = time.monotonic()
    manifest = preprocess(source, tokenizer, out_dir, settings)
    say(summary(out_dir, manifest, time.monotonic() - started))


def settings_of(flags: PreprocessFlags, texts: TextSettings) -> tuple[PreprocessSettings, str]:
    """And who says the lengths. UserError where no tokenizer is named, or what a model records is no length."""
    tokenizer_dir = flags.tokenizer_name or flags.model_name_or_path
    if not tokenizer_dir:
        raise UserError("no tokenizer: give its directory as --model_name_or_path or --tokenizer_name")
    given = {name: getattr(flags, name) for name in LENGTHS}
    lengths, lengths_from = lengths_for(flags.model_name_or_path, flags.model_type, given)
    passage, query = lengths["max_seq_length"], lengths["max_query_length"]
    characters, allow_missing = flags.max_doc_character, flags.allow_missing
    return PreprocessSettings(tokenizer_dir, passage, query, characters, allow_missing, texts), lengths_from


if __name__ == "__main__":
    run_program("msmarco_data", main)
