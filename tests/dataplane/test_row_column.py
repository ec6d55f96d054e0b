from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from batchloom.dataplane import row_column
from batchloom.dataplane.errors import SelectionError, StorageError
from batchloom.dataplane.row_column import ColumnWriter, RowColumn, Segment, sum_counts

KINDS: dict[str, Any] = {
    "weights": np.linspace(0, 1, 1000, dtype=np.float32),
    "mask": np.arange(1000) % 3 == 0,
    "vectors": np.arange(3000, dtype=np.float32).reshape(1000, 3),
    "pairs": np.array([(i % 7, i / 3) for i in range(1000)], [("label", "<i4"), ("d", "<f8")]),
}


def written(folder: Path, values: Any, cuts: list[int], **options: Any) -> RowColumn:
    """Write values as one segment a stretch, each in two pieces."""
    segments: list[Segment] = []
    for number, part in enumerate(np.split(values, cuts)):
        with ColumnWriter(folder / f"segment-{number}") as writer:
            writer.append(part[: len(part) // 2])
            writer.append(part[len(part) // 2 :])
            segments.append(writer.finish())
    return RowColumn(segments, **options)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("resident", [0, 1 << 20])
def test_values_are_read_as_they_were_written(
    tmp_path: Path, name: str, resident: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_column, "_WINDOW", 512)
    values = KINDS[name]
    column = written(tmp_path, values, [0, 100, 101, 640], resident=resident)
    assert (len(column), column.dtype, column.shape) == (1000, values.dtype, values.shape[1:])
    assert column.nbytes == values.nbytes
    assert column.load().tolist() == values.tolist()
    assert column[95:660].tolist() == values[95:660].tolist()
    assert column[990:2000].tolist() == values[990:].tolist()
    assert column[5:5].tolist() == []
    chunks = list(column.chunks(300))
    assert [len(c) for c in chunks] == [300, 300, 300, 100]
    assert np.concatenate(chunks).tolist() == values.tolist()
    ranks = np.random.default_rng(0).integers(0, 1000, 5000).astype(np.uint64)
    assert column.at(ranks).tolist() == values[ranks.astype(int)].tolist()
    assert column.at(ranks[:0]).tolist() == []


def test_a_column_of_no_rows() -> None:
    column = RowColumn([])
    assert len(column) == 0
    assert list(column.chunks()) == []
    assert column.load().tolist() == []


def test_segments_say_their_bytes_and_hash(tmp_path: Path) -> None:
    with ColumnWriter(tmp_path / "file") as writer:
        writer.append(np.arange(3, dtype=np.int32))
        writer.append(np.arange(2, dtype=np.int32))
        segment = writer.finish()
    data = (tmp_path / "file").read_bytes()
    assert data == np.array([0, 1, 2, 0, 1], "<i4").tobytes()
    assert (segment.rows, segment.bytes) == (5, 20)
    assert segment.checksum == xxhash.xxh3_128_hexdigest(data)


def test_removed_columns_leave_no_file(tmp_path: Path) -> None:
    column = written(tmp_path, KINDS["mask"], [500])
    column.remove()
    column.remove()
    assert list(tmp_path.iterdir()) == []


def test_values_of_two_types_are_refused(tmp_path: Path) -> None:
    with ColumnWriter(tmp_path / "a") as writer:
        writer.append(np.zeros(1, np.float32))
        with pytest.raises(SelectionError, match=r"float32 came before float64"):
            writer.append(np.zeros(1, np.float64))
    one = RowColumn.write(tmp_path / "b", [np.zeros((2, 3), np.float32)])
    other = RowColumn.write(tmp_path / "c", [np.zeros((2, 4), np.float32)])
    with pytest.raises(SelectionError, match=r"float32\[3\] came before float32\[4\]"):
        RowColumn([*one._segments, *other._segments])


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match="^Writing intermediate results failed: No space left"),
        ColumnWriter(Path("/dev/full")) as writer,
    ):
        writer.append(np.zeros(10))


def test_a_file_that_lost_its_end_is_one_sentence(tmp_path: Path) -> None:
    column = written(tmp_path, KINDS["weights"], [])
    os.truncate(tmp_path / "segment-0", 2000)
    with pytest.raises(StorageError, match="Reading intermediate results failed: .* ends before"):
        column.load()


def test_counts_of_labels_add_up() -> None:
    parts = [np.bincount([0, 0, 2]), np.bincount([5]), np.bincount([1])]
    assert sum_counts(iter(parts)).tolist() == [2, 1, 1, 0, 0, 1]
    assert sum_counts([]).tolist() == []


_PEAK = """
import sys
import numpy as np
from pathlib import Path
from batchloom.dataplane.row_column import RowColumn

def peak():
    line = next(s for s in open("/proc/self/status") if s.startswith("VmHWM"))
    return int(line.split()[1]) << 10

size = 32 << 20
parts = (np.arange(i, i + (1 << 20)) for i in range(0, size, 1 << 20))
before = peak()
column = RowColumn.write(Path(sys.argv[1]), parts)
rng = np.random.default_rng(0)
for start in range(0, 8):
    ranks = rng.integers(0, size, 100_000)
    assert (column.at(ranks) == ranks).all()
assert sum(int(part.sum()) for part in column.chunks()) == size * (size - 1) // 2
print(peak() - before)
"""


def test_a_large_column_takes_little_memory(tmp_path: Path) -> None:
    """256 MB are written, read through, and read at random places."""
    ran = subprocess.run(
        [sys.executable, "-c", _PEAK, str(tmp_path / "column")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(ran.stdout) < 64 << 20
    assert resource.getpagesize() <= row_column._WINDOW
