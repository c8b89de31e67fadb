"""Whether a preprocessed directory is what its manifest says, found out without reading gigabytes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from data.tokens.collection import MANIFEST, Preprocessed
from data.tokens.token_cache import ADVICE, TokenCache, cache_files
from utils.errors import UserError
from utils.exchange.verify import Expected, Words, verify_files
from utils.system import in_bytes

HASHED_BYTES = 64 * 2**20  # files up to this size are read whole; of larger ones sizes and offsets have to agree
CHUNK_ROWS = 2**20
WORDS = Words(
    missing=f"{{path}}: None bytes, {MANIFEST} says {{expected}}; {ADVICE}",
    size=f"{{path}}: {{size}} bytes, {MANIFEST} says {{expected}}; {ADVICE}",
    sha256=f"{{path}}: its sha256 differs from {MANIFEST}: it is damaged; {ADVICE}",
)


def check_inputs(collection: Preprocessed) -> str:
    """Every file of the preprocessed directory against its manifest. UserError names the first that differs."""
    directory, manifest = collection.directory, collection.directory / MANIFEST
    try:
        listed = collection.manifest["files"].items()
        sizes, sha256s = ({directory / name: entry[key] for name, entry in listed} for key in ("bytes", "sha256"))
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{manifest} lists no files: it is damaged; {ADVICE}") from None
    small = [path for path, size in sizes.items() if size <= HASHED_BYTES]
    expected = {path: Expected(size, sha256s[path] if path in small else None) for path, size in sizes.items()}
    verify_files(expected, WORDS)
    for cache in (collection.passages, *map(collection.queries, collection.splits)):
        check_cache(cache, [path.name for path in small])
    total = in_bytes(sum(sizes.values()))
    return f"inputs: {len(sizes)} files, {total}, as in {manifest}: all sizes, {len(small)} sha256"


def check_cache(cache: TokenCache, hashed: Sequence[str] = ()) -> None:
    """What can be told of a cache without reading its tokens; the files of the names ``hashed`` are known to be whole.

    UserError where offsets do not ascend, or there is not an id for each text. `open_token_cache` has checked that the
    last offset is the number of tokens.
    """
    _, offsets_name, ids_name = cache_files(cache.name)
    for first in range(0, len(cache) if offsets_name not in hashed else 0, CHUNK_ROWS):
        steps = np.diff(cache.offsets_N1[first : first + CHUNK_ROWS + 1])
        if steps.size and steps.min() < 0:
            row = first + int(np.argmax(steps < 0))
            raise UserError(f"{cache.directory / offsets_name}: text {row} ends before it begins; {ADVICE}")
    if ids_name not in hashed:
        path = cache.directory / ids_name
        with path.open("rb") as file:
            lines = sum(part.count(b"\n") for part in iter(partial(file.read, 2**20), b""))
        if lines != len(cache):
            raise UserError(f"{path} has {lines} lines, expected {len(cache)}; {ADVICE}")
