"""The ways of a row from host memory to where it is wanted, and the choice among them.

==============  ===================================================  ==============================
``zero_copy``   GPU threads read the rows where they are             mapped memory, Triton
``alias``       torch's ``index_select`` does, over the same memory  mapped memory
``staged``      gathered on the CPU into pinned buffers, two by      a GPU
                turns, each copied while the other is filled
``cpu``         gathered on the CPU
==============  ===================================================  ==============================

The choice is honest: mapped memory is trusted only after a *liveness probe* has written rows after
they were mapped and read them back through the GPU, since some systems hand out a snapshot that
never changes again. `select_backend` keeps what it tried and why it went on; a backend that is
asked for by name and does not work raises `UnifiedAccessUnavailable` with that reason.

A backend is one class with one method. Everything around it (bounds, streams, lifetimes) is in
`unified`, and the kernel is in `kernels`.
"""

from __future__ import annotations

import importlib.util
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import torch

from ..dataplane.errors import ParameterError, UnifiedAccessUnavailable
from .cuda_runtime import Runtime
from .host_memory import HostTable
from .loops import loops_for
from .registration import register_host_memory
from .request import Request, new_status, no_such_row
from .row_table import RowTable, word_bytes, words_of
from .sharing import share, worth_sharing
from .tiling import tile
from .transfer import gpu_path, resolve_device

__all__ = [
    "Attempt",
    "Backend",
    "BackendChoice",
    "BackendName",
    "make_backend",
    "probe_liveness",
    "select_backend",
]

BackendName = Literal["zero_copy", "alias", "staged", "cpu"]
_LADDER: tuple[BackendName, ...] = get_args(BackendName)

_PIECE_BYTES = 4 << 20  # of a pinned buffer
_PROGRAMS_PER_SM = 4


class Backend(ABC):
    """One way to gather rows.

    Attributes
    ----------
    name : str
    mapped : bool
        Whether the table must be registered with the driver.
    ids_on : {'cpu', 'cuda'}
        Where it takes its ids.
    checks : bool
        Whether it finds rows that do not exist itself, and says so in a status.
    refuses : bool
        Whether it raises of them itself, before it writes; ids may then be anywhere. All others
        are given ids that were checked.
    caches : bool
        Whether it takes rows from a cache's store, too.
    """

    name: str
    mapped: bool = False
    ids_on: Literal["cpu", "cuda"] = "cpu"
    checks: bool = False
    refuses: bool = False
    caches: bool = False

    @abstractmethod
    def gather(self, request: Request) -> None:
        """Start a gather on the current stream."""


class ZeroCopy(Backend):
    """GPU threads read rows where they are: the kernel of `kernels`.

    Parameters
    ----------
    device : torch.device
    programs : int, optional
        The most programs that run at once.
    """

    name, mapped, ids_on, checks, caches = "zero_copy", True, "cuda", True, True

    def __init__(self, device: torch.device, programs: int | None = None) -> None:
        from . import kernels

        self._launch = kernels.launch
        if programs is None:
            count = torch.cuda.get_device_properties(device).multi_processor_count
            programs = _PROGRAMS_PER_SM * count
        self.programs = programs

    def gather(self, request: Request) -> None:
        self._launch(request, tile(request.table, request.out.data_ptr()), self.programs)


