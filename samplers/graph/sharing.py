"""Large arrays that other processes use without a copy of their own.

After a fork they are shared anyway. Where processes are spawned, what is pickled is: the file and
the place, of an array that is mapped from a file; a tensor in shared memory, of one in memory, to
which it is moved once, when first a process is spawned with it. Any other pickle holds the values.
"""

from __future__ import annotations

import multiprocessing.context
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

__all__ = ["SharesArrays"]


class SharesArrays:
    """A base of classes with large arrays as attributes."""

    _arrays: ClassVar[tuple[str, ...]] = ()

    def share_memory(self) -> None:
        """Move the arrays that are in memory to memory that other processes can map."""
        import torch

        shared = self.__dict__.setdefault("_shared", {})
        for name in self._arrays:
            array = getattr(self, name)
            if array is None or name in shared or _mapped(array) is not None:
                continue
            shared[name] = torch.from_numpy(np.array(array)).share_memory_()
            setattr(self, name, shared[name].numpy())

    def __getstate__(self) -> dict[str, Any]:
        if multiprocessing.context.get_spawning_popen() is not None:
            self.share_memory()
        state = self.__dict__.copy()
        shared = state.pop("_shared", {})
        for name in self._arrays:
            mapped = None if state[name] is None else _mapped(state[name])
            state[name] = mapped or shared.get(name, state[name])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        shared = self.__dict__.setdefault("_shared", {})
        for name in self._arrays:
            carried = state[name]
            if isinstance(carried, _Mapped):
                setattr(self, name, carried.open())
            elif carried is not None and not isinstance(carried, np.ndarray):
                shared[name] = carried
                setattr(self, name, carried.numpy())


class _Mapped:
    """What it takes to map an array again."""

    def __init__(self, path: str, dtype: str, offset: int, size: int) -> None:
        self.path, self.dtype, self.offset, self.size = path, dtype, offset, size

    def open(self) -> npt.NDArray[Any]:
        return np.memmap(self.path, self.dtype, "r", self.offset, (self.size,))


def _mapped(array: npt.NDArray[Any]) -> _Mapped | None:
    """Return the file that an array is a view of; None where it is in memory."""
    base: Any = array
    while isinstance(base, np.ndarray) and isinstance(base.base, np.ndarray):
        base = base.base
    if not isinstance(base, np.memmap) or base.filename is None:
        return None
    offset = base.offset + array.ctypes.data - base.ctypes.data
    return _Mapped(str(base.filename), array.dtype.str, offset, array.size)
