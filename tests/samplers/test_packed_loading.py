"""Loading from packed tables: by row id, and in the order of a plan."""

from __future__ import annotations

import pytest
from batchloom.dataplane import open_dataset
from batchloom.dataplane.errors import DatasetChangedError, PackedError, ParameterError
from batchloom.dataplane.packed import PackedTable
from batchloom.dataplane.packing import pack_dataset
from batchloom.jobs.packing import pack
from batchloom.samplers import ManifestLoader
from batchloom.tests.contracts.batches import drain, fingerprints, shuffled, write_plan

COLUMNS = ["x", "text"]


@pytest.fixture
def data(awkward_data):
    return awkward_data("parquet")


@pytest.fixture
def plan(data, tmp_path):
    plans = {e: shuffled(e, micro_per_step=2, weighted=True) for e in (0, 1)}
    write_plan(tmp_path / "plan", data, plans, weight_semantics="importance")
    return tmp_path / "plan"


@pytest.fixture
def ordered(data, plan, tmp_path):
    pack(data, tmp_path / "ordered", COLUMNS, order=plan, epoch=1)
    return tmp_path / "ordered"


def test_a_table_stands_for_its_dataset(plan, data, tmp_path):
    table = pack_dataset(open_dataset(data), tmp_path / "table", COLUMNS)
    expected = fingerprints(ManifestLoader(plan, data, columns=COLUMNS, pack=False))
    for given in (tmp_path / "table", str(tmp_path / "table"), table):
        assert fingerprints(ManifestLoader(plan, given)) == expected
    few = pack_dataset(open_dataset(data), tmp_path / "few", COLUMNS, fragments=[0, 1])
    with pytest.raises(DatasetChangedError, match="is not in it"):
        ManifestLoader(plan, few)


@pytest.mark.parametrize("window", [1, 5, None])
@pytest.mark.parametrize("world", [1, 3])
def test_a_table_in_the_order_of_a_plan(plan, data, ordered, world, window):
    for rank in range(world):
        options = {"epochs": [1], "rank": rank, "world_size": world, "window": window}
        expected = fingerprints(ManifestLoader(plan, data, columns=COLUMNS, **options))
        loader = ManifestLoader(plan, ordered, **options)
        assert loader.columns == COLUMNS
        assert fingerprints(loader) == expected


def test_resume_in_the_order_of_a_plan(plan, data, ordered):
    expected = drain(ManifestLoader(plan, data, columns=["x"], epochs=[1]))
    loader = ManifestLoader(plan, ordered, columns=["x"], epochs=[1])
    iterator = iter(loader)
    for _ in range(len(expected) // 3 * 2):
        next(iterator)
    state = loader.state_dict()
    rest = ManifestLoader(plan, ordered, columns=["x"], epochs=[1])
    rest.load_state_dict(state)
    found = drain(rest)
    assert 0 < len(found) < len(expected)
    for mine, whole in zip(found, expected[-len(found) :], strict=True):
        assert mine["x"].equal(whole["x"])
        assert mine.rows.equal(whole.rows)


def test_a_table_in_the_order_of_a_plan_serves_that_only(plan, data, ordered, tmp_path):
    with pytest.raises(PackedError, match="holds epoch 1 of plan .*not epoch 0"):
        drain(ManifestLoader(plan, ordered, epochs=[0]))
    other = write_plan(tmp_path / "other", data, {1: shuffled(3)})
    with pytest.raises(PackedError, match="holds epoch 1 of plan"):
        ManifestLoader(other, ordered)
    with pytest.raises(ParameterError, match="transfer='auto'"):
        ManifestLoader(plan, ordered, epochs=[1], transfer="unified")
    assert PackedTable.open(ordered).order.epoch == 1
