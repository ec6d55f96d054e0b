"""What every gather backend must do: rows of chunks in, one contiguous batch out, in order.

Subclass `GatherContract` in a test file and give it the backend's `gather`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from batchloom.dataplane.errors import InvalidValueError
from batchloom.tests.contracts.awkward import awkward_table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TENSORS = {
    "row": torch.int64,
    "x": torch.float32,
    "image": torch.uint8,
    "y": torch.int64,
    "flag": torch.bool,
    "half": torch.float16,
    "double": torch.float64,
    "i8": torch.int8,
    "u8": torch.uint8,
    "u16": torch.int32,
    "u32": torch.int64,
    "u64": torch.int64,
}
"""Columns of the awkward dataset that are delivered as tensors."""


@dataclass(frozen=True)
class Part:
    """A stand-in for `dataplane.rows.ChunkRows`."""

    chunk: pa.RecordBatch
    offsets: np.ndarray
    positions: np.ndarray


def parts_of(chunks: Sequence[pa.RecordBatch], ids: np.ndarray) -> Iterator[Part]:
    """Yield what each chunk answers, the last chunk first; row ids count through the chunks."""
    ends = np.cumsum([c.num_rows for c in chunks])
    for index in reversed(range(len(chunks))):
        start = int(ends[index]) - chunks[index].num_rows
        mine = np.flatnonzero((ids >= start) & (ids < ends[index]))
        if len(mine):
            yield Part(chunks[index], ids[mine].astype(np.int64) - start, mine)


def expected_values(table: pa.Table, name: str, ids: np.ndarray) -> Any:
    """Return what a batch's column must hold: nested lists, or a list of Python values."""
    column = table.column(name).combine_chunks().take(pa.array(ids))
    if isinstance(column, pa.FixedShapeTensorArray):
        return column.to_numpy_ndarray().tolist()
    return column.to_pylist()


def values_of(column: Any) -> Any:
    return column.tolist() if isinstance(column, torch.Tensor) else column.to_pylist()


