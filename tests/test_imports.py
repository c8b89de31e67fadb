"""The rule of the rooms: utils <- data, utils <- model, drivers import all three, results only utils."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests import REPO

MAY_IMPORT = {
    "utils": {"utils"},
    "data": {"data", "utils"},
    "model": {"model", "utils"},
    "drivers": {"drivers", "data", "model", "utils"},
    "results": {"results", "utils"},
}
ROOMS = set(MAY_IMPORT) | {"tests", "benchmarks", "commands"}


def modules_imported(source: str) -> set[str]:
    """Every module that a source imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


SOURCES = [path for room in MAY_IMPORT for path in sorted((REPO / room).rglob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_a_room_imports_only_the_rooms_below_it(path: Path) -> None:
    room = path.relative_to(REPO).parts[0]
    ours = {name.split(".")[0] for name in modules_imported(path.read_text())} & ROOMS
    assert ours <= MAY_IMPORT[room], f"{path} imports {ours - MAY_IMPORT[room]}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_nothing_imports_a_program(path: Path) -> None:
    programs = {name for name in modules_imported(path.read_text()) if name.startswith("drivers.run_")}
    assert not programs


def test_the_rule_sees_an_import_inside_a_function() -> None:
    assert "data.negatives" in modules_imported("def f():\n    from data.negatives import is_positive\n")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_no_source_unpickles_evaluates_or_edits_the_path(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not {"pickle", "joblib", "dill", "marshal"} & {
        name.split(".")[0] for name in modules_imported(path.read_text())
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), f"{path}:{node.lineno}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert {"weights_only=True"} <= {ast.unparse(keyword) for keyword in node.keywords}, f"{path}:{node.lineno}"
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) != "sys.path", f"{path}:{node.lineno}"
        if isinstance(node, ast.keyword):
            assert node.arg != "trust_remote_code", f"{path}:{node.lineno}"
