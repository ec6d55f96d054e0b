"""Rows by id: grouping by chunk, the cache and its limit, threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from batchloom.dataplane import rows as subject
from batchloom.dataplane.dataset import open_dataset
from batchloom.dataplane.errors import ColumnTypeError
from batchloom.dataplane.fragments import FragmentReader
from batchloom.dataplane.rows import RowReader
from batchloom.tests.contracts.awkward import AWKWARD_ROWS, FORMATS, awkward_table, write_fragment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(st.integers(0, AWKWARD_ROWS - 1), max_size=40),
    st.integers(0, 40_000),
)
def test_any_request_by_hand(
    awkward_data: Callable[[str], Path], format_: str, ids: list[int], cache_bytes: int
) -> None:
    """Whatever the order, the repeats and the size of the cache."""
    dataset = open_dataset(awkward_data(format_))
    columns = ["row", "x", "text", "list", "color"]
    reader = RowReader(dataset, columns, cache_bytes=cache_bytes)
    for request in (ids, ids[::-1], sorted(ids)):
        taken = reader.take(request)
        assert taken.column_names == columns
        assert taken["row"].to_pylist() == request
        expected = awkward_table().select(columns).take(pa.array(request, pa.int64()))
        assert taken.to_pylist() == expected.to_pylist()
    reader.close()


@pytest.mark.parametrize("format_", FORMATS)
def test_visits_answer_each_position_once(
    awkward_data: Callable[[str], Path], format_: str
) -> None:
    dataset = open_dataset(awkward_data(format_))
    reader = RowReader(dataset, ["row"])
    ids = np.random.default_rng(0).integers(0, AWKWARD_ROWS, 3000).astype(np.uint64)
    seen = np.zeros(3000, dtype=int)
    chunks = set()
    for part in reader.visit(ids):
        values = part.chunk.column(0).to_numpy()[part.offsets]
        assert values.tolist() == ids[part.positions].tolist()
        seen[part.positions] += 1
        first = int(part.chunk.column(0)[0].as_py())
        assert first not in chunks, "a chunk is visited once"
        chunks.add(first)
    assert (seen == 1).all()


def test_a_chunk_is_decoded_once_while_it_is_kept(
    awkward_data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[tuple[str, int]] = []
    chunk = FragmentReader.chunk

    def counted(self: FragmentReader, index: int) -> Any:
        decoded.append((self.ref.label, index))
        return chunk(self, index)

    monkeypatch.setattr(FragmentReader, "chunk", counted)
    dataset = open_dataset(awkward_data("parquet"))
    reader = RowReader(dataset, ["row"])
    for _ in range(3):
        reader.take([0, 699, 700, 5])
    assert decoded == [("data:part-1.parquet", 0), ("data:part-1.parquet", 1)]
    tight = RowReader(dataset, ["row"], cache_bytes=1)
    decoded.clear()
    for _ in range(2):
        tight.take([0, 700])
        assert len(tight._chunks) == 1
    assert len(decoded) == 4


def test_the_cache_keeps_to_its_limit(awkward_data: Callable[[str], Path]) -> None:
    """700 rows of an int64 column: 5,600 bytes a chunk, and three of them fit."""
    reader = RowReader(open_dataset(awkward_data("ipc")), ["row"], cache_bytes=17_000)
    for start in range(0, AWKWARD_ROWS, 350):
        reader.take([start])
        assert reader._held <= 17_000
        assert reader._held == sum(size for _, size in reader._chunks.values())
    assert len(reader._chunks) >= 3
    reader.close()
    assert (reader._held, len(reader._chunks), len(reader._readers)) == (0, 0, 0)
    assert reader.take([7])["row"].to_pylist() == [7]


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_OPEN_FILES", 3)
    for number in range(10):
        write_fragment(pa.table({"x": [number]}), tmp_path / f"{number}.arrow", "ipc")
    reader = RowReader(open_dataset(tmp_path), ["x"])
    order = [9, 0, 5, 1, 9, 8, 2, 0, 7, 3, 4, 6]
    for row in order:
        assert reader.take([row])["x"].to_pylist() == [row]
        assert len(reader._readers) <= 3
    assert reader.take(order)["x"].to_pylist() == order


@pytest.mark.parametrize("format_", FORMATS)
def test_threads_share_a_reader(
    awkward_data: Callable[[str], Path], format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few open files and a small cache, so that both are emptied under the others' feet."""
    monkeypatch.setattr(subject, "_OPEN_FILES", 1)
    reader = RowReader(open_dataset(awkward_data(format_)), ["row", "text"], cache_bytes=20_000)
    rng = np.random.default_rng(0)
    requests = [rng.integers(0, AWKWARD_ROWS, 20).tolist() for _ in range(60)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda ids: reader.take(ids)["row"].to_pylist(), requests))
    assert found == requests


def test_a_type_that_arrow_cannot_take_is_named(tmp_path: Path) -> None:
    column = pa.RunEndEncodedArray.from_arrays(pa.array([2, 4], pa.int32()), pa.array(["a", "b"]))
    with pa.ipc.new_file(tmp_path / "a.arrow", pa.schema([("runs", column.type)])) as writer:
        writer.write_batch(pa.record_batch({"runs": column}))
    dataset = open_dataset(tmp_path)
    try:
        taken = dataset.take([3, 0])
    except ColumnTypeError as error:
        message = str(error)
        assert "runs (run_end_encoded" in message
        assert "Leave that column out" in message
    else:  # an Arrow that can
        assert taken["runs"].to_pylist() == ["b", "a"]
