import numpy as np
import pyarrow as pa
import pytest
import torch
from batchloom.dataplane import open_dataset
from batchloom.dataplane.errors import BatchloomError, ColumnTypeError, InvalidValueError
from batchloom.dataplane.rows import RowReader
from batchloom.gpu_access import CpuGather
from batchloom.gpu_access.cpu import host_tensor
from batchloom.tests.contracts.awkward import FORMATS, awkward_table
from batchloom.tests.contracts.gather import GatherContract, expected_values, parts_of, values_of


class TestCpuGather(GatherContract):
    def gather(self, schema, ids, parts):
        return CpuGather(schema).gather(ids, parts)


@pytest.mark.parametrize("format", FORMATS)
def test_rows_of_files(awkward_data, format):
    dataset = open_dataset(awkward_data(format))
    reader = RowReader(dataset)
    ids = np.array([10_006, 3000, 3001, 3002, 5000, 5064, 0, 9064, 9065, 3001], np.uint64)
    batch = CpuGather(reader.schema).gather(ids, reader.visit(ids))
    table = awkward_table()
    for name, column in batch.items():
        assert values_of(column) == expected_values(table, name, ids), name


def test_batches_do_not_alias_a_memory_map(awkward_data):
    dataset = open_dataset(awkward_data("ipc"))
    ids = np.arange(700, dtype=np.uint64)  # one whole record batch, in order
    reader = RowReader(dataset, ["y", "x"])
    for column in CpuGather(reader.schema).gather(ids, reader.visit(ids)).values():
        column.fill_(99)  # would crash on read-only pages
    again = CpuGather(reader.schema).gather(ids, reader.visit(ids))
    assert again["y"].tolist() == awkward_table(0, 700)["y"].to_pylist()


def test_rows_that_were_not_answered_are_an_error():
    chunk = pa.record_batch({"v": [1, 2, 3]})
    ids = np.array([0, 7], np.uint64)
    with pytest.raises(BatchloomError, match="2 rows were asked for, 1 were found"):
        CpuGather(chunk.schema).gather(ids, parts_of([chunk], ids))


def test_type_that_arrow_cannot_take():
    storage = pa.RunEndEncodedArray.from_arrays([2, 3], [1, 2])
    chunk = pa.record_batch({"v": storage})
    ids = np.array([0, 2], np.uint64)
    with pytest.raises(ColumnTypeError, match=r"'v' \(run_end_encoded.*columns=\["):
        CpuGather(chunk.schema).gather(ids, parts_of([chunk], ids))


def test_ordered_dictionary_stays_ordered():
    column = pa.DictionaryArray.from_arrays(
        pa.array([1, 0], pa.int8()), pa.array(["low", "high"]), ordered=True
    )
    chunk = pa.record_batch({"v": column})
    ids = np.array([1, 0], np.uint64)
    got = CpuGather(chunk.schema).gather(ids, parts_of([chunk], ids))["v"]
    assert got.type == pa.dictionary(pa.int32(), pa.string(), ordered=True)
    assert got.to_pylist() == ["low", "high"]


def test_host_tensor_copies_and_widens():
    values = np.array([1, 2], np.uint16)
    tensor = host_tensor(values, np.array([5, 6], np.uint64), "score")
    values[:] = 0
    assert tensor.tolist() == [1, 2]
    assert tensor.dtype == torch.int32
    with pytest.raises(InvalidValueError, match="'mask' holds 9223372036854775808 in row 6"):
        host_tensor(np.array([0, 1 << 63], np.uint64), np.array([5, 6], np.uint64), "mask")
