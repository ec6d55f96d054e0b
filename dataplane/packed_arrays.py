"""What of a packed file is read as Arrow objects: dictionaries, and columns of kind *arrow*."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .errors import PackedCorruptError

__all__ = ["arrays_of", "dictionaries_of"]

I64 = npt.NDArray[np.int64]

_DECODED_FILES = 64  # of columns of kind arrow; on a store their bytes are held, too


class _Guard(Protocol):
    def whole_file(self, chunk: int) -> Any: ...

    def frame(self, chunk: int) -> Any: ...


def dictionaries_of(places: Sequence[str], guard: _Guard) -> Callable[[int], pa.Array]:
    """Return what gives the dictionary of a chunk; what surrounds it was checked."""

    @cache
    def dictionary(chunk: int) -> pa.Array:
        return _batches(guard.frame(chunk), places[chunk])[0].dictionary

    return dictionary


def arrays_of(
    places: Sequence[str], guard: _Guard
) -> Callable[[int], tuple[I64, Sequence[pa.Array]]]:
    """Return what gives (first row of each array, arrays) of a chunk, checked first."""

    @lru_cache(maxsize=_DECODED_FILES)
    def arrays(chunk: int) -> tuple[I64, Sequence[pa.Array]]:
        found = _batches(guard.whole_file(chunk), places[chunk])
        first = np.cumsum([0, *(len(a) for a in found)], dtype=np.int64)
        return first[:-1], found

    return arrays


def _batches(data: Any, place: str) -> list[pa.Array]:
    try:
        reader = pa.ipc.open_file(pa.py_buffer(data))
        return [reader.get_batch(i).column(0) for i in range(reader.num_record_batches)]
    except (pa.ArrowException, ValueError, OSError) as error:
        raise PackedCorruptError(
            f"{place} is no Arrow file: {error}. Pack the dataset again."
        ) from error
