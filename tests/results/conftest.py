"""Fixtures of the tests of a study."""

from __future__ import annotations

import pytest

from results import stats


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 2000)
