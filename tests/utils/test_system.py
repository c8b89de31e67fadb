"""What is freed stays with the process, and goes back: the memory of processes that take and free tensors."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from tests import REPO

MIB = 2**20
PROGRAM = f"""
import sys
import torch
from benchmarks.baselines import give_freed_memory_back
from benchmarks.common import own_bytes
from utils.system import keep_freed_memory

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
import ctypes
import resource
import statistics
import sys
import torch
from benchmarks.common import make_encoder
from drivers.job.encoder_setup import prepare_encoder
from utils.distributed.world import World

PR_SET_THP_DISABLE = 41  # of linux/prctl.h
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # a huge page would count as one
encoder = make_encoder(layers=2, width=128).eval()
if sys.argv[1] == "tuned":
    prepare_encoder(encoder, None, World(0, 1, torch.device("cpu")))
else:
    encoder.pack_texts(True)
ids_BL = torch.full((20, 100), 5)
seen = []
with torch.inference_mode():
    for _ in range(20):
        encoder.body_emb(ids_BL, torch.ones_like(ids_BL))
        seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print("pages", statistics.median(after - before for before, after in zip(seen, seen[1:])))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_encoding_takes_no_new_pages_batch_after_batch() -> None:
    allocators = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(allocators)}
    pages = {}
    for word in ("plain", "tuned"):
        done = subprocess.run(
            [sys.executable, "-c", ENCODES, word],
            cwd=REPO,
            env={**environment, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        pages[word] = float(done.stdout.rsplit("pages", 1)[1])
    assert pages["plain"] > 500 and pages["tuned"] < 100
