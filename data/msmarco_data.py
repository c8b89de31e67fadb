"""From MS MARCO's raw files to the preprocessed directory that the drivers read.

    python -m data.msmarco_data --data_dir RAW --out_data_dir OUT --data_type 1 \\
        --model_type rdot_nll --model_name_or_path TOKENIZER_DIR

Passages keep the order of their file: a passage's offset is its line. Queries are kept where their split's qrels name
them, so that no later program encodes or searches one without a judgement; what is dropped is counted. Text is
streamed: the tokenizer works on all cores while the next batch is read and the last one written. What is held is the
judged queries, the qrels and eight bytes per passage.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from data.sources.atomic_dir import check_can_write, publish, staged_directory
from data.sources.msmarco import SPLITS, RawCollection, find_collection, read_passages
from data.sources.qrels import ResolvedSplit, qrel_name, query_name, read_split, resolve
from data.tokens.collection import FORMAT_VERSION, MANIFEST, PASSAGES
from data.tokens.token_cache import TokenCacheWriter, cache_files
from data.tokens.tokenizer import check_tokenizer_cuts, fingerprint_of, load_tokenizer, tokenized, tokenizer_files
from utils.errors import UserError, run_program
from utils.exchange.atomic import sha256_of, write_json
from utils.flag_values import MOST_WORKERS, flag
from utils.flags import ModelTypeFlags, ProgramFlags, TextFlags, flags_json, parse_flags
from utils.run_log import Progress, say
from utils.text_files import estimate_lines


@dataclass(frozen=True, kw_only=True)
class PreprocessFlags(ModelTypeFlags, TextFlags, ProgramFlags):
    """Tokenize a raw MS MARCO collection into a preprocessed directory."""

    data_dir: str = flag(help="directory of the raw files, plain or gzipped, under MS MARCO's names", is_path=True)
    out_data_dir: str = flag(help="directory to write; refused if it already holds a complete collection", is_path=True)
    model_name_or_path: str = flag("", "directory (or hub name) that holds the tokenizer", is_path=True)
    data_type: int = flag(0, "0: documents (url, title, body), 1: passages", at_least=0, at_most=1)
    allow_missing: bool = flag(False, "go on where over one in a hundred qrels names an unknown query or passage")
    workers: int = flag(0, "threads that tokenize; 0 takes every core", at_least=0, at_most=MOST_WORKERS)

    IGNORED: ClassVar[dict[str, str]] = {"config_name": "the tokenizer alone decides how a text becomes tokens"}

    @property
    def tokenizer_path(self) -> str:
        return self.tokenizer_name or self.model_name_or_path


def write_passages(
    raw: RawCollection, tokenizer: Any, staged: Path, flags: PreprocessFlags, wanted: set[str]
) -> tuple[int, dict[str, int]]:
    """Write the passages' token cache; their number, and {passage_id: offset} of ``wanted``, -1 for the missing."""
    offset_of = dict.fromkeys(wanted, -1)
    passages = read_passages(raw.passages, raw.data_type, flags.max_doc_character)
    progress = Progress(estimate_lines(raw.passages), "passages")
    with TokenCacheWriter(staged, PASSAGES, vocabulary_size(tokenizer)) as writer:
        for ids, rows in tokenized(passages, tokenizer, flags.max_seq_length):
            for offset, passage_id in enumerate(ids, writer.rows):
                if passage_id in offset_of:
                    offset_of[passage_id] = offset
            writer.append(ids, rows)
            progress.advance(len(ids))
    progress.close()
    return writer.rows, offset_of


