"""Host tables: rows in one region of host memory, laid out for gathers.

A region is anonymous memory in huge pages where the system offers them (fewer address lookups make
random reads up to 1.4 times as fast), begins at a huge page, and holds rows one after another, on
request padded to 128 bytes, the unit in which a GPU asks the bus for host memory. It is filled in
place, chunk by chunk, so no second copy of a whole table ever stands beside it.

A table larger than the memory that the system can give is refused before it is touched.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

from ..dataplane.errors import HostMemoryError, ParameterError, ReleasedTableError
from .row_table import RowTable, note_region

__all__ = ["LINE", "HostTable", "available_memory", "huge_page_bytes"]

LINE = 128
"""Bytes that a GPU asks of host memory at once."""

HUGE_PAGE = 2 << 20

HugePages = Literal["auto", True, False]


class HostTable:
    """Rows in one region of host memory. Use `allocate` or one of the ``from_`` constructors.

    Attributes
    ----------
    rows : int
    row_shape : tuple of int
    dtype : torch.dtype
    stride : int
        Bytes from a row to the next.
    huge_pages : bool
        Whether huge pages were asked for and granted; see `huge_page_bytes` for what came of it.
    """

    def __init__(self, table: RowTable, huge_pages: bool) -> None:
        self._table: RowTable | None = table
        self.rows, self.row_shape, self.dtype = table.rows, table.row_shape, table.dtype
        self.stride, self.huge_pages = table.stride, huge_pages

    @classmethod
    def allocate(
        cls,
        rows: int,
        width: int | Sequence[int],
        dtype: torch.dtype = torch.float32,
        *,
        row_align: int = 1,
        huge_pages: HugePages = "auto",
    ) -> HostTable:
        """Return a table of zeros; pages take memory when they are first written.

        Parameters
        ----------
        rows : int
        width : int or sequence of int
            Values a row, or the shape of a row; ``()`` for one value a row.
        dtype : torch.dtype
        row_align : int
            Each row begins at a multiple of this many bytes; 128 makes every gather's requests to
            the bus as few as can be, for up to 127 bytes a row.
        huge_pages : {'auto', True, False}
            ``True`` raises where the system offers none.

        Raises
        ------
        HostMemoryError
            Where the table is larger than the memory that there is.
        ParameterError
        """
        shape = (width,) if isinstance(width, int) else tuple(width)
        if rows < 0 or any(n < 0 for n in shape):
            raise ParameterError(
                f"The shape of a host table must not be negative. Got {rows} rows of {shape}."
            )
        item = dtype.itemsize
        if row_align < 1 or row_align & (row_align - 1):
            raise ParameterError(
                f"The 'row_align' parameter must be a power of two. Got {row_align} instead."
            )
        step = max(row_align, item)
        stride = -(-math.prod(shape) * item // step) * step
        address, region, huge = _region(rows * stride, huge_pages)
        pages = address, rows * stride
        note_region(*pages, region)
        return cls(RowTable(address, rows, shape, dtype, stride, region, pages), huge)

    @classmethod
    def from_tensor(cls, tensor: torch.Tensor, **layout: Any) -> HostTable:
        """Copy a tensor into a table; `layout` as for `allocate`."""
        made = cls.allocate(len(tensor), tuple(tensor.shape[1:]), tensor.dtype, **layout)
        made.fill(0, tensor)
        return made

    @classmethod
    def from_arrow(cls, column: Any, **layout: Any) -> HostTable:
        """Copy a fixed-width Arrow column into a table, chunk by chunk.

        Parameters
        ----------
        column : pyarrow.Array or pyarrow.ChunkedArray
            Numbers, booleans or fixed-size lists of them.
        **layout
            As for `allocate`.

        Raises
        ------
        InvalidValueError
            Where it holds nulls.
        ColumnTypeError
            For rows of variable length.
        """
        from .arrow_columns import chunks_of, row_type

        dtype, shape = row_type(column.type)
        made = cls.allocate(len(column), shape, dtype, **layout)
        at = 0
        for chunk in chunks_of(column):
            made.fill(at, chunk)
            at += len(chunk)
        return made

    @classmethod
    def from_file(
        cls, path: str | PathLike[str], column: str | None = None, **layout: Any
    ) -> HostTable:
        """Copy a column of an Arrow IPC file into a table, batch by batch.

        Parameters
        ----------
        path : path
        column : str, optional
            May be left out where the file holds one column.
        **layout
            As for `allocate`.
        """
        from .arrow_columns import column_of_file

        return cls.from_arrow(column_of_file(Path(path), column), **layout)

    def fill(self, start: int, values: torch.Tensor) -> None:
        """Write rows from `start` on.

        Raises
        ------
        ParameterError
            Where the values are of another type or shape, or reach over the end.
        """
        expected = (*values.shape[:1], *self.row_shape)
        if values.dtype != self.dtype or tuple(values.shape) != expected:
            raise ParameterError(
                f"Rows of this table are {self.dtype} of shape {self.row_shape}. Got "
                f"{values.dtype} of shape {tuple(values.shape)} instead."
            )
        if not 0 <= start <= self.rows - len(values):
            raise ParameterError(
                f"Rows {start} to {start + len(values)} were to be written to a table of "
                f"{self.rows} rows."
            )
        if values.numel():
            self.tensor[start : start + len(values)].copy_(values)

    @property
    def table(self) -> RowTable:
        """The rows by address; keeps the region alive."""
        if self._table is None:
            raise ReleasedTableError(
                f"This host table of {self.rows:,} rows was released: make a new one."
            )
        return self._table

    @property
    def tensor(self) -> torch.Tensor:
        """The rows as a tensor of shape (rows, *row_shape) over the same memory."""
        return self.table.tensor()

    @property
    def nbytes(self) -> int:
        """Bytes of the region that rows take."""
        return self.rows * self.stride

    @property
    def released(self) -> bool:
        return self._table is None

    def release(self) -> None:
        """Let go of the region; it is freed with the last tensor over it."""
        self._table = None

    def __len__(self) -> int:
        return self.rows

    def __repr__(self) -> str:
        state = "released" if self.released else f"{self.stride} bytes a row"
        return f"<HostTable {(self.rows, *self.row_shape)} {self.dtype}, {state}>"


def available_memory() -> int:
    """Return the bytes that the system, and this process's group, can still give."""
    told = (s for s in _lines("/proc/meminfo") if s.startswith("MemAvailable:"))
    found = [int(s.split()[1]) * 1024 for s in told]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        ceiling = next(_lines(limit), "max").strip()
        if ceiling.isdigit() and int(ceiling) < 1 << 60:
            # What the group uses holds page cache too, which the system takes back.
            found.append(int(ceiling) - int(next(_lines(used), "0")) + _cached(used))
    return min(found) if found else _physical()


