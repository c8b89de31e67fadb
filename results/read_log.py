"""Reads the series out of an `.out` log: ours, ANCE's and those of its student fork.

    python -m results.read_log trainer.out warmup.out            one JSON object per file
    python -m results.read_log trainer.out --format tsv          one number per line: file, series, step, value

A log is what several processes left on one stream: progress bars with carriage returns, nvidia-smi tables,
tracebacks, lines that come twice, two ranks' prints run together on one line. What is known is found wherever it
stands in a line, the rest is skipped, and nothing in a log makes the reader fail.
"""

from __future__ import annotations

import codecs
import io
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, TypeVar

from utils.errors import UserError, run_program
from utils.flag_values import Group, flag
from utils.flags import ProgramFlags, answer_dry_run, parse_flags
from utils.json_text import json_text
from utils.run_log import say
from utils.text_files import open_text

STEP = r"\d{1,18}(?!\d)"
NUMBER = r"(?:[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|nan|-?inf)"
EVENT = re.compile(
    r'(?P<json>\{\s*"(?:learning_rate|loss|step)"\s*:)'
    rf"|dev_ndcg[ \t]+(?P<dev_ndcg>{NUMBER})[ \t]+(?P<dev_step>{STEP})"
    rf"|--- ANN NDCG@10:[ \t]*(?P<ann_ndcg>{NUMBER})"
    rf"|--- ANN MRR:[ \t]*(?P<ann_mrr>{NUMBER})"
    rf"|Reranking/Full ranking mrr:[ \t]*(?P<reranking>{NUMBER})/(?P<full>{NUMBER})"
    rf"|refresh (?P<refresh>{STEP}) from step (?P<refresh_step>{STEP})"
    rf"|finished step=(?P<finished>{STEP})"
    r"|^program (?P<program>\w+) run ",
    re.ASCII,
)
PACKED = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf": "7z"}
LONGEST_MAGIC = max(map(len, PACKED))
LONGEST_OBJECT = 2000  # characters; bounds the time that a line of broken objects can take
KIND_OF_PROGRAM = {"run_ann": "training", "run_warmup": "warmup", "run_ann_data_gen": "generation"}


class TrainingPoint(NamedTuple):
    """One logging interval: the loss is the mean over its steps."""

    step: int
    learning_rate: float
    loss: float


class DevNdcg(NamedTuple):
    """``dev_ndcg VALUE STEP``. The fork wrote the *refresh number* in the place of the step; it is given as written."""

    ndcg: float
    step: int


class Generation(NamedTuple):
    """One refresh of the generator, in the order of the log. None where the log has no such line for it.

    ``mrr`` is what the program measured: ANCE and the fork take it over the *training* queries of the refresh.
    """

    ndcg: float | None
    mrr: float | None


class WarmupMrr(NamedTuple):
    """Dev MRR@10 during warmup. ``step`` is the one of the JSON line before it, None where there is none.

    ANCE's run_warmup.py evaluates before it prints the interval's own JSON line, so that in its logs the weights
    are those of one logging interval later than ``step``.
    """

    step: int | None
    reranking: float
    full: float


@dataclass(frozen=True)
class LogSeries:
    """What a log says, in its order, each entry once. ``kind``: training, warmup, generation or unknown."""

    file: str
    kind: str
    training: tuple[TrainingPoint, ...]
    dev_ndcg: tuple[DevNdcg, ...]
    generation: tuple[Generation, ...]
    warmup_mrr: tuple[WarmupMrr, ...]
    refreshes: tuple[tuple[int, int], ...]  # (refresh, step of the checkpoint it was made from)
    finished_step: int | None
    skipped_lines: int  # not blank, and nothing known in them


