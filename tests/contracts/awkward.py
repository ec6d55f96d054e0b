"""A dataset that is awkward on purpose.

10,007 rows in 7 uneven fragments, one of them empty and one of a single row, several row groups or
record batches a fragment, file names whose natural order is not their lexical one, and a column of
every kind of type. Row k holds ``row == k``; all other columns are functions of k.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

AWKWARD_ROWS = 10_007
AWKWARD_FRAGMENTS = {1: 3001, 2: 0, 3: 1, 4: 1999, 5: 64, 10: 4000, 11: 942}
AWKWARD_CHUNK = 700  # rows a row group or record batch
FORMATS = {"parquet": ".parquet", "ipc": ".arrow", "stream": ".arrows"}


def awkward_table(start: int = 0, stop: int = AWKWARD_ROWS) -> pa.Table:
    """Return rows `start` to `stop` of the awkward dataset in memory."""
    k = np.arange(start, stop, dtype=np.int64)
    x = np.sin(k[:, None] * np.array([1.0, 2.0, 3.0, 5.0])).astype(np.float32)
    image = (k[:, None] * np.arange(1, 7)).astype(np.uint8)
    # Each fragment gets a dictionary of its own, in another order.
    colors = pa.array([["red", "green", "blue"][(start + i) % 3] for i in range(3)])
    codes = pa.array(((k - start) % 3).astype(np.int32))
    offsets = np.concatenate([[0], np.cumsum(k % 4)])
    inner = np.arange(offsets[-1]) - np.repeat(offsets[:-1], k % 4)
    values = (np.repeat(k, k % 4) * 4 + inner).astype(np.int32)
    lists = pa.LargeListArray.from_arrays(offsets, values)
    return pa.table(
        {
            "row": k,
            "x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 4),
            "image": pa.ExtensionArray.from_storage(
                pa.fixed_shape_tensor(pa.uint8(), (2, 3)),
                pa.FixedSizeListArray.from_arrays(pa.array(image.ravel()), 6),
            ),
            "y": (k % 10).astype(np.int64),
            "flag": pa.array(k % 3 == 0),
            "half": pa.array((k % 100).astype(np.float16)),
            "double": np.cos(k),
            "i8": k.astype(np.int8),
            "u8": k.astype(np.uint8),
            "u16": (k * 7).astype(np.uint16),
            "u32": (k.astype(np.uint64) * np.uint64(429_496)).astype(np.uint32),
            "u64": k.astype(np.uint64) << np.uint64(40),
            "text": pa.array([f"row {i}" if i % 11 else "" for i in k.tolist()], pa.string()),
            "list": lists,
            "color": pa.DictionaryArray.from_arrays(codes, colors),
            "when": pa.array(k * 1_000_000, pa.timestamp("us")),
        }
    )


def write_fragment(table: pa.Table, path: Path, format: str, chunk: int = AWKWARD_CHUNK) -> None:
    """Write one file in chunks of `chunk` rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if format == "parquet":
        pq.write_table(table, path, row_group_size=chunk)
        return
    make = pa.ipc.new_file if format == "ipc" else pa.ipc.new_stream
    with make(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=chunk)


def awkward(path: Path, format: str = "parquet") -> Path:
    """Write the awkward dataset into a directory; `format` is 'parquet', 'ipc' or 'stream'."""
    start = 0
    for number, rows in AWKWARD_FRAGMENTS.items():
        name = f"part-{number}{FORMATS[format]}"
        write_fragment(awkward_table(start, start + rows), Path(path) / name, format)
        start += rows
    return Path(path)
