"""commands/data_download.sh against a web server on this machine that can, or cannot, send a part of a file."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.sources.msmarco import RAW_NAMES, find_collection
from tests import REPO
from tests.shell import copy_scripts, run_script, single_error_line

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

COLLECTION = "".join(f"{n}\ta passage of some length, number {n}\n" for n in range(2000)).encode()
QRELS = b"1\t0\t7\t1\n"


class Site:
    """A directory served on a free port, which counts the bytes it sends of each file."""

    def __init__(self, directory: Path, with_ranges: bool) -> None:
        self.directory = directory
        directory.mkdir()
        self.with_ranges = with_ranges
        self.sent: dict[str, int] = {}
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, with_body: bool) -> None:
                path = site.directory / Path(self.path).name
                if not path.is_file():
                    self.send_error(404)
                    return
                content, start = path.read_bytes(), 0
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                if asked and site.with_ranges:
                    start = int(asked[1])
                    if start >= len(content):
                        self.send_error(416)
                        return
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                if with_body:
                    site.sent[path.name] = site.sent.get(path.name, 0) + len(content) - start
                    self.wfile.write(content[start:])

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Download:
    """The script in a repository with a space in its path, a site, and the list of the site's files."""

    def __init__(self, tmp_path: Path, with_ranges: bool = True) -> None:
        self.repo = copy_scripts(tmp_path)
        self.site = Site(tmp_path / "site", with_ranges)
        self.raw = tmp_path / "raw data"
        self.list = tmp_path / "files.tsv"
        self.list.write_text("# group, name, bytes, md5\n")

    def publish(self, group: str, name: str, content: bytes, known: bool = True) -> None:
        (self.site.directory / name).write_bytes(content)
        size, md5 = (str(len(content)), hashlib.md5(content).hexdigest()) if known else ("-", "-")
        with self.list.open("a") as file:
            file.write(f"{group}\t{name}\t{size}\t{md5}\n")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        script = self.repo / "commands" / "data_download.sh"
        return run_script(
            script,
            *arguments,
            RAW_DATA_DIR=self.raw,
            MSMARCO_URL=self.site.url,
            MSMARCO_FILES=self.list,
            TREC_URL=f"{self.site.url}/nist",
        )


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def download(tmp_path: Path) -> Iterator[Download]:
    download = Download(tmp_path)
    yield download
    download.site.close()


def test_fetches_checks_unpacks_and_never_fetches_again(download: Download) -> None:
    packed = archive(**{"collection.tsv": COLLECTION, "./qrels.train.tsv": QRELS})
    download.publish("passage", "collectionandqueries.tar.gz", packed)
    download.publish("document", "msmarco-docs.tsv.gz", b"documents")
    download.publish("triples", "triples.train.small.tar.gz", b"not asked for")
    for _ in range(2):
        result = download.run()
        assert result.returncode == 0, result.stderr
        assert (download.raw / "collection.tsv").read_bytes() == COLLECTION
        assert (download.raw / "qrels.train.tsv").read_bytes() == QRELS
        assert (download.raw / "msmarco-docs.tsv.gz").read_bytes() == b"documents"
        assert {path.name for path in download.raw.iterdir() if not path.name.startswith(".")} == {
            "collection.tsv",
            "qrels.train.tsv",
            "msmarco-docs.tsv.gz",
        }
        assert download.site.sent == {"collectionandqueries.tar.gz": len(packed), "msmarco-docs.tsv.gz": 9}


def test_the_files_of_trec_come_from_two_sites_and_make_a_split(download: Download) -> None:
    download.publish("trec2019", "msmarco-test2019-queries.tsv.gz", gzip.compress(b"9\twhat is it\n"))
    download.publish("trec2019", "2019qrels-pass.txt", b"9 Q0 7 3\n")
    download.publish("leaderboard", "docleaderboard-queries.tsv.gz", b"not asked for")
    dry = download.run("--dry_run", "trec2019")
    assert f"{download.site.url}/msmarco-test2019-queries.tsv.gz," in dry.stdout
    assert f"{download.site.url}/nist/2019qrels-pass.txt," in dry.stdout
    result = download.run("trec2019")
    assert result.returncode == 0, result.stderr
    (download.raw / "collection.tsv").write_bytes(COLLECTION)
    source = find_collection(download.raw, 1)
    assert list(source.split_files) == ["trec2019"]
    assert list(source.queries("trec2019")) == [("9", "what is it")] and list(source.qrels("trec2019")) == [
        ("9", "7", 3)
    ]


def test_the_files_of_a_split_are_those_that_the_source_reads() -> None:
    """What the groups fetch has the names of `RAW_NAMES`; the passages' leaderboard is in their own archive."""
    lines = (REPO / "commands" / "msmarco_files.tsv").read_text().splitlines()
    fetched = {(line.split("\t")[0], line.split("\t")[1].removesuffix(".gz")) for line in lines if line[0] != "#"}
    wanted = {
        (split, name)
        for names in RAW_NAMES.values()
        for split in ("trec2019", "trec2020", "leaderboard")
        for name in (names.splits[split].queries, names.splits[split].qrels)
        if name
    }
    assert wanted - fetched == {("leaderboard", "queries.eval.small.tsv")}


def test_fetches_again_what_was_removed(download: Download) -> None:
    download.publish("document", "a.gz", b"documents")
    assert download.run().returncode == 0
    (download.raw / "a.gz").unlink()
    assert download.run().returncode == 0
    assert download.site.sent == {"a.gz": 18}


@pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
@pytest.mark.parametrize("with_ranges", [True, False], ids=["ranges", "no ranges"])
@pytest.mark.parametrize("there", [1000, len(COLLECTION)], ids=["a part", "all but the renaming"])
def test_goes_on_where_it_stopped(tmp_path: Path, known: bool, with_ranges: bool, there: int) -> None:
    download = Download(tmp_path, with_ranges)
    download.publish("document", "docs.tsv.gz", COLLECTION, known)
    download.raw.mkdir()
    (download.raw / "docs.tsv.gz.part").write_bytes(COLLECTION[:there])
    result = download.run("document")
    download.site.close()
    assert result.returncode == 0, result.stderr
    assert (download.raw / "docs.tsv.gz").read_bytes() == COLLECTION
    if with_ranges or there == len(COLLECTION):
        assert download.site.sent.get("docs.tsv.gz", 0) == len(COLLECTION) - there


@pytest.mark.parametrize("wrong", [b"documents!", b"dokuments"], ids=["size", "md5"])
def test_damaged_file_is_refused_and_removed(download: Download, wrong: bytes) -> None:
    download.publish("document", "docs.tsv.gz", b"documents")
    (download.site.directory / "docs.tsv.gz").write_bytes(wrong)
    assert "damaged, removed; run this again" in single_error_line(download.run())
    assert not list(download.raw.glob("docs*"))
    (download.site.directory / "docs.tsv.gz").write_bytes(b"documents")
    assert download.run().returncode == 0


def test_missing_on_the_server(download: Download) -> None:
    download.publish("document", "docs.tsv.gz", b"documents")
    (download.site.directory / "docs.tsv.gz").unlink()
    result = download.run()
    assert result.returncode == 2
    assert "docs.tsv.gz: curl failed with code 22" in result.stderr


def hostile(kind: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        names = {"absolute": "/tmp/evil.tsv", "parent": "../evil.tsv", "folder": "sub/evil.tsv", "hidden": ".evil"}
        member = tarfile.TarInfo(names.get(kind, "evil.tsv"))
        if kind == "symlink":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        if kind == "hardlink":
            member.type, member.linkname = tarfile.LNKTYPE, "collection.tsv"
        if kind == "device":
            member.type = tarfile.FIFOTYPE
        tar.addfile(member)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["absolute", "parent", "folder", "hidden", "symlink", "hardlink", "device"])
def test_hostile_archive_is_not_unpacked(download: Download, kind: str) -> None:
    download.publish("passage", "collectionandqueries.tar.gz", hostile(kind))
    assert "expected plain files without a directory: not unpacked" in single_error_line(download.run())
    assert not list(download.raw.glob("*evil*")) and not (download.raw.parent / "evil.tsv").exists()


def test_file_of_the_user_is_not_overwritten(download: Download) -> None:
    download.publish("passage", "collectionandqueries.tar.gz", archive(**{"collection.tsv": COLLECTION}))
    download.raw.mkdir()
    (download.raw / "collection.tsv").write_text("mine\n")
    assert "collection.tsv exists and differs" in single_error_line(download.run())
    assert (download.raw / "collection.tsv").read_text() == "mine\n"
    (download.raw / "collection.tsv").write_bytes(COLLECTION)
    assert download.run().returncode == 0


def test_dry_run_fetches_nothing(download: Download) -> None:
    download.publish("passage", "collectionandqueries.tar.gz", archive(a=b"a"))
    download.publish("document", "docs.tsv.gz", b"documents", known=False)
    result = download.run("--dry_run", "document")
    assert result.returncode == 0
    assert result.stdout == (
        f"docs.tsv.gz: to fetch from {download.site.url}/docs.tsv.gz, unknown bytes (0 there), md5 unknown\n"
    )
    assert download.site.sent == {} and not download.raw.exists()


def test_list_of_files_is_well_formed() -> None:
    lines = (REPO / "commands" / "msmarco_files.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    for group, name, size, md5 in rows:
        assert group in {"passage", "document", "triples", "top1000", "trec2019", "trec2020", "leaderboard"}
        assert name.endswith(".gz") or re.fullmatch(r"20\d\dqrels-(pass|docs)\.txt", name)
        assert re.fullmatch(r"\d+|-", size) and re.fullmatch(r"[0-9a-f]{32}|-", md5)
    assert len({name for _, name, _, _ in rows}) == len(rows)


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_list_of_files_is_read_with_any_line_end_and_without_the_last(download: Download, end: str) -> None:
    download.publish("document", "docs.tsv.gz", b"documents")
    lines = [*download.list.read_text().splitlines(), ""]
    download.list.write_bytes(end.join([*lines, lines[1].replace("document", "triples")]).encode())
    result = download.run()
    assert result.returncode == 0, result.stderr
    assert (download.raw / "docs.tsv.gz").read_bytes() == b"documents"


@pytest.mark.parametrize("line", ["document docs.tsv.gz 9 -", "document\tdocs.tsv.gz\t9", "document\ta/b\t9\t-"])
def test_list_of_files_with_another_line_is_refused(download: Download, line: str) -> None:
    download.publish("document", "other.tsv.gz", b"documents")
    download.list.write_text(f"{download.list.read_text()}{line}\n")
    error = single_error_line(download.run())
    assert f"'{line}', expected group, name, bytes and md5 with a tab between each" in error
    assert not download.raw.exists()


def test_unknown_group(download: Download) -> None:
    assert "unknown argument passages" in single_error_line(download.run("passages"))
