"""Runs of chunks: batches that are the same in one piece and in several; sizes; damaged columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane import fragments
from batchloom.dataplane.chunks import SCAN_BYTES, SCAN_ROWS, chunk_runs, decoded_bytes
from batchloom.dataplane.dataset import open_dataset, scan_fragment
from batchloom.dataplane.errors import FragmentCorruptError
from batchloom.dataplane.fragments import FragmentReader
from batchloom.dataplane.storage import _MappedFile
from hypothesis import given
from hypothesis import strategies as st


def test_runs_by_hand() -> None:
    assert chunk_runs([]) == []
    assert chunk_runs([0, 0]) == []
    assert chunk_runs([10]) == [(range(1), 10)]
    assert chunk_runs([SCAN_ROWS, 1]) == [(range(1), SCAN_ROWS), (range(1, 2), 1)]
    assert chunk_runs([40_000, 40_000, 0, 70_000, 5]) == [
        (range(2), 80_000),
        (range(2, 4), 70_000),
        (range(4, 5), 5),
    ]


@given(st.lists(st.integers(0, 3 * SCAN_ROWS), max_size=30))
def test_runs_cover_all_rows_and_are_no_longer_than_needed(chunks: list[int]) -> None:
    runs = chunk_runs(chunks)
    covered = [i for run, _ in runs for i in run]
    assert covered == list(range(len(covered)))
    assert sum(chunks[len(covered) :]) == 0
    for run, rows in runs:
        assert rows == sum(chunks[run.start : run.stop]) > 0
        assert sum(chunks[run.start : run.stop - 1]) < SCAN_ROWS
    assert all(rows >= SCAN_ROWS for _, rows in runs[:-1])


def write(path: Path, rows: int, chunk: int, format_: str) -> None:
    table = pa.table({"x": np.arange(rows), "y": np.sin(np.arange(rows))})
    if format_ == "parquet":
        pq.write_table(table, path, row_group_size=chunk)
        return
    make = pa.ipc.new_file if format_ == "file" else pa.ipc.new_stream
    with make(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=chunk)


@pytest.mark.parametrize(
    ("name", "format_"), [("a.parquet", "parquet"), ("a.arrow", "file"), ("a.arrows", "stream")]
)
@pytest.mark.parametrize("chunk", [30_000, 100_000, 1_000_000])
def test_batches_of_pieces_are_those_of_the_whole(
    tmp_path: Path, name: str, format_: str, chunk: int
) -> None:
    rows = 333_333
    write(tmp_path / name, rows, chunk, format_)
    ref = open_dataset(tmp_path).present()[0]
    whole = list(scan_fragment(ref, ["y", "x"]))
    assert max(p.batch.num_rows for p in whole) <= SCAN_ROWS
    reader = FragmentReader(ref, [])
    pieces = [
        part
        for run, _ in chunk_runs(reader.chunk_rows)
        for part in scan_fragment(ref, ["y", "x"], None, run)
    ]
    reader.close()
    assert [p.first_row_id for p in pieces] == [p.first_row_id for p in whole]
    assert all(a.batch.equals(b.batch) for a, b in zip(pieces, whole, strict=True))
    assert np.concatenate([p.row_ids() for p in whole]).tolist() == list(range(rows))
    assert np.concatenate([np.array(p.batch["x"]) for p in whole]).tolist() == list(range(rows))


def write_wide(path: Path, chunk: int) -> int:
    """Write numbers, text that a dictionary hides, and lists of text, 3 KB a row; return rows."""
    rows = 10_000
    x = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(rows * 256, dtype=np.float32)), 256)
    text = pa.array([f"text {i % 7} " * 200 for i in range(rows)])
    lists = pa.array([[f"{i}"] * (i % 9) for i in range(rows)])
    table = pa.table({"x": x, "text": text, "lists": lists, "row": np.arange(rows)})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=chunk)
    else:
        make = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
        with make(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=chunk)
    return rows


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.arrows"])
@pytest.mark.parametrize("chunk", [700, 10_000])
def test_a_batch_takes_a_few_megabytes_however_wide_its_rows_are(
    tmp_path: Path, name: str, chunk: int
) -> None:
    rows = write_wide(tmp_path / name, chunk)
    dataset = open_dataset(tmp_path)
    for columns in (["x"], ["text"], ["lists", "x", "text", "row"]):
        batches = [p.batch for p in dataset.scan(columns)]
        assert max(b.nbytes for b in batches) <= 1.1 * SCAN_BYTES
        assert np.mean([b.nbytes for b in batches]) > SCAN_BYTES / 8
        assert sum(b.num_rows for b in batches) == rows
    whole = pa.Table.from_batches(batches)
    assert whole["row"].to_pylist() == list(range(rows))
    assert whole.equals(dataset.take(range(rows), ["lists", "x", "text", "row"]))
    narrow = [p.batch.num_rows for p in dataset.scan(["row"])]
    assert narrow == ([rows] if name == "a.parquet" or chunk == rows else [700] * 14 + [200])


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_row_that_is_larger_than_a_batch_is_one(tmp_path: Path, name: str) -> None:
    values = pa.array([bytes(n) for n in (9 << 20, 5 << 20, 7 << 20)], pa.binary())
    table = pa.table({"x": values})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name, compression="zstd", use_dictionary=False)
    else:
        with pa.ipc.new_file(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    found = [p.batch for p in open_dataset(tmp_path).scan(["x"])]
    assert [b.num_rows for b in found] == [1, 1, 1]
    assert [len(b["x"][0].as_py()) for b in found] == [9 << 20, 5 << 20, 7 << 20]


def test_pages_of_a_mapped_file_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was given out before stays as it is."""
    told: list[int] = []
    monkeypatch.setattr(fragments, "_RESIDENT_BYTES", SCAN_BYTES)
    let_go = _MappedFile.let_go
    monkeypatch.setattr(_MappedFile, "let_go", lambda self: (told.append(1), let_go(self)))
    write_wide(tmp_path / "a.arrow", 10_000)
    batches = [p.batch for p in open_dataset(tmp_path).scan(["x"])]
    assert len(told) == sum(b.nbytes for b in batches) // SCAN_BYTES
    values = np.concatenate([b["x"].flatten().to_numpy() for b in batches])
    assert (values == np.arange(len(values), dtype=np.float32)).all()


