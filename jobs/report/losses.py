"""The latest loss of each row, and how those that a plan keeps differ from those it drops."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...dataplane.errors import SelectionError
from ...dataplane.signal_file import import_signal_file, is_signal_file, open_signal_file
from ...dataplane.signals import SignalStore
from ...dataplane.snapshot import Snapshot
from ...dataplane.snapshot_bases import newest_base
from ...dataplane.storage import locate
from .counts import BINS, pieces

__all__ = ["RowLosses", "loss_figures", "read_losses"]

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_SHOWN = 0.99  # of the losses lie within the bins; larger ones are counted in the last


@dataclass(frozen=True)
class RowLosses:
    """The latest losses.

    Attributes
    ----------
    signal : str
    before : int or None
        Only what was observed in epochs before this one; None: whenever.
    values : float32, shape (ids,)
        By row id; NaN of a row that has none.
    """

    signal: str
    before: int | None
    values: F32


def read_losses(
    path: str | os.PathLike[str],
    signal: str,
    snapshot: Snapshot,
    ids: int,
    epoch: int,
    storage_options: Mapping[str, Any] | None,
) -> RowLosses:
    """Read each row's latest loss before an epoch; whenever, where nothing is known before it.

    Parameters
    ----------
    path : path or URI
        A signal store, or a file with the columns ``row`` and `signal`.
    signal : str
    snapshot : Snapshot
        Of the plan.
    ids : int
        One above the largest row id.
    epoch : int
    storage_options : mapping or None

    Raises
    ------
    SelectionError
        Where it holds more than one number a row, or none of any row.
    DatasetChangedError
        Where it numbers the rows in another way than the plan.
    SignalError, DatasetError
    """
    if is_signal_file(path):
        location = locate(path, storage_options)
        names = open_signal_file(location)[0].names
        with tempfile.TemporaryDirectory() as folder:
            store = import_signal_file(
                path, Path(folder) / "signal", snapshot, signal, storage_options=storage_options
            )
            before = epoch if "epoch" in names else None
            return _latest(store, str(path), signal, ids, before)
    store = SignalStore.open(path, storage_options=storage_options)
    newest_base([("the plan", snapshot), (f"the signals in {path}", store.snapshot)])
    return _latest(store, str(path), signal, ids, epoch)


def _latest(store: SignalStore, path: str, signal: str, ids: int, before: int | None) -> RowLosses:
    values = np.full(ids, np.nan, np.float32)
    for limit in dict.fromkeys((before, None)):
        held = 0
        for part in store.latest(signal, stop=len(values), before=limit):
            if part.values.ndim != 1:
                raise SelectionError(
                    f"The signal '{signal}' in {path} holds {part.values.shape[1]} numbers a row; "
                    "a report of losses needs one."
                )
            values[part.rows.view(np.int64)] = part.values
            held += len(part.rows)
        if held:
            return RowLosses(signal, limit, values)
    raise SelectionError(
        f"The signal '{signal}' in {path} holds no loss of any row of the plan's dataset."
    )


def loss_figures(losses: RowLosses, kept: Bools, there: Bools) -> dict[str, Any]:
    """Return how the losses of rows that are kept and of those that are dropped are spread.

    Parameters
    ----------
    losses : RowLosses
    kept : bool, shape (ids,)
        By row id: whether the epoch holds the row.
    there : bool, shape (ids,)
        Whether the dataset holds it.

    Raises
    ------
    SelectionError
        Where no such row has a finite loss.
    """
    scored = np.empty(sum(len(_scored(losses, there, h)) for h in pieces(len(there))), np.float32)
    filled = 0
    for here in pieces(len(there)):
        mine = _scored(losses, there, here)
        scored[filled : filled + len(mine)] = mine
        filled += len(mine)
    if not len(scored):
        raise SelectionError(
            f"The signal '{losses.signal}' holds no finite loss of a row of the dataset that was "
            "planned."
        )
    edges = _edges(scored)
    found: dict[str, Any] = {
        "signal": losses.signal,
        "before_epoch": losses.before,
        "scored": len(scored),
        "edges": edges.tolist(),
        "largest": float(scored.max()),
    }
    del scored
    for name, side in (("kept", kept), ("dropped", ~kept)):
        counts, total, scored_rows, rows = np.zeros(BINS, np.int64), 0.0, 0, 0
        mask = side & there
        for here in pieces(len(there)):
            mine = _scored(losses, mask, here)
            counts += np.histogram(np.minimum(mine, np.float32(edges[-1])), edges)[0]
            total += float(mine.sum(dtype=np.float64))
            scored_rows += len(mine)
            rows += int(mask[here].sum())
        found[name] = counts.tolist()
        found[f"{name}_rows"] = scored_rows
        found[f"{name}_mean"] = total / scored_rows if scored_rows else None
        found[f"unscored_{name}"] = rows - scored_rows
    return found


def _scored(losses: RowLosses, mask: Bools, here: slice) -> F32:
    """Return the finite losses of some rows."""
    values = losses.values[here]
    return values[mask[here] & np.isfinite(values)]


def _edges(scored: F32) -> npt.NDArray[np.float64]:
    """Return the bins' edges; reorders the losses."""
    rank = min(len(scored) - 1, int(_SHOWN * len(scored)))
    scored.partition(rank)
    low, top = float(scored.min()), float(scored[rank])
    return np.linspace(low, top if top > low else low + 1, BINS + 1)
