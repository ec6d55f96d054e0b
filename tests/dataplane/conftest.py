"""Fixtures of the data plane's tests."""

from __future__ import annotations

import pytest
from batchloom.dataplane import compiled


@pytest.fixture(params=["numpy", "numba"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test in both forms of the loops, whatever the size of its input."""
    if request.param == "numpy":
        monkeypatch.setenv("BATCHLOOM_NUMBA", "0")
    else:
        monkeypatch.delenv("BATCHLOOM_NUMBA", raising=False)
        monkeypatch.setattr(compiled, "_COMPILED_FROM", 0)
        assert compiled.compiled_kernels(1) is not None
    return str(request.param)
