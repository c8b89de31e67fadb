"""The embedded default collection: docstrings of the installed packages, in MS MARCO's format.

    python -m data.docstrings --out_data_dir RUN/raw

The first paragraph of a docstring is a query, the rest is its passage, as in CodeSearchNet (Husain et al. 2019,
arXiv 1909.09436), which pairs a function's documentation with its code. Sources are parsed with ``ast`` and never
imported or executed. The pairs depend on the versions of Python and of ``PACKAGES`` alone: files are taken in the order
of their paths inside the package, and everything that looks like chance (the order of the passages, which queries
are held out) is decided by a hash of the text.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypedDict

from data.sources.atomic_dir import UNFINISHED, check_can_write, publish, staged_directory
from data.sources.msmarco import PASSAGE_TYPE, RAW_NAMES
from utils.errors import UserError, run_program
from utils.exchange.evaluations import DEV, TRAIN
from utils.exchange.layout import DOCSTRINGS_RECORD
from utils.flag_values import MOST_WORKERS, Group, flag
from utils.flags import ProgramFlags, answer_dry_run, parse_flags
from utils.run_log import Progress, say
from utils.system import core_count

STDLIB = "python"
# Installed wherever requirements.txt is; the development requirements add none, so that the collection is the same
# with and without them. Their order decides which of two equal texts is kept.
PACKAGES = ("torch", "numpy", "scipy", "sympy", "transformers", "networkx", "matplotlib")
# Other people's packages, tests (whose docstrings say little), and what Linux distributions cut out of the stdlib.
SKIPPED_FOLDERS = frozenset(
    (
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "distutils",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "tkinter",
        "turtledemo",
    )
)
MIN_QUERY_WORDS = 4
MAX_QUERY_WORDS = 64
MIN_PASSAGE_WORDS = 20
FIRST_QUERY_ID = 1_000_000  # above every passage id, so that a mixed-up id is an unknown one

Documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, kw_only=True)
class DocstringsFlags(ProgramFlags):
    """Write the docstrings of the installed packages as a small MS MARCO: about 20,000 query-passage pairs."""

    GROUP: ClassVar[Group] = "data"
    EXAMPLE: ClassVar[str] = "python -m data.docstrings --out_data_dir raw"

    out_data_dir: str = flag(
        help="directory for collection.tsv, queries.*.tsv, qrels.*.tsv and docstrings.json", is_path=True
    )
    dev_queries: int = flag(1000, "queries held out for dev", at_least=1)
    workers: int = flag(
        0, "processes that parse sources; 0 is one for each core", at_least=0, at_most=MOST_WORKERS, group="job"
    )


class DocstringsRecord(TypedDict):
    """docstrings.json."""

    passages: int
    train_queries: int
    dev_queries: int
    versions: dict[str, str]
    files: int
    unreadable_files: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class Source:
    """A package whose ``.py`` files are read."""

    name: str
    version: str
    root: Path

    def files(self) -> list[Path]:
        """Its sources by their path inside the package, wherever the package is installed."""
        relative = [path.relative_to(self.root) for path in self.root.rglob("*.py")]
        kept = [path for path in relative if not SKIPPED_FOLDERS.intersection(path.parts[:-1])]
        return [self.root / path for path in sorted(kept, key=Path.as_posix)]


@dataclass(frozen=True)
class Pair:
    query: str
    passage: str


def installed_sources() -> list[Source]:
    """The standard library and ``PACKAGES``; raises UserError for one that is not installed."""
    sources = [Source(STDLIB, platform.python_version(), Path(sysconfig.get_paths()["stdlib"]))]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)  # finds a top-level package without running it
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"the package {name} is not installed: run pip install -r requirements.txt")
        root = Path(spec.submodule_search_locations[0])
        sources.append(Source(name, importlib.metadata.version(name), root))
    return sources


def documented_nodes(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Everything in ``tree`` that may have a docstring, in source order. Only statements are searched."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, Documented):
            yield node
        for field in ("finalbody", "orelse", "handlers", "cases", "body"):
            children = getattr(node, field, None)
            if isinstance(children, list):
                pending.extend(reversed(children))


def split_docstring(docstring: str) -> Pair | None:
    """First paragraph and rest, each with its whitespace squeezed to single blanks; None where there is no rest."""
    paragraphs = re.split(r"\n[^\S\n]*\n", docstring.strip(), maxsplit=1)
    if len(paragraphs) < 2:
        return None
    return Pair(*(" ".join(text.split()) for text in paragraphs))


def read_pairs(path: Path) -> list[Pair] | None:
    """The pairs of one source file, in source order; None where Python cannot parse it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
    docstrings = (ast.get_docstring(node, clean=False) for node in documented_nodes(tree))
    pairs = (split_docstring(docstring) for docstring in docstrings if docstring)
    return [pair for pair in pairs if pair is not None]


def read_all(sources: list[Source], workers: int) -> Iterator[list[Pair] | None]:
    """``read_pairs`` of every file of ``sources``, in order, on ``workers`` processes (0: one for each core)."""
    files = [path for source in sources for path in source.files()]
    progress = Progress(len(files), "files")
    with ProcessPoolExecutor(workers or core_count(), initializer=gc.disable) as pool:
        for pairs in pool.map(read_pairs, files, chunksize=16):
            progress.advance(1)
            yield pairs
    progress.close()


