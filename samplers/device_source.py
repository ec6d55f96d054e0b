"""Sources whose rows end on a GPU: gathered by its threads, or gathered here and copied there.

`UnifiedSource` (``transfer="unified"``) keeps the rows of a plan's fragments in host memory that
GPU threads read, one table a column (`gpu_access.unified`): a window of batches is a list of places
in them, and no CPU touches a row. `StagedSource` (``"staged"``) gathers on the CPU into pinned
memory and copies a whole window at once. Both work on a stream of their own, while the GPU trains
on another; whoever takes a batch lets that stream wait (`Arriving`).

``"auto"`` takes the first where the GPU can read host memory and the tables fit a quarter of it,
else the second. Columns that are no tensors, and those that hold nulls, stay on the host's way.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ..dataplane.columns import numpy_type
from ..dataplane.errors import InvalidValueError, RowIdError, UnifiedAccessUnavailable
from ..dataplane.manifest import Manifest
from ..gpu_access.arriving import Arriving
from ..gpu_access.backends import BackendChoice, select_backend
from ..gpu_access.cpu import TENSOR_TYPES, Column
from ..gpu_access.host_memory import HostTable, available_memory
from ..gpu_access.transfer import Transfer
from ..gpu_access.unified import UnifiedTensor
from .source_stats import SourceStats

__all__ = ["StagedSource", "UnifiedSource", "on_device"]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_WINDOW_BYTES = 32 << 20  # larger ones copy and look up at the bus's rate
_FILL_BYTES = 64 << 20  # of a column, gathered at once while its table is filled
_SHARE = 4  # of the memory that is there, what tables may take unasked

_log = logging.getLogger("batchloom")


class Host(Protocol):
    """What is asked here of a source whose rows end on the host."""

    @property
    def columns(self) -> list[str]:
        """Names, in the order of a batch."""

    @property
    def schema(self) -> pa.Schema:
        """Types of the columns."""

    @property
    def window_bytes(self) -> int:
        """Bytes of rows that are best asked for at once."""

    def gather(
        self, ids: U64, out: Mapping[str, torch.Tensor] | None = None
    ) -> Mapping[str, Column]:
        """Return the columns of rows."""

    def stats(self) -> SourceStats:
        """Return what was read so far."""

    def close(self) -> None:
        """Let go of files and memory."""


HostOf: TypeAlias = Callable[[Sequence[str] | None], Host]
"""Makes a source of some columns; of all that were asked for when None."""


def on_device(
    host_of: HostOf, manifest: Manifest, device: torch.device, transfer: Transfer
) -> Host:
    """Return a source whose rows end on a device, made of sources whose rows end on the host.

    Raises
    ------
    UnifiedAccessUnavailable
        Where the transfer that was asked for does not work here; says why.
    HostMemoryError
        Where the tables of ``"unified"`` do not fit the memory.
    """
    if transfer == "cpu" or (device.type != "cuda" and transfer == "auto"):
        return host_of(None)  # devices of other makers are copied to
    if transfer == "staged":
        select_backend("staged", device)
        return StagedSource(host_of(None), device)
    choice = select_backend("auto", device)
    reads = choice.name in ("zero_copy", "alias")
    if transfer == "unified":
        if not reads:
            raise UnifiedAccessUnavailable(
                f"transfer='unified' cannot be used for {device}: {choice.reason} "
                "Use transfer='auto'."
            )
        return UnifiedSource(host_of, rows_of(manifest), choice)
    host, rows = host_of(None), rows_of(manifest)
    if reads and rows.bytes(host.schema) * _SHARE <= available_memory():
        return UnifiedSource(host_of, rows, choice)
    return StagedSource(host, device)


# --- by way of pinned memory ----------------------------------------------------------------------


class StagedSource:
    """Gathers on the host into pinned memory, and copies whole windows on a stream of its own."""

    def __init__(self, host: Host, device: torch.device) -> None:
        self._host, self._device = host, device
        self._stream = torch.cuda.Stream(device)
        self.window_bytes = _WINDOW_BYTES

    @property
    def columns(self) -> list[str]:
        return self._host.columns

    @property
    def schema(self) -> pa.Schema:
        return self._host.schema

    def gather(
        self, ids: U64, out: Mapping[str, torch.Tensor] | None = None
    ) -> Mapping[str, Column]:
        # torch's allocator gives pinned memory out again when the copies from it are done.
        pinned = {
            f.name: torch.empty((len(ids), *shape), dtype=dtype, pin_memory=True)
            for f in self.schema
            for dtype, shape in tensor_types(f.type)
        }
        with torch.cuda.stream(self._stream):
            return copied(self._host.gather(ids, pinned), self._device, self._stream)

    def stats(self) -> SourceStats:
        return self._host.stats()

    def close(self) -> None:
        self._host.close()


def copied(
    columns: Mapping[str, Column], device: torch.device, stream: torch.cuda.Stream
) -> Arriving:
    """Start copies of all tensors on the current stream."""
    moved = {
        name: c.to(device, non_blocking=True) if isinstance(c, torch.Tensor) else c
        for name, c in columns.items()
    }
    return Arriving(moved, stream.record_event())


# --- by the GPU's own threads ---------------------------------------------------------------------


class Rows:
    """The rows that a source holds in tables: runs of row ids, and the places they have there.

    Parameters
    ----------
    first : uint64, shape (c,)
        First row id of each run, ascending.
    rows : int64, shape (c,)
    """

    def __init__(self, first: U64, rows: I64) -> None:
        self._first, self._rows = first, rows
        self._base = np.cumsum(rows) - rows
        self.total = int(rows.sum())

    def bytes(self, schema: pa.Schema) -> int:
        """Bytes of the tables of a schema's columns."""
        return self.total * sum(
            dtype.itemsize * math.prod(shape)
            for field in schema
            for dtype, shape in tensor_types(field.type)
        )

    def places(self, ids: U64) -> I64:
        """Return the place of each row, shape (n,); `RowIdError` where there is none."""
        run = np.searchsorted(self._first, ids, side="right") - 1
        offset = (ids - self._first[run]).view(np.int64)
        missing = (run < 0) | (offset >= self._rows[run])
        if missing.any():
            raise RowIdError(f"Row {int(ids[np.argmax(missing)])} is in no planned fragment.")
        places: I64 = self._base[run] + offset
        return places

    def parts(self, size: int) -> Iterator[tuple[int, U64]]:
        """Yield (place, row ids) of all rows, at most `size` at a time."""
        for first, rows, base in zip(self._first, self._rows, self._base, strict=True):
            for start in range(0, int(rows), size):
                stop = min(start + size, int(rows))
                yield int(base) + start, first + np.arange(start, stop, dtype=np.uint64)