@dataclass
class _Collected:
    """The lists that reading a log fills."""

    training: list[TrainingPoint] = field(default_factory=list)
    dev_ndcg: list[DevNdcg] = field(default_factory=list)
    generation: list[tuple[str, float]] = field(default_factory=list)
    warmup_mrr: list[WarmupMrr] = field(default_factory=list)
    refreshes: list[tuple[int, int]] = field(default_factory=list)
    finished_step: int | None = None
    program: str = ""
    skipped_lines: int = 0

    def add_line(self, line: str) -> None:
        known = [self._add(line, match) for match in EVENT.finditer(line)]
        if line.strip() and not any(known):
            self.skipped_lines += 1

    def _add(self, line: str, match: re.Match[str]) -> bool:
        """Whether the match is something known; the opening of a JSON object need not be."""
        found = match.groupdict()
        if found["json"]:
            point = training_point(line, match.start())
            if point is None:
                return False
            self.training.append(point)
        elif found["dev_ndcg"]:
            self.dev_ndcg.append(DevNdcg(float(found["dev_ndcg"]), int(found["dev_step"])))
        elif found["ann_ndcg"]:
            self.generation.append(("ndcg", float(found["ann_ndcg"])))
        elif found["ann_mrr"]:
            self.generation.append(("mrr", float(found["ann_mrr"])))
        elif found["reranking"]:
            step = self.training[-1].step if self.training else None
            self.warmup_mrr.append(WarmupMrr(step, float(found["reranking"]), float(found["full"])))
        elif found["refresh"]:
            self.refreshes.append((int(found["refresh"]), int(found["refresh_step"])))
        elif found["finished"]:
            self.finished_step = int(found["finished"])
        else:
            self.program = self.program or found["program"]
        return True

    def kind(self) -> str:
        """By the header where there is one, else by what the log holds."""
        if self.program in KIND_OF_PROGRAM:
            return KIND_OF_PROGRAM[self.program]
        if self.warmup_mrr:
            return "warmup"
        if self.training or self.dev_ndcg:
            return "training"
        return "generation" if self.generation else "unknown"


def training_point(line: str, start: int) -> TrainingPoint | None:
    """The training point in the JSON object that opens at ``start``; None where it is cut short or another object."""
    try:
        value, _ = json.JSONDecoder().raw_decode(line[start : start + LONGEST_OBJECT])
        step, learning_rate, loss = value["step"], value["learning_rate"], value["loss"]
        learning_rate, loss = (math.nan if x is None else x for x in (learning_rate, loss))  # as `json_text` has it
        if any(isinstance(x, bool) or not isinstance(x, int | float) for x in (step, learning_rate, loss)):
            return None
        if step < 0 or step != int(step):
            return None
        return TrainingPoint(int(step), float(learning_rate), float(loss))
    except (ValueError, KeyError, OverflowError, RecursionError):
        return None


Entry = TypeVar("Entry")


