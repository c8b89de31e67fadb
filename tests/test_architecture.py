"""docs/architecture.md and docs/extending.md: the packages, how large they are, and the names a reader is sent to."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests import REPO
from tests.test_imports import PACKAGES_BELOW

ARCHITECTURE = REPO / "docs" / "architecture.md"
EXTENDING = REPO / "docs" / "extending.md"
ROOMS = ("drivers", "data", "model", "utils", "results")
MOST_MODULES, MOST_LINES = 13, 300  # of a folder, __init__.py apart; of a module
# `FILE`: `NAME`, `NAME`
SIGNPOST = re.compile(r"`([\w/.-]+\.(?:py|sh))`: ((?:`[\w.]+`(?:, )?)+)")


def signposts_of(text: str) -> list[tuple[str, str]]:
    found = SIGNPOST.findall(text)
    return [(file, name) for file, names in found for name in re.findall(r"`([\w.]+)`", names)]


def names_defined(source: str) -> set[str]:
    """What a module defines at its top, and Class.member for what its classes do."""

    def named(body: list[ast.stmt]) -> list[tuple[str, ast.stmt]]:
        found: list[tuple[str, ast.stmt]] = []
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.append((node.name, node))
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found += [(target.id, node) for target in targets if isinstance(target, ast.Name)]
        return found

    names = set()
    for name, node in named(ast.parse(source).body):
        names.add(name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{name}.{member}" for member, _ in named(node.body)}
    return names


def is_defined(file: str, name: str) -> bool:
    source = (REPO / file).read_text(encoding="utf-8")
    if file.endswith(".sh"):
        return re.search(rf"^{re.escape(name)}\(\) \{{", source, re.M) is not None
    return name in names_defined(source)


@pytest.mark.parametrize(
    ("page", "file", "name"),
    [(page, *post) for page in (ARCHITECTURE, EXTENDING) for post in signposts_of(page.read_text(encoding="utf-8"))],
    ids=str,
)
def test_what_a_page_sends_you_to_is_defined_there(page: Path, file: str, name: str) -> None:
    assert (REPO / file).is_file(), f"{page.name} names {file}"
    assert is_defined(file, name), f"{page.name}: {file} does not define {name}"


def test_a_name_that_is_not_there_is_seen() -> None:
    assert signposts_of("`a/b.py`: `one`, `C.two`. `c.sh`: `three`") == [
        ("a/b.py", "one"),
        ("a/b.py", "C.two"),
        ("c.sh", "three"),
    ]
    names = names_defined("import os\nA = 1\nclass C:\n    x: int\n    def f(self): g = 2\ndef h(): pass\n")
    assert names == {"A", "C", "C.x", "C.f", "h"}
    assert is_defined("commands/env.sh", "absolute") and not is_defined("commands/env.sh", "absolut")


def test_the_table_of_changes_names_a_place_in_every_row() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    table = text.partition("## To change")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 10
    assert all(signposts_of(row) for row in rows)
    extensions = [row for row in EXTENDING.read_text(encoding="utf-8").splitlines() if row.startswith("| a ")]
    assert extensions and all(signposts_of(row) for row in extensions)


def packages_of_picture() -> dict[str, int]:
    """{"drivers.train": its line in the picture}; two folders may stand next to each other."""
    picture = ARCHITECTURE.read_text(encoding="utf-8").partition("```text\n")[2].partition("```")[0]
    found: dict[str, int] = {}
    room_of_column = ["", ""]
    for number, line in enumerate(picture.splitlines()):
        for match in re.finditer(r"([├└]─ )?\b([a-z_]+)/", line):
            is_right = match.start() > 30
            if match[1]:
                found[f"{room_of_column[is_right]}.{match[2]}"] = number
            else:
                room_of_column[is_right] = match[2]
    return found


def test_the_picture_has_every_package_and_no_other() -> None:
    packages = {path.parent.relative_to(REPO) for room in ROOMS for path in (REPO / room).glob("*/__init__.py")}
    assert set(packages_of_picture()) == {".".join(package.parts) for package in packages}
    nested = {path.parent.relative_to(REPO) for room in ROOMS for path in (REPO / room).glob("*/*/**/__init__.py")}
    assert nested == {Path("utils/exchange/lease")}, "a package inside a package: is it to be in the picture?"


def test_packages_import_those_below_them_in_the_picture() -> None:
    line_of = packages_of_picture()
    assert all(line_of[one] < line_of[other] for one, below in PACKAGES_BELOW.items() for other in below)


# How large


def modules_by_folder() -> dict[Path, list[Path]]:
    found: dict[Path, list[Path]] = {}
    for path in (path for room in ROOMS for path in sorted((REPO / room).rglob("*.py"))):
        if path.name != "__init__.py":
            found.setdefault(path.parent.relative_to(REPO), []).append(path)
    return found


def test_a_folder_has_few_modules_and_each_of_them_fits_the_eye() -> None:
    by_folder = modules_by_folder()
    assert {Path("drivers/job"), Path("utils/exchange/lease"), Path("results")} <= by_folder.keys()
    assert {str(folder): len(paths) for folder, paths in by_folder.items() if len(paths) > MOST_MODULES} == {}
    paths = [path for folder in by_folder.values() for path in folder]
    lengths = {str(path.relative_to(REPO)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}


def test_drivers_itself_holds_programs_and_what_says_how_to_start_them() -> None:
    names = {path.name for path in modules_by_folder()[Path("drivers")]}
    assert {name for name in names if not name.startswith("run_")} == {"drivers.py"}
    assert "run_ann.py" in names
