"""A hub on this machine: directories served over HTTP as huggingface_hub's client asks for them, and a cache.

It answers what the client needs of it: a repository's revision and its tree, and HEAD and GET of its files, as
huggingface_hub's own sources call them (file_download.py, hf_api.py).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest

REVISION = "0" * 40


class Requests(BaseHTTPRequestHandler):
    root: Path  # a repository is a directory in it, "owner/name"
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(has_body=False)

    def do_GET(self) -> None:
        self.answer(has_body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def answer(self, has_body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.asked.append(f"{self.command} {path}")
        owner, name, *rest = path.removeprefix("api/models/").split("/")
        repository = self.root / owner / name
        if not repository.is_dir():
            return self.send(b"", 404, {"X-Error-Code": "RepoNotFound"}, has_body)
        if rest[:1] == ["tree"] and not (repository / "/".join(rest[2:])).is_dir():
            return self.send(b"", 404, {"X-Error-Code": "EntryNotFound"}, has_body)
        if path.startswith("api/"):
            return self.send(json.dumps(self.described(repository, rest)).encode(), 200, {}, has_body)
        file = repository / "/".join(rest[2:])  # resolve/REVISION/...
        if not file.is_file():
            return self.send(b"", 404, {"X-Error-Code": "EntryNotFound"}, has_body)
        return self.send(file.read_bytes(), 200, {}, has_body)

    def described(self, repository: Path, rest: list[str]) -> object:
        if rest[:1] != ["tree"]:
            return {"id": f"{repository.parent.name}/{repository.name}", "sha": REVISION, "siblings": []}
        files = sorted(path for path in repository.rglob("*") if path.is_file())
        return [
            {
                "type": "file",
                "path": path.relative_to(repository).as_posix(),
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for path in files
        ]

    def send(self, body: bytes, status: int, headers: dict[str, str], has_body: bool) -> None:
        self.send_response(status)
        etag = hashlib.sha1(body).hexdigest()
        common = {"Content-Length": str(len(body)), "X-Repo-Commit": REVISION, "ETag": f'"{etag}"'}
        for name, value in (common | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if has_body:
            self.wfile.write(body)


class Hub:
    """A repository of the hub is a directory ``root``/owner/name; ``asked`` lists the requests."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.asked = directory / "hub", list[str]()
        self.directory, self.monkeypatch, self.caches = directory, monkeypatch, 0
        self.root.mkdir()

    def add(self, model: Path, name: str) -> str:
        """A copy of a directory as the repository of this name."""
        shutil.copytree(model, self.root / name)
        return name

    @property
    def cache(self) -> Path:
        """Where the client keeps what it has fetched."""
        return self.directory / f"cache-{self.caches}"

    def forget(self) -> None:
        """Give the client an empty cache."""
        self.caches += 1
        self.monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(self.cache))

    def set_offline(self, is_offline: bool) -> None:
        self.monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", is_offline)


@pytest.fixture(name="hub")
def fixture_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that the client asks, with an empty cache."""
    hub = Hub(tmp_path, monkeypatch)
    handler = type("Served", (Requests,), {"root": hub.root, "asked": hub.asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", endpoint)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # made when it is first asked
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        hub.set_offline(False)
        hub.forget()
        yield hub
        server.shutdown()
        thread.join()
