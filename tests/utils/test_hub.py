"""utils.hub: when the hub may be asked."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from data.tokens.tokenizer import load_tokenizer
from utils.hub import has_hub, hub_file


@pytest.fixture(autouse=True)
def _without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_a_tokenizer_of_a_directory_asks_for_no_address(tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://another-host.invalid")
    asked: list[object] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *others, **named: asked.append(host))
    load_tokenizer(tiny_tokenizer)
    assert not asked and not has_hub() and asked == ["another-host.invalid"]


def test_without_its_address_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub's client alone would try for half a minute."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://no-such-host.invalid")
    started = time.monotonic()
    assert not has_hub() and hub_file("lab/no-such-model", "config.json") is None
    assert time.monotonic() - started < 15
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://localhost:9")
    assert has_hub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert not has_hub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://no-such-host.invalid")
    monkeypatch.setenv("no_proxy", "localhost")  # names no proxy
    assert not has_hub()
    monkeypatch.setenv("https_proxy", "http://proxy:80")
    assert has_hub()
