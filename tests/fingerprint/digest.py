"""sha256 of what programs have published, without clocks, hosts and paths.

Every file below a directory has a line, but for those in `OMITTED_FILES`. JSON loses the keys of `OMITTED_KEYS`
wherever they stand, and nothing else; arrays, tensors and text are taken whole.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils.exchange.atomic import SEAL, dump_with_checksum

# Clocks by their keys in JSON, and what stands there for `fix_clocks`.
CLOCKS = {
    "time": 1e9,
    "seconds": 1.5,
    "encode_seconds": 0.5,
    "search_seconds": 0.25,
    "steps_per_second": 100.0,
}
# Keys of JSON, and why no two runs have the same value there.
OMITTED_KEYS = {
    **dict.fromkeys(CLOCKS, "a clock"),
    "metrics_bytes": "the length of metrics.jsonl, whose clocks are of different lengths",
    "run_id": "drawn for each run",
    "job": "Slurm's number of it",
    "git": "the commit itself",
    "skipped_lines": "a log's lines without a number in them: a program that waits longer has more to say",
    SEAL: "the sha256 of a text that has the above in it",
    **dict.fromkeys(
        ("trainer_state.json", "README.md"),
        "in a checkpoint's manifest: size and sha256 of a file that has the above in it",
    ),
}
# Patterns of files, and why they have no line.
OMITTED_FILES = {
    r"(.*/)?\.leases/.*": "who worked there: host, process, clock",
    r".*\.out(\.\d)?(\.err)?": "logs: their series are in read_log.jsonl, the rest is clocks, hosts and paths",
    r"(.*/)?checkpoint-\d+/README\.md": "the run's id and the commit",
    r"(stored|replay)/ann_data/tensorboard/.*": "jobs of one second share a name; metrics.jsonl has it",
}
# Parts of names, and what stands there instead.
RENAMED = {
    r"events\.out\.tfevents\..*": "events",  # a clock and a host
    r"(/step-\d+)-[0-9a-f]+/.*": r"\1",  # a model's embeddings: one line for all shards and their records
}
HERE = "DIRECTORY"  # in the place of the loop's own path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def without_omitted(value: object) -> object:
    """JSON without `OMITTED_KEYS`."""
    if isinstance(value, dict):
        return {key: without_omitted(found) for key, found in value.items() if key not in OMITTED_KEYS}
    return [without_omitted(found) for found in value] if isinstance(value, list) else value


def canonical(value: object) -> bytes:
    """Of nested lists, dictionaries, numbers, text and tensors: the same bytes for the same values."""
    return json.dumps(value, sort_keys=True, default=array_text).encode()


def array_text(value: object) -> str:
    """An array or a tensor by its type, shape and bytes."""
    import torch

    if isinstance(value, torch.Tensor):  # numpy knows no bfloat16
        data = value.reshape(-1).contiguous().view(torch.uint8).numpy()
        return f"{value.dtype} {tuple(value.shape)} {sha256(data.tobytes())}"
    assert isinstance(value, np.ndarray), f"a {type(value).__name__} among the values"
    return f"{value.dtype.str} {value.shape} {sha256(value.tobytes())}"


def with_fixed_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: CLOCKS.get(key, with_fixed_clocks(found)) for key, found in value.items()}
    return [with_fixed_clocks(found) for found in value] if isinstance(value, list) else value


def fix_clocks(directory: Path) -> None:
    """Set the clocks in all JSON below ``directory``, so that a report of it shows the same in every loop."""
    for path in published(directory):
        reader = reader_of(path)
        if reader is of_json_lines:
            rows = [with_fixed_clocks(json.loads(line)) for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif reader is of_json and (fixed := with_fixed_clocks(stored := json.loads(path.read_text()))) != stored:
            without_seal = {key: found for key, found in fixed.items() if key != SEAL}
            path.write_text(dump_with_checksum(without_seal) if SEAL in stored else json.dumps(fixed))


def of_json(path: Path, here: str) -> bytes:
    return canonical(without_omitted(json.loads(path.read_text().replace(here, HERE))))


def of_json_lines(path: Path, here: str) -> bytes:
    lines = path.read_text().replace(here, HERE).splitlines()
    return canonical([without_omitted(json.loads(line)) for line in lines])


def of_text(path: Path, here: str) -> bytes:
    return path.read_bytes().replace(here.encode(), HERE.encode())


def of_arrays(path: Path, here: str) -> bytes:
    with np.load(path) as stored:
        return canonical({name: stored[name] for name in stored.files})


def of_tensors(path: Path, here: str) -> bytes:
    """Weights by name, whatever place they have in the file; and its header's words."""
    from safetensors import safe_open

    with safe_open(path, "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        return canonical([stored.metadata(), tensors])


def of_state(path: Path, here: str) -> bytes:
    """An optimiser's or a schedule's state."""
    import torch

    return canonical(with_named_keys(torch.load(path, weights_only=True)))


def with_named_keys(value: object) -> object:
    """JSON's keys are text; an optimiser's state has numbers."""
    if isinstance(value, dict):
        return {str(key): with_named_keys(found) for key, found in value.items()}
    return [with_named_keys(found) for found in value] if isinstance(value, list | tuple) else value


def of_events(path: Path, here: str) -> bytes:
    """TensorBoard's numbers: name, step, value. A record is its length, 4 bytes, the event, and 4 bytes."""
    from tensorboardX.proto.event_pb2 import Event

    data, offset, rows = path.read_bytes(), 0, []
    while offset < len(data):
        (length,) = struct.unpack_from("<Q", data, offset)
        event = Event.FromString(data[offset + 12 : offset + 12 + length])
        rows += [[value.tag, event.step, value.simple_value] for value in event.summary.value]
        offset += 12 + length + 4
    return canonical([row for row in rows if row[0] not in OMITTED_KEYS])


Reader = Callable[[Path, str], bytes]
READERS: dict[str, Reader] = {
    r".*\.json|(.*/)?ann_ndcg_\d+": of_json,
    r".*\.jsonl": of_json_lines,
    r".*\.npz": of_arrays,
    r".*\.safetensors": of_tensors,
    r".*\.pt": of_state,
    r".*/events\.out\.tfevents\..*": of_events,
}


def reader_of(path: Path) -> Reader:
    return next((reader for pattern, reader in READERS.items() if re.fullmatch(pattern, str(path))), of_text)


def digest_of(path: Path, here: str) -> str:
    """The sha256 of what a file says, ``here`` being the directory that paths in it may be of."""
    return sha256(reader_of(path)(path, here))


def published(directory: Path) -> Iterator[Path]:
    """Every file that has a line, in the order of its name."""
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_file() and not any(re.fullmatch(pattern, name) for pattern in OMITTED_FILES):
            yield path


def lines_of(directory: Path) -> list[str]:
    """``sha256  NAME`` for each published file; files of one name, after `RENAMED`, have one line together."""
    found: dict[str, list[str]] = {}
    for path in published(directory):
        name = str(path.relative_to(directory))
        for pattern, instead in RENAMED.items():
            name = re.sub(pattern, instead, name)
        found.setdefault(name, []).append(digest_of(path, str(directory)))
    return [f"{sha256(canonical(digests))}  {name}" for name, digests in found.items()]
