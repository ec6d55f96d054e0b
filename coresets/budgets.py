"""How many rows of each source a small batch takes from a large one.

CoLM (Nguyen et al., *Mini-batch Coresets for Memory-efficient Language Model Training on Data
Mixtures*, ICLR 2025): a source that is small in the *dataset*, |V_q| < |V| / c over c sources, is
kept whole; the rest of the budget is shared out among the large sources in proportion to what the
batch holds of them.

The paper does not say how shares are rounded. ``"largest-remainder"`` (Hamilton's rule) rounds down
and gives what is left to the largest remainders, ties to the first source. ``"reference"`` gives it
to the smallest shares, as the authors' code does by default. Both are computed in integers: the
code's floats misround some shares (30 of 88 rows, 44 wanted: 14.99…), and may give a source more
than it has.

Where small sources alone exceed the budget, which the paper leaves open, each gets one row while
that goes, and the rest is shared out among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ..dataplane.checks import require_one_of
from ..dataplane.errors import SelectionError

__all__ = ["Rounding", "SourceBudgets", "apportion", "small_sources", "source_budgets"]

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

Rounding = Literal["largest-remainder", "reference"]
"""Who gets the rows that are left when shares were rounded down."""


@dataclass(frozen=True)
class SourceBudgets:
    """Rows that a small batch takes of each source.

    Attributes
    ----------
    rows : int64, shape (c,)
    small : bool, shape (c,)
        Sources that are kept whole.
    overflow : bool
        Whether the small sources alone hold more than the budget, so that they are not.
    """

    rows: I64
    small: Mask
    overflow: bool


def small_sources(counts: npt.ArrayLike) -> Mask:
    """Return which sources are smaller than the mean; bool, shape (c,).

    Parameters
    ----------
    counts : int, shape (c,)
        Rows of each source in the dataset. Sources without rows do not count, and are not small.

    Raises
    ------
    SelectionError
        Where a count is negative or no integer.
    """
    found = _counts("counts", counts)
    sources = int(np.count_nonzero(found))
    return (found > 0) & (found * sources < int(found.sum()))


def apportion(
    sizes: npt.ArrayLike, budget: int, *, rounding: Rounding = "largest-remainder"
) -> I64:
    """Share a budget out in proportion to sizes, in whole numbers.

    Parameters
    ----------
    sizes : int, shape (c,)
    budget : int
        At most their sum.
    rounding : {'largest-remainder', 'reference'}

    Returns
    -------
    int64, shape (c,)
        They sum up to `budget`; none is larger than its size.

    Raises
    ------
    SelectionError
        Where the budget is larger than the sizes' sum, or a size is negative.
    ParameterError
    """
    require_one_of("rounding", rounding, get_args(Rounding))
    found = _counts("sizes", sizes)
    whole = int(found.sum())
    if not 0 <= budget <= whole:
        raise SelectionError(
            f"A budget of {budget:,} rows cannot be shared out among {whole:,}: it must be in the "
            f"range [0, {whole}]."
        )
    if not budget:
        return np.zeros(len(found), np.int64)
    shares, remainders = np.divmod(found * budget, whole)
    left = budget - int(shares.sum())
    if rounding == "largest-remainder":
        shares[np.argsort(-remainders, kind="stable")[:left]] += 1
        return shares
    order = np.argsort(shares, kind="stable")
    while left:
        room = order[shares[order] < found[order]][:left]
        shares[room] += 1
        left -= len(room)
    return shares


def source_budgets(
    batch: npt.ArrayLike,
    small: Mask,
    budget: int,
    *,
    rounding: Rounding = "largest-remainder",
) -> SourceBudgets:
    """Share the rows of a small batch out among the sources of a large one.

    Parameters
    ----------
    batch : int, shape (c,)
        Rows of each source in the large batch.
    small : bool, shape (c,)
        Sources that are to be kept whole; see `small_sources`.
    budget : int
        Rows of the small batch, at most those of the large one.
    rounding : {'largest-remainder', 'reference'}

    Raises
    ------
    SelectionError
        Where shapes differ, or the budget is larger than the large batch.
    """
    found, kept = _counts("batch", batch), np.asarray(small)
    if kept.shape != found.shape or kept.dtype != bool:
        raise SelectionError(
            f"Expected 'small' as booleans of shape {found.shape}, one a source, found "
            f"{kept.dtype} of shape {kept.shape}."
        )
    held = int(found[kept].sum())
    if held > budget:
        return SourceBudgets(_overflowing(found * kept, budget, rounding), kept, True)
    rows = np.where(kept, found, apportion(found * ~kept, budget - held, rounding=rounding))
    return SourceBudgets(rows, kept, False)


def _overflowing(sizes: I64, budget: int, rounding: Rounding) -> I64:
    """Share a budget out among sources of which each should have a row."""
    each = (sizes > 0).astype(np.int64)
    if int(each.sum()) > budget:
        return apportion(sizes, budget, rounding=rounding)
    return each + apportion(sizes - each, budget - int(each.sum()), rounding=rounding)


def _counts(name: str, counts: npt.ArrayLike) -> I64:
    found = np.asarray(counts)
    whole = found.dtype.kind in "iu" or not found.size
    if found.ndim != 1 or not whole or (found < 0).any():
        raise SelectionError(
            f"Expected '{name}' as whole numbers of rows, shape (c,), none negative; found "
            f"{found.dtype} of shape {found.shape}."
        )
    return found.astype(np.int64)
