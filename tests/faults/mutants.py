"""The protocol broken on purpose, one rule at a time: twelve changes of the programs, each of which a row must catch.

A mutant names a function and says what becomes of the calls, comparisons or statements in it; how its lines are worded
does not matter. `applied` puts it into the function where it stands, so that whoever imported the function gets the
mutant too. Where a mutant finds nothing to change, it has to be written again: `NotApplicable`.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

Change = Callable[[ast.FunctionDef], ast.FunctionDef]


class NotApplicable(Exception):
    """The function is not there, or holds nothing of what the mutant changes."""


@dataclass(frozen=True)
class Mutant:
    """``change`` is made to ``function`` (``name`` or ``Class.name``) of ``module``; one of ``rows`` has to see it."""

    about: str
    module: str
    function: str
    change: Change
    rows: tuple[str, ...]

    def __str__(self) -> str:
        return f"mutant: {self.about}"


# Changes


def is_call(node: ast.AST, pattern: str) -> bool:
    """Whether it is a call of what ``pattern`` ends with (``link``, ``os.link``), with its arguments if it has some."""
    wanted = ast.parse(pattern, mode="eval").body
    if not isinstance(node, ast.Call):
        return False
    if isinstance(wanted, ast.Call):
        return ast.unparse(node) == ast.unparse(wanted)
    return f".{ast.unparse(node.func)}".endswith(f".{pattern}")


def statements_with(function: ast.FunctionDef, pattern: str) -> list[ast.Expr]:
    """The statements that are such a call and nothing else, in their order."""
    calls = (node for node in ast.walk(function) if isinstance(node, ast.Expr) and is_call(node.value, pattern))
    return sorted(calls, key=lambda node: (node.lineno, node.col_offset))


class Replacing(ast.NodeTransformer):
    """Every node that ``chosen`` answers for becomes its answer."""

    def __init__(self, chosen: Callable[[ast.AST], ast.AST | None]) -> None:
        self.chosen, self.count = chosen, 0

    def visit(self, node: ast.AST) -> Any:
        new = self.chosen(node)
        if new is None:
            return self.generic_visit(node)
        self.count += 1
        return ast.copy_location(new, node)


def replaced(function: ast.FunctionDef, chosen: Callable[[ast.AST], ast.AST | None], what: str) -> ast.FunctionDef:
    replacing = Replacing(chosen)
    changed: ast.FunctionDef = replacing.generic_visit(function)  # type: ignore[assignment]
    if not replacing.count:
        raise NotApplicable(f"{function.name} has no {what}")
    return changed


def without(pattern: str, which: slice = slice(None)) -> Change:
    """``which`` of the statements that are such a call are omitted."""

    def change(function: ast.FunctionDef) -> ast.FunctionDef:
        left_out = statements_with(function, pattern)[which]
        return replaced(function, lambda node: ast.Pass() if node in left_out else None, f"call of {pattern}")

    return change


def never_true(name: str) -> Change:
    """Comparisons in which the name or attribute occurs are False."""

    def is_about(node: ast.AST) -> bool:
        return isinstance(node, ast.Compare) and any(
            name in (getattr(inner, "id", ""), getattr(inner, "attr", "")) for inner in ast.walk(node)
        )

    return lambda function: replaced(
        function, lambda node: ast.Constant(False) if is_about(node) else None, f"comparison with {name}"
    )


def never_different() -> Change:
    """Comparisons by ``!=`` are False."""

    def is_about(node: ast.AST) -> bool:
        return isinstance(node, ast.Compare) and any(isinstance(each, ast.NotEq) for each in node.ops)

    return lambda function: replaced(
        function, lambda node: ast.Constant(False) if is_about(node) else None, "comparison by !="
    )


def first_argument(pattern: str) -> Change:
    """Such a call becomes its first argument."""
    return lambda function: replaced(
        function,
        lambda node: node.args[0] if isinstance(node, ast.Call) and is_call(node, pattern) else None,
        f"call of {pattern}",
    )


def beginning_with(statement: str, parameter: str) -> Change:
    """``statement`` comes first, which changes a parameter."""

    def change(function: ast.FunctionDef) -> ast.FunctionDef:
        if parameter not in [each.arg for each in (*function.args.args, *function.args.kwonlyargs)]:
            raise NotApplicable(f"{function.name} has no parameter {parameter}")
        function.body = [*ast.parse(statement).body, *function.body]
        return function

    return change


def only(statements: str) -> Change:
    """The function does nothing but ``statements``."""

    def change(function: ast.FunctionDef) -> ast.FunctionDef:
        function.body = ast.parse(statements).body
        return function

    return change


def later(pattern: str, than: str) -> Change:
    """The first such call comes after the statement of the same block in which ``than`` is called."""

    def change(function: ast.FunctionDef) -> ast.FunctionDef:
        moved = statements_with(function, pattern)[:1]
        for node in ast.walk(function):
            body = getattr(node, "body", [])
            calls = [each for each in body if any(is_call(inner, than) for inner in ast.walk(each))]
            if moved and calls and moved[0] in body and body.index(moved[0]) < body.index(calls[-1]):
                body.insert(body.index(calls[-1]) + 1, moved[0])
                body.remove(moved[0])
                return function
        raise NotApplicable(f"{function.name} has no call of {pattern} before one of {than}")

    return change


MUTANTS = (
    Mutant(
        "the record before the data",
        "utils.exchange.negatives",
        "publish_negatives",
        later("link_data", than="link_record"),
        ("order",),
    ),
    Mutant(
        "files of a checkpoint not synced before its name appears",
        "utils.exchange.checkpoints",
        "publish_checkpoint",
        without("sync", slice(0, -1)),
        ("order",),
    ),
    Mutant(
        "the directory not synced between the data and its record",
        "utils.exchange.negatives",
        "publish_negatives",
        without("sync(lease.directory)", slice(0, -1)),
        ("order",),
    ),
    Mutant(
        "small files written in place",
        "utils.exchange.atomic",
        "publish_file",
        only("path.parent.mkdir(parents=True, exist_ok=True); write(path); sync(path); sync(path.parent)"),
        ("order",),
    ),
    Mutant(
        "sizes checked, sha256 not",
        "utils.exchange.verify",
        "verify_files",
        never_true("sha256_of"),
        ("damage",),
    ),
    Mutant(
        "the seal of small files not checked",
        "utils.exchange.atomic",
        "load_with_checksum",
        never_different(),
        ("damage",),
    ),
    Mutant(
        "the first checkpoint listed instead of the newest",
        "utils.exchange.checkpoints",
        "newest_checkpoint",
        first_argument("reversed"),
        ("damage", "stops"),
    ),
    Mutant(
        "resuming without the position in the negatives",
        "drivers.train.active_negatives",
        "open_negatives",
        beginning_with("batches_done = 0", "batches_done"),
        ("kills", "stops"),
    ),
    Mutant(
        "resuming with a learning-rate schedule begun again",
        "model.train.checkpoint",
        "load_optimizer_scheduler",
        without("scheduler.load_state_dict"),
        ("kills", "stops"),
    ),
    Mutant(
        "a stop that saves nothing",
        "drivers.train.trainer",
        "Trainer.save_and_stop",
        without("self.publish"),
        ("stops",),
    ),
    Mutant(
        "an earlier holder's staging left where it is",
        "utils.exchange.lease.acquire",
        "acquire",
        without("fence_others"),
        ("fencing",),
    ),
    Mutant(
        "silence never noticed",
        "utils.exchange.peers",
        "Peer.check_absence",
        never_true("silent_seconds"),
        ("peers",),
    ),
)


# Applying them


def function_of(mutant: Mutant) -> FunctionType:
    """The function itself, without what decorates it."""
    found: Any = importlib.import_module(mutant.module)
    for name in mutant.function.split("."):
        found = getattr(found, name, None)
    if found is None:
        raise NotApplicable(f"{mutant.module} has no {mutant.function}")
    function: FunctionType = inspect.unwrap(found)
    return function


def mutated_code(mutant: Mutant) -> CodeType:
    """The function's code with the change. NotApplicable where it makes no difference."""
    function = function_of(mutant)
    path = function.__code__.co_filename
    tree = ast.parse(Path(path).read_text())
    place: Any = tree
    for name in mutant.function.split("."):
        place = next(node for node in place.body if getattr(node, "name", None) == name)
    mutant.change(place)
    code = code_named(compile(ast.fix_missing_locations(tree), path, "exec"), mutant.function)
    if code == function.__code__:
        raise NotApplicable(f"{mutant.function} is as it was")
    return code


def code_named(code: CodeType, name: str) -> CodeType:
    """The code of a function or method among all that of a module."""
    inside = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    found = [each for each in inside if each.co_qualname == name]
    return found[0] if found else next(code_named(each, name) for each in inside if name.startswith(each.co_qualname))


def apply(about: str) -> None:
    """Break this process's program, for good, by the mutant of this name."""
    mutant = next(each for each in MUTANTS if each.about == about)
    function_of(mutant).__code__ = mutated_code(mutant)


@contextlib.contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """The program of this process is broken for the block."""
    function = function_of(mutant)
    whole = function.__code__
    apply(mutant.about)
    try:
        yield
    finally:
        function.__code__ = whole