class GatherContract:
    """Every gather backend."""

    def gather(self, schema: pa.Schema, ids: np.ndarray, parts: Any) -> dict[str, Any]:
        raise NotImplementedError

    def of_chunks(self, chunks: Sequence[pa.RecordBatch], ids: Any) -> dict[str, Any]:
        ids = np.asarray(ids, dtype=np.uint64)
        return self.gather(chunks[0].schema, ids, parts_of(chunks, ids))

    def one(self, column: pa.Array, ids: Any) -> Any:
        """Gather rows of one column called ``v`` that stands in one chunk."""
        return self.of_chunks([pa.record_batch({"v": column})], ids)["v"]

    def test_every_type_over_several_chunks(self) -> None:
        table = awkward_table(0, 500)
        chunks = [awkward_table(a, b).to_batches()[0] for a, b in [(0, 7), (7, 8), (8, 500)]]
        ids = [499, 0, 7, 7, 8, 6, 100, 3]
        batch = self.of_chunks(chunks, ids)
        assert list(batch) == table.schema.names
        for name, column in batch.items():
            assert values_of(column) == expected_values(table, name, np.array(ids)), name
            if name in TENSORS:
                assert column.dtype == TENSORS[name], name
            else:
                assert isinstance(column, pa.Array), name

    def test_shapes(self) -> None:
        chunk = awkward_table(0, 9).to_batches()[0]
        batch = self.of_chunks([chunk], [1, 2, 3])
        assert batch["x"].shape == (3, 4)
        assert batch["image"].shape == (3, 2, 3)
        assert batch["y"].shape == (3,)

    def test_no_rows(self) -> None:
        chunk = awkward_table(0, 9).to_batches()[0]
        batch = self.of_chunks([chunk], [])
        assert all(len(column) == 0 for column in batch.values())
        assert batch["x"].shape == (0, 4)
        assert batch["x"].dtype == torch.float32

    def test_memory_is_fresh_and_writable(self) -> None:
        chunk = awkward_table(0, 9).to_batches()[0]
        first, again = self.of_chunks([chunk], range(9)), self.of_chunks([chunk], range(9))
        for name in TENSORS:
            first[name].zero_()
            assert values_of(again[name]) == expected_values(
                awkward_table(0, 9), name, np.arange(9)
            )
            assert first[name].is_contiguous()

    def test_sliced_chunks(self) -> None:
        whole = awkward_table(0, 50)
        chunk = whole.to_batches()[0].slice(13, 20)
        ids = np.array([19, 0, 5])
        batch = self.of_chunks([chunk], ids)
        for name, column in batch.items():
            assert values_of(column) == expected_values(whole, name, ids + 13), name

    def test_nulls_in_other_rows_do_not_matter(self) -> None:
        assert self.one(pa.array([None, 5, None, 7]), [3, 1]).tolist() == [7, 5]
        lists = pa.array([None, [1.0, 2.0], [None, 4.0]], pa.list_(pa.float32(), 2))
        assert self.one(lists, [1, 1]).tolist() == [[1.0, 2.0], [1.0, 2.0]]

    @pytest.mark.parametrize(
        "column",
        [
            pa.array([1, 2, None], pa.int64()),
            pa.array([True, True, None]),
            pa.array([[1.0, 2.0], [3.0, 4.0], None], pa.list_(pa.float32(), 2)),
            pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, None]], pa.list_(pa.float32(), 2)),
            pa.ExtensionArray.from_storage(
                pa.fixed_shape_tensor(pa.uint8(), (1, 2)),
                pa.array([[1, 2], [3, 4], None], pa.list_(pa.uint8(), 2)),
            ),
        ],
        ids=["number", "bool", "list", "inside a list", "tensor"],
    )
    def test_null_is_refused_by_column_and_row(self, column: pa.Array) -> None:
        first = pa.record_batch({"v": column.slice(0, 2)})
        second = pa.record_batch({"v": column})
        with pytest.raises(InvalidValueError, match=r"'v' holds a null in row 4.*is not null"):
            self.of_chunks([first, second], [0, 4, 1])

    def test_null_stays_in_an_arrow_column(self) -> None:
        assert self.one(pa.array(["a", None, "c"]), [1, 2, 1]).to_pylist() == [None, "c", None]

    def test_large_uint64_is_refused_by_column_and_row(self) -> None:
        column = pa.array([1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1], pa.uint64())
        assert self.one(column, [1, 0]).tolist() == [(1 << 63) - 1, 1]
        with pytest.raises(InvalidValueError, match=rf"'v' holds {1 << 63} in row 2"):
            self.one(column, [0, 2])

    def test_largest_values_of_widened_types(self) -> None:
        assert self.one(pa.array([65_535], pa.uint16()), [0]).tolist() == [65_535]
        assert self.one(pa.array([4_294_967_295], pa.uint32()), [0]).tolist() == [4_294_967_295]

    def test_dictionaries_of_several_files_are_joined(self) -> None:
        # Together they hold more values than int8 codes can count.
        chunks = []
        for name in "ab":
            values = pa.array([f"{name}{i}" for i in range(100)])
            codes = pa.array(range(100), pa.int8())
            chunks.append(pa.record_batch({"v": pa.DictionaryArray.from_arrays(codes, values)}))
        column = self.of_chunks(chunks, [199, 0, 100])["v"]
        assert pa.types.is_dictionary(column.type)
        assert column.to_pylist() == ["b99", "a0", "b0"]

    # Each subclass is an executor of its own, as it should be.
    @settings(
        deadline=None,
        max_examples=50,
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )
    @given(st.data())
    def test_any_chunks_any_order(self, data: st.DataObject) -> None:
        sizes = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any))
        stops = np.cumsum(sizes).tolist()
        chunks = [
            awkward_table(b - n, b).combine_chunks().to_batches()
            for b, n in zip(stops, sizes, strict=True)
        ]
        flat = [c[0] for c in chunks if c]
        ids = data.draw(st.lists(st.integers(0, stops[-1] - 1), max_size=12))
        batch = self.of_chunks(flat, ids)
        assert batch["row"].tolist() == ids
        assert batch["text"].to_pylist() == [f"row {i}" if i % 11 else "" for i in ids]
        assert batch["color"].to_pylist() == [["red", "green", "blue"][i % 3] for i in ids]