def rows_of(manifest: Manifest) -> Rows:
    """Return the rows of the fragments that hold planned rows."""
    fragments = manifest.snapshot.fragments
    chosen = [fragments[i] for i in sorted(manifest.planned_fragments())]
    return Rows(
        np.array([f.first_row_id for f in chosen], np.uint64),
        np.array([f.rows for f in chosen], np.int64),
    )


class UnifiedSource:
    """Rows in host tables, gathered by the threads of a GPU.

    Parameters
    ----------
    host_of : HostOf
        Fills the tables, and serves the columns that have none.
    rows : Rows
        Those that may be asked for.
    choice : BackendChoice
    """

    def __init__(self, host_of: HostOf, rows: Rows, choice: BackendChoice) -> None:
        whole = host_of(None)
        self.columns, self.schema = whole.columns, whole.schema
        whole.close()
        self._rows, self._choice = rows, choice
        self._tables: dict[str, UnifiedTensor] = {}
        for field in self.schema:
            for dtype, shape in tensor_types(field.type):
                table = _filled(host_of([field.name]), rows, dtype, shape)
                if table is not None:
                    self._tables[field.name] = UnifiedTensor(table.table, choice, forced=True)
        rest = [name for name in self.columns if name not in self._tables]
        self._rest = host_of(rest) if rest else None
        on_gpu = choice.device.type == "cuda"
        self._stream = torch.cuda.Stream(choice.device) if on_gpu else None
        self.window_bytes = _WINDOW_BYTES

    def gather(
        self, ids: U64, out: Mapping[str, torch.Tensor] | None = None
    ) -> Mapping[str, Column]:
        if self._stream is None:
            return Arriving(self._gathered(ids), None)
        with torch.cuda.stream(self._stream):  # what is allocated here is this stream's
            return Arriving(self._gathered(ids), self._stream.record_event())

    def _gathered(self, ids: U64) -> dict[str, Column]:
        places = torch.from_numpy(self._rows.places(ids))
        found: dict[str, Column] = {}
        for name, table in self._tables.items():
            shape = (len(ids), *table.shape[1:])
            rows = torch.empty(shape, dtype=table.dtype, device=self._choice.device)
            # CPU ids were checked when it returns; the rows are there when the stream is.
            table.gather_rows_async(places, out=rows, stream=self._stream)
            found[name] = rows
        if self._rest is not None:
            for name, column in self._rest.gather(ids).items():
                there = isinstance(column, torch.Tensor)
                found[name] = column.to(self._choice.device) if there else column
        return {name: found[name] for name in self.columns}

    def stats(self) -> SourceStats:
        paths: dict[str, int] = {}
        for table in self._tables.values():
            for name, value in table.stats.as_dict().items():
                if name.startswith("bytes_") and value:
                    path = name.removeprefix("bytes_")
                    paths[path] = paths.get(path, 0) + int(value)
        lines = sum(table.stats.line_requests for table in self._tables.values())
        host = SourceStats() if self._rest is None else self._rest.stats()
        return replace(host, bytes_by_path=paths, line_requests=lines)

    def close(self) -> None:
        """Let go of the host's files; tables stay, since filling them reads all the data."""
        if self._rest is not None:
            self._rest.close()


def _filled(host: Host, rows: Rows, dtype: torch.dtype, shape: tuple[int, ...]) -> HostTable | None:
    """Return the table of a host's one column; None where it holds nulls."""
    (name,) = host.columns
    table = HostTable.allocate(rows.total, shape, dtype)
    try:
        for place, ids in rows.parts(max(1, _FILL_BYTES // max(1, table.stride))):
            out = table.tensor[place : place + len(ids)]
            found = host.gather(ids, {name: out})[name]
            if isinstance(found, torch.Tensor) and found.data_ptr() != out.data_ptr():
                out.copy_(found)
    except InvalidValueError as error:  # in rows that may not be planned: then nobody minds
        _log.info("Column '%s' is gathered on the CPU. %s", name, error)
        return None
    finally:
        host.close()
    return table


def tensor_types(type_: pa.DataType) -> Iterator[tuple[torch.dtype, tuple[int, ...]]]:
    """Yield (dtype, shape of a row) of the tensor that a column becomes; nothing where none."""
    known = numpy_type(type_)
    if known is not None:
        yield TENSOR_TYPES[known[0].name], known[1]
