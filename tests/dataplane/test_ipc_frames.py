"""Frames that are put together here are what Arrow's own writer means by them."""

import numpy as np
import pyarrow as pa
import pytest
from batchloom.dataplane.ipc_frames import MAGIC, batch_message, closing, padded, schema_message
from batchloom.dataplane.ipc_messages import Block, file_blocks, file_footer, walk_stream


@pytest.mark.parametrize("rows", [0, 1, 10])
@pytest.mark.parametrize("width", [1, 4])
def test_file_and_stream_are_read_by_arrow(rows, width):
    schema = pa.schema([pa.field("x", pa.list_(pa.float32(), width), metadata={"k": "v"})])
    values = np.arange(rows * width, dtype=np.float32).tobytes()
    data = bytearray(MAGIC + b"\0\0" + schema_message(schema))
    at, body = len(data), padded(len(values))
    nodes = [(rows, 0), (rows * width, 0)]
    message = batch_message(at, nodes, [(0, 0), (0, 0), (0, len(values))], body)
    data += message
    assert len(data) % 64 == 0
    block = Block(at, len(message), body)
    data += values.ljust(body, b"\0") + closing(schema, [block], [])
    expected = np.arange(rows * width).reshape(rows, width).tolist()
    for read in (pa.ipc.open_file(pa.py_buffer(data)), pa.ipc.open_stream(pa.py_buffer(data[8:]))):
        table = read.read_all()
        table.validate(full=True)
        assert table.schema.equals(schema, check_metadata=True)
        assert table["x"].to_pylist() == expected
    assert file_blocks(file_footer(memoryview(bytes(data)))) == [block]


def test_our_own_reader_agrees(tmp_path):
    schema = pa.schema([("x", pa.int64())])
    data = bytearray(schema_message(schema))
    for rows in (3, 5):
        body = padded(8 * rows)
        data += batch_message(len(data), [(rows, 0)], [(0, 0), (0, 8 * rows)], body)
        data += bytes(body)
    (tmp_path / "s").write_bytes(data)
    with open(tmp_path / "s", "rb") as file:
        assert [m.rows for m in walk_stream(file, len(data))] == [None, 3, 5]
