"""A report as a document: Markdown, the pictures next to it, and one self-contained HTML page of both.

A picture's paragraph is followed by its caption.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from results.page.html import html_page
from results.plots.curves import save
from utils.exchange.atomic import publish_file
from utils.exchange.layout import ReportLayout

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    """``figures`` {file name: figure} are those that ``blocks`` name."""

    title: str
    blocks: list[str]
    figures: dict[str, Figure] = field(default_factory=dict)


def picture(name: str, caption: str) -> str:
    return f"![{name.removesuffix('.png')}]({name})\n\n{caption}"


def align(rows: list[list[str]]) -> str:
    """A Markdown table that also reads well as plain text; the first row is the heading, a cell's | is escaped."""
    rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("| " + " | ".join(cells) + " |")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], "| " + " | ".join(rule) + " |", *lines[1:]])


def columns(rows: list[list[str]]) -> str:
    """A table for a terminal: the first column to the left, the others to the right; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def markdown_of(title: str, blocks: Sequence[str], sections: Sequence[Section]) -> str:
    parts = [f"# {title}", *blocks]
    for section in sections:
        parts += [f"## {section.title}", *section.blocks]
    return "\n\n".join(parts) + "\n"


def write_document(output: Path, text: str, sections: Sequence[Section], possible: Sequence[str]) -> None:
    """Write the pictures, then report.md and report.html.

    Args:
        output: The directory.
        text: The Markdown.
        sections: Whose figures are drawn.
        possible: Names of pictures that there may be; those that it has not are removed, as of an earlier report.
    """
    output.mkdir(parents=True, exist_ok=True)
    figures = {name: figure for section in sections for name, figure in section.figures.items()}
    for name, figure in figures.items():
        publish_file(output / name, functools.partial(save, figure))
    for name in set(possible) - figures.keys():
        (output / name).unlink(missing_ok=True)  # of an earlier report, which this one replaces
    publish_file(ReportLayout(output).markdown, lambda staged: staged.write_text(text, encoding="utf-8"))
    page = html_page(text, output)
    publish_file(ReportLayout(output).html, lambda staged: staged.write_text(page, encoding="utf-8"))
