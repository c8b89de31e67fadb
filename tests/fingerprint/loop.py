"""The small loop: every program on the tests' collection, in the ways that differ in what they compute.

The layout is the quickstart's, so that results.report reads it. Each function is a part of the loop and needs those
above it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import TINY_MAX_QUERY_LENGTH, TINY_MAX_SEQ_LENGTH, write_tiny_collection
from tests.fingerprint.digest import fix_clocks
from tests.fingerprint.programs import Command, Programs

VOCABULARY, DIMENSIONS = 500, 8
STEPS, WINDOW = 12, 4  # three checkpoints: retention removes none
WARMUP_STEPS = 6
LENGTHS = ("--max_seq_length", TINY_MAX_SEQ_LENGTH, "--max_query_length", TINY_MAX_QUERY_LENGTH)
ONE_TOKENIZING_THREAD = ("--workers", 1)
SELECTION = ("--topk_training", 30, "--negative_sample", 5, "--ann_chunk_factor", 2)
TRAINING = (
    *("--max_steps", STEPS, "--save_steps", WINDOW, "--logging_steps", 1, "--warmup_steps", 3),
    *("--learning_rate", "1e-2", "--group_size", 1, "--single_warmup"),
)
ASYNC = ("--refresh_mode", "async")


def lockstep(lag: int) -> tuple[object, ...]:
    return ("--refresh_mode", "lockstep", "--steps_per_refresh", WINDOW, "--refresh_lag", lag)


@dataclass(frozen=True)
class Loop:
    """Where one loop is, and who runs its programs."""

    directory: Path
    programs: Programs

    def path(self, *names: object) -> Path:
        return self.directory.joinpath(*map(str, names))

    def run(self, out: str, *command: object, processes: int = 1) -> None:
        """A program's flags as --dry_run resolves them, into ``OUT.flags.json``; then the program itself."""
        target = self.path(f"{out}.out")
        flags = self.programs.run((*command, "--dry_run"), self.path(f"{out}.dry_run.out"))
        self.path(f"{out}.flags.json").write_text(flags.splitlines()[-1])
        self.programs.run(command, target, processes)


def common(loop: Loop, model_type: str) -> Command:
    return ("--data_dir", loop.path("preprocessed"), "--model_type", model_type, "--no_cuda", *LENGTHS)


# The collection


def collection(loop: Loop) -> None:
    """raw/, tokenizer/, preprocessed/; a subset of the raw one; the same passages as documents."""
    raw = loop.path("raw")
    raw.mkdir(parents=True)
    write_tiny_collection(raw)
    tokenizer = ("--data_dir", raw, "--out_dir", loop.path("tokenizer"), "--vocab_size", VOCABULARY)
    loop.run("wordpiece", "data.wordpiece", *tokenizer)
    preprocess(loop, "raw", "preprocessed", "--data_type", 1)


def other_collections(loop: Loop) -> None:
    """A subset of the raw collection, and the same texts as documents."""
    subset = ("--data_dir", loop.path("raw"), "--out_data_dir", loop.path("raw_half"), "--data_type", 1)
    loop.run("subset", "data.create_subset", *subset, "--fraction", 0.5, "--seed", 3)
    documents, raw = loop.path("raw_documents"), loop.path("raw")
    documents.mkdir()
    passages = [line.split("\t") for line in (raw / "collection.tsv").read_text().splitlines()]
    lines = [f"{name}\thttp://a.example/{name}\t{text[:9]}\t{text}\n" for name, text in passages]
    (documents / "msmarco-docs.tsv").write_text("".join(lines))
    for split, name in (("train", "train"), ("dev.small", "dev")):
        shutil.copy(raw / f"queries.{split}.tsv", documents / f"msmarco-doc{name}-queries.tsv")
        shutil.copy(raw / f"qrels.{split}.tsv", documents / f"msmarco-doc{name}-qrels.tsv")
    preprocess(loop, "raw_documents", "preprocessed_documents", "--data_type", 0)


def preprocess(loop: Loop, raw: str, to: str, *source: object) -> None:
    places = ("--data_dir", loop.path(raw), "--out_data_dir", loop.path(to), *source)
    model = ("--model_type", "static", "--model_name_or_path", loop.path("tokenizer"), *LENGTHS)
    loop.run(f"preprocess_{to}", "data.msmarco_data", *places, *model, *ONE_TOKENIZING_THREAD)


def bm25(loop: Loop) -> None:
    """bm25/, with candidates."""
    places = ("--raw_data_dir", loop.path("raw"), "--data_dir", loop.path("preprocessed"))
    depth = ("--topk_training", 50, "--negative_sample", 5, "--topk_dev", 100, "--keep_candidates", "--workers", 1)
    loop.run("bm25", "drivers.run_bm25", *places, "--output_dir", loop.path("bm25"), *depth)


# Warmup


