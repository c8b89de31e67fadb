"""What an evaluation leaves: run files, tables by query and by rank, and ``metrics.json``, which vouches for them.

``metrics.json`` is written last and is sealed; ``files`` in it has the size and sha256 of each file next to it. Their
names say which split was evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.exchange.atomic import dump_with_checksum, load_with_checksum, read_json, write_text
from utils.exchange.layout import EvaluationLayout
from utils.exchange.verify import check_signature, signature_of

TRAIN = "train"  # the split that is trained on
DEV = "dev"  # the split that is measured where there is one of this name, and what a record without one means


def measured_split(record: Mapping[str, Any]) -> str:
    """The split that was measured while training, as the record of a refresh has it."""
    return str(record.get("dev_split", DEV))


def ranked_split(record: Mapping[str, Any]) -> str:
    """The split that the keys of a ``metrics.json`` are of; "" where it does not say, as those of older versions.

    Versions in between list its run file.
    """
    if isinstance(record.get("split"), str):
        return str(record["split"])
    ranking, reranking = EvaluationLayout(Path()).ranking("").name, EvaluationLayout(Path()).reranking("").name
    files = [name for name in record.get("files", {}) if name.endswith(ranking) and not name.endswith(reranking)]
    return files[0].removesuffix(ranking) if files else ""


def write_metrics(directory: Path, record: Mapping[str, Any], names: Sequence[str]) -> None:
    """Write ``metrics.json`` whole. ``names`` are the files of ``directory`` that the evaluation has written."""
    files = {name: signature_of(directory / name) for name in names}
    write_text(EvaluationLayout(directory).metrics, dump_with_checksum({**record, "files": files}))


def read_metrics(path: Path) -> dict[str, Any]:
    """UserError where the file is missing or damaged; one without a seal, as of older versions, is taken as it is."""
    return load_with_checksum(path, is_required=False)


def listed_files(record: Path) -> dict[str, Any]:
    """The ``files`` of a ``metrics.json``; none of one that another program has written, whatever it holds.

    UserError where it is ours and damaged.
    """
    try:
        files = read_json(record).get("files")
    except (UserError, OSError):
        return {}
    return read_metrics(record)["files"] if isinstance(files, dict) else {}


def check_as_published(path: Path) -> None:
    """UserError where the ``metrics.json`` next to a file lists it, and it is another now; others are not known."""
    record = EvaluationLayout(path.parent).metrics
    if path == record or not record.is_file():
        return
    signature = listed_files(record).get(path.name)
    if not isinstance(signature, dict):
        return
    try:
        check_signature(path, signature)
    except UserError as error:
        raise UserError(f"{error}; evaluate again, or put the file back that {record} is of") from None
