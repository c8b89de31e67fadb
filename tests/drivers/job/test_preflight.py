"""The checks before the work: what they find and leave as it was, and what they estimate next to what is used."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.tokens import verify
from data.tokens.collection import Preprocessed, open_preprocessed
from data.tokens.verify import check_cache, check_inputs
from drivers.generate.preflight import check_same_file_system
from drivers.job import sanity_batch
from drivers.job.disk_budget import (
    Item,
    check_space,
    checkpoints_at_once,
    embeddings_item,
    negatives_item,
    publishing_steps,
)
from drivers.job.preflight import Preflight, check_collection, check_judgements, check_publishing
from drivers.job.sanity_batch import TrialSize, check_encoding, check_training, longest_rows, trial_batch
from model.encode import EncodingSettings
from model.encoders.base import Encoder
from model.encoders.roberta_dot import RobertaDot
from model.encoders.spec import EncoderSpec, Side
from model.encoders.static import StaticEncoder
from model.token_batch import TokenBatch
from model.train.optim import linear_schedule, make_optimizer
from model.train.step import make_state, train_step
from tests import forked
from tests.drivers.models import config_of_random_roberta
from tests.processes_as_threads import ALONE
from utils.errors import UserError
from utils.exchange.atomic import numbered
from utils.exchange.layout import RECORD_PATTERN, JobLayout
from utils.system import disk_used, free_bytes, in_bytes

LENGTHS = (32, 16)
SIZE = TrialSize(3, *LENGTHS)


def opened(directory: Path) -> Preprocessed:
    return open_preprocessed(directory, *LENGTHS)


@pytest.fixture
def damaged(tiny_preprocessed: Path, tmp_path: Path) -> Path:
    """A preprocessed directory that the test may damage."""
    return Path(shutil.copytree(tiny_preprocessed, tmp_path / "preprocessed"))


def data_files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "manifest.json")


def settings(collection: Preprocessed, texts: int = 4) -> EncodingSettings:
    return EncodingSettings(*LENGTHS, texts * LENGTHS[0], None)


def static_encoder(collection: Preprocessed) -> StaticEncoder:
    torch.manual_seed(1)
    return StaticEncoder({"vocab_size": collection.manifest["vocab_size"], "embedding_size": 16})


def roberta_with_dropout(collection: Preprocessed) -> RobertaDot:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return RobertaDot(config_of_random_roberta(collection.directory, **sizes, hidden_dropout_prob=0.3))


# Inputs


def test_whole_inputs_are_counted(tiny_preprocessed: Path) -> None:
    line = check_inputs(opened(tiny_preprocessed))
    names = data_files(tiny_preprocessed)
    total = sum((tiny_preprocessed / name).stat().st_size for name in names)
    assert line.startswith(f"inputs: {len(names)} files, {total / 1000:.1f} kB, as in ")
    assert line.endswith(f"all sizes, {len(names)} sha256")


def test_any_changed_byte_of_a_small_file_is_found(damaged: Path) -> None:
    rng = np.random.default_rng(5)
    for name in data_files(damaged):
        path = damaged / name
        whole = bytearray(path.read_bytes())
        position = int(rng.integers(len(whole)))
        whole[position] ^= 1 << int(rng.integers(8))
        collection = opened(damaged)
        before = path.read_bytes()
        path.write_bytes(whole)
        with pytest.raises(UserError, match=re.escape(str(path))):
            check_inputs(collection)
        path.write_bytes(before)
    check_inputs(opened(damaged))


def test_any_tail_cut_off_is_found_without_reading_the_file(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "HASHED_BYTES", 0)  # as for files of many gigabytes
    collection = opened(damaged)
    for name in data_files(damaged):
        path = damaged / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(UserError, match=f"{re.escape(str(path))}: {len(whole) - 1} bytes, manifest.json says"):
            check_inputs(collection)
        path.write_bytes(whole)
    assert check_inputs(collection).endswith("all sizes, 0 sha256")


def test_large_files_that_contradict_each_other_are_found(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "HASHED_BYTES", 0)
    monkeypatch.setattr(verify, "CHUNK_ROWS", 7)
    ids, offsets = damaged / "passages.ids.txt", damaged / "passages.offsets.npy"
    whole = ids.read_bytes()
    ids.write_bytes(whole.replace(b"\n", b" ", 1))
    with pytest.raises(UserError, match=r"passages.ids.txt has 299 lines, expected 300"):
        check_inputs(opened(damaged))
    ids.write_bytes(whole)
    for row in (3, 6, 7, 200):  # within a chunk, at its end, at the next one's beginning, in a later one
        offsets_N1 = np.load(offsets)
        offsets_N1[row], offsets_N1[row + 1] = offsets_N1[row + 1], offsets_N1[row]
        kept = offsets.read_bytes()
        np.save(offsets, offsets_N1)
        with pytest.raises(UserError, match=rf"passages.offsets.npy: text {row} ends before it begins"):
            check_inputs(opened(damaged))
        offsets.write_bytes(kept)
    check_cache(opened(damaged).passages)


def test_a_manifest_without_files_is_damaged(damaged: Path) -> None:
    manifest = json.loads((damaged / "manifest.json").read_text())
    for files in ("gone", None, {"passages.tokens": {"bytes": 1}}):
        (damaged / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
        with pytest.raises(UserError, match="lists no files: it is damaged"):
            check_inputs(opened(damaged))


def test_qrels_are_counted_as_the_raw_files_have_them(tiny_preprocessed: Path, shared_collection: Path) -> None:
    line = check_judgements(opened(tiny_preprocessed), ("train", "dev"))
    for split, file in (("train", "qrels.train.tsv"), ("dev", "qrels.dev.small.tsv")):
        rows = [row.split("\t") for row in (shared_collection / file).read_text().splitlines()]
        queries = len({row[0] for row in rows})
        assert f"{queries} of {queries} queries (100.0%) of {split} have a positive, {len(rows)} judgements" in line


def rewrite_qrels(directory: Path, change: Any) -> None:
    path = directory / "train-qrel.tsv"
    rows = [[int(word) for word in row.split("\t")] for row in path.read_text().splitlines()]
    path.write_text("".join("\t".join(map(str, change(*row))) + "\n" for row in rows))


def test_qrels_without_use_are_refused(damaged: Path) -> None:
    rewrite_qrels(damaged, lambda query, passage, relevance: (query, passage, int(query < 15)))
    assert "15 of 60 queries (25.0%) of train have a positive" in check_judgements(opened(damaged), ("train",))
    rewrite_qrels(damaged, lambda query, passage, relevance: (query, passage, 0))
    with pytest.raises(UserError, match="no train query has a positive"):
        check_judgements(opened(damaged), ("dev", "train"))
    check_judgements(opened(damaged), ("dev",))
    rewrite_qrels(damaged, lambda query, passage, relevance: (query, passage + 300, 1))
    with pytest.raises(UserError, match=r"passage offsets \d+ to \d+, expected below 300"):
        check_judgements(opened(damaged), ("train",))


def test_the_tokenizer_has_to_be_the_manifests(tiny_preprocessed: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    collection = opened(tiny_preprocessed)
    *_, fingerprint = check_collection(collection, str(tiny_tokenizer), ("dev",))
    assert collection.manifest["tokenizer"]["fingerprint"][:12] in fingerprint()
    other = shutil.copytree(tiny_tokenizer, tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"lowercase": true', '"lowercase": false'))
    *_, fingerprint = check_collection(collection, str(other), ("dev",))
    with pytest.raises(UserError, match="take the model that fits"):
        fingerprint()
    assert len(check_collection(collection, "", ("dev",))) == 2  # embeddings on disk need no tokenizer


def test_publishing_is_tried_and_leaves_nothing(tmp_path: Path) -> None:
    assert str(tmp_path / "run") in check_publishing(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot publish in"):
        check_publishing(tmp_path / "file" / "run")


def test_one_line_for_each_check_and_the_seconds(capsys: pytest.CaptureFixture[str], tiny_preprocessed: Path) -> None:
    seconds = iter((100.0, 103.25))
    checks = Preflight(ALONE, clock=lambda: next(seconds))
    checks.on_process0(*check_collection(opened(tiny_preprocessed), "", ("train",)))
    checks.on_every_process(lambda: "model: well")
    checks.end()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[:2] for line in lines[:3]] == [
        ["preflight", f" {what}"] for what in ("inputs", "qrels", "model")
    ]
    assert lines[3] == "preflight: all well in 3.2 s"


# Space


def test_sizes_in_words() -> None:
    assert [in_bytes(n) for n in (0, 999, 4_200, 4_200_000, 27_100_000_000, 3.3e12)] == [
        "0 bytes", "999 bytes", "4.2 kB", "4.2 MB", "27.1 GB", "3.3 TB"
    ]  # fmt: skip


def test_disk_used_is_what_du_says(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "large").write_bytes(bytes(1_234_567))
    (tmp_path / "a" / "b" / "again").hardlink_to(tmp_path / "a" / "large")
    (tmp_path / "a" / "link").symlink_to(tmp_path)
    with (tmp_path / "a" / "sparse").open("wb") as file:
        file.truncate(50_000_000)
    du = subprocess.run(["du", "-s", "--block-size=1", tmp_path], capture_output=True, text=True, check=True)
    assert disk_used(tmp_path) == int(du.stdout.split()[0])
    assert disk_used(tmp_path / "nothing") == 0


def test_free_space_of_a_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    df = subprocess.run(["df", "--output=avail", "-B1", tmp_path], capture_output=True, text=True, check=True)
    assert free_bytes(tmp_path / "to" / "come") == pytest.approx(int(df.stdout.split()[-1]), rel=0.05)


def test_a_disk_too_small_is_refused_with_the_terms(tmp_path: Path) -> None:
    items = [negatives_item(100_000, 20, 12), embeddings_item(8_841_823, 768, 4, 12, only_latest=True)]
    free = free_bytes(tmp_path)
    small = [Item("a little", 1000), Item("more", 500)]
    assert check_space(tmp_path, small).startswith("space: a little + more = 1.5 kB needed, ")
    # 8,841,823 passages of 768 float32 are ANCE's 27 GB.
    assert [item.label for item in items] == ["negatives 47.0 MB x 12 refreshes", "embeddings 27.2 GB x 2"]
    with pytest.raises(UserError, match=r"space: a little \+ all of it = .* needed, .* free in .*: free some"):
        check_space(tmp_path, [small[0], Item("all of it", free * 2)])
    # An earlier job's checkpoints make room as they are replaced.
    assert "less" in check_space(tmp_path, [Item("all of it", free * 2)], reusable_bytes=free * 2 - 1000)


def test_how_many_checkpoints_lie_there_at_once() -> None:
    assert [checkpoints_at_once(published) for published in (1, 3, 6, 500)] == [1, 3, 6, 6]
    assert checkpoints_at_once(500, unused=10) == 13


@pytest.mark.parametrize(("steps", "periods"), [(30, (10,)), (31, (10,)), (30, (10, 15)), (35, (4, 6)), (5, (9, 8))])
def test_the_steps_that_publish_are_counted(steps: int, periods: tuple[int, ...]) -> None:
    counted = [s for s in range(1, steps + 1) if s == steps or any(s % period == 0 for period in periods)]
    assert publishing_steps(steps, *periods) == len(counted)


# The model


@pytest.mark.parametrize("count", [1, 2, 7, 299, 300, 1000])
def test_the_longest_rows(tiny_preprocessed: Path, count: int) -> None:
    cache = opened(tiny_preprocessed).passages
    lengths = [len(cache.gather([row], 32)[0]) for row in range(len(cache))]
    rows = longest_rows(cache, 32, count)
    assert len(set(rows.tolist())) == len(rows) == min(count, 300)
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)[:count]


def test_encoding_takes_the_longest_texts_that_fit(tiny_preprocessed: Path) -> None:
    collection, seen, sides = opened(tiny_preprocessed), [], []

    class Recorder(Encoder):
        spec = EncoderSpec(2, None)

        def forward(self, tokens: TokenBatch, side: Side) -> torch.Tensor:
            seen.append((len(tokens), tokens.longest))
            sides.append(side)
            assert int(tokens.lengths_B[0]) == tokens.longest
            return torch.zeros(len(tokens), 2)

    line = check_encoding(Recorder(), collection, "dev", settings(collection, texts=3), ALONE.device)
    longest = [int(np.diff(cache.offsets_N1).max()) for cache in (collection.passages, collection.queries("dev"))]
    assert [shape[1] for shape in seen] == longest and sides == ["passage", "query"]
    assert seen[0][0] == 3 * 32 // longest[0] and seen[1][0] == sanity_batch.CPU_TEXTS
    assert f"{seen[0][0]} passages of up to {longest[0]} tokens" in line and "2 finite dimensions in float32" in line


@pytest.mark.parametrize("loss", ["pairwise", "in_batch"])
def test_the_losses_are_those_of_the_formula(tiny_preprocessed: Path, loss: str) -> None:
    collection = opened(tiny_preprocessed)
    encoder = static_encoder(collection)
    line = check_training(encoder, collection, loss, SIZE, ALONE, None)
    assert line.startswith("model: two batches of 3 triples, losses ")
    said = [float(number) for number in re.findall(r"losses (\S+) \(longest texts\) and (\S+) in float32$", line)[0]]
    for longest, found in zip((True, False), said, strict=True):
        batch = trial_batch(collection, SIZE, loss == "in_batch", longest)
        queries = encoder.encode(TokenBatch.of(batch.query_tokens_T, batch.query_offsets_B1), "query").rows
        passages = encoder.encode(TokenBatch.of(batch.passage_tokens_T, batch.passage_offsets_M1), "passage").rows
        scores = queries @ passages.T
        if loss == "pairwise":
            expected = -F.log_softmax(torch.stack([scores.diag(), scores[range(3), range(3, 6)]], 1), 1)[:, 0].mean()
        else:
            expected = -F.log_softmax(scores, 1).diag().mean()
        assert found == pytest.approx(float(expected.detach()), rel=1e-3)


def test_a_trial_of_more_triples_than_texts_repeats_them(tiny_preprocessed: Path) -> None:
    batch = trial_batch(opened(tiny_preprocessed), TrialSize(200, *LENGTHS), True, True)
    assert len(batch.query_offsets_B1) == 201 and len(batch.passage_offsets_M1) == 401


def test_a_run_is_the_same_with_and_without_the_trial(tiny_preprocessed: Path) -> None:
    collection = opened(tiny_preprocessed)
    start = roberta_with_dropout(collection)
    found = []
    for tried in (False, True):
        encoder = copy.deepcopy(start).eval()
        torch.manual_seed(9)
        if tried:
            check_training(encoder, collection, "pairwise", SIZE, ALONE, None)
            check_encoding(encoder, collection, "train", settings(collection), ALONE.device)
            assert all(parameter.grad is None for parameter in encoder.parameters())
            assert not encoder.training
        optimizer = make_optimizer("lamb", encoder, 1e-2, 1e-6, 0.0)
        state = make_state(encoder, "pairwise", optimizer, linear_schedule(optimizer, 0, 9), ALONE, None, 1.0)
        losses = [train_step(state, [trial_batch(collection, SIZE, False, False)]) for _ in range(3)]
        found.append((losses, torch.cat([p.detach().flatten() for p in encoder.parameters()]), torch.get_rng_state()))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1]) and torch.equal(found[0][2], found[1][2])


def test_gradients_that_were_there_stay(tiny_preprocessed: Path) -> None:
    collection = opened(tiny_preprocessed)
    encoder = static_encoder(collection)
    for parameter in encoder.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    check_training(encoder, collection, "pairwise", SIZE, ALONE, None)
    assert all(p.grad is not None and bool((p.grad == 0.5).all()) for p in encoder.parameters())


def test_a_model_that_computes_no_numbers_is_refused(tiny_preprocessed: Path) -> None:
    collection = opened(tiny_preprocessed)
    encoder = static_encoder(collection)
    with torch.no_grad():
        encoder.embeddingHead.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="embeddings of passages are not finite"):
        check_encoding(encoder, collection, "dev", settings(collection), ALONE.device)
    with pytest.raises(UserError, match="the loss of a first batch is nan"):
        check_training(encoder, collection, "pairwise", SIZE, ALONE, None)


def test_a_model_whose_scores_overflow_is_refused(tiny_preprocessed: Path) -> None:
    collection = opened(tiny_preprocessed)
    encoder = static_encoder(collection)
    with torch.no_grad():
        encoder.norm.bias[0] = 1e20
    with pytest.raises(UserError, match=r"embeddings of passages have norms of up to 1e\+20, expected at most 1e\+18"):
        check_encoding(encoder, collection, "dev", settings(collection), ALONE.device)


def test_a_gradient_that_is_not_finite_is_refused(tiny_preprocessed: Path) -> None:
    collection = opened(tiny_preprocessed)
    encoder = static_encoder(collection)
    encoder.norm.weight.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(UserError, match="the gradient of a first batch is not finite"):
        check_training(encoder, collection, "pairwise", SIZE, ALONE, None)


def test_memory_that_runs_out_is_one_line(tiny_preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = opened(tiny_preprocessed)
    encoder = static_encoder(collection)

    def forward(*_: torch.Tensor) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate …\n and a page more")

    monkeypatch.setattr(encoder, "forward", forward)
    with pytest.raises(UserError, match="lower --per_gpu_eval_batch_size"):
        check_encoding(encoder, collection, "dev", settings(collection), ALONE.device)
    with pytest.raises(UserError, match="lower --per_gpu_train_batch_size"):
        check_training(encoder, collection, "pairwise", SIZE, ALONE, None)


# The programs


def run(program: str, *flags: str | Path, code: int = 0) -> str:
    """A program to its end; what it prints."""
    sizes = ("--max_seq_length", "32", "--max_query_length", "16", "--model_type", "static")
    return forked.run(program, *sizes, *flags, code=code)


@pytest.fixture(scope="module")
def untrained(tiny_preprocessed: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory: a static encoder with random weights, and the tokenizer."""
    directory = tmp_path_factory.mktemp("untrained")
    vocab_size = opened(tiny_preprocessed).manifest["vocab_size"]
    StaticEncoder({"vocab_size": vocab_size, "embedding_size": 128}).save_pretrained(directory)
    for path in tiny_tokenizer.iterdir():
        shutil.copy(path, directory)
    return directory


