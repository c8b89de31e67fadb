"""A dataset of the package ir_datasets (MacAvaney et al. 2021, arXiv 2103.02280), by its name.

A name with judgements, as ``msmarco-passage/trec-dl-2019/judged``, is one split, and so is one with queries below the
collection's own name, as ``tripclick/test``; another, as ``beir/scifact``, has its subsets as splits
(``beir/scifact/test``), those directly below it and over the same documents. A split is called by the first word behind
the collection's own name: trec-dl-2019, test. What the package downloads it keeps, in ~/.ir_datasets or
IR_DATASETS_HOME.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from data.sources.base import Passage, SourceRecord, SourceRequest, SplitFiles
from data.sources.ids import UniqueIds
from data.sources.judgements import Judgement
from data.sources.msmarco import LEVEL_OF_TREC_PASSAGES
from utils.errors import UserError, one_line
from utils.ir.notation import LARGEST_GRADE

IR_DATASETS = "ir_datasets"  # --source
MSMARCO_DOCUMENTS = "msmarco-document"  # what names of its datasets begin with
TREC_PASSAGES = re.compile(r"msmarco-passage(-v2)?/trec-dl-.*")
ONLY_SPLIT = "test"  # what a dataset is called as a split that has no subsets


@dataclass(frozen=True)
class IrDataset:
    """A dataset's documents, and the datasets that have its splits, as a `Source`. ``name`` is what was asked for."""

    name: str
    passages_file: str
    split_files: dict[str, SplitFiles]

    @property
    def record(self) -> SourceRecord:
        return {"source": IR_DATASETS, "dataset": self.name}

    def estimate_passages(self) -> int | None:
        return None  # the count may cost a download of its own

    def passages(self) -> Iterator[Passage]:
        """``text``, or ``body`` for MS MARCO's documents, whose url is then read too; a title where there is one."""
        ids = UniqueIds(self.passages_file, "document")
        for number, document in enumerate(records(self.passages_file, "docs_iter"), 1):
            ids.add(number, document.doc_id)
            is_web_page = hasattr(document, "body")
            text = document.body if is_web_page else text_of(document)
            yield Passage(
                document.doc_id, text, getattr(document, "title", None), document.url if is_web_page else None
            )
        ids.check()

    def queries(self, split: str) -> Iterator[tuple[str, str]]:
        name = str(self.split_files[split].queries)
        ids = UniqueIds(name, "query")
        for number, query in enumerate(records(name, "queries_iter"), 1):
            ids.add(number, query.query_id)
            yield query.query_id, text_of(query)
        ids.check()

    def qrels(self, split: str) -> Iterator[Judgement]:
        name = self.split_files[split].qrels
        if name is None:
            return
        judged: dict[tuple[str, str], int] = {}
        for qrel in records(str(name), "qrels_iter"):
            pair, grade = (qrel.query_id, qrel.doc_id), int(qrel.relevance)
            if abs(grade) > LARGEST_GRADE or judged.setdefault(pair, grade) != grade:
                raise UserError(
                    f"{name}: query {pair[0]!r} and document {pair[1]!r} are judged {grade}, expected one relevance "
                    f"from {-LARGEST_GRADE} to {LARGEST_GRADE}; take another dataset"
                )
            yield *pair, grade

    def remarks(self) -> list[str]:
        return []


def text_of(record: Any) -> str:
    """``text`` where the record has it, else what ir_datasets takes for its text."""
    return str(record.text if hasattr(record, "text") else record.default_text())


def package() -> ModuleType:
    try:
        import ir_datasets
    except ModuleNotFoundError:
        raise UserError(
            "--source ir_datasets needs the package ir-datasets, which is not installed: pip install ir-datasets"
        ) from None
    module: ModuleType = ir_datasets
    return module


def records(name: str, method: str) -> Iterator[Any]:
    """What a dataset's ``method`` yields. UserError where the package cannot fetch or read it, whatever it raises."""
    try:
        yield from getattr(package().load(name), method)()
    except Exception as error:
        raise UserError(
            f"ir_datasets cannot read {name} ({type(error).__name__}: {one_line(error)[:120]}); it fetches a dataset "
            "when it is first read: check the network, or put its files in IR_DATASETS_HOME (default ~/.ir_datasets)"
        ) from None


def find(request: SourceRequest) -> IrDataset:
    """The dataset ``request.dataset``. UserError where there is none of this name, or it has no queries."""
    name = request.dataset
    if not name:
        raise UserError("--source ir_datasets needs --dataset, the name of one, as beir/scifact")
    if request.directory is not None:
        raise UserError(f"--dataset {name} is in no directory, and one was given, {request.directory}; omit one")
    irds = package()
    dataset = load(irds, name)
    if not dataset.has_docs():
        raise UserError(f"ir_datasets' {name} has no documents, expected a dataset to search in; name another")
    parent = irds.docs_parent_id(name)
    is_split = dataset.has_qrels() or (dataset.has_queries() and name != parent)
    names = [name] if is_split else [*subsets(irds, name, parent)] or [name]
    splits: dict[str, SplitFiles] = {}
    for each in names:
        found = load(irds, each)
        if not found.has_queries():
            continue
        split = each.removeprefix(parent).strip("/").partition("/")[0] or ONLY_SPLIT
        if split in splits:
            raise UserError(
                f"ir_datasets' {splits[split].queries} and {each} are both a split {split}; name one of them"
            )
        level = LEVEL_OF_TREC_PASSAGES if TREC_PASSAGES.fullmatch(f"{parent}/{split}") else 1
        splits[split] = SplitFiles(each, each if found.has_qrels() else None, level)
    if not splits:
        raise UserError(f"ir_datasets' {name} has no queries, and no subset over its documents has; name one that has")
    return IrDataset(name, parent, splits)


def load(irds: ModuleType, name: str) -> Any:
    try:
        return irds.load(name)
    except KeyError:
        near = difflib.get_close_matches(name, list(irds.registry), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ", see https://ir-datasets.com"
        raise UserError(f"ir_datasets has no dataset {name}{hint}") from None


def subsets(irds: ModuleType, name: str, parent: str) -> list[str]:
    """The datasets directly below ``name`` that have the documents of ``parent``, in the package's order."""
    below = [each for each in irds.registry if each.startswith(f"{name}/") and "/" not in each[len(name) + 1 :]]
    return [each for each in below if load(irds, each).has_docs() and irds.docs_parent_id(each) == parent]