def huge_page_bytes(address: int) -> int:
    """Return the bytes in huge pages of the mapping that holds an address; 0 where not told."""
    inside = False
    for line in _lines("/proc/self/smaps"):
        head = line.split(None, 1)[0]
        if "-" in head:
            low, high = (int(x, 16) for x in head.split("-"))
            inside = low <= address < high
        elif inside and head == "AnonHugePages:":
            return int(line.split()[1]) * 1024
    return 0


def _region(nbytes: int, huge_pages: HugePages) -> tuple[int, Any, bool]:
    """Map anonymous memory; return (address, what keeps it, whether in huge pages)."""
    there = available_memory()
    if nbytes > there:
        raise HostMemoryError(
            f"A host table of {_size(nbytes)} does not fit the {_size(there)} of memory that are "
            "available: take fewer columns or rows, a smaller type, or read it from a mapped file."
        )
    region = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    huge = False
    if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            region.madvise(mmap.MADV_HUGEPAGE)
            huge = _transparent_huge_pages() != "never"
        except OSError:  # a kernel without them
            huge = False
    if huge_pages is True and not huge:
        raise HostMemoryError(
            "This system offers no huge pages (/sys/kernel/mm/transparent_hugepage/enabled): "
            "use huge_pages='auto'."
        )
    start = torch.frombuffer(region, dtype=torch.uint8).data_ptr()
    return -(-start // HUGE_PAGE) * HUGE_PAGE, region, huge


def _transparent_huge_pages() -> str:
    mode = next(_lines("/sys/kernel/mm/transparent_hugepage/enabled"), "[never]")
    return mode[mode.find("[") + 1 : mode.find("]")]


def _cached(used: str) -> int:
    stat = Path(used).with_name("memory.stat")
    names = ("inactive_file ", "active_file ", "total_inactive_file ", "total_active_file ")
    return sum(int(s.split()[1]) for s in _lines(stat) if s.startswith(names))


def _physical() -> int:
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:,.1f} GiB" if nbytes >= 2**30 else f"{nbytes:,} bytes"


def _lines(path: str | Path) -> Iterator[str]:
    try:
        with open(path) as file:
            yield from file
    except OSError:
        return
