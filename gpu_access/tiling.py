"""How a gather is cut into warp steps: pure arithmetic, for the kernel, its counts and its tests.

A GPU asks the bus for host memory in lines of 128 bytes. A warp's 32 lanes read one word each at
consecutive addresses, so a step that begins at a line's first byte costs one request, and one that
begins elsewhere costs two. Rows begin anywhere: their steps begin at the line *before* the row, and
the lanes in front of it stay idle (the *lead-in*). Then every line of a row is asked for once.
"""

from __future__ import annotations

from dataclasses import dataclass

from .row_table import RowTable, word_bytes

__all__ = ["LINE", "Tiling", "tile"]

LINE = 128
_WORDS_A_TILE = {1: 4096, 2: 4096, 4: 2048, 8: 1024}  # by word size; 4 warps of 32 lanes share it
_ROWS_A_TILE = 64


@dataclass(frozen=True)
class Tiling:
    """What a launch needs to know of a table and an output.

    Attributes
    ----------
    word : int
        Bytes a lane moves at once.
    words : int
        A row.
    table_stride : int
        Words from a row to the next.
    phase : int
        Words from a line's beginning to the first row.
    lead_in : bool
        Whether steps begin at lines.
    rows, block : int
        Rows and columns (words) of a tile; powers of two.
    """

    word: int
    words: int
    table_stride: int
    phase: int
    lead_in: bool
    rows: int
    block: int

    @property
    def line(self) -> int:
        """Words a line."""
        return LINE // self.word


def tile(table: RowTable, out_address: int = 0, lead_in: bool | None = None) -> Tiling:
    """Return the tiling for a table.

    Parameters
    ----------
    table : RowTable
    out_address : int
        Where rows are written, one after another.
    lead_in : bool, optional
        By default where it saves requests: rows longer than a line that do not all begin at one.
    """
    word = word_bytes(table, out_address)
    words, line = table.row_bytes // word, LINE // word
    if lead_in is None:
        aligned = table.address % LINE == 0 and table.stride % LINE == 0
        lead_in = table.row_bytes > LINE and not aligned
    block = _block(words + (line - 1 if lead_in else 0))
    return Tiling(
        word=word,
        words=words,
        table_stride=table.stride // word,
        phase=table.address % LINE // word,
        lead_in=lead_in,
        rows=max(1, min(_ROWS_A_TILE, _WORDS_A_TILE[word] // block)),
        block=block,
    )


def _block(span: int) -> int:
    """Return the widest block of those that leave the fewest lanes idle over a span of words."""
    if span <= 32:
        return 1 << max(0, span - 1).bit_length()
    return min((32, 64, 128, 256), key=lambda b: (-(-span // b) * b, -b))
