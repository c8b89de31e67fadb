"""Passages tokenized per second: ours from file to cache, the tokenizer library alone, a line at a time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import common
from data.docstrings import installed_sources, read_all
from data.msmarco_data import PreprocessSettings, preprocess
from data.sources.msmarco import find_collection
from data.tokens.collection import PASSAGES
from data.tokens.token_cache import cache_files
from data.tokens.tokenizer import load_tokenizer
from data.wordpiece import save_tokenizer, train_tokenizer
from utils.system import core_count

# Words of a passage, log-normal. Docstrings have more marks than MS MARCO's 56 words: 37 make as many tokens, about 76.
LOG_WORDS, SIGMA, FEWEST, MOST = 3.51, 0.45, 5, 300
QUERY_WORDS, QUERIES = 6, 100
MAX_SEQ_LENGTH, MAX_QUERY_LENGTH = 512, 64
ANCE_RECORD_BYTES = 4 + 4 * MAX_SEQ_LENGTH  # a passage on disk: its length, and int32 ids padded to the full width
LIBRARY_BATCH = 5_000
ALONE = 2_000  # passages for the loop over lines, which takes its time
VOCABULARY = 8192


def real_words() -> list[str]:
    """The words of the docstrings of the installed packages, in their order."""
    words: list[str] = []
    for pairs in read_all(installed_sources(), core_count()):
        for pair in pairs or ():
            words += f"{pair.query} {pair.passage}".split()
    return words


def write_collection(directory: Path, passages: int, rng: np.random.Generator) -> list[str]:
    """MS MARCO's files, of real words in passages of its lengths; the passages' texts."""
    words = real_words()
    lengths_N = np.clip(rng.lognormal(LOG_WORDS, SIGMA, passages), FEWEST, MOST).astype(int)

    def texts(lengths: np.ndarray) -> Iterator[str]:
        for length, first in zip(
            lengths.tolist(), rng.integers(0, len(words) - MOST, len(lengths)).tolist(), strict=True
        ):
            yield " ".join(words[first : first + length])

    found = list(texts(lengths_N))
    (directory / "collection.tsv").write_text("".join(f"{n}\t{text}\n" for n, text in enumerate(found)))
    for split in ("train", "dev.small"):
        queries = list(texts(np.full(QUERIES, QUERY_WORDS)))
        (directory / f"queries.{split}.tsv").write_text("".join(f"{n}\t{text}\n" for n, text in enumerate(queries)))
        (directory / f"qrels.{split}.tsv").write_text("".join(f"{n}\t0\t{n}\t1\n" for n in range(QUERIES)))
    return found


def main() -> None:
    flags = common.parser("preprocess", __doc__ or "", passages=60_000, repeats=3).parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    device = common.own_device()
    with tempfile.TemporaryDirectory() as temporary:
        raw, model, out = (Path(temporary) / name for name in ("raw", "model", "out"))
        raw.mkdir()
        texts = write_collection(raw, flags.passages, np.random.default_rng(4))
        save_tokenizer(train_tokenizer(lambda: iter(texts[:20_000]), VOCABULARY), model)
        tokenizer = load_tokenizer(model)
        settings = PreprocessSettings(str(model), MAX_SEQ_LENGTH, MAX_QUERY_LENGTH)

        def ours() -> None:
            shutil.rmtree(out, ignore_errors=True)
            preprocess(find_collection(raw, 1), tokenizer, out, settings)

        library = load_tokenizer(model).backend_tokenizer
        library.enable_truncation(MAX_SEQ_LENGTH)

        def library_alone() -> None:
            for first in range(0, len(texts), LIBRARY_BATCH):
                library.encode_batch(texts[first : first + LIBRARY_BATCH])

        def line_at_a_time() -> None:
            for text in texts[:ALONE]:
                library.encode(text)

        works = {"ours": ours, "raw_tokenizers": library_alone, "line_at_a_time": line_at_a_time}
        seconds = common.side_by_side(works, flags.repeats, device)
        ours()
        cache_bytes = sum((out / name).stat().st_size for name in cache_files(PASSAGES))
        tokens = np.load(out / "passages.offsets.npy")[-1]
    counts = {name: min(ALONE, len(texts)) if name == "line_at_a_time" else len(texts) for name in seconds}
    rates = {name: counts[name] / taken for name, taken in seconds.items()}
    common.report(
        flags.json,
        device,
        {
            **{f"{name}_passages_per_second": rate for name, rate in rates.items()},
            "mean_tokens": float(tokens) / len(texts),
            "cache_bytes_per_passage": cache_bytes / len(texts),
            "ance_bytes_per_passage": float(ANCE_RECORD_BYTES),
        },
        {
            "vs_raw_tokenizers": rates["ours"] / rates["raw_tokenizers"],
            "vs_line_at_a_time": rates["ours"] / rates["line_at_a_time"],
            "bytes_vs_ance": cache_bytes / len(texts) / ANCE_RECORD_BYTES,
        },
    )


if __name__ == "__main__":
    main()
