"""Whether a file is what its manifest or record says: sizes first, then sha256."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.exchange.atomic import sha256_of
from utils.exchange.layout import MANIFEST
from utils.exchange.wait import VISIBLE_WITHIN_SECONDS


@dataclass(frozen=True)
class Expected:
    """What a record says of a file; None is what it does not say."""

    bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class Words:
    """What is said of a file that is not what its record says: with {path}, and of sizes {size} and {expected}."""

    missing: str
    sha256: str
    size: str = "{path}: {size} bytes, its record says {expected}: it is damaged"


OF_MANIFEST = Words(
    missing=f"{{path}} is missing, {MANIFEST} lists it",
    size="{path}: {size} bytes, its manifest says {expected}: it is damaged",
    sha256="{path}: sha256 differs from its manifest: it is damaged",
)
OF_RECORD = Words(
    missing="{path}: No such file, its record is there; put it back",
    sha256="{path}: sha256 differs from its record: it is damaged",
)


def signature_of(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def size_of(path: Path) -> int | None:
    """Bytes of a file, None where there is none."""
    return path.stat().st_size if path.is_file() else None


def verify_files(files: Mapping[Path, Expected], words: Words) -> None:
    """All sizes first (cheap), then sha256. UserError, in ``words``, names the first file that differs."""
    for path, expected in files.items():
        size = size_of(path)
        if size is None or (expected.bytes is not None and size != expected.bytes):
            template = words.missing if size is None else words.size
            raise UserError(template.format(path=path, size=size, expected=expected.bytes))
    for path, expected in files.items():
        if expected.sha256 is not None and sha256_of(path) != expected.sha256:
            raise UserError(words.sha256.format(path=path))


def check_files(directory: Path, manifest: dict[str, Any], omitted: Collection[str] = ()) -> None:
    """A checkpoint's files against its manifest. UserError names the first that differs.

    ``omitted``: names of files that nobody is going to read. They are not looked at, and need not be there.
    """
    try:
        listed = {
            directory / name: Expected(entry["bytes"], entry["sha256"])
            for name, entry in manifest["files"].items()
            if name not in omitted
        }
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{directory / MANIFEST} lists no files: it is damaged") from None
    verify_files(listed, OF_MANIFEST)


def check_signature(path: Path, signature: dict[str, Any]) -> None:
    """UserError where the file is missing or not what its record says; ANCE's records say nothing."""
    verify_files({path: Expected(signature.get("bytes"), signature.get("sha256"))}, OF_RECORD)


@dataclass(frozen=True)
class FaultTimer:
    """Since when this process has met with an error, by its own clock. Each text of an error is one fault."""

    first_seen: dict[str, float] = field(default_factory=dict)

    def raise_if_persistent(self, error: Exception) -> None:
        """UserError once a version that nothing can stand in for has been damaged for longer than caches remember."""
        since = self.first_seen.setdefault(str(error), time.monotonic())
        if time.monotonic() - since > VISIBLE_WITHIN_SECONDS:
            raise UserError(f"{error}; nothing else can take its place: start again in other directories") from None


FAULTS = FaultTimer()  # of the versions that this process looks for
