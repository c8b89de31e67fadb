"""--compile: the same embeddings, losses and gradients, under the same names."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from drivers.job.encoder_setup import check_compiler, prepare_encoder
from drivers.job.settings import compute_settings
from model.encode import TextSource, encode_blocks
from tests import REPO
from tests.model.kernels.test_packed_attention import batch_of, gradient, make_encoder
from tests.model.train.test_grad_cache import embeddings_of_passes, with_dropout
from tests.model.train.test_step import roberta_encoder, train_run
from tests.processes_as_threads import ALONE, CPU
from tests.shell import script_environment
from tests.texts import ragged
from utils.distributed import process_group
from utils.distributed.world import World
from utils.errors import UserError


def texts(lengths: list[int]) -> TextSource:
    ids = batch_of(lengths)[0].tolist()
    lengths_N = np.array(lengths)

    def gather(rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return ragged([ids[row][: lengths[row]] for row in rows_B.tolist()])

    return TextSource(len(lengths), lambda start, stop: lengths_N[start:stop], gather, "passage")


@pytest.mark.slow
def test_a_compiled_model_computes_the_same_in_batches_of_any_shape() -> None:
    plain, compiled = make_encoder(), make_encoder()
    names = list(plain.state_dict())
    prepare_encoder(compiled, None, ALONE, compiled=True)
    assert list(compiled.state_dict()) == names
    lengths = [30, 29, 12, 11, 11, 7, 3, 3, 3, 2, 1]
    expected_ND, found_ND = (
        np.concatenate(list(encode_blocks(encoder, texts(lengths), (0, len(lengths)), 40, CPU, None)))
        for encoder in (plain, compiled)
    )
    np.testing.assert_allclose(found_ND, expected_ND, atol=1e-4)
    for shape in ([9, 4, 2], [20, 20]):
        expected, found = (gradient(encoder, *batch_of(shape)) for encoder in (plain, compiled))
        for ours, theirs in zip(found, expected, strict=True):
            assert float((ours - theirs).norm()) <= 1e-4 * float(theirs.norm())


@pytest.mark.slow
def test_grad_cache_s_second_pass_repeats_the_first_of_a_compiled_model() -> None:
    encoder = with_dropout(roberta_encoder(), 0.1)
    encoder.compile(dynamic=True)
    seen, _ = embeddings_of_passes(encoder, torch.bfloat16, 8)
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(first) > 3 and all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def train_compiled(rank: int, directory: str) -> None:
    """What `test_training.train_run` does, on two ranks and compiled."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    world = World(rank, 2, CPU)
    encoder = roberta_encoder()
    prepare_encoder(encoder, None, world, compiled=True, trains=True)
    weights, losses = train_run(encoder, "pairwise", 0, world, steps=1)
    process_group.stop(world)
    torch.save((weights, losses), Path(directory) / f"rank-{rank}.pt")


@pytest.mark.slow
def test_two_ranks_train_a_compiled_model_as_one_process_does_a_plain_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_compiled, (str(tmp_path),), nprocs=2)
    expected, expected_losses = train_run(roberta_encoder(), "pairwise", 0, ALONE, steps=1)
    for rank in (0, 1):
        weights, losses = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True)
        assert torch.allclose(weights, expected, rtol=0, atol=1e-5)
        assert losses == pytest.approx(expected_losses, rel=1e-5)


@pytest.mark.slow
def test_a_model_compiles_where_torch_is_in_a_path_with_a_blank(tmp_path: Path) -> None:
    """As torch of a .venv in such a path is; a link to this one looks the same to its compiler."""
    site = tmp_path / "a bl\u00e4nk"
    site.symlink_to(Path(torch.__file__).parent.parent)
    program = (
        "import torch\n"
        "from drivers.job.encoder_setup import prepare_encoder\n"
        "from utils.distributed.world import World\n"
        "class Encoder(torch.nn.Module):\n"
        "    padding_costs = False\n"
        "    def forward(self, x): return (2 * x).softmax(-1) + 1\n"
        "encoder, batch = Encoder(), torch.rand(5, 3)\n"
        "expected = encoder(batch)\n"
        "prepare_encoder(encoder, None, World(0, 1, torch.device('cpu')), compiled=True)\n"
        "assert (encoder(batch) - expected).abs().max() < 1e-6\n"
        "print(torch.__file__)\n"
    )
    places = {"PYTHONPATH": f"{site}:{REPO}", "TORCHINDUCTOR_CACHE_DIR": tmp_path / "cache", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=REPO, env=script_environment(**places), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"{site}/torch/__init__.py\n"


@pytest.mark.parametrize("variable", ["TMPDIR", "TORCHINDUCTOR_CACHE_DIR"])
def test_compiling_in_a_directory_with_a_blank_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    (tmp_path / "a blank").mkdir()
    monkeypatch.setenv(variable, str(tmp_path / "a blank"))
    monkeypatch.setattr(tempfile, "tempdir", None)  # what it found before
    check_compiler(on_gpu=True)
    with pytest.raises(UserError, match=f"a blank, which has a blank in it: set {variable} to a directory without one"):
        check_compiler(on_gpu=False)


def test_compiling_without_a_compiler_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"per_gpu_eval_batch_size": 1, "max_seq_length": 8, "max_query_length": 8, "collective_timeout_seconds": 1}
    flags = SimpleNamespace(**sizes, model_type="static", no_cuda=True, compile=True)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/opt/bin/" + name if name == "icpx" else None)
    with pytest.raises(UserError, match=r"--compile needs a compiler, there is no g\+\+ or clang\+\+"):
        compute_settings(flags)
    monkeypatch.setenv("CXX", "icpx")
    check_compiler(on_gpu=False)
    with pytest.raises(UserError, match="no gcc or clang"):
        check_compiler(on_gpu=True)
