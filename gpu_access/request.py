"""What a backend is asked for, one gather with all that it needs to know; and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..dataplane.errors import RowIndexError
from .row_table import RowTable

__all__ = ["Request", "new_status", "no_such_row"]


@dataclass(frozen=True, eq=False)
class Request:
    """Rows of a table, wanted in an output.

    Attributes
    ----------
    table : RowTable
        Of at least one row of at least one byte.
    ids : int32 or int64, shape (n,), n > 0
        Where the backend takes them.
    out : torch.Tensor, shape (n, *row_shape)
        Contiguous.
    status : int64, shape (1,), or None
        For a backend that checks its ids; see `new_status`.
    places : int64, shape (n,), or None
        A permutation: the row of `out` that each id's row goes to. For a backend that checks.
    slots : int32, shape (n,), or None
        For each row of `out` the row of `store` that holds it, or -1.
    store : torch.Tensor, shape (slots, *row_shape), or None
        A cache's rows, contiguous, on the device of `out`.
    """

    table: RowTable
    ids: torch.Tensor
    out: torch.Tensor
    status: torch.Tensor | None = None
    places: torch.Tensor | None = None
    slots: torch.Tensor | None = None
    store: torch.Tensor | None = None


def new_status(count: int, device: torch.device) -> torch.Tensor:
    """Return a status for a gather of `count` ids: it becomes the first place that is no row."""
    return torch.full((1,), count, dtype=torch.int64, device=device)


def no_such_row(row: int, place: int, rows: int) -> RowIndexError:
    """Return the error of an id, at a place among others, that a table of `rows` does not hold."""
    return RowIndexError(
        f"Row {row}, the id at position {place}, does not exist: this table holds rows 0 to "
        f"{rows - 1}."
        if rows
        else f"Row {row}, the id at position {place}, does not exist: this table holds no rows."
    )
