"""A whole refresh as its collection doubles and doubles again: seconds, and the memory of its process."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks import common
from data.msmarco_data import PreprocessSettings, preprocess
from data.sources.msmarco import find_collection
from data.tokens.tokenizer import load_tokenizer
from model.encoders.static import StaticEncoder
from utils.declared.text_settings import DEFAULT_TEXTS

PASSAGE_TOKENS, QUERY_TOKENS = 512, 64  # all there are
STATIC_DIMS = 128
LONGEST_SECONDS = 3600


def write_raw(directory: Path, passages: int, queries: int, rng: np.random.Generator) -> None:
    """MS MARCO's files in the made-up language; query q's positive is passage q."""
    directory.mkdir()
    texts = common.texts_of_lengths(common.passage_lengths(passages, rng), rng)
    (directory / "collection.tsv").write_text("".join(f"{n}\t{text}\n" for n, text in enumerate(texts)))
    for split in ("train", "dev.small"):
        texts = common.texts_of_lengths(common.query_lengths(queries, rng), rng)
        (directory / f"queries.{split}.tsv").write_text("".join(f"{n}\t{text}\n" for n, text in enumerate(texts)))
        (directory / f"qrels.{split}.tsv").write_text("".join(f"{n}\t0\t{n}\t1\n" for n in range(queries)))


def write_models(directory: Path, layers: int, width: int) -> dict[str, Path]:
    """A static encoder and a RoBERTa with random weights, each with the tokenizer, by model type."""
    static = StaticEncoder({"vocab_size": common.WORDS + 4, "embedding_size": STATIC_DIMS, "pad_token_id": 1})
    models = {"static": static, "rdot_nll": common.make_encoder(layers, width)}
    for name, model in models.items():
        (directory / name).mkdir()
        model.record(DEFAULT_TEXTS.record())
        model.save_pretrained(directory / name)
        common.write_tokenizer(directory / name)
    return {name: directory / name for name in models}


def prepare(directory: Path, passages: int, queries: int, tokenizer: Path) -> Path:
    """A preprocessed collection of so many passages."""
    raw, out = directory / f"raw-{passages}", directory / f"preprocessed-{passages}"
    write_raw(raw, passages, queries, np.random.default_rng(passages))
    settings = PreprocessSettings(str(tokenizer), PASSAGE_TOKENS, QUERY_TOKENS)
    preprocess(find_collection(raw, 1), load_tokenizer(tokenizer), out, settings)
    return out


def measured(model_type: str, model: Path, data: Path, out: Path, topk: int) -> tuple[float, int]:
    """One refresh by drivers.run_ann_data_gen: the seconds that it says it took, and its most memory in bytes."""
    given = {
        "data_dir": data,
        "model_type": model_type,
        "init_model_dir": model,
        "training_dir": out / "checkpoints",
        "output_dir": out / "ann_data",
        "max_seq_length": PASSAGE_TOKENS,
        "max_query_length": QUERY_TOKENS,
        "topk_training": topk,
        "negative_sample": min(20, topk),
        "negative_strategy": "top",
        "ann_chunk_factor": 1,
        "search_memory_mib": 16,  # else every size would fit in, and memory would grow with it
        "end_output_num": 0,
    }
    flags = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    log = out / "generator.out"
    out.mkdir()
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "drivers.run_ann_data_gen", *flags], stdout=file, stderr=subprocess.STDOUT
        )
        with common.watched_memory(process.pid) as seen:
            try:
                code = process.wait(LONGEST_SECONDS)
            finally:
                process.kill()
    log_text = log.read_text()
    found = re.search(r"published in ([\d.]+) s", log_text)
    assert code == 0 and found, log_text[-2000:]
    return float(found[1]), max(seen)


def main() -> None:
    sizes = {"passages": 10_000, "doublings": 3, "queries": 500, "topk": 200, "layers": 4, "width": 64, "repeats": 7}
    flags = common.parser("refresh", __doc__ or "", **sizes).parse_args()
    counts = [flags.passages << doubling for doubling in range(flags.doublings + 1)]
    torch.manual_seed(0)
    seconds: dict[tuple[str, int], list[float]] = {}
    peaks: dict[tuple[str, int], list[int]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        models = write_models(directory, flags.layers, flags.width)
        data = {count: prepare(directory, count, flags.queries, models["static"]) for count in counts}
        for turn in range(flags.repeats):
            for name, model in models.items():
                for count in counts:
                    out = directory / f"{name}-{count}-{turn}"
                    taken, peak = measured(name, model, data[count], out, flags.topk)
                    seconds.setdefault((name, count), []).append(taken)
                    peaks.setdefault((name, count), []).append(peak)
                    sys.stderr.write(f"turn {turn + 1}: {name}, {count:,} passages: {taken} s, {peak >> 20} MiB\n")
    median_seconds = {key: statistics.median(values) for key, values in seconds.items()}
    median_peaks = {key: statistics.median(values) for key, values in peaks.items()}
    growths = {
        (name, count): median_seconds[name, count] / median_seconds[name, count // 2]
        for name in models
        for count in counts[1:]
    }
    common.report(
        flags.json,
        common.own_device(),
        {
            **{f"{name}_{count}_passages_seconds": value for (name, count), value in median_seconds.items()},
            **{f"{name}_{count}_passages_peak_mib": value / 2**20 for (name, count), value in median_peaks.items()},
        },
        {
            "time_growth_per_doubling": max(growths.values()),
            "peak_memory_growth": max(
                median_peaks[name, counts[-1]] / median_peaks[name, counts[0]] for name in models
            ),
        },
    )


if __name__ == "__main__":
    main()
