"""Fixtures that all tests share; what they make is in `contracts`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

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
