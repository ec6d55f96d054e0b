"""The GPU's row gather: one Triton kernel, and how it is launched.

To try another kernel, change this file: `launch` is all that is called from outside, and the tests
of this file run any kernel with its arguments in Triton's interpreter, count its requests to the
bus, and compile it for three generations of GPUs, all without one.

Each program takes tiles of rows by turns. The table may be any memory that the GPU can address: the
driver checks and translates the tensor's pointer at each launch. Rows travel as words (see
`row_table`), bit by bit. A row that does not exist is not written, and the smallest place in `ids`
that names one is left in `status`; nothing traps, so the context stays usable. Rows that a cache
holds come from the GPU's own memory, in the same launch.

Offsets are 64-bit throughout. Scalars are kept from being specialised: an argument that is 1 would
become a constant, which is no tensor any more.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .request import Request
from .row_table import words_of
from .tiling import Tiling

__all__ = ["gather_rows_kernel", "launch"]


@triton.jit(
    do_not_specialize=["n_ids", "n_rows", "words", "table_stride", "out_stride", "phase"],
    # Rows begin anywhere, so an aligned base is no gain, and each case would be compiled anew.
    do_not_specialize_on_alignment=["table", "ids", "places", "out", "status", "store", "slots"],
)
def gather_rows_kernel(
    table,
    ids,
    places,
    out,
    status,
    store,
    slots,
    n_ids,
    n_rows,
    words,
    table_stride,
    out_stride,
    phase,
    PLACED: tl.constexpr,
    CACHED: tl.constexpr,
    LEAD_IN: tl.constexpr,
    LINE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copy row ``ids[i]`` of `table` to row p of `out`; p is ``places[i]`` if PLACED, else i.

    If CACHED, it comes from row ``slots[p]`` of `store` instead where that is not negative.
    """
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
        far = limit
        near = in_tile * 0
        held = place
        if CACHED:
            slot = tl.load(slots + place, mask=asked & exists, other=-1)
            far = tl.where(slot < 0, limit, 0)
            near = limit - far
            held = tl.where(slot < 0, 0, slot).to(tl.int64) * words.to(tl.int64)
        for start in range(0, span, BLOCK):
            column = start + lanes[None, :] - lead[:, None]
            inside = (column >= 0) & (column < limit[:, None])
            outside = (column >= 0) & (column < far[:, None])
            values = tl.load(table + source[:, None] + column, mask=outside)
            if CACHED:
                cached = (column >= 0) & (column < near[:, None])
                fast = tl.load(store + held[:, None] + column, mask=cached)
                values = tl.where(near[:, None] > 0, fast, values)
            tl.store(out + target[:, None] + column, values, mask=inside)


def launch(
    request: Request, tiling: Tiling, programs: int, kernel: object = gather_rows_kernel
) -> None:
    """Start a gather on the current stream of the current device.

    Parameters
    ----------
    request : Request
        With a status.
    tiling : Tiling
        Of its table and output.
    programs : int
        The most programs that run at once: fewer leave more of the GPU to others.
    kernel : optional
        What is called in place of the compiled kernel.
    """
    ids, out, cached = request.ids, words_of(request.out, tiling.word), request.slots is not None
    grid = (max(1, min(programs, -(-len(ids) // tiling.rows))),)
    kernel[grid](  # type: ignore[index]
        request.table.words(tiling.word),
        ids,
        ids if request.places is None else request.places,
        out,
        request.status,
        out if request.store is None else words_of(request.store, tiling.word),
        ids if request.slots is None else request.slots,
        len(ids),
        request.table.rows,
        tiling.words,
        tiling.table_stride,
        tiling.words,
        tiling.phase,
        PLACED=request.places is not None,
        CACHED=cached,
        LEAD_IN=tiling.lead_in,
        LINE=tiling.line,
        ROWS=tiling.rows,
        BLOCK=tiling.block,
    )
