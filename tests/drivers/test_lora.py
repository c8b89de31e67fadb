"""LoRA through the real programs: a generator and a trainer in lockstep, an evaluation, and a trainer that resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from model.encoders.lora import merged
from model.encoders.registry import load_encoder
from model.encoders.roberta_dot import RobertaDot
from tests.drivers.models import config_of_random_roberta
from tests.drivers.test_resume import from_the_middle
from tests.fingerprint import loop
from tests.fingerprint.programs import Programs
from tests.forked import fork_server, run
from tests.toys_loop.toy_loop import write_triples
from utils.declared.text_settings import DEFAULT_TEXTS
from utils.exchange.atomic import sha256_of
from utils.exchange.checkpoints import model_sha256
from utils.exchange.layout import JobLayout
from utils.exchange.model_files import ADAPTER_BASE, ADAPTER_CONFIG, ADAPTERS

pytestmark = pytest.mark.slow
LORA = ("--lora_r", 4, "--lora_alpha", 8, "--lora_dropout", 0.1)
LEARNING = ("--optimizer", "adamW", "--learning_rate", "1e-2")


@pytest.fixture(scope="module")
def made(tiny_preprocessed: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> loop.Loop:
    """An arm whose adapters were trained at a RoBERTa with ANCE's head, and evaluated."""
    directory = tmp_path_factory.mktemp("lora")
    (directory / "preprocessed").symlink_to(tiny_preprocessed)
    base = directory / "base" / f"checkpoint-{loop.WARMUP_STEPS}"
    shutil.copytree(tiny_tokenizer, base)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # the adapters' own is enough
    encoder = RobertaDot(config_of_random_roberta(tiny_preprocessed, **sizes))
    encoder.record(DEFAULT_TEXTS.record())
    encoder.save_pretrained(base)
    shutil.copy(base / "model.safetensors", directory / "base_before.safetensors")
    (directory / "base_before.json").write_text(json.dumps(sha256_of_files(base)))
    made = loop.Loop(directory, Programs(fork_server()))
    loop.train_and_generate(made, "top", "rdot_nll", "base", *loop.batch(1), *LEARNING, *LORA)
    return made


def sha256_of_files(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): sha256_of(path) for path in directory.rglob("*") if path.is_file()}


def base_of_run(made: loop.Loop) -> Path:
    return made.path("base", f"checkpoint-{loop.WARMUP_STEPS}")


def checkpoint(made: loop.Loop, step: int) -> Path:
    return JobLayout(made.path("arms", "top", "checkpoints")).checkpoint(step)


def test_adapters_are_trained_and_everything_else_stays(made: loop.Loop) -> None:
    arm, last = made.path("arms", "top"), checkpoint(made, loop.STEPS)
    said = (arm / "trainer.out").read_text()
    assert "trained: LoRA's adapters, 1,024 of " in said  # 2 layers x 2 targets x 2 matrices of 4 x 32
    assert {ADAPTERS, ADAPTER_CONFIG, ADAPTER_BASE} <= {path.name for path in last.iterdir()}
    assert not (last / "model.safetensors").exists()
    before = json.loads(made.path("base_before.json").read_text())
    assert sha256_of_files(base_of_run(made)) == before, "its base stays as it is, byte by byte"
    for step in (4, 8, loop.STEPS):
        recorded = json.loads((checkpoint(made, step) / ADAPTER_BASE).read_text())
        assert recorded["weights_sha256"] == before["model.safetensors"]
    trained = load_encoder("rdot_nll", str(last))
    frozen = {name.replace(".base_layer", ""): p for name, p in trained.state_dict().items() if ".lora_" not in name}
    stored = load_file(made.path("base_before.safetensors"))
    assert frozen.keys() == stored.keys() and all(torch.equal(tensor, frozen[name]) for name, tensor in stored.items())
    adapters = [p for name, p in trained.named_parameters() if "lora_B" in name]
    assert len(adapters) == 4 and all(bool(p.any()) for p in adapters), "all have learned"
    # Refreshes are made of it by its own sha256, the first of the base.
    records = [json.loads((arm / "ann_data" / f"ann_ndcg_{number}").read_text()) for number in range(3)]
    models = [base_of_run(made), checkpoint(made, 4), checkpoint(made, 8)]
    assert [record["model_sha256"] for record in records] == [model_sha256(path) for path in models]
    assert len({record["model_sha256"] for record in records}) == 3


def test_the_evaluation_is_that_of_the_merged_model(made: loop.Loop, tmp_path: Path) -> None:
    last, merged_dir = checkpoint(made, loop.STEPS), tmp_path / "merged"
    shutil.copytree(base_of_run(made), merged_dir)
    merged(load_encoder("rdot_nll", str(last))).save_pretrained(merged_dir)
    run(
        "drivers.run_eval", *map(str, loop.common(made, "rdot_nll")), "--model_name_or_path", merged_dir,
        "--output_dir", tmp_path / "eval", "--topk", "100",
    )  # fmt: skip
    found = (made.path("arms", "top", "eval") / "dev.trec").read_bytes()
    assert (tmp_path / "eval" / "dev.trec").read_bytes() == found


def trainer(made: loop.Loop, *more: object) -> list[str]:
    command = loop.trainer(made, made.path("arms", "top"), "rdot_nll", base_of_run(made), *loop.lockstep(0))
    return [str(word) for word in (*command, *loop.batch(1), *LEARNING, *more)]


