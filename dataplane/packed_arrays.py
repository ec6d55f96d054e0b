"""What of a packed file is read as Arrow objects: dictionaries, and columns of kind *arrow*."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .errors import PackedCorruptError
from .packed_pages import MappedFile, PageGuard

__all__ = ["arrays_of", "dictionaries_of"]

I64 = npt.NDArray[np.int64]


def dictionaries_of(files: Sequence[MappedFile], guard: PageGuard) -> Callable[[int], pa.Array]:
    """Return what gives the dictionary of a chunk; its whole file is checked first."""

    @cache
    def dictionary(chunk: int) -> pa.Array:
        return _batches(files[chunk], chunk, guard)[0].dictionary

    return dictionary


def arrays_of(
    files: Sequence[MappedFile], guard: PageGuard
) -> Callable[[int], tuple[I64, Sequence[pa.Array]]]:
    """Return what gives (first row of each array, arrays) of a chunk, checked first."""

    @cache
    def arrays(chunk: int) -> tuple[I64, Sequence[pa.Array]]:
        found = _batches(files[chunk], chunk, guard)
        first = np.cumsum([0, *(len(a) for a in found)], dtype=np.int64)
        return first[:-1], found

    return arrays


def _batches(file: MappedFile, chunk: int, guard: PageGuard) -> list[pa.Array]:
    guard.check_file(chunk)
    try:
        reader = pa.ipc.open_file(pa.py_buffer(file.data))
        return [reader.get_batch(i).column(0) for i in range(reader.num_record_batches)]
    except (pa.ArrowException, ValueError, OSError) as error:
        raise PackedCorruptError(
            f"{file.place} is no Arrow file: {error}. Pack the dataset again."
        ) from error
