"""Registering host memory, so that GPU threads can read it where it is.

CUDA maps whole pages and refuses a page that is mapped already (712), so what is registered is kept
by *page ranges* with a count of users: two tensors that share a page share its registration, and a
range that is partly mapped is completed. Memory of tensors and buffers is only taken where it has
its pages to itself, and then the whole allocation (see `row_table` for what happens otherwise). A
run of pages is registered in chunks (single calls of
512 GiB fail on current drivers); where one fails those before it are taken back in reverse, the
driver's last error is consumed, and `HostRegistrationError` names the code.

A registration keeps the memory alive, and gathers in flight keep the registration: before pages are
unmapped the last gather of each stream is waited for. Pages are unmapped exactly once, before their
memory can be freed: by `HostRegistration.release`, at the end of a ``with`` block, when the
registration is garbage, or when the interpreter exits. A forked child never touches them.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..dataplane.errors import HostRegistrationError, ParameterError
from .cuda_runtime import (
    MAPPED,
    PORTABLE,
    READ_ONLY,
    READ_ONLY_SUPPORTED,
    Runtime,
    cuda_runtime,
    error_name,
)
from .row_table import OWN_PAGES_BYTES

__all__ = [
    "HostRegistration",
    "is_registered",
    "register_host_memory",
    "shares_pages",
]

CHUNK_BYTES = 64 << 30
_PAGE = mmap.PAGESIZE
_SHUT_DOWN = {4, 713}  # codes of unregistering that mean: it is gone already

_log = logging.getLogger("batchloom")

_ADVICE = {
    1: "Memory that is mapped read-only needs read_only=True, or a copy in a HostTable.",
    2: "Free host memory, raise the limit of locked memory (ulimit -l), or use backend='staged'.",
    35: "Update the NVIDIA driver, or use backend='staged'.",
    712: "Someone else has registered these pages: release that registration first.",
    801: "This system does not map such memory: copy it to a HostTable, or use backend='staged'.",
}


@dataclass
class _Pages:
    """A run of pages that one call has registered."""

    start: int
    stop: int
    users: int = 0
    owners: list[Any] = field(default_factory=list)  # alive until the run is unmapped


class _Registry:
    """All pages registered with one runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._runs: list[_Pages] = []
        self._lock = threading.Lock()
        self._given_back: deque[list[_Pages]] = deque()

    def acquire(
        self, start: int, stop: int, flags: int, chunk_bytes: int, owner: Any
    ) -> list[_Pages]:
        """Register the pages of a range that are not yet; return the runs that cover it."""
        try:
            with self._lock:
                return self._acquire(start, stop, flags, chunk_bytes, owner)
        finally:
            self._drain()

    def _acquire(
        self, start: int, stop: int, flags: int, chunk_bytes: int, owner: Any
    ) -> list[_Pages]:
        held = [r for r in self._runs if r.start < stop and start < r.stop]
        made: list[_Pages] = []
        for a, b in _gaps(held, start, stop):
            for at in range(a, b, chunk_bytes):
                run = _Pages(at, min(b, at + chunk_bytes))
                code = self.runtime.register(run.start, run.stop - run.start, flags)
                if code:
                    self._take_back(made)
                    raise _refused(run, code)
                made.append(run)
        runs = sorted(held + made, key=lambda r: r.start)
        for run in runs:
            run.users += 1
            run.owners.append(owner)
        self._runs += made
        return runs

    def holds_some_of(self, first: int, last: int) -> bool:
        """Whether a page between two addresses was registered here."""
        with self._lock:
            found = any(r.start <= last and first < r.stop for r in self._runs)
        self._drain()
        return found

    def release(self, runs: list[_Pages], *, wait: bool) -> None:
        """Count a user less; unmap what has none.

        The garbage collector may call in the midst of `acquire`, on its very thread: without
        `wait` nobody waits for the lock, and who holds it does the work afterwards.
        """
        self._given_back.append(runs)
        self._drain(wait)

    def _drain(self, wait: bool = False) -> None:
        while self._given_back and self._lock.acquire(blocking=wait):
            try:
                self._count_down(self._given_back.popleft())
            except IndexError:  # another thread was faster
                pass
            finally:
                self._lock.release()

    def _count_down(self, runs: list[_Pages]) -> None:
        for run in reversed(runs):
            run.users -= 1
            if run.users == 0:
                self._runs.remove(run)
                code = self.runtime.unregister(run.start)
                if code:
                    self.runtime.clear_error()
                if code not in {0, *_SHUT_DOWN}:
                    _log.warning("unregistering host memory failed: %s", error_name(code))
                run.owners.clear()

    def _take_back(self, made: list[_Pages]) -> None:
        self.runtime.clear_error()
        for run in reversed(made):
            if self.runtime.unregister(run.start):
                self.runtime.clear_error()

    def covers(self, start: int, stop: int) -> bool:
        """Whether every page of a range is registered."""
        with self._lock:
            held = [r for r in self._runs if r.start < stop and start < r.stop]
            return not list(_gaps(held, start, stop))


