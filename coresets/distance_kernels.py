"""Compiled loops over pairs of rows: l1 and squared l2 distances, block by block.

Sums may be reordered, so that they are vectorised; but each pair is summed up in the one way of the
one loop here, whichever of the two rows comes first: equal rows are at distance 0, and where rows
stand, in which block and on which thread, changes no bit. Between kinds of processors the last bit
may differ.

They are two loops that differ in a term, not one that is made with it: numba does not find a
closure over a function in its cache, and would compile it in every process.
"""

from __future__ import annotations

from numba import njit

ROWS, COLUMNS = 4, 2  # pairs that are summed up side by side, in registers
_LOOSE = {"reassoc", "nsz", "contract"}


@njit(cache=True, nogil=True, fastmath=_LOOSE)
def l1_tile(x, y, out):
    """Fill in Σ |a − b| of rows of x and y; their numbers are multiples of ROWS and COLUMNS."""
    width = x.shape[1]
    for i in range(0, x.shape[0], ROWS):
        for j in range(0, y.shape[0], COLUMNS):
            a = b = c = d = e = f = g = h = x.dtype.type(0)
            for t in range(width):
                p, q = y[j, t], y[j + 1, t]
                r0, r1, r2, r3 = x[i, t], x[i + 1, t], x[i + 2, t], x[i + 3, t]
                a += abs(r0 - p)
                b += abs(r0 - q)
                c += abs(r1 - p)
                d += abs(r1 - q)
                e += abs(r2 - p)
                f += abs(r2 - q)
                g += abs(r3 - p)
                h += abs(r3 - q)
            out[i, j], out[i, j + 1] = a, b
            out[i + 1, j], out[i + 1, j + 1] = c, d
            out[i + 2, j], out[i + 2, j + 1] = e, f
            out[i + 3, j], out[i + 3, j + 1] = g, h


@njit(cache=True, nogil=True, fastmath=_LOOSE)
def squared_l2_tile(x, y, out):
    """Fill in Σ (a − b)² of rows of x and y; their numbers are multiples of ROWS and COLUMNS."""
    width = x.shape[1]
    for i in range(0, x.shape[0], ROWS):
        for j in range(0, y.shape[0], COLUMNS):
            a = b = c = d = e = f = g = h = x.dtype.type(0)
            for t in range(width):
                p, q = y[j, t], y[j + 1, t]
                r0, r1, r2, r3 = x[i, t], x[i + 1, t], x[i + 2, t], x[i + 3, t]
                a += (r0 - p) * (r0 - p)
                b += (r0 - q) * (r0 - q)
                c += (r1 - p) * (r1 - p)
                d += (r1 - q) * (r1 - q)
                e += (r2 - p) * (r2 - p)
                f += (r2 - q) * (r2 - q)
                g += (r3 - p) * (r3 - p)
                h += (r3 - q) * (r3 - q)
            out[i, j], out[i, j + 1] = a, b
            out[i + 1, j], out[i + 1, j + 1] = c, d
            out[i + 2, j], out[i + 2, j + 1] = e, f
            out[i + 3, j], out[i + 3, j + 1] = g, h