def write_tiny_roberta(loop: Loop) -> Path:
    """Two layers with random weights, as a hub would give them: without ANCE's head. With dropout."""
    import torch
    from transformers import RobertaConfig, RobertaModel
    from transformers.utils.logging import disable_progress_bar

    directory = loop.path("roberta")
    manifest = json.loads(loop.path("preprocessed", "manifest.json").read_text())
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {name: manifest[name] for name in ("vocab_size", "pad_token_id")}
    config = RobertaConfig(**sizes, **tokens, max_position_embeddings=40)
    disable_progress_bar()
    RobertaModel(config).save_pretrained(directory)
    return directory


def write_static_config(loop: Loop) -> Path:
    path = loop.path("model.json")
    path.write_text(json.dumps({"model_type": "static", "embedding_size": DIMENSIONS}))
    return path


def warm_up(loop: Loop, name: str, model_type: str, *more: object, source: Command = (), processes: int = 1) -> None:
    """``name``/checkpoint-6, evaluated on the way."""
    source = source or ("--bm25_dir", loop.path("bm25"))
    steps = ("--max_steps", WARMUP_STEPS, "--save_steps", WARMUP_STEPS, "--logging_steps", 2)
    evaluation = ("--evaluate_during_training", "--logging_steps_per_eval", 2)
    places = ("--output_dir", loop.path(name), "--tokenizer_name", loop.path("tokenizer"))
    loop.run(
        f"{name}/warmup",
        *("drivers.run_warmup", "--do_train", *common(loop, model_type), *source, *places, *steps, *evaluation),
        *("--per_gpu_train_batch_size", 8, *more),
        processes=processes,
    )


def static_warmup(loop: Loop) -> None:
    """warmup/, what the static arms start from: in-batch."""
    learning = ("--optimizer", "adamW", "--learning_rate", "3e-3", "--loss", "in_batch", "--score_scale", 0.5)
    warm_up(loop, "warmup", "static", "--config_name", write_static_config(loop), *learning)


def other_warmups(loop: Loop) -> None:
    """RoBERTa on BM25's negatives, by both objectives; the static encoder on triples of text, by two processes."""
    roberta = ("--model_name_or_path", write_tiny_roberta(loop), "--learning_rate", "1e-3", "--weight_decay", 0.01)
    warm_up(loop, "warmup_roberta", "rdot_nll", *roberta, "--optimizer", "lamb")
    warm_up(loop, "warmup_mean", "rdot_nll", *roberta, "--loss", "in_batch", "--pooling", "mean", processes=2)
    texts = dict(line.split("\t") for line in loop.path("raw", "collection.tsv").read_text().splitlines())
    passages = list(texts.values())
    triples = loop.path("raw", "triples.tsv")
    queries = (line.split("\t")[1] for line in loop.path("raw", "queries.train.tsv").read_text().splitlines())
    rows = [f"{query}\t{passages[i]}\t{passages[-1 - i]}\n" for i, query in enumerate(queries)]
    triples.write_text("".join(rows))
    static = ("--config_name", loop.path("model.json"), "--learning_rate", "3e-3")
    candidates = ("--triples", triples, "--rerank_file", loop.path("bm25", "dev.trec"))
    warm_up(loop, "warmup_triples", "static", *static, source=candidates, processes=2)


# Arms


def generator(loop: Loop, arm: Path, model_type: str, start: Path, *more: object) -> tuple[object, ...]:
    places = ("--training_dir", arm / "checkpoints", "--output_dir", arm / "ann_data", "--init_model_dir", start)
    return ("drivers.run_ann_data_gen", *common(loop, model_type), *places, *SELECTION, *more)


def trainer(loop: Loop, arm: Path, model_type: str, start: Path, *more: object) -> tuple[object, ...]:
    places = ("--ann_dir", arm / "ann_data", "--output_dir", arm / "checkpoints", "--model_name_or_path", start)
    return ("drivers.run_ann", *common(loop, model_type), *places, *TRAINING, *more)


def evaluate(loop: Loop, arm: Path, model_type: str, *more: object, processes: int = 1) -> None:
    places = ("--output_dir", arm / "eval", "--ann_dir", arm / "ann_data")
    model = ("--model_name_or_path", arm / "checkpoints" / f"checkpoint-{STEPS}")
    flags = (*common(loop, model_type), *places, *model, "--topk", 100, *more)
    loop.run(f"{arm.relative_to(loop.directory)}/eval", "drivers.run_eval", *flags, processes=processes)


def train_and_generate(
    loop: Loop,
    name: str,
    model_type: str,
    warmup: str,
    *training: object,
    lag: int = 0,
    negatives: Command = (),
    processes: int = 1,
) -> None:
    """arms/NAME/ in lockstep, and its evaluation."""
    arm, start = loop.path("arms", name), loop.path(warmup, f"checkpoint-{WARMUP_STEPS}")
    arm.mkdir(parents=True)
    commands = {
        "generator": generator(loop, arm, model_type, start, *lockstep(lag), *negatives),
        "trainer": trainer(loop, arm, model_type, start, *lockstep(lag), *training),
    }
    for role, command in commands.items():
        flags = loop.programs.run((*command, "--dry_run"), arm / f"{role}.dry_run.out")
        (arm / f"{role}.flags.json").write_text(flags.splitlines()[-1])
    loop.programs.run_together({arm / f"{role}.out": command for role, command in commands.items()}, processes)
    evaluate(loop, arm, model_type, processes=processes)