# A registry lives as long as a registration holds it: an empty one knows nothing.
_registries: weakref.WeakValueDictionary[int, _Registry] = weakref.WeakValueDictionary()
_registries_lock = threading.Lock()


def _registry_of(runtime: Runtime) -> _Registry:
    with _registries_lock:
        found = _registries.get(id(runtime))
        if found is None:
            found = _registries[id(runtime)] = _Registry(runtime)
        return found


class HostRegistration:
    """Host memory that a GPU can read. Use `register_host_memory`.

    Attributes
    ----------
    address, nbytes : int
        As asked for; whole pages are mapped.
    device_ptr : int
        Where the GPU finds it.
    flags : int
        As given to the driver.
    chunks : tuple of (int, int)
        (address, bytes) of the runs of pages that cover it.
    """

    def __init__(
        self,
        address: int,
        nbytes: int,
        flags: int,
        registry: _Registry,
        runs: list[_Pages],
        owner: Any,
    ) -> None:
        self.address, self.nbytes, self.flags = address, nbytes, flags
        self.chunks = tuple((r.start, r.stop - r.start) for r in runs)
        self.device_ptr = address
        self._in_flight: dict[Any, Any] = {}
        # weakref.finalize calls once, whoever comes first: we, the collector, or the exit.
        self._finalizer = weakref.finalize(
            self, _give_back, registry, runs, self._in_flight, owner, os.getpid(), False
        )
        if nbytes:
            code, self.device_ptr = registry.runtime.device_pointer(address)
            if code or self.device_ptr != address:
                registry.runtime.clear_error()
                self.release()
                raise HostRegistrationError(
                    f"Registered host memory at {address:#x} has no such address on the GPU "
                    f"({error_name(code) if code else hex(self.device_ptr)}), and kernels here "
                    "count on it. Use backend='staged'.",
                    code,
                    error_name(code),
                )

    @classmethod
    def of_pinned(
        cls, address: int, nbytes: int, owner: Any, runtime: Runtime | None = None
    ) -> HostRegistration:
        """Stand for memory that `owner` keeps mapped itself, such as a pinned tensor.

        Raises
        ------
        HostRegistrationError
            Where some of it is not mapped, or was mapped here and may be unmapped here.
        """
        runtime = cuda_runtime() if runtime is None else runtime
        registry = _registry_of(runtime)
        ends = (address, address + nbytes - 1)
        if registry.holds_some_of(*ends) or any(runtime.device_pointer(a)[0] for a in ends):
            runtime.clear_error()
            raise _refused(_Pages(address, address + nbytes), 712)
        return cls(address, nbytes, PORTABLE | MAPPED, registry, [], owner)

    @property
    def released(self) -> bool:
        return not self._finalizer.alive

    def in_flight(self, event: Any, stream: Any = None) -> None:
        """Keep the memory mapped until an event; a stream's newer event stands for its older."""
        self._in_flight[stream] = event

    def release(self) -> None:
        """Unmap the memory, after the gathers in flight; a second call does nothing."""
        found = self._finalizer.detach()
        if found is not None:
            registry, runs, in_flight, owner, pid, _ = found[2]
            _give_back(registry, runs, in_flight, owner, pid, True)

    def __enter__(self) -> HostRegistration:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def __repr__(self) -> str:
        state = "released" if self.released else f"{len(self.chunks)} chunks"
        return f"<HostRegistration {self.nbytes:,} bytes at {self.address:#x}, {state}>"


