"""Host memory for batches, used again once nobody holds it.

Fresh memory of some megabytes costs a page fault every 4 KiB, which is as much as the copy that
fills it. So what a window was gathered into is kept when its last view is gone, and given to the
next one. An array made here is the only owner of its memory as long as it, a view or a tensor of it
lives; nothing is ever taken back.
"""

from __future__ import annotations

import mmap
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BufferPool", "host_buffer"]

_ALIGNMENT = 64
_SMALL = 128 << 10  # bytes that the allocator itself uses again
_HUGE_PAGE = 2 << 20
_KEPT_BYTES = 256 << 20


class BufferPool:
    """Blocks of memory that come back when they are no longer used.

    Parameters
    ----------
    limit : int
        Bytes of unused blocks that are kept.
    """

    def __init__(self, limit: int = _KEPT_BYTES) -> None:
        self._limit = limit
        self._free: dict[int, list[mmap.mmap]] = {}
        self._held = 0
        self._lock = threading.Lock()
        self.made = 0

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        """Return `size` bytes of any content, writable, aligned to 64 bytes."""
        if size < _SMALL:
            block = np.empty(size + _ALIGNMENT, np.uint8)
            start = -block.ctypes.data % _ALIGNMENT
            return block[start : start + size]
        room = 1 << (size - 1).bit_length()
        if room - size > room // 4:  # three quarters of the way is a size of its own
            room -= room // 4
        with self._lock:
            free = self._free.get(room)
            kept = free.pop() if free else None
            if kept is not None:
                self._held -= room
            else:
                self.made += 1
        return np.asarray(_Lease(self, kept or _block(room), size, room))

    def give(self, block: mmap.mmap, room: int) -> None:
        """Take a block back."""
        with self._lock:
            if self._held + room <= self._limit:
                self._free.setdefault(room, []).append(block)
                self._held += room


def _block(room: int) -> mmap.mmap:
    block = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if room >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


class _Lease:
    """What numpy keeps as the owner of an array's memory; gone with the last view of it."""

    def __init__(self, pool: BufferPool, block: mmap.mmap, size: int, room: int) -> None:
        self._pool, self._block, self._room = pool, block, room
        address = np.frombuffer(block, np.uint8).ctypes.data
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
        }

    def __del__(self) -> None:
        self._pool.give(self._block, self._room)


_pool = BufferPool()


def host_buffer(size: int) -> npt.NDArray[np.uint8]:
    """Return `size` bytes of any content out of this process's pool."""
    return _pool.take(size)