class Alias(Backend):
    """torch's ``index_select`` over a CUDA tensor that is the host memory."""

    name, mapped, ids_on = "alias", True, "cuda"

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def gather(self, request: Request) -> None:
        table, ids = request.table, request.ids
        word = word_bytes(table, request.out.data_ptr())
        target = words_of(request.out, word).view(len(ids), table.row_bytes // word)
        torch.index_select(alias_of(table, word, self._device), 0, ids, out=target)


class Staged(Backend):
    """A CPU gather into pinned buffers, each copied to the GPU while the next one is filled."""

    name = "staged"

    def __init__(self, device: torch.device, buffers: int = 2) -> None:
        self._buffers: list[tuple[torch.Tensor, torch.cuda.Event]] = []
        self._count, self._turn = buffers, 0
        self._lock = threading.Lock()  # a buffer is one caller's until its copy has begun

    def gather(self, request: Request) -> None:
        size = max(1, _PIECE_BYTES // request.table.row_bytes)
        for start in range(0, len(request.ids), size):
            piece = slice(start, start + size)
            with self._lock:
                self._move(request.table, request.ids[piece], request.out[piece])

    def _move(self, table: RowTable, ids: torch.Tensor, out: torch.Tensor) -> None:
        buffer, copied = self._next(max(_PIECE_BYTES, table.row_bytes))
        rows = buffer[: len(ids) * table.row_bytes].view(table.dtype).view(out.shape)
        gather_on_cpu(table, ids, rows)
        out.copy_(rows, non_blocking=True)
        copied.record()

    def _next(self, nbytes: int) -> tuple[torch.Tensor, torch.cuda.Event]:
        """Return a buffer whose last copy is done, and the event to record after the next."""
        self._turn = (self._turn + 1) % self._count
        while len(self._buffers) <= self._turn:
            made = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
            self._buffers.append((made, torch.cuda.Event()))
        buffer, copied = self._buffers[self._turn]
        copied.synchronize()
        return buffer, copied


class Cpu(Backend):
    """A CPU gather; rows for a GPU are copied there."""

    name, refuses = "cpu", True

    def gather(self, request: Request) -> None:
        ids, out = request.ids.cpu(), request.out
        if out.device.type == "cpu":
            gather_on_cpu(request.table, ids, out)
            return
        rows = torch.empty(out.shape, dtype=out.dtype)
        gather_on_cpu(request.table, ids, rows)
        out.copy_(rows)


def gather_on_cpu(table: RowTable, ids: torch.Tensor, out: torch.Tensor) -> None:
    """Copy rows into a contiguous CPU tensor; raise `RowIndexError` where one does not exist."""
    # Addresses, not arrays: a small batch feels each object that is made for it.
    if ids.dtype != torch.int64:
        ids = ids.to(torch.int64)
    count, first, target, size = ids.shape[0], ids.data_ptr(), out.data_ptr(), table.row_bytes
    at, stride, loops = table.address, table.stride, loops_for(count)
    shared = worth_sharing(count, size)
    if shared:
        bad = loops.first_outside(first, count, table.rows)
    else:
        bad = loops.row_taker(size)(first, count, table.rows, at, stride, target)
    if bad >= 0:
        raise no_such_row(int(ids[bad]), bad, table.rows)
    if shared:
        copy = loops.row_copier(size)
        # A helper that is late keeps what it reads and writes.
        share(lambda turns: copy(ids.data_ptr(), at, stride, out.data_ptr(), turns), count, size)


def alias_of(table: RowTable, word: int, device: torch.device) -> torch.Tensor:
    """Return a registered table as a CUDA tensor of words, shape (rows, words), not copied.

    Raises
    ------
    UnifiedAccessUnavailable
        Where torch makes a copy instead, as some versions do for a second GPU.
    """
    words = table.row_bytes // word
    # One row first: where torch copies, it would copy the whole table.
    made = torch.as_tensor(_CudaArray(table, word, (1, words)), device=device)
    if made.data_ptr() != table.address or made.device != device:
        raise UnifiedAccessUnavailable(
            f"torch {torch.__version__} gave a copy of host memory on {made.device}, not the "
            f"memory itself on {device}: use backend='staged'."
        )
    return torch.as_tensor(_CudaArray(table, word, (table.rows, words)), device=device)


class _CudaArray:
    """Host memory by NumPy's array interface for CUDA; torch keeps the object, and so the table."""

    def __init__(self, table: RowTable, word: int, shape: tuple[int, int]) -> None:
        self._table = table
        self.__cuda_array_interface__ = {
            "shape": shape,
            "strides": (table.stride, word),
            "typestr": "|u1" if word == 1 else f"<i{word}",
            "data": (table.address, False),
            "version": 3,
        }


# --- the choice -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """A backend that was tried: whether it works, and why or why not, in one sentence."""

    backend: BackendName
    works: bool
    reason: str


@dataclass(frozen=True)
class BackendChoice:
    """Which backend a device gets.

    Attributes
    ----------
    name : {'zero_copy', 'alias', 'staged', 'cpu'}
    reason : str
        Why this one: where it is not the first, why those before it do not work.
    device : torch.device
        Where rows go.
    ladder : tuple of Attempt
        What was tried, in order.
    """

    name: BackendName
    reason: str
    device: torch.device
    ladder: tuple[Attempt, ...]


def select_backend(prefer: str = "auto", device: str | torch.device | None = None) -> BackendChoice:
    """Choose how rows reach a device.

    Parameters
    ----------
    prefer : {'auto', 'zero_copy', 'alias', 'staged', 'cpu'}
        ``'auto'`` takes the first that works.
    device : device, optional
        Default: the current GPU where there is one, else the CPU.

    Raises
    ------
    UnifiedAccessUnavailable
        Where the backend asked for does not work; says why.
    """
    if prefer != "auto" and prefer not in _LADDER:
        raise ParameterError(
            f"The 'backend' parameter must be one of 'auto', {', '.join(map(repr, _LADDER))}. "
            f"Got {prefer!r} instead."
        )
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where = resolve_device(device)
    ladder = []
    for name in [n for n in _LADDER if prefer in ("auto", n)]:
        attempt = _attempt(name, where)
        ladder.append(attempt)
        if attempt.works:
            return BackendChoice(attempt.backend, _why(ladder), where, tuple(ladder))
    raise UnifiedAccessUnavailable(
        f"backend='{prefer}' cannot be used for {where}: {ladder[-1].reason}"
    )


def _why(ladder: list[Attempt]) -> str:
    """Return the reason of the last, and of those before it; the same reason once."""
    failed: dict[str, list[str]] = {}
    for attempt in ladder[:-1]:
        failed.setdefault(attempt.reason, []).append(attempt.backend)
    others = "".join(f" Not {' or '.join(names)}: {reason}" for reason, names in failed.items())
    return ladder[-1].reason + others


def make_backend(name: BackendName, device: torch.device) -> Backend:
    """Return a new backend of that name for a device."""
    made: dict[str, Callable[[], Backend]] = {
        "zero_copy": lambda: ZeroCopy(device),
        "alias": lambda: Alias(device),
        "staged": lambda: Staged(device),
        "cpu": Cpu,
    }
    return made[name]()


@cache
def _attempt(name: BackendName, device: torch.device) -> Attempt:
    """Try a backend on a device, once."""
    if name == "cpu":
        return Attempt(name, True, "Rows are gathered on the CPU.")
    if device.type != "cuda":
        reason = f"rows go to '{device}'." if torch.cuda.is_available() else gpu_path().reason
        return Attempt(name, False, reason)
    if name == "zero_copy" and importlib.util.find_spec("triton") is None:
        return Attempt(name, False, "triton is not installed: pip install 'batchloom[gpu]'")
    if name == "staged":
        return Attempt(name, True, "Rows are gathered on the CPU into pinned buffers.")
    found = probe_liveness(lambda table, ids: _read_once(name, device, table, ids))
    if found is not None:
        return Attempt(name, False, found)
    reader = "a kernel of ours" if name == "zero_copy" else "torch's index_select"
    where = f"{device} ({torch.cuda.get_device_name(device)})"
    return Attempt(name, True, f"Threads of {where} read host memory, by {reader}.")


def probe_liveness(
    read: Callable[[RowTable, torch.Tensor], torch.Tensor], runtime: Runtime | None = None
) -> str | None:
    """Return why mapped memory cannot be trusted, or None where it can.

    Rows are written after they are mapped, read through the GPU, written again and read again.

    Parameters
    ----------
    read : callable
        (table, CPU ids) → rows on the CPU, read by the GPU.
    runtime : Runtime, optional
        Default: torch's.
    """
    rows, width = 300, 129  # several pages; rows that begin anywhere in a line
    ids = torch.arange(rows - 1, -1, -1)
    try:
        host = HostTable.allocate(rows, width, torch.int32)
        table = host.table
        with register_host_memory((table.address, table.nbytes, table.owner), runtime=runtime):
            for salt in (0x5EED, -0x5EED):
                written = torch.arange(rows * width, dtype=torch.int32).view(rows, width) * salt
                host.fill(0, written)
                if not torch.equal(read(table, ids), written[ids]):
                    return (
                        "the GPU reads other values than the host wrote after mapping (a stale "
                        "copy, as under confidential computing)."
                    )
    except Exception as error:  # a compiler, a driver, a launcher: whatever fails is the reason
        return f"the probe failed: {_first_line(error)}"
    return None


def _read_once(
    name: BackendName, device: torch.device, table: RowTable, ids: torch.Tensor
) -> torch.Tensor:
    with torch.cuda.device(device):
        there = ids.to(device)
        out = torch.empty((len(ids), *table.row_shape), dtype=table.dtype, device=device)
        status = new_status(len(ids), device)
        make_backend(name, device).gather(Request(table, there, out, status))
        if int(status[0]) < len(ids):
            raise UnifiedAccessUnavailable("the kernel took rows that exist for missing ones.")
        return out.cpu()


def _first_line(error: Exception) -> str:
    text: Any = str(error).strip().split("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text}." if text else f"{type(error).__name__}."