def reason_to_drop(pair: Pair) -> str | None:
    query_words = len(pair.query.split())
    if query_words < MIN_QUERY_WORDS:
        return "short query"
    if query_words > MAX_QUERY_WORDS:
        return "long query"
    if len(pair.passage.split()) < MIN_PASSAGE_WORDS:
        return "short passage"
    if not (pair.query + pair.passage).isprintable():
        return "unprintable"  # control characters and lone surrogates, which UTF-8 cannot write
    return None


def keep_pairs(candidates: Iterable[Pair], dropped: Counter[str]) -> list[Pair]:
    """The pairs worth having: the first of any that share a text, case ignored. Counts the others in ``dropped``."""
    seen_queries: set[str] = set()
    seen_passages: set[str] = set()
    kept = []
    for pair in candidates:
        reason = reason_to_drop(pair)
        if reason is None and pair.query.casefold() in seen_queries:
            reason = "duplicate query"
        elif reason is None and pair.passage.casefold() in seen_passages:
            reason = "duplicate passage"
        if reason is not None:
            dropped[reason] += 1
            continue
        seen_queries.add(pair.query.casefold())
        seen_passages.add(pair.passage.casefold())
        kept.append(pair)
    return kept


def text_hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def collection_lines(pairs: list[Pair], dev_queries: int) -> dict[str, list[str]]:
    """The lines of each file. Passages and queries are numbered in the order of their own hashes: neighbours
    in a source file are not neighbours here, and the n-th query is not the n-th passage's."""
    passage_ids = {text: n for n, text in enumerate(sorted((p.passage for p in pairs), key=text_hash))}
    by_query = sorted(pairs, key=lambda pair: text_hash(pair.query))
    names = RAW_NAMES[PASSAGE_TYPE]
    lines = {names.passages: [f"{n}\t{text}\n" for text, n in passage_ids.items()]}
    for split, start, end in ((DEV, 0, dev_queries), (TRAIN, dev_queries, len(pairs))):
        numbered = [(FIRST_QUERY_ID + n, by_query[n]) for n in range(start, end)]
        queries, qrels = names.splits[split].queries, names.splits[split].qrels
        assert qrels is not None
        lines[queries] = [f"{query_id}\t{pair.query}\n" for query_id, pair in numbered]
        lines[qrels] = [f"{query_id}\t0\t{passage_ids[pair.passage]}\t1\n" for query_id, pair in numbered]
    return lines


def check_free(out: Path) -> None:
    """UserError where ``out`` holds a complete collection, or files that an interrupted run of this program cannot
    have left there."""
    if (out / DOCSTRINGS_RECORD).exists():
        raise UserError(f"{out} holds a complete collection; remove it or choose another directory")
    found = sorted(path.name for path in out.glob("*.tsv*"))
    if found and not (out / UNFINISHED).exists():
        raise UserError(f"{out} holds {found[0]}, which is not this program's; choose another directory")
    check_can_write(out)


def build(sources: list[Source], out: Path, dev_queries: int, workers: int = 0) -> DocstringsRecord:
    """Read packages and write the collection, whole or not at all.

    Args:
        sources: The packages.
        out: The directory to write.
        dev_queries: How many queries are held out for dev.
        workers: Processes that parse sources; 0 is one for each core.
    Returns:
        What docstrings.json holds.
    Raises:
        UserError: ``out`` is taken, or there are not more pairs than ``dev_queries``.
    """
    check_free(out)
    with staged_directory(out) as staged:
        files = list(read_all(sources, workers))
        dropped: Counter[str] = Counter()
        pairs = keep_pairs((pair for found in files for pair in found or ()), dropped)
        if len(pairs) <= dev_queries:
            raise UserError(f"found {len(pairs)} pairs, expected more than --dev_queries {dev_queries}; hold out fewer")
        summary: DocstringsRecord = {
            "passages": len(pairs),
            "train_queries": len(pairs) - dev_queries,
            "dev_queries": dev_queries,
            "versions": {source.name: source.version for source in sources},
            "files": len(files),
            "unreadable_files": sum(found is None for found in files),
            "dropped": dict(sorted(dropped.items())),
        }
        lines = collection_lines(pairs, dev_queries)
        lines[DOCSTRINGS_RECORD] = [json.dumps(summary, indent=1) + "\n"]
        for name, texts in lines.items():
            (staged / name).write_text("".join(texts), encoding="utf-8", newline="\n")
        publish(staged, out, lines)
    return summary


def main() -> None:
    flags = parse_flags(DocstringsFlags, "docstrings")
    out, sources = Path(flags.out_data_dir), installed_sources()
    check_free(out)
    if answer_dry_run(flags, versions={source.name: source.version for source in sources}):
        return
    summary = build(sources, out, flags.dev_queries, flags.workers)
    say(
        f"{out}: {summary['passages']} passages, {summary['train_queries']} train and "
        f"{summary['dev_queries']} dev queries from {summary['files']} files"
    )


if __name__ == "__main__":
    run_program("docstrings", main)
