"""Fixtures of the data plane's tests."""

from __future__ import annotations

import pytest
from batchloom.tests.dataplane.helpers import use_form


@pytest.fixture(params=["numpy", "numba"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test in both forms of the loops."""
    use_form(monkeypatch, request.param)
    return str(request.param)
