"""One gather from its arguments to its future: checks, streams, lifetimes, the status word."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ..dataplane.errors import ParameterError, RowIndexError
from .backends import Backend
from .line_requests import lines_per_row
from .registration import HostRegistration
from .request import Request, new_status, no_such_row
from .row_table import RowTable
from .stats import GatherStats

__all__ = ["GatherFuture", "Job", "check_ids", "check_output", "check_rows", "check_sort", "gather"]

# Sorting pays where a line holds several rows; and where a table is larger than the 1 GiB whose
# pages a GPU has at hand (an H100, whatever the pages' size), if rows that follow each other are
# then near. Measured with 512-byte rows, 100,000 ids: 1.9 times as fast at 2 GiB, 1.4 at 8 GiB;
# with a million ids 3.1 times at 8 GiB; with 10,000 not at all, since the sort costs as much.
_SORT_ROW_BYTES = 128
_SORT_IDS = 20_000
_PAGES_AT_HAND = 1 << 30
_NEAR_BYTES = 128 << 10


@dataclass(frozen=True)
class Job:
    """What stays the same from gather to gather of one table.

    Attributes
    ----------
    table : RowTable
    backend : Backend
    stats : GatherStats
    registration : HostRegistration or None
        Kept mapped until a gather is done.
    """

    table: RowTable
    backend: Backend
    stats: GatherStats
    registration: HostRegistration | None = None


class GatherFuture:
    """A gather that was started.

    Attributes
    ----------
    rows : torch.Tensor
        Valid after `wait`.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        job: Job | None = None,
        ids: torch.Tensor | None = None,
        event: torch.cuda.Event | None = None,
        status: torch.Tensor | None = None,
    ) -> None:
        self.rows = rows
        self._job, self._ids, self._event, self._status = job, ids, event, status

    def done(self) -> bool:
        """Whether the rows are there; never waits."""
        return self._event is None or bool(self._event.query())

    def wait(self) -> torch.Tensor:
        """Return the rows; the caller's stream waits for them.

        Where the ids came from the GPU the caller itself waits until they were checked.

        Raises
        ------
        RowIndexError
            Names the first id that is no row. The rows of all others are there.
        """
        if self._status is not None:
            self._check(self._status)
        elif self._event is not None:
            torch.cuda.current_stream(self.rows.device).wait_event(self._event)
        return self.rows

    def _check(self, status: torch.Tensor) -> None:
        assert self._job is not None  # for the type checker: with a status come these
        assert self._ids is not None
        if self._event is not None:
            start = time.perf_counter()
            self._event.synchronize()
            self._job.stats.seconds_waited += time.perf_counter() - start
        place = int(status[0])
        if place < len(self._ids):
            raise no_such_row(int(self._ids[place]), place, self._job.table.rows)


def check_ids(ids: Any) -> torch.Tensor:
    """Return ids as a contiguous int32 or int64 tensor of one dimension.

    Raises
    ------
    ParameterError
        For floats, booleans, and more or fewer dimensions.
    RowIndexError
        For uint64 ids that int64 does not hold.
    """
    if not isinstance(ids, torch.Tensor):
        array = np.asarray(ids)
        if array.size == 0 and array.dtype == float:
            array = array.astype(np.int64)  # an empty list
        if array.dtype == np.uint64:
            if array.size and int(array.max()) >= 1 << 63:
                raise RowIndexError(f"Row {int(array.max())} does not exist: no table has so many.")
            array = array.view(np.int64) if array.flags.c_contiguous else array.astype(np.int64)
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise _wrong_ids(f"{array.dtype} of shape {array.shape}")
        if array.dtype not in (np.int32, np.int64):
            array = array.astype(np.int64)
        array = np.ascontiguousarray(array)
        ids = torch.from_numpy(array if array.flags.writeable else array.copy())
    found: torch.Tensor = ids
    if found.dtype not in (torch.int32, torch.int64):
        if found.dtype not in (torch.int8, torch.uint8, torch.int16):
            raise _wrong_ids(f"{found.dtype} of shape {tuple(found.shape)}")
        found = found.to(torch.int64)
    if found.ndim != 1:
        raise _wrong_ids(f"{found.dtype} of shape {tuple(found.shape)}")
    return found.contiguous()


