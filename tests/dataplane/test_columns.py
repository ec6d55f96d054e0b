"""Arrow columns as numpy arrays, and back, against Arrow's own reading of their values."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from batchloom.dataplane.columns import as_arrow, as_matrix, as_numpy, numpy_type
from batchloom.dataplane.errors import ColumnTypeError, InvalidValueError
from hypothesis import given
from hypothesis import strategies as st

NUMBERS = [
    pa.int8(),
    pa.int16(),
    pa.int32(),
    pa.int64(),
    pa.uint8(),
    pa.uint16(),
    pa.uint32(),
    pa.uint64(),
    pa.float16(),
    pa.float32(),
    pa.float64(),
]


@pytest.mark.parametrize("type_", NUMBERS, ids=str)
def test_numbers_are_views(type_: pa.DataType) -> None:
    array = pa.array(np.array([3, 0, 127, 1, 5], dtype=type_.to_pandas_dtype()))
    for piece in (array, array[1:4], array[:0], array[5:]):
        found = as_numpy(piece)
        assert found.dtype == np.dtype(type_.to_pandas_dtype())
        assert found.tolist() == piece.to_pylist()
    address = array.buffers()[1].address
    assert as_numpy(array).ctypes.data == address
    assert as_numpy(array[2:]).ctypes.data == address + 2 * type_.bit_width // 8
    assert not as_numpy(array).flags.writeable


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 20), st.integers(0, 20))
def test_slices_of_booleans(values: list[bool], start: int, length: int) -> None:
    array = pa.array(values, pa.bool_()).slice(min(start, len(values)), length)
    found = as_numpy(array)
    assert found.dtype == bool
    assert found.tolist() == array.to_pylist()


def test_booleans_at_every_offset() -> None:
    values = np.random.default_rng(0).random(120) < 0.5
    for start in range(40):
        assert as_numpy(pa.array(values)[start:]).tolist() == values[start:].tolist()


@pytest.mark.parametrize(
    ("type_", "shape"),
    [
        (pa.list_(pa.float32(), 3), (3,)),
        (pa.list_(pa.list_(pa.int16(), 3), 2), (2, 3)),
        (pa.list_(pa.bool_(), 3), (3,)),
        (pa.list_(pa.list_(pa.list_(pa.uint8(), 1), 3), 2), (2, 3, 1)),
        (pa.fixed_shape_tensor(pa.int32(), (2, 3)), (2, 3)),
    ],
    ids=str,
)
def test_fixed_size_lists_and_tensors(type_: pa.DataType, shape: tuple[int, ...]) -> None:
    values = np.arange(7 * int(np.prod(shape))).reshape(7, *shape)
    if "bool" in str(type_):
        values = values % 2 == 0
    if isinstance(type_, pa.FixedShapeTensorType):
        storage = pa.array(values.reshape(7, -1).tolist(), type_.storage_type)
        array: Any = pa.ExtensionArray.from_storage(type_, storage)
    else:
        array = pa.array(values.tolist(), type_)
    known = numpy_type(type_)
    assert known is not None
    assert known[1] == shape
    for start, stop in ((0, 7), (2, 5), (3, 3)):
        found = as_numpy(array[start:stop])
        assert found.shape == (stop - start, *shape)
        assert found.dtype == known[0]
        assert found.tolist() == values[start:stop].tolist()


@pytest.mark.parametrize(
    "array",
    [
        pa.array(["a"]),
        pa.array([b"a"]),
        pa.array([[1], [2, 3]]),
        pa.array([{"a": 1}]),
        pa.array(["a"]).dictionary_encode(),
        pa.array([1], pa.timestamp("us")),
        pa.array([1], pa.decimal128(5)),
        pa.nulls(2),
        pa.array([["a"]], pa.list_(pa.string(), 1)),
    ],
    ids=lambda a: str(a.type),
)
def test_types_without_a_width_are_refused(array: Any) -> None:
    assert numpy_type(array.type) is None
    with pytest.raises(ColumnTypeError, match="Column 'c' is .*: expected numbers"):
        as_numpy(array, "c")


def test_nulls_are_refused_and_counted() -> None:
    array = pa.array([1, None, 3, None, None])
    with pytest.raises(InvalidValueError) as caught:
        as_numpy(array, "loss")
    assert "Column 'loss' holds 3 nulls here, the first at position 1" in str(caught.value)
    assert '--where "loss is not null"' in str(caught.value)
    with pytest.raises(InvalidValueError, match="the first at position 1"):
        as_numpy(array[2:], "loss")
    assert as_numpy(array[2:3]).tolist() == [3]
    lists = pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))
    with pytest.raises(InvalidValueError, match="holds 1 nulls"):
        as_numpy(lists)
    inner = pa.array([[1.0, None]], pa.list_(pa.float32(), 2))
    with pytest.raises(InvalidValueError, match="holds 1 nulls"):
        as_numpy(inner)
    assert as_numpy(lists[:1]).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    "dtype", ["int8", "uint16", "int64", "uint64", "float16", "float32", "float64", "bool"]
)
def test_arrow_arrays_over_numpys_memory(dtype: str) -> None:
    values = np.array([1, 0, 1, 1, 0, 0, 1, 1, 1, 0], dtype=dtype)
    read_only = values.copy()
    read_only.flags.writeable = False
    for given_ in (values, values[2:7], values[::3], values[::-1], values[:0], read_only):
        array = as_arrow(given_)
        array.validate(full=True)
        assert array.type == pa.from_numpy_dtype(given_.dtype)
        assert array.to_pylist() == given_.tolist()
        assert as_numpy(array).tobytes() == np.ascontiguousarray(given_).tobytes()
    if dtype != "bool":
        assert as_arrow(values).buffers()[1].address == values.ctypes.data


def test_nan_stays_a_number() -> None:
    array = as_arrow(np.array([np.nan, 1.0]))
    assert array.null_count == 0
    assert np.isnan(as_numpy(array)[0])


def test_matrices_stand_side_by_side() -> None:
    batch = pa.record_batch(
        {
            "v": pa.array([[1.5, 2.5], [3.5, 4.5]], pa.list_(pa.float64(), 2)),
            "n": pa.array([7, 8], pa.int32()),
            "b": pa.array([True, False]),
        }
    )
    assert as_matrix(batch, ["v"]).tolist() == [[1.5, 2.5], [3.5, 4.5]]
    assert as_matrix(batch, ["n", "v", "b"]).tolist() == [[7, 1.5, 2.5, 1], [8, 3.5, 4.5, 0]]
    assert as_matrix(batch, ["n"]).dtype == np.float32
    assert as_matrix(batch[:0], ["n", "v"]).shape == (0, 3)
    with pytest.raises(ColumnTypeError, match="Column 't'"):
        as_matrix(pa.record_batch({"t": ["a"]}), ["t"])


def test_pandas_is_not_imported(tmp_path: Any) -> None:
    """Importing it takes a third of a second; Arrow does so when it looks at numpy arrays."""
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": [1, 2, 3], "t": ["a", "b", "c"]}), tmp_path / "a.parquet")
    script = (
        "import sys; from pathlib import Path\n"
        "from batchloom.dataplane import open_dataset\n"
        "from batchloom.dataplane.columns import as_numpy\n"
        "from batchloom.tests.dataplane.helpers import small_manifest\n"
        "folder = Path(sys.argv[1])\n"
        "for batch in small_manifest(folder / 'm').epoch(0): batch.rows.sum()\n"
        "dataset = open_dataset(folder / 'a.parquet')\n"
        "assert dataset.take([2, 0])['x'].to_pylist() == [3, 1]\n"
        "assert [as_numpy(p.batch.column(0)).sum() for p in dataset.scan(['x'])] == [6]\n"
        "print('pandas' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "False"


def test_a_tensor_type_with_permuted_dimensions_has_no_view() -> None:
    plain = pa.fixed_shape_tensor(pa.uint8(), (2, 3), permutation=[0, 1])
    assert numpy_type(plain) == (np.dtype(np.uint8), (2, 3))
    assert numpy_type(pa.fixed_shape_tensor(pa.uint8(), (2, 3), permutation=[1, 0])) is None
