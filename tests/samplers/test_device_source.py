"""Sources whose rows end on a device, as far as a CPU shows it; the rest is in `test_gpu`."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from batchloom.dataplane import open_dataset
from batchloom.dataplane.errors import (
    ParameterError,
    RowIdError,
    UnifiedAccessUnavailable,
)
from batchloom.dataplane.manifest import Manifest
from batchloom.gpu_access import select_backend
from batchloom.samplers import ManifestLoader
from batchloom.samplers.device_source import Rows, UnifiedSource, rows_of
from batchloom.samplers.row_source import DatasetSource
from batchloom.tests.contracts.batches import shuffled, write_plan

COLUMNS = ["x", "text", "row"]


@pytest.fixture
def manifest(awkward_data, tmp_path) -> Manifest:
    return write_plan(tmp_path / "plan", awkward_data("parquet"), {0: shuffled()})


def test_rows_of_a_unified_source_are_the_hosts(awkward_data, manifest):
    dataset = open_dataset(awkward_data("parquet"))

    def host_of(columns):
        return DatasetSource(dataset, columns or COLUMNS, cache_bytes=1 << 24)

    source = UnifiedSource(host_of, rows_of(manifest), select_backend("cpu", "cpu"))
    assert (source.columns, source.schema) == (COLUMNS, host_of(None).schema)
    for seed in range(3):
        ids = np.random.default_rng(seed).integers(0, dataset.rows, 500).astype(np.uint64)
        found, wanted = source.gather(ids), host_of(None).gather(ids)
        assert list(found) == COLUMNS
        assert torch.equal(found["x"], wanted["x"])
        assert torch.equal(found["row"], wanted["row"])
        assert found["text"].equals(wanted["text"])
    stats = source.stats()
    assert stats.bytes_by_path["cpu"] == 3 * 500 * (wanted["x"][0].nbytes + 8)
    assert stats.plus(stats).bytes_by_path["cpu"] == 2 * stats.bytes_by_path["cpu"]
    source.close()
    assert torch.equal(source.gather(ids)["x"], wanted["x"])


def test_a_column_with_nulls_stays_on_the_hosts_way():
    class Host:
        """Column x has no nulls, y has one in row 3."""

        def __init__(self, columns):
            self.columns = list(columns or ["x", "y"])
            self.schema = pa.schema([pa.field(c, pa.int64()) for c in self.columns])
            self.window_bytes = 1

        def gather(self, ids, out=None):
            from batchloom.dataplane.errors import InvalidValueError

            if "y" in self.columns and 3 in ids:
                raise InvalidValueError("Column 'y' holds a null in row 3")
            values = torch.from_numpy(ids.astype(np.int64))
            return {name: values * {"x": 10, "y": 100}[name] for name in self.columns}

        def stats(self):
            from batchloom.samplers import SourceStats

            return SourceStats(7)

        def close(self):
            pass

    rows = Rows(np.array([0], np.uint64), np.array([5], np.int64))
    source = UnifiedSource(Host, rows, select_backend("cpu", "cpu"))
    found = source.gather(np.array([4, 0], np.uint64))
    assert {name: c.tolist() for name, c in found.items()} == {"x": [40, 0], "y": [400, 0]}
    assert source.stats().bytes_by_path == {"cpu": 16}
    assert source.stats().bytes_read == 7


def test_places_of_rows():
    rows = Rows(np.array([10, 100, 2**40], np.uint64), np.array([5, 1, 3], np.int64))
    assert rows.total == 9
    ids = np.array([2**40 + 2, 10, 14, 100, 2**40], np.uint64)
    assert rows.places(ids).tolist() == [8, 0, 4, 5, 6]
    parts = [(place, ids.tolist()) for place, ids in rows.parts(2)]
    assert parts == [(0, [10, 11]), (2, [12, 13]), (4, [14]), (5, [100]),
                     (6, [2**40, 2**40 + 1]), (8, [2**40 + 2])]  # fmt: skip
    for missing in (9, 15, 99, 101, 2**40 + 3, 2**63):
        with pytest.raises(RowIdError, match=f"Row {missing} is in no planned fragment"):
            rows.places(np.array([10, missing], np.uint64))


def test_what_cannot_be_on_this_device_is_refused(awkward_data, manifest):
    data = awkward_data("parquet")
    for transfer in ("unified", "staged"):
        with pytest.raises(UnifiedAccessUnavailable, match="cannot be used for cpu"):
            ManifestLoader(manifest, data, columns=["x"], transfer=transfer)
    with pytest.raises(ParameterError, match="A transform works on the host"):
        ManifestLoader(manifest, data, columns=["x"], transfer="unified", transform=len)
    for transfer in ("auto", "cpu"):
        assert len(list(ManifestLoader(manifest, data, columns=["x"], transfer=transfer))) > 1