def check_output(
    out: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """Raise `ParameterError` unless rows can be written there."""
    fits = out.shape == shape and out.dtype == dtype and out.device == device
    if not fits or not out.is_contiguous():
        state = "contiguous" if out.is_contiguous() else "not contiguous"
        raise ParameterError(
            f"The 'out' parameter must be a contiguous {dtype} tensor of shape {shape} on {device}."
            f" Got {out.dtype} of shape {tuple(out.shape)} on {out.device}, {state}."
        )


def check_sort(sort: Any) -> None:
    if sort != "auto" and not isinstance(sort, bool):
        raise ParameterError(
            f"The 'sort' parameter must be one of 'auto', True, False. Got {sort!r} instead."
        )


def check_rows(ids: torch.Tensor, rows: int) -> None:
    """Raise `RowIndexError` where a CPU tensor names a row that a table of `rows` does not hold."""
    if not ids.shape[0]:
        return
    values = ids.numpy()  # whose extremes allocate nothing
    if int(values.min()) < 0 or int(values.max()) >= rows:
        place = int(torch.nonzero((ids < 0) | (ids >= rows))[0])
        raise no_such_row(int(ids[place]), place, rows)


def gather(
    job: Job,
    ids: torch.Tensor,
    out: torch.Tensor,
    *,
    sort: Literal["auto"] | bool = "auto",
    stream: torch.cuda.Stream | None = None,
    aside: bool = False,
    cached: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> GatherFuture:
    """Start a gather; the arguments are checked, but for the ids' values.

    Parameters
    ----------
    job : Job
    ids, out, sort, stream
        As for `UnifiedTensor.gather_rows`.
    aside : bool
        Whether a stream of our own is used where none is given.
    cached : (slots, store), optional
        As in `Request`, for a backend that caches.
    """
    table, backend, count = job.table, job.backend, ids.shape[0]
    if not count:
        return GatherFuture(out)
    if not table.rows or not table.row_bytes:  # nothing to read
        check_rows(ids.cpu(), table.rows)
        return GatherFuture(out)
    unchecked = backend.checks and ids.device.type == backend.ids_on
    known = ids if unchecked or backend.refuses else _checked(ids, table.rows, backend)
    lines = count * lines_per_row(table) if backend.mapped else 0.0
    if out.device.type == "cpu":
        status = new_status(count, out.device) if backend.checks else None
        backend.gather(Request(table, known, out, status, None, *(cached or ())))
        job.stats.add(backend.name, count, count * table.row_bytes, lines)
        return GatherFuture(out, job, ids, None, status)
    caller = torch.cuda.current_stream(out.device)
    if stream is None:
        stream = _side_stream(out.device) if aside else caller
    with ExitStack() as stack:
        stack.enter_context(torch.cuda.device(out.device))
        if stream != caller:
            stream.wait_stream(caller)  # what made the ids, and what last used `out`
            stack.enter_context(torch.cuda.stream(stream))
        host_status = _on_gpu(job, known, out, sort, cached, unchecked)
        event = torch.cuda.Event()
        event.record(stream)
        if stream != caller:
            for tensor in (ids, out, *(cached or ())):
                if tensor.device.type == "cuda":
                    tensor.record_stream(stream)
    job.stats.add(backend.name, count, count * table.row_bytes, lines)
    if job.registration is not None:
        job.registration.in_flight(event, stream.cuda_stream)
    return GatherFuture(out, job, ids, event, host_status)


def _on_gpu(
    job: Job,
    ids: torch.Tensor,
    out: torch.Tensor,
    sort: Literal["auto"] | bool,
    cached: tuple[torch.Tensor, torch.Tensor] | None,
    unchecked: bool,
) -> torch.Tensor | None:
    """Start a gather on the current stream; return the host's copy of the status where it counts.

    The copy is in pinned memory, and valid once the stream is done.
    """
    backend, places, status = job.backend, None, None
    if backend.ids_on == "cuda" and ids.device != out.device:
        ids = ids.to(out.device, non_blocking=True)
    if backend.checks:
        if _sorted(sort, len(ids), job.table):
            ids, places = torch.sort(ids)
        status = new_status(len(ids), out.device)
    backend.gather(Request(job.table, ids, out, status, places, *(cached or ())))
    if status is None or not unchecked:
        return None
    host_status = torch.empty(1, dtype=torch.int64, pin_memory=True)
    return host_status.copy_(status, non_blocking=True)


def _checked(ids: torch.Tensor, rows: int, backend: Backend) -> torch.Tensor:
    """Return ids whose rows exist, where the backend takes them or on the CPU."""
    if backend.ids_on == "cuda" and ids.device.type == "cuda":
        wrong = (ids < 0) | (ids >= rows)
        if bool(wrong.any()):
            place = int(torch.nonzero(wrong)[0])
            raise no_such_row(int(ids[place]), place, rows)
        return ids
    ids = ids.cpu()
    check_rows(ids, rows)
    return ids


def _sorted(sort: Literal["auto"] | bool, ids: int, table: RowTable) -> bool:
    if sort != "auto":
        return sort
    if ids < _SORT_IDS:
        return False
    dense = table.nbytes > _PAGES_AT_HAND and table.nbytes // ids <= _NEAR_BYTES
    return dense or table.row_bytes <= _SORT_ROW_BYTES


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which gathers run beside training."""
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


def _wrong_ids(found: str) -> ParameterError:
    return ParameterError(
        "The 'ids' parameter must be a one-dimensional tensor or array of ints. "
        f"Got {found} instead."
    )
