"""The tables of docs/ that come from declarations, each between ``<!-- NAME: generated -->`` and ``<!-- end -->``.

    python -m results.page.tables

rewrites them in place. ``tests/results/page/test_tables.py`` fails while a page is stale.
"""

from __future__ import annotations

import re
from pathlib import Path

from utils.declared.losses import LOSSES
from utils.declared.strategies import FILTERS, FORK_STRATEGIES, STRATEGIES
from utils.errors import run_program
from utils.ir.metrics import METRICS
from utils.ir.notation import MEASURES
from utils.run_log import say

DOCS = Path(__file__).resolve().parents[2] / "docs"
COMMAND = "python -m results.page.tables"
MARKED = re.compile(r"(<!-- (\w+): generated -->\n)(.*?)(<!-- end -->)", re.S)


def table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is the heading."""
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join("---" for _ in rows[0]) + " |", *lines[1:]]) + "\n"


def strategies_table() -> str:
    rows = [["write", "takes of a query's candidates", "for example", "source"]]
    for word in STRATEGIES.values():
        examples = ", ".join(f"`{example}`" for example in word.examples)
        takes = word.takes + (f": short for `{word.short_for}`" if word.short_for else "")
        rows.append([f"`{word.usage}`", takes, examples, word.paper])
    return table(rows)


def arguments_table() -> str:
    """Each argument once, with the words that have it."""
    rows = [["in a form", "is", "range", "not written"]]
    found = dict.fromkeys(argument for word in STRATEGIES.values() for argument in word.arguments)
    for argument in found:
        words = [word.word for word in STRATEGIES.values() if argument in word.arguments]
        omitted = f"`{argument.omitted}`" if argument.omitted.startswith("--") else argument.omitted or "refused"
        of_one = f" of `{words[0]}`" if len(words) == 1 else ""
        meaning = re.sub(r"(--\w+)", r"`\1`", argument.meaning)
        rows.append([f"`{argument.shown}`{of_one}", meaning, argument.range.ends(), omitted])
    return table(rows)


def filters_table() -> str:
    rows = [["filter", "drops before the strategy takes", "range", "default", "source"]]
    for declared in FILTERS.values():
        flag = f"`--{declared.flag} {declared.example}`"
        rows.append([flag, declared.drops, declared.range.ends(), f"{declared.off:g} (off)", declared.paper])
    return table(rows)


def fork_table() -> str:
    rows = [["`--negative_strategy`", "the same in ANCE's or the fork's flags"]]
    return table(rows + [[f"`{word}`", STRATEGIES[word].ance] for word in FORK_STRATEGIES])


def losses_table() -> str:
    rows = [["`--loss`", "is", "source"]]
    return table(rows + [[f"`{loss.word}`", loss.description, loss.paper] for loss in LOSSES.values()])


def metrics_table() -> str:
    rows = [["metric", "in metrics.json", "is", "source"]]
    return table(rows + [[one.label, f"`{one.name}`", one.description, one.source] for one in METRICS.values()])


def measures_table() -> str:
    rows = [["`--metrics`", "is"]]
    return table(rows + [[f"`{measure.usage}`", measure.description] for measure in MEASURES.values()])


TABLES = {
    "strategies": lambda: "\n".join([strategies_table(), arguments_table(), filters_table()]),
    "fork": fork_table,
    "losses": losses_table,
    "metrics": metrics_table,
    "measures": measures_table,
}


def with_tables(text: str) -> str:
    """A page with the tables between its markers made again."""
    return MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[4]}", text)


def main() -> None:
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if with_tables(text) != text:
            path.write_text(with_tables(text), encoding="utf-8")
            say(f"wrote the tables of {path.name}")


if __name__ == "__main__":
    run_program("tables", main)