def estimated_bytes(output: str) -> float:
    """The sum in a program's line on space."""
    found = re.findall(r"^preflight: space: .* = ([\d.,]+) (kB|MB|GB|bytes) needed, .* free in ", output, re.M)
    assert len(found) == 1, output
    return float(found[0][0].replace(",", "")) * {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[found[0][1]]


@pytest.mark.slow
def test_every_program_says_its_checks_and_estimates_what_it_uses(
    tiny_preprocessed: Path, untrained: Path, tmp_path: Path
) -> None:
    ann, trained, warmup, evaluated = (tmp_path / name for name in ("ann", "checkpoints", "warmup", "eval"))
    data, batch = ("--data_dir", tiny_preprocessed), ("--per_gpu_train_batch_size", "8")
    training = (*batch, "--learning_rate", "1e-4", "--max_steps", "30", "--save_steps", "10")
    generator = (
        "--training_dir", trained, "--init_model_dir", untrained, "--output_dir", ann, "--end_output_num", "0",
        "--topk_training", "100", "--negative_sample", "20", "--ann_chunk_factor", "1", "--negative_strategy", "top",
    )  # fmt: skip
    trainer = ("--ann_dir", ann, "--output_dir", trained, "--model_name_or_path", untrained, *training)
    warm = ("--do_train", "--bm25_dir", ann, "--output_dir", warmup, "--model_name_or_path", untrained, *training)
    model = JobLayout(trained).checkpoint(30)
    for program, flags, written in (
        ("run_ann_data_gen", generator, ann),
        ("run_ann", trainer, trained),
        ("run_warmup", warm, warmup),
        ("run_eval", ("--model_name_or_path", model, "--output_dir", evaluated), evaluated),
    ):
        output = run(f"drivers.{program}", *data, *flags)
        said = re.findall(r"^preflight: ([a-z]+)", output, re.M)
        assert sorted(said) == [
            "all",
            "checkpoint",
            "disk",
            "inputs",
            "lengths",
            "model",
            "qrels",
            "space",
            *(["splits"] if program == "run_eval" else []),
            "texts",
            "tokenizer",
        ], output
        assert said[-1] == "all"
        used = disk_used(written)
        assert used / 2 < estimated_bytes(output) < used * 2, f"{program}: {used} bytes\n{output}"


@pytest.mark.slow
def test_damaged_inputs_and_a_broken_model_end_a_program_in_one_line(
    damaged: Path, untrained: Path, tmp_path: Path
) -> None:
    ann, data, end = tmp_path / "ann", ("--data_dir", damaged), ("--end_output_num", "0")
    flags = (*data, "--training_dir", tmp_path / "none", "--output_dir", ann, "--negative_strategy", "top", *end)
    small = ("--topk_training", "10", "--negative_sample", "2")
    broken = Path(shutil.copytree(untrained, tmp_path / "broken"))
    encoder = StaticEncoder.load(str(broken), "", new_head=False, changes={})
    with torch.no_grad():
        encoder.norm.bias.fill_(torch.nan)
    encoder.save_pretrained(broken)
    output = run("drivers.run_ann_data_gen", *flags, *small, "--init_model_dir", broken, code=2)
    assert output.splitlines()[-1].startswith("run_ann_data_gen: error: the model's embeddings of passages are not fin")
    assert numbered(ann, RECORD_PATTERN) == []
    ids = damaged / "train-query.ids.txt"
    ids.write_bytes(ids.read_bytes().replace(b"q1\n", b"q2\n", 1))
    for more in ((), ("--dry_run",)):
        output = run("drivers.run_ann_data_gen", *flags, *small, "--init_model_dir", untrained, *more, code=2)
        last = output.splitlines()[-1]
        assert last.startswith(f"run_ann_data_gen: error: {ids}: its sha256 differs from manifest.json")


def test_embeddings_on_another_disk_are_refused_at_once(tmp_path: Path) -> None:
    """They are renamed out of the lease's staging, which lies in the directory itself."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        if Path(elsewhere).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("this machine has no second file system to try it with")
        check_same_file_system(tmp_path)
        (tmp_path / "embeddings").symlink_to(elsewhere)
        with pytest.raises(UserError, match="is on another file system than"):
            check_same_file_system(tmp_path)
