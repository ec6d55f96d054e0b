"""A method that selects rows by loss, over rows in one array.

What a method must say of itself are its passes over parts of the rows (`loss_search`); here stands
what all have in common: the checks of what is given, and the loop over an array's parts, which are
so small that they stay in the processor's cache from step to step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataplane.compiled import compiled_kernels
from ..dataplane.errors import ParameterError, SelectionError, examples
from ..dataplane.plan import Selection
from ..dataplane.random import some_of
from .loss_rows import F32, U64, LossRows, Mask
from .loss_search import Choice, LossSearch, NonFinite

__all__ = ["PART_ROWS", "LossSelector", "check_epoch", "keeps_in_parts", "scored_rows"]

PART_ROWS = 1 << 16
"""Rows that are counted at a time: so few that they stay in the processor's cache."""


class LossSelector(ABC):
    """A method that selects by loss; its parameters are a frozen dataclass.

    Attributes
    ----------
    nonfinite : {'fail', 'keep'}
        What becomes of rows whose loss is NaN or infinite.
    """

    nonfinite: NonFinite = "keep"

    @abstractmethod
    def search(self, epoch: int, rows: int) -> LossSearch:
        """Return the passes over `rows` rows in parts that lead to an epoch's selection."""

    def plan(
        self,
        losses: npt.ArrayLike,
        *,
        epoch: int,
        scored: npt.ArrayLike | None = None,
        ids: npt.ArrayLike | None = None,
    ) -> Selection:
        """Select an epoch's rows.

        Parameters
        ----------
        losses : float, shape (n,)
            The last loss of each row; taken as float32.
        epoch : int
            From 0, and below `epochs` where the method has a schedule.
        scored : bool, shape (n,), optional
            Which rows have a loss; all when None.
        ids : uint64, shape (n,), optional
            Row ids, by which rows are drawn; positions when None.

        Returns
        -------
        Selection
            Positions, ascending; weights, or None where they are all 1; a report of what was kept
            and how.

        Raises
        ------
        SelectionError
            Where there are no rows, shapes differ, or a loss is NaN or infinite.
        ParameterError
            Where the epoch is not one of the training's.
        """
        rows = _checked(losses, scored, ids, self.nonfinite)
        compiled_kernels(len(rows))  # loaded here where they pay, they count small parts too
        search = self.search(epoch, len(rows))
        parts = [rows.slice(a, a + PART_ROWS) for a in range(0, len(rows), PART_ROWS)]
        while search.next is not None:
            counts = np.zeros(search.next.shape, np.int64)
            for part in parts:
                search.next.count(part, into=counts)
            search.narrow(counts)
        choice = search.choice
        kept = np.concatenate(
            [np.flatnonzero(choice.keeps(p)) + k * PART_ROWS for k, p in enumerate(parts)]
        )
        weights = None
        if choice.weighted:
            weights = choice.weights(rows.take(kept))
        return Selection(kept.view(np.uint64), weights, choice.report)


def keeps_in_parts(choice: Choice, rows: LossRows) -> Mask:
    """Return which rows a choice keeps; bool, shape (n,)."""
    starts = range(0, len(rows), PART_ROWS)
    parts = [choice.keeps(rows.slice(start, start + PART_ROWS)) for start in starts]
    return np.concatenate([np.zeros(0, bool), *parts])


def _checked(losses: Any, scored: Any, ids: Any, nonfinite: NonFinite) -> LossRows:
    values = np.asarray(losses)
    if values.ndim != 1:
        raise SelectionError(
            f"Expected one loss a row, shape (n,), found shape {values.shape}. Compute them with "
            "reduction='none'."
        )
    if not len(values):
        raise SelectionError("There are no rows to select from: the dataset is empty.")
    if values.dtype.kind != "f":
        raise SelectionError(f"Losses must be floats, found {values.dtype}.")
    mask = None if scored is None else np.asarray(scored)
    rows = range(len(values)) if ids is None else np.asarray(ids, np.uint64)
    for name, given in (("scored", mask), ("ids", rows)):
        if isinstance(given, np.ndarray) and given.shape != values.shape:
            raise SelectionError(
                f"Expected '{name}' of shape {values.shape}, as the losses, found {given.shape}."
            )
    if mask is not None and mask.dtype != bool:
        raise SelectionError(f"'scored' must be booleans, found {mask.dtype}.")
    single = values.astype(np.float32, copy=False)
    return LossRows.of(rows, single, scored_rows(single, mask, rows, nonfinite))


def scored_rows(
    losses: F32, scored: Mask | None, ids: U64 | range, nonfinite: NonFinite
) -> Mask | None:
    """Return which rows have a finite loss; None: all.

    Raises
    ------
    SelectionError
        Where one has a loss that is NaN or infinite, and `nonfinite` is ``'fail'``.
    """
    finite = np.isfinite(losses)
    usable: Mask = finite if scored is None else finite & scored
    bad = ~finite if scored is None else scored & ~finite
    if nonfinite == "fail" and bad.any():
        count = int(bad.sum())
        raise SelectionError(
            f"{count:,} row{'s have' if count > 1 else ' has'} a loss that is NaN or infinite: "
            f"{examples(some_of(ids, bad))}. Find out why, or let such rows take part always with "
            "nonfinite='keep'."
        )
    return None if usable.all() else usable


def check_epoch(epoch: int, epochs: int) -> None:
    """Raise `ParameterError` unless an epoch is one of the training's."""
    if not 0 <= epoch < epochs:
        raise ParameterError(
            f"The 'epoch' must be an int in the range [0, {epochs}), the training's epochs. "
            f"Got {epoch!r} instead."
        )
