"""Fixtures that all tests share; what they make is in `contracts`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Time tells nothing on a shared machine; in continuous integration every run draws the same.
settings.register_profile(
    "batchloom",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
)
settings.load_profile("batchloom")

# Before they are imported: the shared suites' asserts print what they compared.
pytest.register_assert_rewrite("batchloom.tests.contracts")

from batchloom.tests.contracts.awkward import awkward  # noqa: E402


@pytest.fixture(scope="session")
def awkward_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a format to the directory of the awkward dataset; read only."""
    made: dict[str, Path] = {}

    def get(format: str = "parquet") -> Path:
        if format not in made:
            made[format] = awkward(tmp_path_factory.mktemp("awkward") / format, format)
        return made[format]

    return get
