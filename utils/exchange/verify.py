"""Whether a file is what its manifest or record says: sizes first, then sha256."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.exchange.atomic import sha256_of
from utils.exchange.layout import MANIFEST
from utils.exchange.wait import VISIBLE_WITHIN_SECONDS


def signature_of(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def size_of(path: Path) -> int | None:
    """Bytes of a file, None where there is none."""
    return path.stat().st_size if path.is_file() else None


def check_files(directory: Path, manifest: dict[str, Any], omitted: Collection[str] = ()) -> None:
    """Sizes first (cheap), then sha256. UserError names the first file that differs.

    ``omitted``: names of files that nobody is going to read. They are not looked at, and need not be there.
    """
    try:
        listed = [
            (directory / name, entry["bytes"], entry["sha256"])
            for name, entry in manifest["files"].items()
            if name not in omitted
        ]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{directory / MANIFEST} lists no files: it is damaged") from None
    for path, expected_bytes, _ in listed:
        if (size := size_of(path)) is None:
            raise UserError(f"{path} is missing, {MANIFEST} lists it")
        if size != expected_bytes:
            raise UserError(f"{path}: {size} bytes, its manifest says {expected_bytes}: it is damaged")
    for path, _, expected_sha256 in listed:
        if sha256_of(path) != expected_sha256:
            raise UserError(f"{path}: sha256 differs from its manifest: it is damaged")


@functools.cache
def first_seen(error_text: str) -> float:
    """When this process met with this error first, by its own clock."""
    return time.monotonic()


def check_not_lasting(error: Exception) -> None:
    """UserError once a version that nothing can stand in for has been damaged for longer than caches remember."""
    since = first_seen(str(error))
    if time.monotonic() - since > VISIBLE_WITHIN_SECONDS:
        raise UserError(f"{error}; nothing else can take its place: start anew in other directories") from None


def check_signature(path: Path, signature: dict[str, Any]) -> None:
    """UserError where the file is missing or not what its record says; ANCE's records say nothing."""
    size = size_of(path)
    if size is None:
        raise UserError(f"{path}: No such file, its record is there; put it back")
    if size != signature.get("bytes", size):
        raise UserError(f"{path}: {size} bytes, its record says {signature.get('bytes')}: it is damaged")
    if "sha256" in signature and sha256_of(path) != signature["sha256"]:
        raise UserError(f"{path}: sha256 differs from its record: it is damaged")
