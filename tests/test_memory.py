"""What is freed stays with the process, and goes back: the memory of a process that takes and frees a tensor."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
MIB = 2**20
PROGRAM = f"""
import sys
import torch
from benchmarks.baselines import give_freed_memory_back
from benchmarks.common import own_bytes
from utils.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
before = own_bytes()
for mib in (100, 40, 100):
    freed = torch.ones(mib * 2**18)
    del freed
after = own_bytes()
give_freed_memory_back()
print(*((now - before) // {MIB} for now in (after, own_bytes())))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
@pytest.mark.parametrize(("word", "at_least", "at_most"), [("default", -50, 30), ("keep", 90, 300)])
def test_freed_memory_is_kept_and_given_back(word: str, at_least: int, at_most: int) -> None:
    words = [sys.executable, "-c", PROGRAM, word]
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, check=True)
    after, given = map(int, done.stdout.split())
    assert at_least <= after <= at_most and given < 30
