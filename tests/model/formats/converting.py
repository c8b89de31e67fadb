"""python -m model.convert in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import pytest

from model import convert as program
from utils.errors import UserError


def call(source: str, target: str, *words: str | Path) -> None:
    argv = ["convert", "--from", source, "--to", target, *map(str, words)]
    with mock.patch.object(sys, "argv", argv):
        program.main()


def convert(source: str, target: str, from_path: Path, to_path: Path, *flags: str) -> Path:
    """The path of what was written."""
    call(source, target, from_path, to_path, *flags)
    return to_path


def refused(source: str, target: str, *words: str | Path) -> str:
    """The one line of a refusal, after which there is nothing in OUT's place, nor next to it."""
    out = next(Path(word) for word in reversed(words) if not str(word).startswith("--"))
    before = sorted(out.parent.iterdir())
    with pytest.raises(UserError) as caught:
        call(source, target, *words)
    assert sorted(out.parent.iterdir()) == before
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def files_in(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
