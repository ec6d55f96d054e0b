"""What every source of rows must do, whatever its rows are read from.

Subclass `RowSourceContract` in a test file and give it a function that opens a source over a
dataset.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from batchloom.dataplane.errors import BatchloomError
from batchloom.samplers import ManifestLoader, RowSource
from batchloom.tests.contracts.awkward import AWKWARD_ROWS, FORMATS, awkward_table
from batchloom.tests.contracts.batches import shuffled, write_plan
from batchloom.tests.contracts.gather import TENSORS, expected_values, values_of

whole_table = cache(awkward_table)


class RowSourceContract:
    """Every source of rows.

    ``open(data, columns)`` opens one over the files of a folder; all columns when None.
    """

    formats = tuple(FORMATS)
    device = "cpu"

    def open(self, data: Path, columns: list[str] | None = None) -> Any:
        raise NotImplementedError

    @pytest.fixture(params=FORMATS)
    def data(self, awkward_data: Any, request: pytest.FixtureRequest) -> Path:
        if request.param not in self.formats:
            pytest.skip(f"does not read {request.param}")
        return awkward_data(request.param)

    def ids(self, *rows: int) -> np.ndarray:
        return np.array(rows, dtype=np.uint64)

    def test_what_it_says_of_itself(self, data: Path) -> None:
        source = self.open(data, ["y", "x", "text"])
        assert isinstance(source, RowSource)
        assert list(source.columns) == source.schema.names == ["y", "x", "text"]
        assert source.window_bytes >= 1
        assert list(self.open(data).columns) == whole_table().schema.names
        source.close()

    def test_rows_in_the_order_of_their_ids(self, data: Path) -> None:
        source = self.open(data)
        random = np.random.default_rng(0).integers(0, AWKWARD_ROWS, size=500).astype(np.uint64)
        for ids in (self.ids(7, 3, 7, AWKWARD_ROWS - 1, 0, 3001), random, self.ids()):
            columns = source.gather(ids)
            assert list(columns) == source.columns
            for name, column in columns.items():
                assert len(column) == len(ids)
                assert values_of(column) == expected_values(whole_table(), name, ids), name
                if name in TENSORS:
                    assert column.dtype == TENSORS[name]
                    assert column.device.type == self.device
        source.close()

    def test_memory_is_the_callers(self, data: Path) -> None:
        source, ids = self.open(data, ["x", "row", "list"]), self.ids(5, 4000, 6)
        first = source.gather(ids)
        for tensor in (first["x"], first["row"]):
            assert tensor.is_contiguous()
            tensor.zero_()
        again = source.gather(ids)
        assert again["row"].tolist() == [5, 4000, 6]
        assert isinstance(again["list"], pa.Array)
        source.close()

    def test_buffers_may_be_offered(self, data: Path) -> None:
        source, ids = self.open(data, ["x", "row", "text"]), self.ids(*range(100, 200))
        made = source.gather(ids)
        offered = {n: torch.full_like(c, 1) for n, c in made.items() if isinstance(c, torch.Tensor)}
        found = source.gather(ids, offered)
        assert found["row"].tolist() == ids.tolist()
        assert found["x"].tolist() == made["x"].tolist()
        assert found["text"].to_pylist() == made["text"].to_pylist()
        source.close()

    def test_counts_only_grow(self, data: Path) -> None:
        source = self.open(data, ["x"])
        before = source.stats()
        source.gather(self.ids(*range(0, AWKWARD_ROWS, 97)))
        between = source.stats()
        source.close()
        source.gather(self.ids(1, 2, 3))  # closed is not the end
        after = source.stats()
        for name in ("bytes_read", "hits", "misses"):
            counts = [getattr(s, name) for s in (before, between, after)]
            assert counts == sorted(counts)
        source.close()

    def test_row_that_is_not_there(self, data: Path) -> None:
        source = self.open(data, ["x"])
        with pytest.raises(BatchloomError, match=f"{AWKWARD_ROWS}"):
            source.gather(self.ids(3, AWKWARD_ROWS))
        assert source.gather(self.ids(3))["x"].shape == (1, 4)
        source.close()

    @pytest.mark.parametrize("reuse", [False, True])
    def test_under_a_loader(self, data: Path, tmp_path: Path, reuse: bool) -> None:
        manifest = write_plan(tmp_path / "plan", data, {0: shuffled(rows=1000, batch=50)})
        columns = ["x", "text", "list", "flag"]
        expected = self.seen(ManifestLoader(manifest, data, columns=columns))
        source = self.open(data, columns)
        found = ManifestLoader(manifest, source, window=4, prefetch=2, reuse_buffers=reuse)
        assert self.seen(found) == expected
        source.close()

    def seen(self, loader: Any) -> list[Any]:
        """Return what batches hold; Arrow columns of two sources may differ in their offsets."""
        facts = ("step", "rows", "weights", "seeds")
        return [
            [values_of(column) for column in batch.values()]
            + [str(getattr(batch, f)) for f in facts]
            for batch in loader
        ]
