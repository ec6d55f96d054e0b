"""What the tests of loaders share."""

import gc

import pytest
from batchloom.tests.contracts.batches import prefetch_threads, shuffled, write_plan


@pytest.fixture
def data(awkward_data):
    return awkward_data("ipc")


@pytest.fixture
def plan(data, tmp_path):
    """Two epochs of ten micro-batches of 20 rows."""
    write_plan(tmp_path / "plan", data, {e: shuffled(e, rows=200, batch=20) for e in (0, 1)})
    return tmp_path / "plan"


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    if prefetch_threads():
        gc.collect()
    assert prefetch_threads() == []
