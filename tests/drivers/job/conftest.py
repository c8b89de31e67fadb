"""What the tests of models and lengths start their programs on."""

from __future__ import annotations

import pytest

from tests.faults.programs import Inputs, make_inputs


@pytest.fixture(scope="module", name="inputs")
def fixture_inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))
