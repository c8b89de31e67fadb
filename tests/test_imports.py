"""Imports go one way: between the rooms, and between the packages of each room.

utils <- data, utils <- model, drivers import all three, results only utils.
"""

from __future__ import annotations

import ast
import graphlib
import re
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
# The packages of a room that each of them may import, next to the room's own modules.
PACKAGES_BELOW: dict[str, set[str]] = {
    "utils.declared": set(),
    "utils.distributed": set(),
    "utils.exchange": {"utils.declared"},
    "utils.ir": {"utils.declared", "utils.exchange"},
    "utils.search": set(),
    "utils.flag_groups": {"utils.declared", "utils.exchange", "utils.search"},
    "data.sources": set(),
    "data.tokens": {"data.sources"},
    "data.mining": {"data.sources", "data.tokens"},
    "data.training": {"data.sources", "data.tokens", "data.mining"},
    "data.formats": {"data.sources", "data.tokens", "data.mining"},
    "model.kernels": set(),
    "model.formats": set(),
    "model.encoders": {"model.kernels", "model.formats"},
    "model.train": {"model.kernels", "model.formats", "model.encoders"},
    "drivers.cli": set(),
    "drivers.job": {"drivers.cli"},
    "drivers.embeddings": {"drivers.cli", "drivers.job"},
    "drivers.evaluate": {"drivers.cli", "drivers.job", "drivers.embeddings"},
    "drivers.generate": {"drivers.cli", "drivers.job", "drivers.embeddings"},
    "drivers.train": {"drivers.cli", "drivers.job", "drivers.embeddings", "drivers.evaluate"},
    "drivers.plan": {"drivers.cli"},
    "results.read": set(),
    "results.plots": {"results.read"},
    "results.page": {"results.read", "results.plots"},
}


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


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPO).with_suffix("").parts)


def place_of(module: str) -> str:
    """The package of a room that a module is in, or the module where it is the room's own."""
    return ".".join(module.split(".")[:2])


def is_ours(module: str) -> bool:
    path = REPO / module.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_a_package_imports_only_the_packages_below_it(path: Path) -> None:
    place, room = place_of(module_of(path)), path.relative_to(REPO).parts[0]
    imported = {place_of(name) for name in modules_imported(path.read_text()) if name.startswith(f"{room}.")}
    if place in PACKAGES_BELOW:
        above = imported & set(PACKAGES_BELOW) - PACKAGES_BELOW[place] - {place}
        assert not above, f"{path} imports {above}"


def test_every_package_has_its_place_in_the_order() -> None:
    """And so a new one gets one."""
    packages = {place_of(module_of(path)) for path in SOURCES if len(path.relative_to(REPO).parts) > 2}
    assert packages == set(PACKAGES_BELOW)
    for package, below in PACKAGES_BELOW.items():
        assert all(PACKAGES_BELOW[lower] < below for lower in below), f"{package}'s order is no order"


def test_no_two_places_import_each_other() -> None:
    """Also by way of a room's own modules: the packages and those modules have an order."""
    arrows: dict[str, set[str]] = {}
    for path in SOURCES:
        place = place_of(module_of(path))
        ours = {place_of(name) for name in modules_imported(path.read_text()) if is_ours(name)}
        arrows.setdefault(place, set()).update(ours - {place} - set(MAY_IMPORT))
    order = graphlib.TopologicalSorter(arrows)
    assert len(list(order.static_order())) >= len(PACKAGES_BELOW)  # CycleError names the circle


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


# The job protocol: who works in a directory, who lives, who asks to stop. How a negative is chosen, or a vector
# computed, is read without it.
JOB_PROTOCOL = {
    "utils.exchange.lease", "utils.exchange.markers", "utils.exchange.peers", "utils.exchange.retention",
    "utils.exchange.stop", "drivers.job.fencing", "drivers.job.session",
}  # fmt: skip
PROTOCOL_WORDS = {"lease", "fence", "fenced", "fencing", "heartbeat", "beat", "peer", "session"}
WALLED_OFF = (
    "data/mining", "data/tokens", "data/training", "drivers/embeddings", "drivers/evaluate/ranking.py",
    "drivers/generate/encode_corpus.py", "drivers/generate/refresh.py", "drivers/job/progress.py", "model",
    "utils/search",
)  # fmt: skip


def identifiers(source: str) -> set[str]:
    """Every name that a source uses or gives: of variables, attributes, arguments, functions, classes and imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        names = [getattr(node, field, None) for field in ("id", "attr", "arg", "name", "asname")]
        found |= {name for name in names if isinstance(name, str)}
    return found


def words_of(identifier: str) -> set[str]:
    """``LeaseTimeouts`` and ``lease_timeouts`` are of the words lease and timeouts."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", identifier)}


def protocol_in(source: str) -> set[str]:
    """What a source imports and names of the job protocol."""
    imported = {name for name in modules_imported(source) for part in JOB_PROTOCOL if f"{name}.".startswith(f"{part}.")}
    return imported | {name for name in identifiers(source) if words_of(name) & PROTOCOL_WORDS}


WALLED_SOURCES = [path for path in SOURCES if str(path.relative_to(REPO)).startswith(WALLED_OFF)]


@pytest.mark.parametrize("path", WALLED_SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_negatives_and_vectors_are_made_without_the_job_protocol(path: Path) -> None:
    assert not protocol_in(path.read_text())


def test_the_wall_sees_the_job_protocol() -> None:
    """And stands around what it is to stand around."""
    assert {path.split("/")[0] for path in WALLED_OFF} == {"data", "drivers", "model", "utils"}
    for part in WALLED_OFF:
        assert any(str(path.relative_to(REPO)).startswith(part) for path in WALLED_SOURCES), part
    assert protocol_in("def f():\n    from utils.exchange import lease\n")
    assert protocol_in("from drivers.job.fencing import anything\n")
    assert protocol_in("def remove(lease: object) -> None: ...\n") == {"lease"}
    assert protocol_in("try:\n    f()\nexcept (KeyError, Fenced):\n    pass\n") == {"Fenced"}
    assert protocol_in("def f(held: LeaseTimeouts) -> None: held.last_heartbeat\n") == {
        "LeaseTimeouts",
        "last_heartbeat",
    }
    assert not protocol_in("def release(n_beats: int) -> None: ...\n")
    assert protocol_in((REPO / "drivers/generate/generator.py").read_text()), "it stands in the generator"
