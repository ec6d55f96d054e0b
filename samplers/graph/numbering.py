"""Local numbers of the nodes of one batch: a table with a word a node, or a hash.

The table takes 8 bytes a node of the graph and is the faster. The hash grows with the batch; it is
used where the table would exceed a budget, and for disjoint subgraphs, in which a node has a number
in each of them. Both number the same nodes the same. Either is kept for later batches: a word names
the call that wrote it, so nothing is cleared in between.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import numbering_kernels as kernels

__all__ = ["Numbering"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_EMPTY: I64 = np.empty(0, np.int64)
_LAST_CALL = 2**32 - 1  # a call's number has 32 bits
_SMALLEST_HASH = 1024


class Numbering:
    """Numbers nodes of one kind in the order of their discovery, batch after batch.

    Parameters
    ----------
    num_nodes : int
    hashed : bool
        By a hash rather than by a table.
    disjoint : bool
        A node has a number in each subgraph that it is in; needs the hash.

    Attributes
    ----------
    count : int
        Nodes numbered in this batch.
    """

    def __init__(self, num_nodes: int, *, hashed: bool, disjoint: bool) -> None:
        self._hashed, self._disjoint = hashed, disjoint
        self._table: U64 = np.zeros(_SMALLEST_HASH if hashed else num_nodes, np.uint64)
        self._nodes: I64 = _EMPTY
        self._slots: I64 = _EMPTY
        self._call = 0
        self.count = 0

    @property
    def nodes(self) -> I64:
        """The nodes, by number: a view, valid until the next `add` or `begin`."""
        return self._nodes[: self.count]

    @property
    def slots(self) -> I64:
        """The subgraph that each is in; empty where there is but one."""
        return self._slots[: self.count]

    def begin(self, seeds: I64, slots: I64) -> I64:
        """Start a batch with its seeds, each of which gets its own number.

        Parameters
        ----------
        seeds : int64, shape (n,)
        slots : int64, shape (n,), or empty
            Their subgraphs, where these are disjoint.

        Returns
        -------
        int64, shape (n,), or empty
            0 for a seed that is there the first time, else its number; empty where all are 0. Its
            number in the table stays the first one's.
        """
        self._call += 1
        if self._call > _LAST_CALL:
            self._table[:] = 0
            self._call = 1
        self.count = 0
        self._reserve(seeds.size)
        again = np.zeros(seeds.size, np.int64)
        call = np.uint64(self._call)
        if self._hashed:
            if self._disjoint:
                self._slots[: seeds.size] = slots
            known = self._slots[: seeds.size] if self._disjoint else _EMPTY
            twice = kernels.seeds_by_hash(seeds, self._table, call, self._nodes, known, again)
        else:
            twice = kernels.seeds_by_table(seeds, self._table, call, self._nodes, again)
        self.count = seeds.size
        return again if twice else _EMPTY

    def add(self, source: I64, target_slots: I64, local: I64, first: int) -> None:
        """Replace nodes by their numbers, numbering the new ones.

        Parameters
        ----------
        source : int64, shape (e,)
            Written over.
        target_slots, local, first
            Where subgraphs are disjoint, ``target_slots[local[z] − first]`` is that of node z.
        """
        self._reserve(self.count + source.size + 1)
        call = np.uint64(self._call)
        if self._hashed:
            self.count = kernels.number_by_hash(
                source, target_slots, local, first, self._table, call, self._nodes, self._slots,
                self.count,
            )  # fmt: skip
        else:
            self.count = kernels.number_by_table(source, self._table, call, self._nodes, self.count)

    def induced(
        self, start: I64, degree: I64, target_slots: I64, row: npt.NDArray[Any], most: int
    ) -> tuple[I64, I64, I64] | None:
        """Return the edges of some targets whose sources are numbered here, in their order.

        Parameters
        ----------
        start, degree : int64, shape (t,)
            Where the edges of each target begin, and their number.
        target_slots : int64, shape (t,), or empty
        row : int32 or int64, shape (E,)
        most : int

        Returns
        -------
        source, target, edge : int64, shape (e,), or None
            None where there are more than `most`.
        """
        ends = np.zeros(start.size + 1, np.int64)
        where = (start, degree, row, target_slots, self._table, np.uint64(self._call))
        own = (self._hashed, self._nodes, self._slots, ends)
        total = int(kernels.count_induced(*where, *own))
        if total > most:
            return None
        source, target, edge = (np.empty(total, np.int64) for _ in range(3))
        kernels.fill_induced(*where, *own, source, target, edge)
        return source, target, edge

    def _reserve(self, size: int) -> None:
        """Make room for the numbers of so many nodes."""
        if size > self._nodes.size:
            room = max(size, self._nodes.size + self._nodes.size // 2)
            self._nodes = _grown(self._nodes, self.count, room)
            if self._disjoint:
                self._slots = _grown(self._slots, self.count, room)
        if self._hashed and 2 * size > self._table.size:
            self._table = np.zeros(1 << (2 * size - 1).bit_length(), np.uint64)
            slots = self._slots if self._disjoint else _EMPTY
            kernels.fill_hash(self._table, np.uint64(self._call), self._nodes, slots, self.count)


def _grown(old: I64, filled: int, room: int) -> I64:
    new = np.empty(room, np.int64)
    new[:filled] = old[:filled]
    return new