def batch(processes: int, *more: object) -> tuple[object, ...]:
    return ("--per_gpu_train_batch_size", 8 // processes, *more)


def static_arm(loop: Loop) -> None:
    """arms/top: pairwise, one process, batches gathered from two micro-batches."""
    train_and_generate(
        loop,
        "top",
        "static",
        "warmup",
        *batch(1, "--optimizer", "lamb", "--gradient_accumulation_steps", 2),
        negatives=("--negative_strategy", "top", "--keep_candidates"),
    )


def other_arms(loop: Loop) -> None:
    """In-batch by two processes, half a window behind; RoBERTa by both objectives, by one process and two."""
    in_batch = batch(2, "--optimizer", "adamW", "--loss", "in_batch")
    random = ("--negative_strategy", "0-0=random;1-=around-positive:5±10", "--embedding_dtype", "fp16")
    train_and_generate(loop, "random", "static", "warmup", *in_batch, lag=1, negatives=random, processes=2)
    mixed = ("--negative_strategy", "bm25:2+log-uniform:3", "--bm25_dir", loop.path("bm25"))
    two = batch(2, "--optimizer", "lamb", "--weight_decay", 0.01)
    train_and_generate(loop, "roberta", "rdot_nll", "warmup_roberta", *two, negatives=mixed, processes=2)
    cached = batch(1, "--loss", "in_batch", "--grad_cache_tokens", 100, "--optimizer", "adamW")
    bottom = ("--negative_strategy", "bottom", "--search_backend", "torch")
    train_and_generate(loop, "mean", "rdot_nll", "warmup_mean", *cached, negatives=bottom)


# What is made of an arm


def other_views(loop: Loop) -> None:
    """Negatives selected again from arms/top's candidates; its last model's embeddings on disk, searched and ranked."""
    top, last = loop.path("arms", "top"), loop.path("arms", "top", "checkpoints", f"checkpoint-{STEPS}")
    source = ("--candidates", top / "ann_data" / "ann_candidates_2.npz", "--data_dir", loop.path("preprocessed"))
    for name, strategy in {"window": "ranks:6-20:3", "corpus": "corpus:2+top:2", "words": "top_bottom"}.items():
        flags = ("--output_dir", loop.path("views", name), "--negative_strategy", strategy)
        loop.run(f"views/{name}", "data.negatives", *source, *flags)
    stored = generator(loop, loop.path("stored"), "static", last, *ASYNC)
    loop.run("stored/inference", *stored, "--inference")
    loop.run("stored/load_gen", *stored, "--load_gen", "true", processes=2)
    (embeddings,) = loop.path("stored", "ann_data", "embeddings").iterdir()
    flags = ("--embedding_dir", embeddings, "--output_dir", loop.path("stored", "eval"), "--topk", 100)
    rerank = ("--rerank_file", loop.path("bm25", "dev.trec"), "--split", "dev")
    loop.run("stored/eval", "drivers.run_eval", *common(loop, "static"), *flags, *rerank)
    approximate = ("--faiss_index", "IVF8,Flat", "--nprobe", 4, "--split", "train")
    model = ("--model_name_or_path", last, "--output_dir", loop.path("approximate"), "--topk", 50)
    loop.run("approximate/eval", "drivers.run_eval", *common(loop, "static"), *model, *approximate)


def report(loop: Loop) -> None:
    """The warmup's evaluation, a query's neighbourhood, the series of the logs, and the report of all arms."""
    warmup = loop.path("warmup", f"checkpoint-{WARMUP_STEPS}")
    evaluation = ("--model_name_or_path", warmup, "--output_dir", loop.path("warmup", "eval"), "--topk", 100)
    loop.run("warmup/eval", "drivers.run_eval", *common(loop, "static"), *evaluation)
    negatives = [f"{arm}={loop.path('arms', arm, 'ann_data', 'ann_training_data_1')}" for arm in ("top", "random")]
    places = ("--output_dir", loop.path("neighbourhood"), "--background", 50)
    model = ("--model_name_or_path", warmup, "--negatives", *negatives)
    loop.run("neighbourhood", "drivers.run_neighbourhood", *common(loop, "static"), *places, *model)
    arms = sorted(path.name for path in loop.path("arms").iterdir())
    logs = [loop.path("warmup", "warmup.out")]
    logs += [loop.path("arms", arm, f"{role}.out") for arm in arms for role in ("generator", "trainer")]
    loop.run("read_log", "results.read_log", *logs)
    shutil.copy(loop.path("read_log.out"), loop.path("read_log.jsonl"))
    fix_clocks(loop.directory)
    loop.run("report", "results.report", loop.directory)
