"""utils.exchange.atomic: a small file is there whole or not at all, and any changed byte of a sealed one is found."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import REPO
from tests.exchanging import MEMORY, names, staged, take
from utils.errors import Fenced, UserError
from utils.exchange import atomic
from utils.exchange.atomic import (
    SEAL,
    STAGING,
    check_writable,
    dump_with_checksum,
    held_lock,
    load_with_checksum,
    publish_directory,
    read_json,
    staging_path,
    write_json,
    write_text,
)

# Sealed JSON

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=8).filter(lambda name: name != SEAL), VALUES, max_size=5)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(MEMORY or tmp_path_factory.mktemp("sealed")) / f"sealed.{os.getpid()}.json"


@pytest.fixture(scope="module", autouse=True)
def removed(path: Path) -> Iterator[None]:
    yield
    path.unlink(missing_ok=True)


@given(OBJECTS)
def test_sealed_json_comes_back(path: Path, value: dict[str, Any]) -> None:
    path.write_text(dump_with_checksum(value), encoding="utf-8")
    found = load_with_checksum(path)
    assert list(found) == list(value)
    stored = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert found == json.loads(json.dumps(value), parse_constant=lambda word: None), "a NaN or Infinity is null"
    rest = json.dumps({name: stored[name] for name in stored if name != SEAL}, indent=1) + "\n"
    assert list(stored)[-1] == SEAL and stored[SEAL] == hashlib.sha256(rest.encode()).hexdigest()


@settings(max_examples=300)
@given(OBJECTS, st.integers(0, 10**6), st.integers(0, 255), st.sampled_from(("changed", "cut", "more", "less", "tail")))
def test_any_changed_byte_is_found(path: Path, value: dict[str, Any], place: int, byte: int, damage: str) -> None:
    content = dump_with_checksum(value).encode()
    place %= len(content)
    before, after = content[:place], content[place + 1 :]
    damaged = {
        "changed": before + bytes([byte]) + after,
        "cut": before,
        "more": before + bytes([byte]) + content[place:],
        "less": before + after,
        "tail": content + bytes([byte]),
    }[damage]
    path.write_bytes(damaged)
    if damaged == content:
        assert list(load_with_checksum(path)) == list(value)
    else:
        with pytest.raises(UserError, match="damaged") as caught:
            load_with_checksum(path)
        assert str(path) in str(caught.value)


def test_every_byte_of_one(path: Path) -> None:
    content = dump_with_checksum({"step": 200, "loss": 0.25, "final": True, "files": {"a": {"bytes": 3}}}).encode()
    for place in range(len(content)):
        for byte in {content[place] ^ 1 << bit for bit in range(8)} | {ord(" "), ord("\n"), ord("0")}:
            if byte == content[place]:
                continue
            path.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
            with pytest.raises(UserError, match="damaged"):
                load_with_checksum(path)


@pytest.mark.parametrize("text", ["{}", '{"step": 1}', '{"sealed": null}', '{"sealed": 1}', "9" * 5000, "[]"])
def test_what_was_never_sealed(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(UserError, match="damaged"):
        load_with_checksum(path)


# Files


@given(first=st.text(max_size=50), second=st.text(max_size=50))
def test_an_older_file_is_replaced_whole(path: Path, first: str, second: str) -> None:
    for text in (first, second):
        write_text(path, text)
        assert path.read_bytes() == text.encode()


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, staging_path(tmp_path, "x") as path:
        path.write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []
    assert not isinstance(error, OSError) or str(caught.value.filename) == str(tmp_path)  # type: ignore[attr-defined]


def test_staging_of_a_lease(tmp_path: Path) -> None:
    """Gone: fenced, whatever went wrong; still there: the error as it is."""
    held = take(tmp_path)
    with pytest.raises(FileNotFoundError), staging_path(tmp_path, "x", held.staging) as path:
        assert path.parent.parent == held.staging
        (tmp_path / "missing").rename(path)
    assert staged(tmp_path) == []
    for error in (ValueError(), OSError(5, "Input/output error")):
        with pytest.raises(Fenced), staging_path(tmp_path, "x", held.staging):
            held.staging.rename(tmp_path / STAGING / "away")
            try:
                raise error
            finally:
                (tmp_path / STAGING / "away" / os.listdir(tmp_path / STAGING / "away")[0]).rmdir()  # noqa: PTH208
        (tmp_path / STAGING / "away").rename(held.staging)
    with pytest.raises(KeyboardInterrupt), staging_path(tmp_path, "x", held.staging):
        raise KeyboardInterrupt
    assert staged(tmp_path) == []


def test_a_lock_is_refused_in_the_words_given(tmp_path: Path) -> None:
    with (
        held_lock(tmp_path / "lock", "first"),
        pytest.raises(UserError, match=r"^second$"),
        held_lock(tmp_path / "lock", "second"),
    ):
        pass
    with held_lock(tmp_path / "lock", "third"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EIO])
def test_without_locks_there_is_a_warning_and_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.fcntl, "flock", flock)
    with held_lock(tmp_path / "lock", "another process is writing"):
        (line,) = capsys.readouterr().err.splitlines()
    assert line == f"warning: no lock on {tmp_path / 'lock'}, continuing without ({os.strerror(number)})"


def test_staging_of_many_writers_in_one_directory(tmp_path: Path) -> None:
    """Each removes .staging where it finds it empty; none may lose its own place by that."""
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for turn in range(60):
                write_json(tmp_path / f"{number}.json", {"turn": turn})
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert names(tmp_path) == ["0.json", "1.json", "2.json", "3.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe"])
def test_a_damaged_json_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match=r"x\.json is missing"):
        read_json(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json .*it is damaged"):
        read_json(path)


# Places that cannot be written


def test_a_writable_place(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deep")
    assert names(tmp_path / "new" / "deep") == []


def unwritable_places(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "file").write_text("")
    yield tmp_path / "file"
    yield tmp_path / "file" / "below"
    yield Path("/proc/ance")
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        yield tmp_path / "closed"


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    for place in unwritable_places(tmp_path):
        with pytest.raises(UserError, match=re.escape(f"cannot publish in {place}: ")) as caught:
            check_writable(place)
        assert "\n" not in str(caught.value)
        assert "file" not in place.parts or "a file is where a directory should be" in str(caught.value)


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported", str(source))

    monkeypatch.setattr(atomic.os, "link", link)
    with pytest.raises(UserError, match=r"cannot publish in .*Operation not supported"):
        check_writable(tmp_path / "x")
    assert names(tmp_path / "x") == []


FULL_DISK = """
import resource, sys
from pathlib import Path
import {modules}
from utils.errors import run_program
from utils.exchange.checkpoints import publish_checkpoint
from utils.exchange.negatives import publish_negatives
from utils.exchange.lease.acquire import acquire
from utils.exchange.lease.record import LeaseTimeouts
from utils.exchange.atomic import write_json

