"""Rows of numbers and their ids, as algorithms take them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .errors import SelectionError, examples

__all__ = ["checked_ids", "float32_rows"]

U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]


def float32_rows(x: npt.ArrayLike) -> F32:
    """Return rows as a C-ordered float32 array, not copied where they are one.

    Raises
    ------
    SelectionError
        Where they are no numbers of shape (n, d), d ≥ 1.
    """
    found = np.asarray(x)
    if found.ndim != 2 or found.dtype.kind not in "fiub" or not found.shape[1]:
        raise SelectionError(
            f"Expected rows of numbers of shape (n, d), found {found.dtype} of shape {found.shape}."
        )
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(found, np.float32)


def checked_ids(ids: npt.ArrayLike | None, n: int) -> U64:
    """Return row ids as uint64, shape (n,); positions when None.

    Raises
    ------
    SelectionError
        Where they are no integers of that shape, or repeat.
    """
    if ids is None:
        return np.arange(n, dtype=np.uint64)
    found = np.asarray(ids)
    if found.shape != (n,) or (n and found.dtype.kind not in "iu") or (n and found.min() < 0):
        raise SelectionError(
            f"Expected 'ids' as integers ≥ 0 of shape ({n},), found {found.dtype} of shape "
            f"{found.shape}."
        )
    named = found.astype(np.uint64)
    sorted_ = np.sort(named)
    again = sorted_[1:][sorted_[1:] == sorted_[:-1]]
    if len(again):
        raise SelectionError(
            f"Row ids repeat: {examples(np.unique(again))}. Give each row its own."
        )
    return named
