"""How many lines of 128 bytes a gather asks of the bus: counted from addresses, as a warp would.

The counts are of requests that warp steps issue; they are what alignment decides, and no measured
time. The kernel's own loads, traced, give the same numbers.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from .row_table import RowTable
from .tiling import LINE, tile

__all__ = ["line_requests", "lines_per_row"]

_WARP = 32


def line_requests(
    table: RowTable, ids: npt.NDArray[np.int64], mode: Literal["least", "kernel", "plain"]
) -> int:
    """Return the lines that a gather requests.

    Parameters
    ----------
    table : RowTable
    ids : int64, shape (n,)
    mode : {'least', 'kernel', 'plain'}
        ``'least'``: lines that hold a byte of a row; ``'kernel'``: what our warps ask for;
        ``'plain'``: what they would, did each row's steps begin at its first byte.
    """
    first = table.address + np.asarray(ids, np.int64) * table.stride
    last = first + table.row_bytes - 1
    if mode == "least" or not table.row_bytes:
        return int((last // LINE - first // LINE + 1).sum()) if table.row_bytes else 0
    tiling = tile(table, lead_in=False if mode == "plain" else None)
    lead = first % LINE if tiling.lead_in else np.zeros_like(first)
    # A warp takes 32 consecutive words of a row; narrower blocks take several rows a step.
    step = min(_WARP, tiling.block) * tiling.word
    total = 0
    for start in range(0, int(table.row_bytes + lead.max(initial=0)), step):
        low = np.maximum(first, first - lead + start)
        high = np.minimum(last, first - lead + start + step - 1)
        total += int((high // LINE - low // LINE + 1)[high >= low].sum())
    return total


def lines_per_row(table: RowTable) -> float:
    """Return the lines that an average row takes, over all the ways rows lie in lines."""
    return _lines_per_row(table.address % LINE, table.stride, table.row_bytes)


@cache
def _lines_per_row(phase: int, stride: int, row_bytes: int) -> float:
    ways = LINE // math.gcd(LINE, stride)
    table = RowTable(LINE + phase, ways, (row_bytes,), torch.uint8, stride, None)
    return line_requests(table, np.arange(ways, dtype=np.int64), "kernel") / ways