directory = Path(sys.argv[1])
lease = acquire(directory, 'trainer', LeaseTimeouts(10, 60), 'run', None)

def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
    {body}

run_program("program", main)
"""
BODIES = {
    "negatives": 'publish_negatives(lease, 0, lambda p: p.write_bytes(bytes(50000)) and None, {"ndcg": 0.0})',
    "json": 'write_json(directory / "x.json", {"x": "x" * 50000})',
    "file": "with publish_checkpoint(lease, 1, {}) as s: (s / 'a').write_bytes(bytes(50000))",
    "safetensors": "with publish_checkpoint(lease, 1, {}) as s: "
    "safetensors.numpy.save_file({'a': numpy.zeros(50000)}, s / 'a')",
    "torch": "with publish_checkpoint(lease, 1, {}) as s: torch.save({'a': torch.zeros(50000)}, s / 'a')",
}


@pytest.mark.parametrize("what", BODIES)
def test_a_full_disk(tmp_path: Path, what: str) -> None:
    """The limit on a file's size stands for the disk's: one line, exit code 2, nothing published."""
    modules = {"safetensors": "numpy, safetensors.numpy", "torch": "torch"}.get(what, "json")
    program = FULL_DISK.format(modules=modules, body=BODIES[what])
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"no space left writing {tmp_path}" in done.stderr
    assert names(tmp_path) == staged(tmp_path) == []


# Directories


def fill(staged: Path) -> None:
    (staged / "a" / "b").mkdir(parents=True)
    for name in ("one", "a/two", "a/b/three"):
        (staged / name).write_text(name)
        (staged / name).chmod(0o600)


def test_a_directory_and_all_in_it_has_reached_the_disk_before_its_name_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    sync = atomic.sync

    def watched(path: Path) -> None:
        sync(path)
        synced.append((path.name, (tmp_path / "model").exists()))

    monkeypatch.setattr(atomic, "sync", watched)
    publish_directory(tmp_path / "model", fill)
    before = [(name, False) for name in ("three", "two", "one", "b", "a", "model")]
    assert synced == [*before, (tmp_path.name, True)]
    made = tmp_path / "model"
    assert {path.stat().st_mode & 0o777 for path in made.rglob("*") if path.is_file()} == {made.stat().st_mode & 0o666}
    assert names(tmp_path) == ["model"]


def test_a_directory_that_fails_leaves_nothing_and_a_taken_name_is_refused(tmp_path: Path) -> None:
    def fails(staged: Path) -> None:
        fill(staged)
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        publish_directory(tmp_path / "model", fails)
    assert names(tmp_path) == []
    publish_directory(tmp_path / "model", fill)
    with pytest.raises(UserError, match=r"model exists already, expected a new name; choose another$"):
        publish_directory(tmp_path / "model", fails)
    assert (tmp_path / "model" / "one").read_text() == "one"
