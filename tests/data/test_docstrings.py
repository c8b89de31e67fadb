"""data.docstrings: against the docstrings that Python itself gives, and for the same bytes wherever packages lie."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from data import docstrings
from data.docstrings import PACKAGES, Pair, Source, build, keep_pairs, read_pairs, split_docstring
from data.sources.atomic_dir import UNFINISHED
from tests import REPO
from utils.errors import UserError
from utils.exchange.layout import DOCSTRINGS_RECORD

FILES = ("collection.tsv", "queries.train.tsv", "queries.dev.small.tsv", "qrels.train.tsv", "qrels.dev.small.tsv")
REST = "word " * 25

EVERYWHERE = '''
"""The module says what it is.

The rest of the module."""
import sys
sys.exit("a source was executed")

class Outer:
    """The class says what it is.

    The rest of the class.
    """

    def method(self):
        """The method says
        what\tit is.
  \t
        The rest
            of the method.

        And its third paragraph.
        """
        async def nested():
            "The nested says what it is.\\n\\nThe rest of the nested."

if sys:
    try:
        match sys:
            case 1:
                def deep():
                    """The deep one says what it is.

                    The rest of the deep one."""
    finally:
        def last():
            """One paragraph only."""

def no_docstring():
    f"""This is a {sys}.

    Not a docstring."""
    """Neither is this.

    It comes second."""
'''


def documented(query: str, passage: str = "") -> str:
    """A function with this docstring, long enough to be kept."""
    return f'def f():\n    """Query about {query} here.\n\n    Passage {passage or query} {REST}\n    """\n'


def make_package(root: Path, files: dict[str, str | bytes]) -> Source:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Source("package", "1.0", root)


def many_functions(count: int) -> dict[str, str | bytes]:
    return {f"m{n % 7}/f{n}.py": documented(f"number {n}") for n in range(count)}


def read_tsv(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


# Reading


def test_docstrings_are_found_wherever_they_may_stand(tmp_path: Path) -> None:
    source = make_package(tmp_path, {"a.py": EVERYWHERE})
    assert read_pairs(source.root / "a.py") == [
        Pair("The module says what it is.", "The rest of the module."),
        Pair("The class says what it is.", "The rest of the class."),
        Pair("The method says what it is.", "The rest of the method. And its third paragraph."),
        Pair("The nested says what it is.", "The rest of the nested."),
        Pair("The deep one says what it is.", "The rest of the deep one."),
    ]


@pytest.mark.parametrize("name", ["textwrap", "statistics", "fractions", "json.decoder", "heapq"])
def test_the_docstrings_are_those_python_gives(name: str) -> None:
    """Import the module and ask its objects: every docstring of two paragraphs is there, and nothing else."""
    module = importlib.import_module(name)
    own = [module]
    for member in vars(module).values():
        if inspect.isfunction(member) or inspect.isclass(member):
            own.append(member)
            own += [getattr(inner, "fget", None) or inner for inner in vars(member).values()]
    found = {pair.query: pair.passage for pair in read_pairs(Path(str(module.__file__))) or ()}
    expected = {}
    for documented_object in own:
        functions = (inspect.ismodule, inspect.isclass, inspect.isfunction)
        if not any(is_kind(documented_object) for is_kind in functions):
            continue
        if getattr(documented_object, "__module__", name) != name:
            continue
        paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", (documented_object.__doc__ or "").strip())]
        if len(paragraphs) > 1:
            expected[paragraphs[0]] = " ".join(paragraphs[1:])
    assert expected
    assert expected.items() <= found.items()
    assert len(found) - len(expected) <= 2  # nested, or deleted after use


@given(st.text())
def test_splitting_keeps_every_word_and_squeezes_the_rest(text: str) -> None:
    pair = split_docstring(text)
    if pair is not None:
        assert f"{pair.query} {pair.passage}".split() == text.split()
        assert not re.search(r"[\t\n\r]|  |^ | $", pair.query + "|" + pair.passage)


def test_files_that_cannot_be_parsed_are_counted_and_left_out(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "bad_syntax.py": "def f(:\n",
        "null.py": b"x = '\0'\n",
        "bad_bytes.py": b'"""Bad \xff bytes.\n\nRest."""\n',
        "deep.py": "(" * 5000 + ")" * 5000,
        "latin.py": b"# -*- coding: latin-1 -*-\n" + documented("caf\xe9 houses").encode("latin-1"),
        "good.py": documented("good things"),
    }
    source = make_package(tmp_path / "package", files)
    summary = build([source], tmp_path / "raw", dev_queries=1, workers=1)
    assert (summary["files"], summary["unreadable_files"], summary["passages"]) == (6, 4, 2)
    queries = [read_tsv(tmp_path / "raw" / name)[0][1] for name in FILES[1:3]]
    assert sorted(queries) == ["Query about café houses here.", "Query about good things here."]


def test_tests_and_other_packages_are_not_read(tmp_path: Path) -> None:
    names = ["tests/a.py", "sub/test/b.py", "site-packages/other/c.py", "tests.py", "sub/kept.py", "kept.pyi"]
    source = make_package(tmp_path, dict.fromkeys(names, "1\n"))
    assert [path.relative_to(tmp_path).as_posix() for path in source.files()] == ["sub/kept.py", "tests.py"]


# Choosing


def test_every_reason_to_drop_is_counted() -> None:
    query, passage = "one two three four", REST
    candidates = [
        Pair(query, passage),
        Pair(query.upper(), passage + "more"),
        Pair(query + " five", passage.upper()),
        Pair("one two three", passage + "other"),
        Pair("word " * 65, passage + "other"),
        Pair("five six seven eight", "too short"),
        Pair("five six seven \x1b[0m", passage + "other"),
        Pair("five six seven \ud800", passage + "other"),
        Pair("five six seven eight", passage + "other"),
    ]
    dropped: docstrings.Counter[str] = docstrings.Counter()
    assert keep_pairs(candidates, dropped) == [candidates[0], candidates[-1]]
    assert dropped == {
        "duplicate query": 1,
        "duplicate passage": 1,
        "short query": 1,
        "long query": 1,
        "short passage": 1,
        "unprintable": 2,
    }


# Writing


def test_the_files_are_a_whole_msmarco(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    summary = build([make_package(tmp_path / "package", many_functions(60))], raw, dev_queries=7, workers=2)
    passages, train, dev, train_qrels, dev_qrels = (read_tsv(raw / name) for name in FILES)
    assert sorted(path.name for path in raw.iterdir()) == sorted([*FILES, DOCSTRINGS_RECORD])
    assert (len(passages), len(train), len(dev)) == (60, 53, 7)
    assert [int(passage_id) for passage_id, _ in passages] == list(range(60))
    assert len({query_id for query_id, _ in train + dev} | {passage_id for passage_id, _ in passages}) == 120
    texts = dict(passages)
    for queries, qrels in ((train, train_qrels), (dev, dev_qrels)):
        assert [query_id for query_id, _ in queries] == [query_id for query_id, *_ in qrels]
        for (_, query), (_, zero, passage_id, relevance) in zip(queries, qrels, strict=True):
            assert (zero, relevance) == ("0", "1")
            number = re.findall(r"\d+", query)
            assert number == re.findall(r"\d+", texts[passage_id])
    assert json.loads((raw / DOCSTRINGS_RECORD).read_text()) == summary
    assert summary["versions"] == {"package": "1.0"}


def test_the_same_bytes_wherever_the_package_lies_and_however_python_hashes(tmp_path: Path) -> None:
    files = many_functions(40) | {"again.py": documented("number 3", "number 999")}
    here = make_package(tmp_path / "here", files)
    there = make_package(tmp_path / "somewhere" / "else", dict(reversed(files.items())))
    build([here], tmp_path / "raw1", dev_queries=5, workers=1)
    code = "import sys, pathlib as p; from data.docstrings import *; "
    code += "build([Source('package', '1.0', p.Path(sys.argv[1]))], p.Path(sys.argv[2]), 5, 2)"
    subprocess.run(
        [sys.executable, "-c", code, str(there.root), str(tmp_path / "raw2")],
        cwd=REPO,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        check=True,
    )
    for name in (*FILES, DOCSTRINGS_RECORD):
        assert (tmp_path / "raw1" / name).read_bytes() == (tmp_path / "raw2" / name).read_bytes(), name


def test_a_changed_pair_moves_no_other_query_between_train_and_dev(tmp_path: Path) -> None:
    """Which query is held out depends on its text: a new version of a package changes little."""
    source = make_package(tmp_path / "package", many_functions(50))
    build([source], tmp_path / "before", dev_queries=10, workers=1)
    (source.root / "m1" / "f1.py").unlink()
    build([source], tmp_path / "after", dev_queries=10, workers=1)
    before, after = ({q for _, q in read_tsv(tmp_path / d / "queries.dev.small.tsv")} for d in ("before", "after"))
    assert len(before & after) >= 9


# Failing


def test_a_directory_is_taken_only_where_it_is_free_or_an_interrupted_run_left_it(tmp_path: Path) -> None:
    source, raw = make_package(tmp_path / "package", many_functions(10)), tmp_path / "raw"
    raw.mkdir()
    (raw / "collection.tsv.gz").write_bytes(b"the real MS MARCO")
    with pytest.raises(UserError, match=r"collection\.tsv\.gz, which is not this program's"):
        build([source], raw, dev_queries=2, workers=1)
    assert (raw / "collection.tsv.gz").read_bytes() == b"the real MS MARCO"
    shutil.rmtree(raw)

    (raw / UNFINISHED).mkdir(parents=True)
    (raw / UNFINISHED / "queries.train.tsv").write_text("half")
    (raw / "collection.tsv").write_text("already moved")
    build([source], raw, dev_queries=2, workers=1)
    assert sorted(path.name for path in raw.iterdir()) == sorted([*FILES, DOCSTRINGS_RECORD])
    assert len(read_tsv(raw / "collection.tsv")) == 10
    with pytest.raises(UserError, match="holds a complete collection"):
        build([source], raw, dev_queries=2, workers=1)


def test_too_few_pairs_leave_nothing_behind(tmp_path: Path) -> None:
    source = make_package(tmp_path / "package", many_functions(10))
    with pytest.raises(UserError, match="found 10 pairs, expected more than --dev_queries 10"):
        build([source], tmp_path / "raw", dev_queries=10, workers=1)
    assert not (tmp_path / "raw").exists()


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docstrings, "PACKAGES", ("numpy", "no_such_package"))
    with pytest.raises(UserError, match="no_such_package is not installed: run pip install -r requirements"):
        docstrings.installed_sources()


def test_the_program_answers_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data.docstrings", "--out_data_dir", str(tmp_path / "raw")]
    done = subprocess.run([*command, "--dry_run"], cwd=REPO, capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)["versions"]) == {"python", *PACKAGES}
    done = subprocess.run([*command, "--dev_queries", "0"], cwd=REPO, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--dev_queries" in done.stderr
    assert not (tmp_path / "raw").exists()


# The packages


def required_by(names: list[str]) -> set[str]:
    """These distributions and all that they require, by the installed metadata."""
    known: set[str] = set()
    while names:
        name = names.pop().lower().replace("_", "-")
        if name in known:
            continue
        known.add(name)
        for line in metadata.distribution(name).requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                names.append(requirement.name)
    return known


def test_the_packages_come_with_the_requirements_alone() -> None:
    lines = (REPO / "requirements.txt").read_text().split("\n")
    names = [Requirement(line).name for line in lines if line.strip() and not line.startswith("#")]
    assert set(PACKAGES) <= required_by(names)


def test_no_package_is_imported_to_be_read() -> None:
    code = "import sys, data.docstrings as d; [s.files() for s in d.installed_sources()]; "
    code += "print({'torch', 'scipy', 'sympy', 'networkx', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