def once(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Each entry at its first place. By repr, so that a NaN equals itself."""
    return tuple({repr(entry): entry for entry in entries}.values())


def pair_generation(events: Iterable[tuple[str, float]]) -> tuple[Generation, ...]:
    """Put the two numbers of each refresh together, whichever comes first, with repeated prints removed.

    A number printed twice in a row is one; so are two equal pairs in a row. A single equal number is not enough:
    at four digits, two refreshes often share one of them.
    """
    records: list[dict[str, float]] = []
    last: tuple[str, float] | None = None
    for name, value in events:
        if repr((name, value)) == repr(last):
            continue
        last = (name, value)
        if not records or name in records[-1]:
            records.append({})
        records[-1][name] = value
    pairs = [Generation(record.get("ndcg"), record.get("mrr")) for record in records]
    return tuple(pair for i, pair in enumerate(pairs) if i == 0 or repr(pair) != repr(pairs[i - 1]))


def read_lines(lines: Iterable[str], file: str = "") -> LogSeries:
    """The series in ``lines``, whatever else is in them."""
    log = _Collected()
    for line in lines:
        log.add_line(line)
    return LogSeries(
        file=file,
        kind=log.kind(),
        training=once(log.training),
        dev_ndcg=once(log.dev_ndcg),
        generation=pair_generation(log.generation),
        warmup_mrr=once(log.warmup_mrr),
        refreshes=once(log.refreshes),
        finished_step=log.finished_step,
        skipped_lines=log.skipped_lines,
    )


def read_log(path: str | Path) -> LogSeries:
    """Read a log, plain or gzipped, in UTF-8 or with the byte order mark of UTF-16.

    Bytes that are not of its encoding and NULs are junk like any other; a carriage return ends a line. UserError where
    ``path`` is not a file, its gzip stream is damaged, or it is packed in another way.
    """
    path = Path(path)
    if not path.is_file():
        found = "is a directory" if path.is_dir() else "is not there"
        raise UserError(f"{path} {found}, expected the .out file of a job: name the file")
    with open_text(path) as file, io.BufferedReader(file) as content:  # type: ignore[type-var]
        first = content.peek(LONGEST_MAGIC)[:LONGEST_MAGIC]
        if packed := next((name for magic, name in PACKED.items() if first.startswith(magic)), ""):
            raise UserError(f"{path} is packed by {packed}, expected a log, plain or gzipped: unpack it first")
        encoding = "utf-16" if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        return read_lines(io.TextIOWrapper(content, encoding, errors="replace"), str(path))


def as_json(log: LogSeries) -> str:
    """One line of JSON; numbers that are not finite become null, which JSON has no other word for."""
    value = {
        "file": log.file,
        "kind": log.kind,
        "steps": [point.step for point in log.training],
        "loss": [point.loss for point in log.training],
        "learning_rate": [point.learning_rate for point in log.training],
        "dev_ndcg": log.dev_ndcg,
        "generation": log.generation,
        "warmup_mrr": log.warmup_mrr,
        "refreshes": log.refreshes,
        "finished_step": log.finished_step,
        "skipped_lines": log.skipped_lines,
    }
    return json_text(value)


def tsv_rows(log: LogSeries) -> Iterator[tuple[str, int | None, float]]:
    """(series, step, value), the series one after the other; generation has no step, so its place is empty."""
    yield from (("loss", point.step, point.loss) for point in log.training)
    yield from (("learning_rate", point.step, point.learning_rate) for point in log.training)
    yield from (("dev_ndcg", point.step, point.ndcg) for point in log.dev_ndcg)
    yield from (("ann_ndcg", None, pair.ndcg) for pair in log.generation if pair.ndcg is not None)
    yield from (("ann_mrr", None, pair.mrr) for pair in log.generation if pair.mrr is not None)
    yield from (("warmup_reranking_mrr", point.step, point.reranking) for point in log.warmup_mrr)
    yield from (("warmup_full_mrr", point.step, point.full) for point in log.warmup_mrr)
    yield from (("refresh", step, refresh) for refresh, step in log.refreshes)
    if log.finished_step is not None:
        yield "finished", log.finished_step, log.finished_step


def as_tsv(logs: Iterable[LogSeries]) -> str:
    rows = ["file\tseries\tstep\tvalue"]
    for log in logs:
        rows += [f"{log.file}\t{name}\t{'' if step is None else step}\t{value}" for name, step, value in tsv_rows(log)]
    return "\n".join(rows)


@dataclass(frozen=True, kw_only=True)
class ReadLogFlags(ProgramFlags):
    """Read the series out of .out files."""

    GROUP: ClassVar[Group] = "data"
    POSITIONAL: ClassVar[str] = "files"
    EXAMPLE: ClassVar[str] = "python -m results.read_log trainer.out generator.out --format tsv"

    files: list[str] = flag(help="logs to read; the flag's name may be omitted", is_path=True)
    format: Literal["json", "tsv"] = flag("json", "json: one object per file; tsv: one number per line", group="job")


def main() -> None:
    flags = parse_flags(ReadLogFlags, "read_log")
    if answer_dry_run(flags):
        return
    logs = [read_log(file) for file in flags.files]
    for log in logs:
        if log.kind == "unknown":
            say(f"read_log: warning: {log.file} holds no line of a training or generating program", sys.stderr)
    text = as_tsv(logs) if flags.format == "tsv" else "\n".join(as_json(log) for log in logs)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    run_program("read_log", main)
