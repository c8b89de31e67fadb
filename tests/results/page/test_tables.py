"""The tables of docs/ are those of the declarations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from results.page.tables import COMMAND, DOCS, MARKED, TABLES, with_tables
from utils.declared.losses import LOSSES
from utils.declared.strategies import FILTERS, FORK_STRATEGIES, STRATEGIES
from utils.ir.metrics import METRICS
from utils.ir.notation import MEASURES

PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_is_not_stale(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert with_tables(text) == text, f"docs/{path.name} is stale: run {COMMAND}"


def test_every_table_is_on_a_page_once() -> None:
    found = [name for path in PAGES for _, name, _, _ in MARKED.findall(path.read_text(encoding="utf-8"))]
    assert sorted(found) == sorted(TABLES)


def test_a_stale_table_is_seen_and_made_again() -> None:
    text = (DOCS / "strategies.md").read_text(encoding="utf-8")
    stale = text.replace("the worst ranked", "the best ranked")
    assert stale != text and with_tables(stale) == text


@pytest.mark.parametrize(
    ("name", "column", "expected"),
    [
        ("strategies", 0, [*STRATEGIES, *FILTERS]),
        ("fork", 0, FORK_STRATEGIES),
        ("losses", 0, LOSSES),
        ("metrics", 1, METRICS),
        ("measures", 0, MEASURES),
    ],
)
def test_a_table_has_a_row_for_each_declaration(name: str, column: int, expected: list[str]) -> None:
    cells = [line.strip("| ").split(" | ")[column] for line in TABLES[name]().splitlines() if "`" in line]
    words = [found[1].removesuffix("@K") for cell in cells if (found := re.match(r"`(?:--)?([\w@-]+)", cell))]
    assert [word for word in expected if word not in words] == []