def write_split(resolved: ResolvedSplit, tokenizer: Any, staged: Path, max_query_length: int) -> dict[str, int]:
    """Write a split's queries and qrels; their counts."""
    queries, qrels = query_name(resolved.split), qrel_name(resolved.split)
    with TokenCacheWriter(staged, queries, vocabulary_size(tokenizer)) as writer:
        for ids, rows in tokenized(resolved.queries.items(), tokenizer, max_query_length):
            writer.append(ids, rows)
    with (staged / f"{qrels}.tsv").open("w", encoding="utf-8") as file:
        for query, passages in resolved.qrels.as_dict().items():
            file.writelines(f"{query}\t{passage}\t{relevance}\n" for passage, relevance in passages.items())
    return {queries: writer.rows, qrels: len(resolved.qrels.query_R)}


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the largest token id."""
    return max(tokenizer.get_vocab().values()) + 1


def describe(raw: RawCollection, tokenizer: Any, flags: PreprocessFlags) -> dict[str, Any]:
    """The manifest's account of how the collection was made."""
    return {
        "format_version": FORMAT_VERSION,
        "data_type": raw.data_type,
        "max_seq_length": flags.max_seq_length,
        "max_query_length": flags.max_query_length,
        "max_doc_character": flags.max_doc_character,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": vocabulary_size(tokenizer),
        "tokenizer": {"fingerprint": fingerprint_of(tokenizer), "files": tokenizer_files(flags.tokenizer_path)},
        "sources": {path.name: {"bytes": path.stat().st_size} for path in raw.files()},
    }


def preprocess(raw: RawCollection, tokenizer: Any, out_dir: Path, flags: PreprocessFlags) -> dict[str, Any]:
    """Write ``out_dir`` whole or not at all; its manifest."""
    manifest = describe(raw, tokenizer, flags)
    with staged_directory(out_dir) as staged:
        check_not_complete(out_dir)
        splits = [read_split(raw, split, flags.allow_missing) for split in SPLITS]
        wanted = set().union(*(data.passage_ids() for data in splits))
        passages, offset_of = write_passages(raw, tokenizer, staged, flags, wanted)
        manifest |= {"counts": {PASSAGES: passages}, "dropped": {}}
        for data in splits:
            resolved = resolve(raw.qrels[data.split], data, offset_of, flags.allow_missing)
            manifest["counts"] |= write_split(resolved, tokenizer, staged, flags.max_query_length)
            manifest["dropped"] |= resolved.dropped
        paths = [staged / name for name in output_files()]
        manifest["files"] = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in paths}
        manifest["collection_fingerprint"] = hashlib.sha256(
            json.dumps(manifest["files"], sort_keys=True).encode()
        ).hexdigest()
        write_json(staged / MANIFEST, manifest)
        publish(staged, out_dir, [*output_files(), MANIFEST])
    return manifest


def output_files() -> list[str]:
    """All files of a preprocessed directory but its manifest."""
    caches = [PASSAGES, *map(query_name, SPLITS)]
    return [file for name in caches for file in cache_files(name)] + [f"{qrel_name(split)}.tsv" for split in SPLITS]


def check_not_complete(out_dir: Path) -> None:
    if (out_dir / MANIFEST).exists():
        raise UserError(f"{out_dir} holds a complete collection ({MANIFEST}); remove it or choose another directory")


def summary(out_dir: Path, manifest: dict[str, Any], seconds: float) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in manifest["counts"].items())
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in manifest["dropped"].items() if count)
    rate = manifest["counts"][PASSAGES] / max(seconds, 1e-9)
    return f"wrote {out_dir}: {counts}; dropped: {dropped or 'nothing'}; {seconds:.1f} seconds, {rate:,.0f} passages/s"


def main() -> None:
    """Parse, preflight, preprocess, and say what was written and dropped."""
    flags = parse_flags(PreprocessFlags, "msmarco_data")
    if not flags.tokenizer_path:
        raise UserError("no tokenizer: give its directory as --model_name_or_path or --tokenizer_name")
    raw, out_dir = find_collection(Path(flags.data_dir), flags.data_type), Path(flags.out_data_dir)
    check_not_complete(out_dir)
    check_can_write(out_dir)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    if flags.workers:
        os.environ["RAYON_NUM_THREADS"] = str(flags.workers)  # read once, when the library first works in parallel
    tokenizer = load_tokenizer(flags.tokenizer_path)
    check_tokenizer_cuts(tokenizer, flags.max_seq_length, flags.max_query_length)
    if flags.dry_run:
        for split in SPLITS:
            read_split(raw, split, flags.allow_missing)
        resolved = {"tokenizer": fingerprint_of(tokenizer), "files": [str(path) for path in raw.files()]}
        sys.stdout.write(flags_json(flags, **resolved) + "\n")
        return
    started = time.monotonic()
    manifest = preprocess(raw, tokenizer, out_dir, flags)
    say(summary(out_dir, manifest, time.monotonic() - started))


if __name__ == "__main__":
    run_program("msmarco_data", main)
