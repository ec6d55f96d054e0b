import gc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from batchloom.dataplane.errors import (
    ColumnTypeError,
    FragmentCorruptError,
    HostMemoryError,
    InvalidValueError,
    MissingColumnError,
    MissingFileError,
    ParameterError,
    ReleasedTableError,
)
from batchloom.gpu_access import HostTable, host_memory
from batchloom.gpu_access.host_memory import HUGE_PAGE, available_memory, huge_page_bytes


def write(path, *batches):
    with pa.ipc.new_file(path, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return path


def lists(values):
    values = np.asarray(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


@pytest.mark.parametrize("align", [1, 4, 128, 4096])
@pytest.mark.parametrize("width", [0, 1, 33, (2, 5), ()])
def test_layout(align, width):
    table = HostTable.allocate(7, width, torch.float32, row_align=align)
    shape = (width,) if isinstance(width, int) else width
    assert table.tensor.shape == (7, *shape)
    assert table.table.address % HUGE_PAGE == 0
    row = int(np.prod(shape)) * 4
    assert table.stride == -(-row // max(align, 4)) * max(align, 4)
    assert table.nbytes == 7 * table.stride
    if row:
        assert table.tensor.stride(0) * 4 == table.stride
        assert not table.tensor.any()
        table.tensor[6] = 5
        assert table.tensor.sum() == 5 * row / 4


def test_memory_lives_as_long_as_a_tensor_over_it():
    table = HostTable.from_tensor(torch.arange(20.0).view(5, 4))
    rows = table.tensor[2:]
    table.release()
    assert table.released
    del table
    gc.collect()
    assert rows.tolist() == torch.arange(8.0, 20.0).view(3, 4).tolist()


def test_released_table():
    table = HostTable.allocate(3, 2)
    table.release()
    table.release()
    for use in (lambda: table.tensor, lambda: table.table, lambda: table.fill(0, torch.ones(1, 2))):
        with pytest.raises(ReleasedTableError, match="3 rows was released: make a new one"):
            use()
    assert "released" in repr(table)


def test_larger_than_memory_says_both_figures():
    rows = available_memory() // 4096 + (1 << 20)
    with pytest.raises(HostMemoryError, match=r"table of [\d,.]+ GiB does not fit the [\d,.]+ GiB"):
        HostTable.allocate(rows, 1024)
    assert issubclass(HostMemoryError, MemoryError)


def test_memory_that_is_available(monkeypatch):
    files = {
        "/proc/meminfo": ["MemTotal: 9000 kB\n", "MemAvailable:  8000 kB\n"],
        "/sys/fs/cgroup/memory.max": ["5000000\n"],
        "/sys/fs/cgroup/memory.current": ["4000000\n"],
        "/sys/fs/cgroup/memory.stat": ["anon 9\n", "inactive_file 500000\n", "active_file 1\n"],
    }
    monkeypatch.setattr(host_memory, "_lines", lambda path: iter(files.get(str(path), [])))
    assert available_memory() == 1_500_001  # what the group may still take, its page cache too
    files["/sys/fs/cgroup/memory.max"] = ["max\n"]
    assert available_memory() == 8_192_000
    files.clear()
    assert available_memory() > 1 << 28


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": -1, "width": 2}, "must not be negative"),
        ({"rows": 1, "width": -2}, "must not be negative"),
        ({"rows": 1, "width": 2, "row_align": 96}, "'row_align' parameter must be a power of two"),
    ],
)
def test_bad_layout(arguments, message):
    with pytest.raises(ParameterError, match=message):
        HostTable.allocate(**arguments)


def test_huge_pages():
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.exists() or "[never]" in enabled.read_text():
        with pytest.raises(HostMemoryError, match="no huge pages"):
            HostTable.allocate(10, 10, huge_pages=True)
        return
    table = HostTable.allocate(16 << 20, 1, torch.uint8, huge_pages=True)
    table.tensor.fill_(1)
    assert table.huge_pages
    assert huge_page_bytes(table.table.address) >= 8 << 20
    assert not HostTable.allocate(10, 10, huge_pages=False).huge_pages


def test_fill_checks_what_it_is_given():
    table = HostTable.allocate(4, 3)
    table.fill(1, torch.ones(2, 3))
    assert table.tensor.sum(1).tolist() == [0, 3, 3, 0]
    with pytest.raises(ParameterError, match=r"float32 of shape \(3,\)\. Got torch.float64"):
        table.fill(0, torch.ones(2, 3).double())
    with pytest.raises(ParameterError, match=r"Got torch.float32 of shape \(2, 2\)"):
        table.fill(0, torch.ones(2, 2))
    for start in (-1, 3):
        with pytest.raises(ParameterError, match="were to be written to a table of 4 rows"):
            table.fill(start, torch.ones(2, 3))


# --- Arrow ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "dtype"),
    [
        (pa.array([1, 2, 3], pa.int8()), torch.int8),
        (pa.array([1, 2, 3], pa.uint16()), torch.uint16),
        (pa.array([1, 2, (1 << 64) - 1], pa.uint64()), torch.uint64),
        (pa.array([True, False, True]), torch.bool),
        (pa.array(np.array([1, -0.0, np.nan], np.float16)), torch.float16),
        (lists([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.float64),
        (
            pa.array([[True, False], [False, True], [True, True]], pa.list_(pa.bool_(), 2)),
            torch.bool,
        ),
    ],
)
@pytest.mark.parametrize("start", [0, 1])
def test_types_are_not_widened(column, dtype, start):
    part = column.slice(start)
    table = HostTable.from_arrow(pa.chunked_array([part, part]), row_align=64)
    assert table.dtype == dtype
    assert str(table.tensor.tolist()) == str((part.to_pylist()) * 2)


def test_tensors_of_arrow():
    values = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    assert HostTable.from_arrow(column).tensor.tolist() == values.tolist()


def test_nulls_and_variable_length_are_refused():
    with pytest.raises(InvalidValueError, match="nulls here, the first at position 1"):
        HostTable.from_arrow(pa.chunked_array([[1.0, 2.0], [3.0, None]]))
    inner = pa.array([[1.0, None], [2.0, 3.0]], pa.list_(pa.float32(), 2))
    with pytest.raises(InvalidValueError, match="null"):
        HostTable.from_arrow(inner)
    for column in (pa.array(["a"]), pa.array([[1], [2, 3]]), pa.array([{"a": 1}])):
        with pytest.raises(ColumnTypeError, match="have no fixed width"):
            HostTable.from_arrow(column)


def test_sliced_list_that_holds_a_null_elsewhere():
    column = pa.array([None, [1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2))
    assert HostTable.from_arrow(column.slice(1)).tensor.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_file_of_several_batches(tmp_path):
    values = np.random.default_rng(0).standard_normal((100, 7)).astype(np.float32)
    parts = [values[:33], values[33:34], values[34:34], values[34:]]
    batches = [pa.record_batch({"x": lists(p), "y": pa.array(p[:, 0])}) for p in parts]
    path = write(tmp_path / "x.arrow", *batches)
    table = HostTable.from_file(path, "x", row_align=128)
    assert np.array_equal(table.tensor.numpy(), values)
    assert HostTable.from_file(path, "y").tensor.shape == (100,)
    with pytest.raises(MissingColumnError, match="No column was named in .*; it holds x, y"):
        HostTable.from_file(path)
    with pytest.raises(MissingColumnError, match="There is no column 'z' in .*it holds x, y"):
        HostTable.from_file(path, "z")
    with pytest.raises(MissingFileError, match="There is no file .*nowhere"):
        HostTable.from_file(tmp_path / "nowhere")
    (tmp_path / "broken").write_bytes(path.read_bytes()[:300])
    with pytest.raises(FragmentCorruptError, match="cannot be read as an Arrow IPC file"):
        HostTable.from_file(tmp_path / "broken", "x")
