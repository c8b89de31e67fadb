"""Public functions with more than three parameters say what each is, in an Args section."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import REPO

ROOMS = ("drivers", "data", "utils", "model", "results")
SOURCES = [path for room in ROOMS for path in sorted((REPO / room).rglob("*.py"))]
FEW = 3  # parameters that a sentence can explain
SECTION = re.compile(r"^Args:(.*?)(?=^\w|\Z)", re.M | re.S)  # up to the next line that begins at the margin
ENTRY = re.compile(r"^ {4}(\*{0,2}\w+(?:, \w+)*): ", re.M)
AS_ANOTHER = re.compile(r" those of `[\w.]+`")  # an implementation of what is described there


def public_functions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef]:
    """Of a module and of its classes."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def problem_of(function: ast.FunctionDef) -> str:
    """What its Args section lacks or has too much, "" where nothing."""
    given = function.args
    parameters = {one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)} - {"self", "cls"}
    if len(parameters) <= FEW:
        return ""
    section = SECTION.search(ast.get_docstring(function) or "")
    if section is None:
        return "no Args section"
    if AS_ANOTHER.match(section[1]):
        return ""
    more = {f"*{given.vararg.arg}" if given.vararg else "", f"**{given.kwarg.arg}" if given.kwarg else ""}
    named = {name for entry in ENTRY.findall(section[1]) for name in entry.split(", ")}
    wrong = sorted((parameters - named) | (named - parameters - more))
    return f"Args and parameters differ in {', '.join(wrong)}" if wrong else ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_many_parameters_are_explained(path: Path) -> None:
    functions = public_functions(ast.parse(path.read_text(encoding="utf-8")).body)
    found = {function.name: problem for function in functions if (problem := problem_of(function))}
    assert not found


@pytest.mark.parametrize(
    ("docstring", "problem"),
    [
        ("Sum.", "no Args section"),
        ("Sum.\n\n    Args:\n        a, b: numbers.\n        c: another.\n        d: a last one.\n    ", ""),
        ("Sum.\n\n    Args: those of `other.sum_of`.\n    ", ""),
        ("Sum.\n\n    Args:\n        a, b: numbers.\n        c: another: d\n    ", "Args and parameters differ in d"),
        (
            "Sum.\n\n    Args:\n        a, b, c: numbers.\n        e: once d.\n\n    Raises:\n        d: never.\n    ",
            "Args and parameters differ in d, e",
        ),
    ],
)
def test_a_lacking_explanation_is_seen(docstring: str, problem: str) -> None:
    (function,) = public_functions(ast.parse(f'def f(a, b, c, *, d):\n    """{docstring}"""\n').body)
    assert problem_of(function) == problem
