"""What is freed stays with the process, and goes back: the memory of processes that take and free tensors."""

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


ENCODES = """
import resource
import statistics
import sys
from types import SimpleNamespace
import torch
from benchmarks.common import make_encoder
from drivers.shared import settle_encoder
from utils.distributed import World

encoder = make_encoder(layers=2, width=128).eval()
if sys.argv[1] == "settled":
    settle_encoder(SimpleNamespace(compile=False), encoder, None, World(0, 1, torch.device("cpu")))
else:
    encoder.pack_texts(True)
ids_BL = torch.full((20, 100), 5)
seen = []
with torch.inference_mode():
    for _ in range(20):
        encoder(ids_BL, torch.ones_like(ids_BL))
        seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print("pages", statistics.median(after - before for before, after in zip(seen, seen[1:])))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
@pytest.mark.parametrize(("word", "at_least", "at_most"), [("plain", 500, 20_000), ("settled", 0, 100)])
def test_encoding_takes_no_new_pages_batch_after_batch(word: str, at_least: int, at_most: int) -> None:
    words = [sys.executable, "-c", ENCODES, word]
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, check=True)
    assert at_least <= float(done.stdout.rsplit("pages", 1)[1]) <= at_most
