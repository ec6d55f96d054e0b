"""Datasets whose Arrow files are read where they are: which can be, and what damage does."""

import numpy as np
import pyarrow as pa
import pytest
from batchloom.dataplane import open_dataset
from batchloom.dataplane.errors import DatasetChangedError, InvalidValueError, RowIdError
from batchloom.dataplane.mapped_dataset import map_dataset
from batchloom.gpu_access import PackedGather
from batchloom.tests.contracts.gather import values_of


def write(path, batches, **options):
    with pa.ipc.new_file(path, batches[0].schema, **options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return path


def one(values, type_=None):
    return pa.record_batch({"v": pa.array(values, type_)})


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_files_are_packed_instead(tmp_path, codec):
    options = pa.ipc.IpcWriteOptions(compression=codec)
    write(tmp_path / "a.arrow", [one(range(1000))], options=options)
    assert map_dataset(open_dataset(tmp_path)) is None


def test_runs_of_bits_are_packed_instead(tmp_path):
    write(tmp_path / "a.arrow", [one([[True], [False, True]])])
    assert map_dataset(open_dataset(tmp_path)) is None


def test_other_files_are_not(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data/a.arrow", [one([1])])
    data = (tmp_path / "data/a.arrow").read_bytes()
    import fsspec

    fsspec.filesystem("memory").pipe_file("/mapped/a.arrow", data)
    assert map_dataset(open_dataset("memory://mapped")) is None


def test_uneven_batches_and_gaps_between_ids(tmp_path):
    write(tmp_path / "a.arrow", [one(range(3)), one([], pa.int64()), one(range(3, 10))])
    first = open_dataset(tmp_path)
    assert map_dataset(first).chunks.rows.tolist() == [3, 7]
    (tmp_path / "a.arrow").rename(tmp_path.parent / "away.arrow")
    write(tmp_path / "b.arrow", [one(range(100, 105))])
    dataset = open_dataset(tmp_path, since=first.snapshot)
    assert dataset.snapshot.fragments[0].first_row_id == 10
    write(tmp_path / "c.arrow", [one(range(200, 202))])
    dataset = open_dataset(tmp_path, since=dataset.snapshot)
    mapped = map_dataset(dataset)
    assert mapped.chunks.first.tolist() == [10, 15]
    assert PackedGather(mapped).gather([16, 10, 14])["v"].tolist() == [201, 100, 104]
    with pytest.raises(RowIdError, match="Row 9 is in no chunk"):
        PackedGather(mapped).gather([9])


def test_some_fragments_and_columns(tmp_path):
    for number in range(3):
        batch = pa.record_batch({"a": np.arange(4) + 4 * number, "t": ["x"] * 4})
        write(tmp_path / f"{number}.arrow", [batch])
    dataset = open_dataset(tmp_path)
    mapped = map_dataset(dataset, ["a"], [1])
    assert PackedGather(mapped).gather([7, 4])["a"].tolist() == [7, 4]
    with pytest.raises(RowIdError, match="Row 3 is in no chunk"):
        PackedGather(mapped).gather([3])
    (tmp_path / "2.arrow").unlink()
    bound = open_dataset(tmp_path, snapshot=dataset.snapshot, needed=[0, 1])
    with pytest.raises(DatasetChangedError, match=r"2\.arrow was not there"):
        map_dataset(bound, ["a"], [1, 2])


@pytest.mark.parametrize("type_", [pa.string(), pa.large_binary(), pa.list_(pa.int32())])
def test_damaged_offsets_are_an_error_and_no_crash(tmp_path, type_):
    rows = [[1, 2, 3]] * 4 if pa.types.is_list(type_) else ["abc"] * 4
    path = write(tmp_path / "a.arrow", [one(rows, type_)])
    wide = pa.types.is_large_binary(type_)
    dtype = np.int64 if wide else np.int32
    data = path.read_bytes()
    offsets = np.array([0, 3, 6, 9, 12], dtype).tobytes()
    for bad in ([0, 3, 1 << 30, 9, 12], [0, 3, 1, 9, 12], [0, 3, -5, 9, 12]):
        path.write_bytes(data.replace(offsets, np.array(bad, dtype).tobytes()))
        gather = PackedGather(map_dataset(open_dataset(path)))
        assert len(gather.gather([0, 3, 0])["v"]) == 3
        with pytest.raises(InvalidValueError, match="'v' has impossible offsets in row [12]"):
            gather.gather([3, 1, 2])


def test_rows_survive_the_dataset(tmp_path):
    write(tmp_path / "a.arrow", [one([[1.5, 2.5]] * 3, pa.list_(pa.float64(), 2))])
    batch = PackedGather(map_dataset(open_dataset(tmp_path))).gather([2, 0])
    (tmp_path / "a.arrow").unlink()
    assert values_of(batch["v"]) == [[1.5, 2.5]] * 2
