"""Where the randomness of a program's processes starts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from drivers.job.setup import seed_everything


def drawn(seed: int, process: int) -> list[float]:
    """What dropout and new weights would be made of."""
    seed_everything(seed, process)
    return torch.rand(64).tolist()


@pytest.fixture(autouse=True)
def random_state_stays() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31 + 5])
def test_the_first_process_draws_what_torch_s_seed_gives(seed: int) -> None:
    torch.manual_seed(seed)
    expected = torch.rand(64).tolist()
    assert drawn(seed, 0) == expected


def test_no_two_seeds_and_processes_share_a_stream() -> None:
    streams = {tuple(drawn(seed, process)) for seed in range(12) for process in range(8)}
    assert len(streams) == 12 * 8


@pytest.mark.parametrize(("seed", "process"), [(1, 1), (1, 7), (42, 3), (2**63, 2)])
def test_the_other_processes_draw_from_numpy_s_seed_sequence(seed: int, process: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence([seed, process]).generate_state(1, np.uint64)[0]))
    expected = torch.rand(64).tolist()
    assert drawn(seed, process) == drawn(seed, process) == expected
