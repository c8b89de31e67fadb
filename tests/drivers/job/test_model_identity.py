"""A checkpoint is held against its manifest before it is used: what is read of it, once, on process 0."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivers import run_ann, run_ann_data_gen, run_eval, run_warmup
from drivers.job.encoder_setup import check_model_directory
from drivers.job.model_identity import ModelSettings
from tests.conftest import TINY_MAX_QUERY_LENGTH, TINY_MAX_SEQ_LENGTH
from tests.drivers.test_run_bm25 import call
from tests.exchanging import flip_byte
from tests.faults.programs import Inputs
from utils.distributed import agreement
from utils.errors import UserError
from utils.exchange import verify
from utils.exchange.layout import JobLayout

STEPS = (2, 4)
STATE = ("optimizer.pt", "scheduler.pt", "rng_states.safetensors")


@pytest.fixture(scope="module", name="trained")
def fixture_trained(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warmup's directory, with two checkpoints."""
    directory = tmp_path_factory.mktemp("warmup")
    call(run_warmup.main, **warmup_flags(inputs, directory), do_train="true", bm25_dir=inputs.bm25_dir,
         config_name=inputs.directory / "config.json", tokenizer_name=inputs.tokenizer,
         max_steps=max(STEPS), save_steps=min(STEPS), learning_rate=1e-2)  # fmt: skip
    return directory


@pytest.fixture(name="copied")
def fixture_copied(trained: Path, tmp_path: Path) -> Path:
    """The last checkpoint, this test's own, as one copies it that wants no optimiser."""
    checkpoint = JobLayout(trained).checkpoint(max(STEPS))
    return Path(shutil.copytree(checkpoint, tmp_path / "copied", ignore=shutil.ignore_patterns(*STATE)))


def common(inputs: Inputs) -> dict[str, Any]:
    lengths = {"max_seq_length": TINY_MAX_SEQ_LENGTH, "max_query_length": TINY_MAX_QUERY_LENGTH}
    return {"data_dir": inputs.data_dir, "model_type": "static", "no_cuda": "true", **lengths}


def warmup_flags(inputs: Inputs, output_dir: Path) -> dict[str, Any]:
    return {**common(inputs), "output_dir": output_dir}


def programs(inputs: Inputs, model: Path, tmp_path: Path) -> dict[str, Callable[..., None]]:
    """Each program that opens a model, as a call that takes further flags."""
    flags, out = common(inputs), tmp_path / "out"
    generator = {"training_dir": tmp_path / "none", "output_dir": out / "ann", "init_model_dir": model,
                 "topk_training": 20, "negative_strategy": "top", "end_output_num": 0}  # fmt: skip
    trainer = {"ann_dir": out / "ann", "output_dir": out / "run", "max_steps": 2, "learning_rate": 1e-3}
    start = {"model_name_or_path": model}
    evaluation, warmup = {"output_dir": out / "eval"}, {"output_dir": out / "warmup", "do_eval": "true"}
    return {
        "generator": lambda **more: call(run_ann_data_gen.main, **{**flags, **generator, **more}),
        "trainer": lambda **more: call(run_ann.main, **{**flags, **start, **trainer, **more}),
        "evaluation": lambda **more: call(run_eval.main, **{**flags, **start, **evaluation, **more}),
        "warmup": lambda **more: call(run_warmup.main, **{**flags, **start, **warmup, **more}),
    }


def test_a_checkpoint_without_its_optimiser_is_a_model(inputs: Inputs, copied: Path, tmp_path: Path) -> None:
    (copied / "trainer_state.json").unlink()
    (copied / "README.md").write_text("A card that its owner has edited.")
    for name, start in programs(inputs, copied, tmp_path).items():
        start(dry_run="true")
        start()
        if name == "trainer":
            with pytest.raises(UserError, match=r"optimizer\.pt is missing, MANIFEST\.json lists it; copy the check"):
                start(load_optimizer_scheduler="true", dry_run="true", output_dir=tmp_path / "other")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_one_without_what_is_read_is_refused(name: str, inputs: Inputs, copied: Path, tmp_path: Path) -> None:
    (copied / name).unlink()
    for start in programs(inputs, copied, tmp_path).values():
        with pytest.raises(UserError, match=rf"{name} is missing, MANIFEST\.json lists it; copy the checkpoint again"):
            start(dry_run="true")


