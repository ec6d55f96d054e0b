"""CPU rows for CPU ids, in as few steps as there can be.

A training step leaves nothing of Python in the processor's caches, and each object that a gather
touches is then fetched from memory, as a row is: the general way of `unified` costs as much as some
hundred rows. What always holds for a table is found out once; what must be looked at in each call
is looked at without a word, and whatever is not as usual goes the general way, which says why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from .loops import compiled_loops
from .row_table import RowTable
from .sharing import rows_alone
from .stats import GatherStats

__all__ = ["FastPath", "fast_path"]

FastPath: TypeAlias = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor | None]
"""(ids, out) → rows, in `out` where one is given; None, and nothing done, where it must go on."""


def fast_path(table: RowTable, stats: GatherStats) -> FastPath | None:
    """Return the short way to a table's rows, or None while there are no compiled loops."""
    loops = compiled_loops()
    if loops is None or not table.nbytes:
        return None
    take = loops.row_taker(table.row_bytes)
    most = rows_alone(table.row_bytes)
    rows, address, stride, row_bytes = table.rows, table.address, table.stride, table.row_bytes
    dtype, row_shape, int64, one_after_another = table.dtype, table.row_shape, torch.int64, (1,)

    def gather(
        ids: torch.Tensor, out: torch.Tensor | None, _kept: RowTable = table
    ) -> torch.Tensor | None:
        # `_kept`: who is in here keeps the memory, whoever lets go of the table meanwhile.
        try:
            if ids.dtype is not int64 or not ids.is_cpu or ids.stride() != one_after_another:
                return None
            count = ids.shape[0]
            if not 0 < count <= most:
                return None
            shape = (count, *row_shape)
            if out is None:
                out = torch.empty(shape, dtype=dtype)
            elif not (
                out.dtype is dtype and out.is_cpu and out.shape == shape and out.is_contiguous()
            ):
                return None
        except AttributeError:  # not tensors
            return None
        if take(ids.data_ptr(), count, rows, address, stride, out.data_ptr()) >= 0:
            return None  # an id is no row
        stats.calls += 1
        stats.rows += count
        stats.bytes_cpu += count * row_bytes
        return out

    return gather
