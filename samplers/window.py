"""A window: the rows of several batches, gathered at once, and each batch a view of it.

One gather for many batches lets a source sort and merge its reads, and costs the price of a call
once. What few loops ask for (seeds, weights, side columns) is made when the first batch of the
window is asked for it, for all its batches together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch

from ..dataplane.plan import Ragged, SideColumn
from ..dataplane.snapshot import row_ids_to_int64
from ..gpu_access.arriving import Arriving, under_way
from ..gpu_access.cpu import Column, host_tensor
from ..gpu_access.transfer import Transfer, to_device
from .batch import Batch
from .buffers import Tensors
from .pieces import Pieces
from .seeds import occurrence_seeds, row_seeds

__all__ = ["Window", "shared_out"]

_NO_SIDE: Mapping[str, Any] = {}


class Window:
    """Some batches of one rank, with their rows.

    Parameters
    ----------
    pieces : Pieces
        Whose rows they are.
    columns : mapping of str → Column
        Rows of all the batches, one after the other.
    arriving : Arriving, optional
        What the columns are a part of, where that is on its way to a device.

    Attributes
    ----------
    bytes : int
        Of the columns of all the batches, as gathered.
    buffers : mapping of str → tensor
        Memory under the columns, where it is to be used again.

    Notes
    -----
    Memory is the window's own, never the plan's or a file's; batches may write to their views.
    """

    def __init__(
        self, pieces: Pieces, columns: Mapping[str, Column], arriving: Arriving | None = None
    ) -> None:
        self.pieces = pieces
        self._columns: dict[str, Any] = dict(columns)
        self._views: dict[str, Sequence[Any]] = {}  # of columns
        self._facts: dict[str, Sequence[Any]] = {}
        self.bytes = sum(column.nbytes for column in columns.values())
        self.buffers: Tensors = {}
        found = columns if isinstance(columns, Arriving) else arriving
        self._arriving = [] if found is None else [found]
        self._device: torch.device | None = None
        self._transfer: Transfer = "auto"
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def names(self) -> list[str]:
        return list(self._columns)

    @property
    def whole(self) -> Mapping[str, Any]:
        """The columns of all the batches together."""
        return self._columns

    def batches(self) -> list[Batch]:
        return [Batch.of_window(self, index) for index in range(len(self.pieces))]

    def to(self, device: torch.device, transfer: Transfer) -> Window:
        """Move the columns to a device, and all that is made later."""
        self._device, self._transfer = device, transfer
        there = []
        for name, column in self._columns.items():
            if isinstance(column, torch.Tensor) and column.device != device:
                self._columns[name] = to_device(column, device, transfer)
                there.append(self._columns[name])
        for name, views in self._views.items():  # what `collate` made
            self._views[name] = [v.to(device) for v in views]
            there += self._views[name]
        self.expect(under_way(there, device))
        return self

    def arrive(self) -> None:
        """Let the caller's stream wait for what is on its way to a device."""
        while self._arriving:
            self._arriving.pop().wait()

    def expect(self, arriving: Arriving | None) -> None:
        """Note that more of what the caller gets is on its way to a device."""
        if arriving is not None:
            self._arriving.append(arriving)

    def put(self, name: str, views: Sequence[Any]) -> None:
        """Replace or add a column, by its value in each batch."""
        self._columns.setdefault(name, None)
        self._views[name] = views

    def column(self, name: str) -> Sequence[Any]:
        """Return a column's value in each batch."""
        views = self._views.get(name)
        if views is None:
            whole = self._columns[name]
            views = self._made(self._views, name, lambda: self._split(whole))
        return views

    def fact(self, name: str) -> Sequence[Any]:
        """Return rows, weights, seeds, pad or side of each batch."""
        facts = self._facts.get(name)
        if facts is None:
            facts = self._made(self._facts, name, lambda: _FACTS[name](self))
        return facts

    def _made(
        self, kept: dict[str, Sequence[Any]], name: str, make: Callable[[], Sequence[Any]]
    ) -> Sequence[Any]:
        with self._lock:  # else another thread's batch could write to a copy that is not kept
            if name not in kept:
                kept[name] = make()
            return kept[name]

    def _split(self, column: Column) -> Sequence[Any]:
        sizes = self.pieces.sizes
        if isinstance(column, torch.Tensor):
            return column.split(sizes)  # type: ignore[no-any-return]
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        return [column.slice(a, n) for a, n in zip(starts, sizes, strict=True)]

    def _split_fact(self, values: torch.Tensor) -> Sequence[Any]:
        if self._device is not None:
            values = to_device(values, self._device, self._transfer)
        return values.split(self.pieces.sizes)  # type: ignore[no-any-return]

    # --- what is made on demand -------------------------------------------------------------------

    def _rows(self) -> Sequence[torch.Tensor]:
        return self._split_fact(torch.from_numpy(row_ids_to_int64(self.pieces.ids).copy()))

    def _weights(self) -> Sequence[torch.Tensor]:
        pieces, planned = self.pieces, self.pieces.plan.weights
        if planned is None:
            weights = np.ones(len(pieces.ids), np.float32)
        else:
            weights = planned[pieces.taken].copy()
        if pieces.pad.any():
            weights[np.repeat(pieces.pad, pieces.sizes)] = 0
        return self._split_fact(torch.from_numpy(weights))

    def _seeds(self) -> Sequence[torch.Tensor]:
        pieces = self.pieces
        seed, epoch = pieces.manifest.seed, pieces.record.epoch
        if pieces.record.coverage != "with_replacement":
            return self._split_fact(torch.from_numpy(row_seeds(seed, epoch, pieces.ids)))
        made = [
            occurrence_seeds(
                seed,
                epoch,
                pieces.plan.rows[pieces.start[k] : pieces.stop[k]],
                step=pieces.step.item(k),
                micro=pieces.micro.item(k),
                first_position=pieces.position.item(k),
            )
            for k in range(len(pieces))
        ]
        return self._split_fact(torch.from_numpy(np.concatenate(made)))

    def _pads(self) -> Sequence[torch.Tensor | None]:
        flags = zip(self.pieces.sizes, self.pieces.pad.tolist(), strict=True)
        return [
            torch.ones(n, dtype=torch.bool, device=self._device) if p else None for n, p in flags
        ]

    def _sides(self) -> Sequence[Mapping[str, Any]]:
        declared = self.pieces.manifest.side_columns
        if not declared:
            return [_NO_SIDE] * len(self.pieces)
        names = [c.name for c in declared]
        parts = [self._side(c) for c in declared]
        return [dict(zip(names, values, strict=True)) for values in zip(*parts, strict=True)]

    def _side(self, column: SideColumn) -> Sequence[Any]:
        """Return one side column of each batch, as memory of our own."""
        pieces = self.pieces
        value = pieces.plan.side[column.name]
        if isinstance(value, Ragged):
            cuts = zip(pieces.start.tolist(), pieces.stop.tolist(), strict=True)
            return [_copied(value.slice(a, b)) for a, b in cuts]
        if column.kind == "batch":
            return value[pieces.micro_batch].tolist()  # type: ignore[no-any-return]
        return self._split_fact(host_tensor(value[pieces.taken], pieces.ids, column.name))


def shared_out(group: Sequence[Pieces], columns: Mapping[str, Column]) -> list[Window]:
    """Return a window of each of some pieces, whose rows were gathered together."""
    if len(group) == 1:
        return [Window(group[0], columns)]
    windows, start = [], 0
    arriving = columns if isinstance(columns, Arriving) else None
    for pieces in group:
        rows = len(pieces.ids)
        mine = {name: _rows(column, start, rows) for name, column in columns.items()}
        windows.append(Window(pieces, mine, arriving))
        start += rows
    return windows


def _rows(column: Column, start: int, rows: int) -> Column:
    if isinstance(column, torch.Tensor):
        return column[start : start + rows]
    return column.slice(start, rows)


_FACTS: dict[str, Callable[[Window], Sequence[Any]]] = {
    "rows": Window._rows,
    "weights": Window._weights,
    "seeds": Window._seeds,
    "pad": Window._pads,
    "side": Window._sides,
}


def _copied(ragged: Ragged) -> Ragged:
    return Ragged(ragged.offsets.copy(), ragged.values.copy())
