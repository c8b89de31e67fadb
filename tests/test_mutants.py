"""Every mutant of tests.faults still finds what it changes; that the rows catch it is a row of test_faults.py."""

from __future__ import annotations

import ast
import textwrap

import pytest

from tests.faults import mutants
from tests.faults.mutants import MUTANTS, Mutant, NotApplicable


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.about)
def test_a_mutant_changes_its_function_for_the_block(mutant: Mutant) -> None:
    function = mutants.function_of(mutant)
    whole = function.__code__
    with mutants.applied(mutant):
        assert function.__code__.co_code != whole.co_code or function.__code__.co_consts != whole.co_consts
    assert function.__code__ is whole


SOURCE = """
def publish(lease):
    if lease.held:
        link(
            lease.data,  # the data
        )
        sync(lease)
        try:
            os.link(lease.record)
        except OSError:
            pass
    sync(lease)
    for step in reversed(lease.steps):
        if sha256_of(step) != lease.sha256:
            return step
"""


def changed(change: mutants.Change) -> str:
    """The changed source, as one line for each statement."""
    function = ast.parse(SOURCE).body[0]
    assert isinstance(function, ast.FunctionDef)
    return ast.unparse(ast.fix_missing_locations(change(function)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (mutants.without("sync"), {"sync(lease)": "pass"}),
        (mutants.without("sync(lease)", slice(0, -1)), {"sync(lease)\n        try": "pass\n        try"}),
        (mutants.never_true("sha256"), {"sha256_of(step) != lease.sha256": "False"}),
        (mutants.never_different(), {"sha256_of(step) != lease.sha256": "False"}),
        (mutants.first_argument("reversed"), {"reversed(lease.steps)": "lease.steps"}),
        (mutants.beginning_with("lease = None", "lease"), {"(lease):\n": "(lease):\n    lease = None\n"}),
    ],
)
def test_a_change_is_what_it_says(change: mutants.Change, expected: dict[str, str]) -> None:
    text = ast.unparse(ast.parse(SOURCE))
    for old, new in expected.items():
        text = text.replace(old, new)
    assert changed(change) == text


def test_a_call_comes_later_than_another() -> None:
    names = [line.strip() for line in changed(mutants.later("link", than="os.link")).splitlines()]
    assert names.index("link(lease.data)") == names.index("pass") + 1


def test_a_body_is_another() -> None:
    assert changed(mutants.only("return lease")) == textwrap.dedent("""\
        def publish(lease):
            return lease""")


@pytest.mark.parametrize(
    "change",
    [
        mutants.without("fsync"),
        mutants.without("sync(data)"),
        mutants.without("sync", slice(2, None)),
        mutants.never_true("size"),
        mutants.first_argument("sorted"),
        mutants.beginning_with("batches_done = 0", "batches_done"),
        mutants.later("sync_all", than="os.link"),
        mutants.later("reversed", than="os.link"),
    ],
)
def test_what_finds_nothing_to_change_says_so(change: mutants.Change) -> None:
    with pytest.raises(NotApplicable):
        changed(change)


@pytest.mark.parametrize("function", ["publish_nothing", "Lease.publish"])
def test_a_function_that_is_not_there_is_said(function: str) -> None:
    with pytest.raises(NotApplicable):
        mutants.mutated_code(Mutant("", "utils.exchange", function, mutants.without("sync"), ()))