def test_decoded_bytes_count_widths_not_encodings(tmp_path: Path) -> None:
    """A constant column takes nothing on disk and all of its width in memory."""
    text = ["alpha" * 20] * 999 + ["b"]
    x = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4000, np.float32)), 4)
    table = pa.table({"x": x, "n": np.zeros(1000, np.int16), "text": text})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=600, use_dictionary=["x", "n"], compression="zstd")
    file = pq.ParquetFile(path)
    assert decoded_bytes(file.metadata, file.schema_arrow, ["x"], 0) == 600 * 16
    assert decoded_bytes(file.metadata, file.schema_arrow, ["n", "x"], 1) == 400 * 18
    assert decoded_bytes(file.metadata, file.schema_arrow, [], 0) == 0
    assert decoded_bytes(file.metadata, file.schema_arrow, ["text"], 0) >= 600 * 100


def test_a_failed_checksum_names_row_group_and_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = 200_000
    table = pa.table({"w": np.arange(rows) % 7, "x": np.arange(rows)})
    pq.write_table(table, path, write_page_checksum=True, compression=None,
                   use_dictionary=False, row_group_size=50_000)  # fmt: skip
    dataset = open_dataset(path)
    data = path.read_bytes()
    place = data.index((170_000).to_bytes(8, "little") + (170_001).to_bytes(8, "little"))
    path.write_bytes(data[:place] + b"\xff" + data[place + 1 :])
    parts = dataset.scan(["w", "x"])
    assert [next(parts).first_row_id for _ in range(2)] == [0, SCAN_ROWS]
    with pytest.raises(
        FragmentCorruptError, match=rf"{path} .*, row group 3, column 'x', cannot be read: .*CRC"
    ):
        list(parts)
    assert len(list(dataset.scan(["w"]))) == 4  # the other column is whole
