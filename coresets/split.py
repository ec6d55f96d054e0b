"""Named shares of a dataset that never move: train, val, test.

A row belongs to the share into whose stretch of [0, 1) its key falls. Keys are drawn from a stream
of their own with a seed of their own, by row id or by the value of a key column: so a row keeps its
share when the dataset grows, when the training's seed changes, and (by key) when its files are
rewritten. Shares hold about, not exactly, their part of the rows.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ..dataplane.errors import JobSpecError, nearest
from ..dataplane.random import Stream, hash_values, keys

__all__ = ["in_split", "parse_split"]

U64 = npt.NDArray[np.uint64]


def parse_split(text: str) -> tuple[dict[str, Fraction], str]:
    """Parse ``train=0.9,val=0.1:train`` into (shares in order, name of the chosen one)."""
    shares: dict[str, Fraction] = {}
    form = f"A split is written 'train=0.9,val=0.1:train'. Got '{text}' instead."
    listed, colon, chosen = text.rpartition(":")
    if not colon:
        raise JobSpecError(form)
    for item in listed.split(","):
        name, equals, share = item.strip().partition("=")
        try:
            shares[name.strip()] = Fraction(share.strip())
        except (ValueError, ZeroDivisionError):
            raise JobSpecError(form) from None
        if not equals or not name.strip():
            raise JobSpecError(form)
    if min(shares.values()) <= 0 or sum(shares.values()) > 1:
        raise JobSpecError(
            f"The shares of a split must be positive and sum up to at most 1: '{text}' sums up to "
            f"{float(sum(shares.values())):g}."
        )
    if chosen.strip() not in shares:
        raise JobSpecError(
            f"The split '{text}' has no share '{chosen}'.{nearest(chosen, shares)} "
            f"It has: {', '.join(shares)}."
        )
    return shares, chosen.strip()


def in_split(
    values: U64, shares: dict[str, Fraction], chosen: str, *, seed: int = 0, hashed: bool = False
) -> npt.NDArray[np.bool_]:
    """Return which rows belong to a share.

    Parameters
    ----------
    values : uint64, shape (n,)
        Row ids, or hashes of a key column's values (`hashed`).
    shares : mapping of name to Fraction, in order
    chosen : str
    seed : int
        The split's own seed.
    """
    drawn = (
        hash_values(seed, Stream.SPLIT, values) if hashed else keys(seed, Stream.SPLIT, 0, values)
    )
    low = Fraction(0)
    for name, share in shares.items():
        if name == chosen:
            break
        low += share
    first, last = (int(edge * 2**64) for edge in (low, low + shares[chosen]))
    inside = drawn >= np.uint64(min(first, 2**64 - 1))
    return inside if last >= 2**64 else inside & (drawn < np.uint64(last))
