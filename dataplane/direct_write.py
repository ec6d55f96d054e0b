"""Writing large files past the page cache, where what is written is to be on the disk at once.

A write copies its bytes into pages of the kernel, which a flush then writes out; for megabytes that
are flushed right away, finding and filling those pages costs twenty times the processor time of all
else, and halves the rate of a fast disk. With ``O_DIRECT`` the disk reads the bytes where they are.
It wants whole blocks at addresses of whole blocks: memory of `aligned_bytes` is such, other bytes
go by way of some. The last piece of a block is written as ever, and all of it is where a file
system knows no direct writes.

Such writes leave the page cache alone, too, and with it the dataset that a training reads.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["aligned_bytes", "write_all"]

BLOCK = 4096  # of which addresses, offsets and sizes are multiples: of the largest blocks in use
_LEAST_BYTES = 1 << 18
_PIECE = 1 << 20
_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux


def aligned_bytes(size: int) -> npt.NDArray[np.uint8]:
    """Return memory that can be written from directly; it holds anything."""
    room = np.empty(size + BLOCK, np.uint8)
    skip = -room.ctypes.data % BLOCK
    return room[skip : skip + size]


def write_all(handle: int, data: Any) -> None:
    """Write bytes to a file that was opened to be written, at its position.

    Parameters
    ----------
    handle : int
    data : bytes-like
        C-contiguous.
    """
    view = memoryview(data).cast("B")
    done = 0
    if _DIRECT and len(view) >= _LEAST_BYTES and not os.lseek(handle, 0, os.SEEK_CUR) % BLOCK:
        done = _write_blocks(handle, view[: len(view) // BLOCK * BLOCK])
    while done < len(view):
        done += os.write(handle, view[done:])


def _write_blocks(handle: int, view: memoryview) -> int:
    """Write blocks directly, as far as that goes; return how many bytes."""
    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    try:
        fcntl.fcntl(handle, fcntl.F_SETFL, flags | _DIRECT)
    except OSError:  # not on this file system
        return 0
    room = None if _is_aligned(view) else aligned_bytes(_PIECE)
    done = 0
    try:
        while done < len(view) and not done % BLOCK:
            piece = view[done:]
            if room is not None:
                piece = piece[:_PIECE]
                room[: len(piece)] = piece
                piece = room.data[: len(piece)]
            done += os.write(handle, piece)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        fcntl.fcntl(handle, fcntl.F_SETFL, flags)
    return done


def _is_aligned(view: memoryview) -> bool:
    return not np.frombuffer(view, np.uint8).ctypes.data % BLOCK
