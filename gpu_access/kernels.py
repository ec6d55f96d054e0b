"""The GPU's row gather: one Triton kernel, and how it is launched.

To try another kernel, change this file: `launch` is all that is called from outside, and the tests
of this file run any kernel with its arguments in Triton's interpreter, count its requests to the
bus, and compile it for three generations of GPUs, all without one.

Each program takes tiles of rows by turns. The table may be any memory that the GPU can address: the
driver checks and translates the tensor's pointer at each launch. Rows travel as words (see
`row_table`), bit by bit. A row that does not exist is not written, and the smallest place in `ids`
that names one is left in `status`; nothing traps, so the context stays usable.

Offsets are 64-bit throughout. Scalars are kept from being specialised: an argument that is 1 would
become a constant, which is no tensor any more.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .tiling import Tiling

__all__ = ["gather_rows_kernel", "launch"]


@triton.jit(do_not_specialize=["n_ids", "n_rows", "words", "table_stride", "out_stride", "phase"])
def gather_rows_kernel(
    table,
    ids,
    places,
    out,
    status,
    n_ids,
    n_rows,
    words,
    table_stride,
    out_stride,
    phase,
    PLACED: tl.constexpr,
    LEAD_IN: tl.constexpr,
    LINE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copy row ``ids[i]`` of `table` to row ``places[i]`` of `out`, or to row i unless PLACED."""
    lanes = tl.arange(0, BLOCK)
    in_tile = tl.arange(0, ROWS)
    span = words
    if LEAD_IN:
        span = words + (LINE - 1)
    for tile in range(tl.program_id(0), (n_ids + ROWS - 1) // ROWS, tl.num_programs(0)):
        at = tile * ROWS + in_tile
        asked = at < n_ids
        row = tl.load(ids + at, mask=asked, other=0).to(tl.int64)
        place = at.to(tl.int64)
        if PLACED:
            place = tl.load(places + at, mask=asked, other=0).to(tl.int64)
        exists = (row >= 0) & (row < n_rows)
        wrong = asked & (exists == 0)
        tl.atomic_min(status + in_tile * 0, place, mask=wrong, sem="relaxed")
        limit = tl.where(asked & exists, words, 0)
        source = row * table_stride.to(tl.int64)
        target = place * out_stride.to(tl.int64)
        lead = in_tile * 0
        if LEAD_IN:
            lead = ((source + phase) & (LINE - 1)).to(tl.int32)
        for start in range(0, span, BLOCK):
            column = start + lanes[None, :] - lead[:, None]
            inside = (column >= 0) & (column < limit[:, None])
            values = tl.load(table + source[:, None] + column, mask=inside)
            tl.store(out + target[:, None] + column, values, mask=inside)


def launch(
    table: torch.Tensor,
    ids: torch.Tensor,
    places: torch.Tensor | None,
    out: torch.Tensor,
    status: torch.Tensor,
    rows: int,
    tiling: Tiling,
    programs: int,
    kernel: object = gather_rows_kernel,
) -> None:
    """Start a gather on the current stream of the current device.

    Parameters
    ----------
    table, out : torch.Tensor
        Flat tensors of words; `out` is contiguous.
    ids : int32 or int64, shape (n,), n > 0
    places : int64, shape (n,), optional
        A permutation: the row of `out` that each id's row goes to.
    status : int64, shape (1,)
        Holds at least n before; the smallest place of a row that does not exist after.
    rows : int
        Of the table.
    tiling : Tiling
    programs : int
        The most programs that run at once: fewer leave more of the GPU to others.
    kernel : optional
        What is called in place of the compiled kernel.
    """
    grid = (max(1, min(programs, -(-len(ids) // tiling.rows))),)
    kernel[grid](  # type: ignore[index]
        table,
        ids,
        ids if places is None else places,
        out,
        status,
        len(ids),
        rows,
        tiling.words,
        tiling.table_stride,
        tiling.words,
        tiling.phase,
        PLACED=places is not None,
        LEAD_IN=tiling.lead_in,
        LINE=tiling.line,
        ROWS=tiling.rows,
        BLOCK=tiling.block,
    )