def register_host_memory(
    buffer: Any,
    *,
    read_only: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
    runtime: Runtime | None = None,
) -> HostRegistration:
    """Map host memory for GPUs, where it is.

    Parameters
    ----------
    buffer : torch.Tensor, object with the buffer protocol, or (address, nbytes, owner)
        A map, or a tensor or buffer of at least 64 MiB: of a tensor the whole storage is mapped.
        With an address the caller vouches that the pages hold nothing else; `owner` keeps the
        memory alive.
    read_only : bool
        For memory that this process itself may only read, such as a mapped file.
    chunk_bytes : int
        The most that one call to the driver maps; rounded down to pages.
    runtime : Runtime, optional
        Default: torch's.

    Returns
    -------
    HostRegistration
        No bytes need no call and give one without chunks.

    Raises
    ------
    HostRegistrationError
        Where the driver refuses, or the memory may share its pages; nothing stays registered.
    UnifiedAccessUnavailable
        Where there is no GPU or no driver.
    """
    runtime = cuda_runtime() if runtime is None else runtime
    address, nbytes, owner = _memory_of(buffer)
    chunk = chunk_bytes // _PAGE * _PAGE
    if chunk <= 0:
        raise ParameterError(
            f"The 'chunk_bytes' parameter must be at least a page, {_PAGE} bytes. "
            f"Got {chunk_bytes} instead."
        )
    flags = PORTABLE | MAPPED | (READ_ONLY if read_only else 0)
    registry = _registry_of(runtime)
    if nbytes == 0:
        return HostRegistration(address, 0, flags, registry, [], owner)
    if read_only and not runtime.attribute(READ_ONLY_SUPPORTED):
        raise HostRegistrationError(
            "This GPU cannot map host memory that may only be read "
            f"(cudaDevAttrHostRegisterReadOnlySupported is 0). {_ADVICE[801]}",
            801,
            error_name(801),
        )
    runs = registry.acquire(*_pages_of(address, nbytes), flags, chunk, owner)
    return HostRegistration(address, nbytes, flags, registry, runs, owner)


def is_registered(address: int, nbytes: int, runtime: Runtime | None = None) -> bool:
    """Return whether registrations of ours map all of a range."""
    registry = _registry_of(cuda_runtime() if runtime is None else runtime)
    return nbytes > 0 and registry.covers(*_pages_of(address, nbytes))


def _pages_of(address: int, nbytes: int) -> tuple[int, int]:
    """Return the first address of a range's pages, and the one after them."""
    return address // _PAGE * _PAGE, -(-(address + nbytes) // _PAGE) * _PAGE


def _give_back(
    registry: _Registry,
    runs: list[_Pages],
    in_flight: dict[Any, Any],
    owner: Any,
    pid: int,
    wait: bool,
) -> None:
    """Unmap; `owner` only stays alive until here."""
    if os.getpid() != pid:
        return  # a forked child: the pages are the parent's
    for event in in_flight.values():
        try:
            event.synchronize()
        except RuntimeError as error:  # CUDA is shutting down, or a kernel of the user's failed
            _log.debug("waiting for a gather before its memory is unmapped: %s", error)
    in_flight.clear()
    registry.release(runs, wait=wait)


def _gaps(held: list[_Pages], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a range that no run covers."""
    for run in sorted(held, key=lambda r: r.start):
        if start < run.start:
            yield start, run.start
        start = max(start, run.stop)
    if start < stop:
        yield start, stop


def _refused(run: _Pages, code: int) -> HostRegistrationError:
    advice = _ADVICE.get(code, "Use backend='staged'.")
    return HostRegistrationError(
        f"Registering {run.stop - run.start:,} bytes of host memory at {run.start:#x} failed: "
        f"{error_name(code)} ({code}). {advice}",
        code,
        error_name(code),
    )


def shares_pages(nbytes: int) -> HostRegistrationError:
    """Say why small memory of an allocator is not mapped where it is."""
    return HostRegistrationError(
        f"{nbytes:,} bytes of an allocator's memory may share pages with other memory, and CUDA "
        "copies of that would fail once they are mapped: copy them to a HostTable, or pin them.",
        0,
        "shared pages",
    )


def _memory_of(buffer: Any) -> tuple[int, int, Any]:
    if isinstance(buffer, tuple):
        address, nbytes, owner = buffer
        return address, nbytes, owner
    address, nbytes = _allocation(buffer)
    if 0 < nbytes < OWN_PAGES_BYTES and not isinstance(buffer, mmap.mmap):
        raise shares_pages(nbytes)
    return address, nbytes, buffer


def _allocation(buffer: Any) -> tuple[int, int]:
    if isinstance(buffer, torch.Tensor):
        if buffer.device.type != "cpu" or not buffer.is_contiguous():
            raise ParameterError(
                "The 'buffer' parameter must be a contiguous tensor on the CPU. "
                f"Got one on {buffer.device} with strides {tuple(buffer.stride())} instead."
            )
        storage = buffer.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    import numpy as np

    try:
        view = np.frombuffer(buffer, np.uint8)
    except (TypeError, ValueError) as error:
        raise ParameterError(
            "The 'buffer' parameter must be a tensor or an object with the buffer protocol. "
            f"Got {type(buffer).__name__} instead ({error})."
        ) from None
    return view.ctypes.data, view.nbytes
