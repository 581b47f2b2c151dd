"""The run that the tests of figures and metrics share."""

from __future__ import annotations

import pytest

from .runs import complete_run, with_maps


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict:
    return complete_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def inputs_with_maps(inputs, tmp_path) -> dict:
    return with_maps(inputs, tmp_path)
