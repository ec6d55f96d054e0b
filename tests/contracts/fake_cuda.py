"""A stand-in for CUDA's runtime that knows what is mapped, and says no where it is told to."""

from __future__ import annotations

import ctypes
import mmap

from batchloom.gpu_access.cuda_runtime import READ_ONLY, READ_ONLY_SUPPORTED

PAGE = mmap.PAGESIZE


class FakeRuntime:
    """Follows the driver's rules: whole pages, no page twice, no address that is not known.

    Attributes
    ----------
    mapped : dict of int to int
        Address → bytes of what is registered.
    calls : list of tuple
        In order.
    last_error : int
        As cudaGetLastError would return it.
    """

    def __init__(
        self,
        *,
        fail: dict[int, int] | None = None,
        writable: bool = True,
        read_only_supported: bool = False,
        stale: bool = False,
        moved: int = 0,
    ) -> None:
        self.fail = fail or {}  # number of the call to register → code
        self.writable, self.read_only_supported = writable, read_only_supported
        self.stale, self.moved = stale, moved
        self.mapped: dict[int, int] = {}
        self.snapshots: dict[int, bytes] = {}
        self.calls: list[tuple[str, int, int]] = []
        self.last_error = 0
        self._registered = 0

    def register(self, address: int, nbytes: int, flags: int) -> int:
        self.calls.append(("register", address, nbytes))
        self._registered += 1
        code = self.fail.get(self._registered, 0)
        if any(a < address + nbytes and address < a + n for a, n in self.mapped.items()):
            code = 712
        elif not self.writable and not flags & READ_ONLY:
            code = 1
        elif flags & READ_ONLY and not self.read_only_supported:
            code = 801
        if code:
            self.last_error = code
            return code
        assert address % PAGE == 0
        assert nbytes % PAGE == 0
        assert nbytes > 0
        self.mapped[address] = nbytes
        if self.stale:
            self.snapshots[address] = ctypes.string_at(address, nbytes)
        return 0

    def unregister(self, address: int) -> int:
        self.calls.append(("unregister", address, 0))
        if address not in self.mapped:
            self.last_error = 713
            return 713
        del self.mapped[address]
        return 0

    def device_pointer(self, address: int) -> tuple[int, int]:
        if not any(start <= address < start + held for start, held in self.mapped.items()):
            self.last_error = 1
            return 1, 0
        return 0, address + self.moved

    def attribute(self, attribute: int) -> int:
        return int(attribute == READ_ONLY_SUPPORTED and self.read_only_supported)

    def clear_error(self) -> int:
        code, self.last_error = self.last_error, 0
        return code

    def read(self, address: int, nbytes: int) -> bytes:
        """Return what a GPU would read there."""
        for start, held in self.mapped.items():
            if start <= address and address + nbytes <= start + held:
                if self.stale:
                    at = address - start
                    return self.snapshots[start][at : at + nbytes]
                return ctypes.string_at(address, nbytes)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    @property
    def unregistered(self) -> list[int]:
        return [address for what, address, _ in self.calls if what == "unregister"]