@pytest.mark.parametrize("name", ["model.safetensors", "trainer_state.json"])
def test_a_changed_byte_of_what_is_read_is_found(name: str, inputs: Inputs, copied: Path, tmp_path: Path) -> None:
    flip_byte(copied / name, -3)
    for start in programs(inputs, copied, tmp_path).values():
        for more in ({"dry_run": "true"}, {}):
            with pytest.raises(UserError, match=rf"{name}: sha256 differs from its manifest.*copy the checkpoint"):
                start(**more)
    assert not list(tmp_path.rglob("ann_ndcg_*")) + list(tmp_path.rglob("metrics.json"))


def test_a_tokenizer_and_a_config_that_stand_elsewhere_are_not_missed(
    inputs: Inputs, copied: Path, tmp_path: Path
) -> None:
    elsewhere = shutil.move(copied / "config.json", tmp_path / "config.json")
    (copied / "tokenizer.json").unlink()
    for start in programs(inputs, copied, tmp_path).values():
        start(config_name=elsewhere, tokenizer_name=inputs.tokenizer, dry_run="true")


@pytest.fixture(name="hashed")
def fixture_hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, bool]]:
    """How often each file was hashed, by its name and whether it was done by process 0 for all."""
    hashed: Counter[tuple[str, bool]] = Counter()
    sha256_of, decide = verify.sha256_of, agreement.decide_on_process0
    depth = []

    def counting(path: Path) -> str:
        hashed[f"{path.parent.name}/{path.name}", bool(depth)] += 1
        return sha256_of(path)

    def deciding(world: Any, work: Callable[[], Any]) -> Any:
        depth.append(work)
        try:
            return decide(world, work)
        finally:
            depth.pop()

    monkeypatch.setattr(verify, "sha256_of", counting)
    monkeypatch.setattr(agreement, "decide_on_process0", deciding)
    return hashed


@pytest.mark.parametrize("program", ["generator", "evaluation", "warmup"])
def test_weights_are_hashed_once_by_process_0(
    program: str, inputs: Inputs, copied: Path, tmp_path: Path, hashed: Counter[tuple[str, bool]]
) -> None:
    shutil.copyfile(inputs.data_dir / "manifest.json", copied / STATE[0])  # not what the manifest says, nor read
    start = programs(inputs, copied, tmp_path)[program]
    start(dry_run="true")
    of_model = {name: count for name, count in hashed.items() if name[0].startswith("copied/")}
    assert set(of_model.values()) == {1}, "a --dry_run verifies once"
    assert ("copied/model.safetensors", False) in of_model and ("copied/optimizer.pt", False) not in of_model
    hashed.clear()
    start()
    of_model = {name: count for name, count in hashed.items() if name[0].startswith("copied/")}
    assert of_model["copied/model.safetensors", True] == 1 and set(of_model.values()) == {1}
    assert {by_process_0 for _, by_process_0 in of_model} == {True}
    assert ("copied/optimizer.pt", True) not in of_model


def test_every_evaluated_checkpoint_is_verified_once_by_process_0(
    inputs: Inputs, trained: Path, hashed: Counter[tuple[str, bool]]
) -> None:
    call(run_warmup.main, **warmup_flags(inputs, trained), do_eval="true", eval_all_checkpoints="true",
         model_name_or_path=JobLayout(trained).checkpoint(max(STEPS)))  # fmt: skip
    names = [f"checkpoint-{step}/model.safetensors" for step in STEPS]
    weights = {name: count for name, count in hashed.items() if name[0] in names}
    assert weights == {(f"checkpoint-{step}/model.safetensors", True): 1 for step in STEPS}
    assert not [name for name, _ in hashed if name.endswith("optimizer.pt")]


def test_a_model_without_weights_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "static", "embedding_size": 8}')
    model = ModelSettings(str(tmp_path), model_type="static")
    with pytest.raises(UserError, match=r"holds no weights, expected one of model\.safetensors"):
        check_model_directory(model, is_dry_run=False)
    (tmp_path / "model.safetensors").touch()
    check_model_directory(model, is_dry_run=False)
