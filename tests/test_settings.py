"""A program's preflight takes its flags and builds settings, a frozen dataclass for each part; all else takes these."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from tests import REPO

ROOMS = ("drivers", "data", "model", "utils", "results")
PARSER = "utils/flags.py"
GROUPS = "utils/flag_groups/"  # of flags that programs share
# A preflight and what it builds settings with; data/ and results/ have programs of their own.
KNOW_FLAGS = {
    PARSER,
    "data/export.py",
    "data/msmarco_data.py",
    "data/negatives.py",
    "drivers/evaluate/evaluator.py",
    "drivers/evaluate/fuse.py",
    "drivers/evaluate/given_runs.py",
    "drivers/evaluate/query_map.py",
    "drivers/evaluate/start.py",
    "drivers/generate/bm25.py",
    "drivers/generate/preflight.py",
    "drivers/job/settings.py",
    "drivers/plan/check_commands.py",
    "drivers/plan/planner.py",
    "drivers/train/ann.py",
    "drivers/train/settings.py",
    "drivers/train/warmup_preflight.py",
    "results/report.py",
    "utils/program.py",
}

Trees = dict[str, ast.Module]
Name = tuple[str, str]  # the module that defines it, and the name there


def trees_of_rooms() -> Trees:
    files = [path for room in ROOMS for path in sorted((REPO / room).rglob("*.py"))]
    return {str(path.relative_to(REPO)): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def imported(tree: ast.Module) -> dict[str, Name]:
    return {
        alias.asname or alias.name: (f"{(node.module or '').replace('.', '/')}.py", alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def names_in(file: str, tree: ast.Module, nodes: Iterable[ast.AST | None]) -> set[Name]:
    found = {each.id for node in nodes if node is not None for each in ast.walk(node) if isinstance(each, ast.Name)}
    origins = imported(tree)
    return {origins.get(name, (file, name)) for name in found}


def what_it_is_made_of(node: ast.stmt) -> tuple[list[str], list[ast.expr]]:
    """What a module's statement defines, and what makes that a kind of flags: bases, fields, another name."""
    if isinstance(node, ast.ClassDef):
        fields = [item.annotation for item in node.body if isinstance(item, ast.AnnAssign)]
        return [node.name], [*node.bases, *fields]
    if isinstance(node, ast.Assign):
        is_type = isinstance(node.value, ast.BinOp | ast.Name) or ast.unparse(node.value).startswith("TypeVar(")
        return [ast.unparse(target) for target in node.targets], [node.value] if is_type else []
    return [], []


def flag_types(trees: Trees) -> set[Name]:
    """The classes of flags; what is derived from them, is another name for them, or holds one in a field."""
    groups = [(file, tree) for file, tree in trees.items() if file.startswith(GROUPS)]
    found = {(file, node.name) for file, tree in groups for node in tree.body if isinstance(node, ast.ClassDef)}
    found.add((PARSER, "ProgramFlags"))
    made = [(file, tree, *what_it_is_made_of(node)) for file, tree in trees.items() for node in tree.body]
    used = [({(file, name) for name in names}, names_in(file, tree, parts)) for file, tree, names, parts in made]
    while more := {name for names, parts in used if parts & found for name in names - found}:
        found |= more
    return found


def parameters_of(node: ast.FunctionDef) -> list[ast.arg]:
    given = node.args
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, [given.vararg, given.kwarg])]


def takes_flags(trees: Trees) -> set[Name]:
    """Each function that is annotated to take flags, or what holds them."""
    types = flag_types(trees)
    return {
        (file, node.name)
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and names_in(file, tree, (parameter.annotation for parameter in parameters_of(node))) & types
    }


def test_only_programs_take_flags() -> None:
    found = takes_flags(trees_of_rooms())
    assert sorted(name for name in found if name[0] not in KNOW_FLAGS) == []
    assert {file for file, _ in found} == KNOW_FLAGS, "a module of the list takes none: take it off"


def test_the_flags_of_every_program_are_known() -> None:
    types = {name for _, name in flag_types(trees_of_rooms())}
    programs = {"AnnFlags", "Bm25Flags", "EvalFlags", "FuseFlags", "GenerateFlags", "WarmupFlags"}
    assert programs | {"NegativesFlags", "NeighbourhoodFlags", "ReportFlags", "SearchFlags", "OpeningFlags"} <= types
    assert not {"ScheduleSettings", "RefreshSettings", "TrainingSettings", "ModelJob", "Trainer"} & types
    assert not {"Bm25Job", "Evaluation", "GeneratorJob", "QueryMapJob", "TrainerJob", "WarmupJob"} & types


def test_flags_are_seen_however_they_are_passed() -> None:
    sources = {
        f"{GROUPS}seed.py": "class SeedFlags: pass",
        "a.py": "from utils.flag_groups.seed import SeedFlags\nclass OwnFlags(SeedFlags): pass\n"
        "Either = OwnFlags | None\nclass Job:\n    flags: Either\n",
        "b.py": "from a import Job, Either as E\nfrom utils.flag_groups.seed import SeedFlags\n"
        "def one(f: SeedFlags): pass\ndef two(*, j: list[Job]): pass\ndef three(x: int, *rest: E): pass\n",
        "c.py": "from a import OwnFlags\nT = TypeVar('T', bound=OwnFlags)\nNAMES = names_of(OwnFlags)\n"
        "class S:\n    seed: int\n    def of(self, flags: T): pass\ndef four(s: S, n: NAMES): pass\n",
        "d.py": "class OwnFlags: pass\ndef five(of_another_module: OwnFlags): pass\n",
    }
    trees = {file: ast.parse(source) for file, source in sources.items()}
    assert takes_flags(trees) == {("b.py", "one"), ("b.py", "two"), ("b.py", "three"), ("c.py", "of")}
