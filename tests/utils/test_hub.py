"""utils.hub: when the hub may be asked."""

from __future__ import annotations

import time

import pytest

from utils.hub import has_hub, hub_file


def test_without_its_address_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub's client alone would try for half a minute."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
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
    monkeypatch.setenv("https_proxy", "http://proxy:80")
    assert has_hub()