def test_a_run_with_dropout_resumes_to_the_same_bytes(made: loop.Loop, tmp_path: Path) -> None:
    whole = made.path("arms", "top", "checkpoints")
    parts = from_the_middle(whole, tmp_path / "parts", 4)
    run(*trainer(made, *LORA), "--output_dir", parts)
    for name in (ADAPTERS, ADAPTER_CONFIG, ADAPTER_BASE, "config.json", "optimizer.pt"):
        assert sha256_of(JobLayout(parts).checkpoint(loop.STEPS) / name) == sha256_of(
            checkpoint(made, loop.STEPS) / name
        )


def first_negatives(made: loop.Loop, directory: Path) -> tuple[str, ...]:
    """Flags of a run of the first four steps, on a copy of their negatives."""
    later = ("*_1", "*_2", ".leases", "DONE.json")
    shutil.copytree(made.path("arms", "top", "ann_data"), directory, ignore=shutil.ignore_patterns(*later))
    return ("--max_steps", "4", "--ann_dir", str(directory))


@pytest.mark.measured
def test_processes_train_the_same_adapters(made: loop.Loop, tmp_path: Path) -> None:
    """GradCache's processes have nobody who copies one's first weights to the others."""
    lora = ("--lora_r", "4", *first_negatives(made, tmp_path / "ann_data"))
    run(*trainer(made, *lora), "--output_dir", tmp_path / "one")
    halves = ("--per_gpu_train_batch_size", "4")
    for name, more in (("two", ()), ("cached", ("--grad_cache_tokens", "64"))):
        run(*trainer(made, *lora), *halves, *more, "--output_dir", tmp_path / name, processes=2)
    one, two, cached = (
        load_file(JobLayout(tmp_path / name).checkpoint(4) / ADAPTERS) for name in ("one", "two", "cached")
    )
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-2, atol=1e-4)
        torch.testing.assert_close(cached[name], tensor, rtol=1e-2, atol=1e-4)


def test_a_run_without_lora_knows_nothing_of_it(made: loop.Loop, tmp_path: Path) -> None:
    """--lora_r 0 is no LoRA at all, and such a run does not resume as one with it."""
    plain, zero = tmp_path / "plain", tmp_path / "zero"
    steps = first_negatives(made, tmp_path / "ann_data")
    run(*trainer(made, *steps), "--output_dir", plain)
    run(*trainer(made, *steps), "--lora_r", "0", "--lora_alpha", "3", "--lora_dropout", "0.5", "--output_dir", zero)
    files = [JobLayout(directory).checkpoint(4) for directory in (plain, zero)]
    assert sha256_of(files[0] / "model.safetensors") == sha256_of(files[1] / "model.safetensors")
    assert not (files[1] / ADAPTERS).exists()
    assert (plain / "RUN.json").read_text().count("lora") == 0
    said = run(*trainer(made, *steps), "--lora_r", "2", "--output_dir", plain, code=3)
    assert "lora_r 0 there, 2 here" in said


def test_what_cannot_be_is_refused_in_one_line(made: loop.Loop, tmp_path: Path) -> None:
    last = checkpoint(made, loop.STEPS)
    flags = trainer(made, "--ann_dir", tmp_path / "ann", "--model_name_or_path", last)
    for more, why in (
        (("--lora_r", "0"), "holds LoRA's adapters, and --lora_r is 0; give --lora_r as they have it"),
        (("--lora_r", "8"), "holds adapters of --lora_r 4 --lora_alpha 8 --lora_dropout 0.1, expected --lora_r 8"),
        (("--lora_r", "-1"), "--lora_r"),
    ):
        output = run(*flags, *more, "--output_dir", tmp_path / f"out{more[1]}", code=2)
        (line,) = [line for line in output.splitlines() if "error: " in line]
        assert why in line
    assert not list(tmp_path.glob("out*/checkpoint-*"))


@pytest.mark.measured
def test_a_warmup_trains_any_encoder_s_adapters_and_convert_merges_them(
    made: loop.Loop, shared_collection: Path, tmp_path: Path
) -> None:
    (made.directory / "raw").symlink_to(shared_collection)
    base = shutil.copytree(made.path("base", "checkpoint-6"), tmp_path / "bert")
    for name in ("config.json", "model.safetensors"):
        (base / name).unlink()
    manifest = json.loads(made.path("preprocessed", "manifest.json").read_text())
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(3)
    BertModel(BertConfig(**sizes, vocab_size=manifest["vocab_size"], max_position_embeddings=40)).save_pretrained(base)
    common = list(map(str, loop.common(made, "hf")))
    run(
        "drivers.run_warmup", "--do_train", *common, "--triples", write_triples(made.directory), "--output_dir",
        tmp_path / "warmup", "--model_name_or_path", base, "--max_steps", "6", "--lora_r", "4", *map(str, LEARNING),
    )  # fmt: skip
    adapted, merged_dir = JobLayout(tmp_path / "warmup").checkpoint(6), tmp_path / "merged"
    assert (adapted / ADAPTERS).is_file() and not (adapted / "model.safetensors").exists()
    run("model.convert", "--from", "ours", "--to", "ours", adapted, merged_dir)
    assert (merged_dir / "model.safetensors").is_file() and not (merged_dir / ADAPTERS).exists()
    runs = []
    for model in (base, adapted, merged_dir):
        run("drivers.run_eval", *common, "--model_name_or_path", model, "--output_dir", tmp_path / f"eval_{model.name}")
        runs.append((tmp_path / f"eval_{model.name}" / "dev.trec").read_bytes())
    assert runs[1] == runs[2] != runs[0]
