"""What the benchmarks share: timing side by side, texts of MS MARCO-like lengths, the machine, the report."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from model.train.step import GPU_MICRO_BATCH_TOKENS
from utils.flag_values import OneLineParser, path_argument, whole_number

if TYPE_CHECKING:
    from model.encoders.roberta_dot import RobertaDot

# Tokens of a passage: log-normal with a mean of 76, as long as MS MARCO's 56 words make it, few of them above 200.
LENGTHS = {"mean": 4.25, "sigma": 0.4}
SHORTEST, LONGEST = 8, 512
CPU = torch.device("cpu")
QUERY_TOKENS = (4, 13)  # of a query: uniform, with the two special tokens
WORDS = 8000  # of the made-up language; each is one token
LOOK_SECONDS = 0.005  # between two looks at a process's memory


@dataclass(frozen=True)
class Size:
    """A RoBERTa and how much it is given; the flags of every benchmark that has one."""

    layers: int
    width: int
    texts: int
    repeats: int


def parser(name: str, about: str, **sizes: int) -> argparse.ArgumentParser:
    made = OneLineParser(f"python -m benchmarks.{name}", description=about, allow_abbrev=False)
    made.add_argument("--json", type=path_argument, help="write machine, figures and ratios there")
    for flag, default in sizes.items():
        made.add_argument(f"--{flag}", type=whole_number, default=default, help=f"default {default}")
    return made


def machine(device: torch.device) -> dict[str, str | int]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return found[0].partition(": ")[2] if found else platform.processor()


def own_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def side_by_side(
    works: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    limit: Callable[[], object] = lambda: None,
    prepare: Callable[[str], object] = lambda name: None,
) -> dict[str, float]:
    """The median seconds of each, which take turns: what slows the machine down slows all of them down.

    ``limit`` is called once a turn: what the works are held against measures itself. ``prepare`` is given the name of
    the work that comes next.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats):
        for name, work in works.items():
            prepare(name)
            taken[name].append(seconds_of(work, device))
            sys.stderr.write(f"turn {turn + 1} of {repeats}: {name} {taken[name][-1]:.2f} s\n")
        limit()
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def own_bytes(process: int | str = "self") -> int:
    """A process's memory that no file backs; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


@contextlib.contextmanager
def watched_memory(process: int | str = "self") -> Iterator[list[int]]:
    """Its `own_bytes` while the block runs, looked at again and again."""
    seen, ended = [own_bytes(process)], threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            seen.append(own_bytes(process))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


@dataclass
class MatrixProduct:
    """What this machine's matrix product does at the shape of a RoBERTa's widest layer.

    A turn's best call, the median of the turns: a machine's speed changes, and the best of all grows with their number.
    """

    rows: int
    width: int
    device: torch.device
    dtype: torch.dtype
    of_turns: list[float] = field(default_factory=list)

    @property
    def flops_per_second(self) -> float:
        return statistics.median(self.of_turns)

    def __call__(self, repeats: int = 9) -> None:
        shapes = (self.rows, self.width), (self.width, 4 * self.width)
        a, b = (torch.randn(shape, device=self.device, dtype=self.dtype) for shape in shapes)
        product = torch.empty((self.rows, 4 * self.width), device=self.device, dtype=self.dtype)
        seconds = min(seconds_of(lambda: torch.mm(a, b, out=product), self.device) for _ in range(repeats))
        self.of_turns.append(2 * self.rows * self.width * 4 * self.width / seconds)


def encoders_product(encoder: RobertaDot, device: torch.device, dtype: torch.dtype | None) -> MatrixProduct:
    """Of as many rows as a pass of the encoder has."""
    rows = encoder.cpu_batch_tokens if device.type == "cpu" else GPU_MICRO_BATCH_TOKENS
    return MatrixProduct(rows, encoder.config.hidden_size, device, dtype or torch.float32)


def encoder_flops(lengths_N: np.ndarray, layers: int, width: int) -> float:
    """Of the products of one forward pass over texts without padding: weights, and attention within each text.

    The first token is pooled, and it alone passes what follows the last layer's attention: 9 of its 12 products have
    one row a text.
    """
    tokens, pairs = float(lengths_N.sum()), float((lengths_N.astype(np.float64) ** 2).sum())
    rows = 12 * tokens * (layers - 1) + 3 * tokens + 9 * len(lengths_N)
    return 2 * width**2 * rows + layers * 2 * 2 * width * pairs


def passage_lengths(count: int, rng: np.random.Generator) -> np.ndarray:
    return np.clip(rng.lognormal(LENGTHS["mean"], LENGTHS["sigma"], count), SHORTEST, LONGEST).astype(np.int64)


def query_lengths(count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(*QUERY_TOKENS, count, endpoint=True)


def word(number: int) -> str:
    return f"w{number}"


def texts_of_lengths(lengths_N: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Texts of so many tokens, the two special ones included."""
    return [" ".join(map(word, rng.integers(0, WORDS, length - 2).tolist())) for length in lengths_N.tolist()]


def write_tokenizer(directory: Path) -> None:
    """One token for each word, ``<s>`` and ``</s>`` around a text, RoBERTa's padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special_tokens = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {token: number for number, token in enumerate([*special_tokens, *map(word, range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": LONGEST, "sep_token": "</s>", **named}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def make_encoder(
    layers: int, width: int, dropout: float = 0.1, device: torch.device = CPU, **changes: object
) -> RobertaDot:
    """A RoBERTa with ANCE's head and random weights; ``changes`` replace what its config says."""
    from model.encoders.roberta_dot import RobertaDot

    torch.manual_seed(0)
    made = RobertaDot.new(
        {
            "vocab_size": WORDS + 4,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": max(1, width // 64),
            "intermediate_size": 4 * width,
            "max_position_embeddings": LONGEST + 2,
            "type_vocab_size": 1,
            "pad_token_id": 1,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
            **changes,
        }
    )
    return torch.nn.Module.to(made, device)  # its own method does not say what it gives


def report(json_path: Path | None, device: torch.device, figures: dict[str, float], ratios: dict[str, float]) -> None:
    """Print everything, the ratios last; write the file."""
    of_machine = machine(device)
    lines = [", ".join(f"{name} {value}" for name, value in of_machine.items())]
    width = max(map(len, [*figures, *ratios]))
    for values in (figures, ratios):
        lines += ["", *(f"{name:{width}}  {value:,.4g}" for name, value in values.items())]
    sys.stdout.write("\n".join(lines) + "\n")
    if json_path is not None:
        json_path.write_text(json.dumps({"machine": of_machine, "figures": figures, "ratios": ratios}, indent=1) + "\n")
