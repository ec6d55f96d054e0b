"""Giving back the memory that reading a map takes.

Pages of a mapped file that were read count as this process's memory until something drops them.
Dropping them forgets nothing: the operating system keeps what it has of the file, and reads again
what it has not.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from typing import Any

__all__ = ["drop_resident"]


@cache
def _madvise() -> Any:
    try:
        function = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def drop_resident(start: int, stop: int) -> None:
    """Drop the pages of a mapped file between two addresses; where that cannot be, do nothing.

    Only ever of a map of a file that is not written to: pages of other memory would be lost.
    """
    madvise = _madvise()
    advice = getattr(mmap, "MADV_DONTNEED", None)
    start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    if madvise is not None and advice is not None and stop > start:
        madvise(start, stop - start, advice)
