"""What a batch carries: its columns, and where its rows stand in the plan.

A batch that a loader hands out is a view of its window (`window`): making it costs well under a
microsecond, and what is not asked for is never made. Whoever keeps a batch keeps its window's
memory; `Batch.copy` has memory of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import pyarrow as pa
import torch

from ..gpu_access.cpu import Column
from ..gpu_access.transfer import Transfer, to_device
from .pieces import Pieces

__all__ = ["Batch", "BatchColumn", "batch_of"]

BatchColumn: TypeAlias = "Column | Any"
"""A column of a batch: as gathered, or what `collate` made of it."""

_PLACE = ("epoch", "step", "micro", "step_rows", "step_weight")
_FACTS = ("rows", "weights", "seeds", "pad", "side")


class Source(Protocol):
    """What a batch asks of its `window.Window`, which itself makes batches."""

    pieces: Pieces

    @property
    def names(self) -> list[str]:
        """Of the columns."""

    def column(self, name: str) -> Sequence[BatchColumn]:
        """A column's value in each batch."""

    def fact(self, name: str) -> Sequence[Any]:
        """Rows, weights, seeds, pad or side of each batch."""


class Batch(Mapping[str, BatchColumn]):
    """One rank's share of one micro-batch: a mapping from column names to their values.

    ``batch["x"]`` is a tensor of shape (n, …), or an Arrow array where a row has no fixed width.
    ``len(batch)`` is the number of columns, as of any mapping; ``batch.num_rows`` is n.

    Attributes
    ----------
    columns : mapping of str → tensor or pyarrow.Array
    rows : int64 tensor, shape (n,)
        Row ids.
    weights : float32 tensor, shape (n,)
        1 where the plan has none, 0 at padded rows.
    seeds : int64 tensor, shape (n,)
        Not negative. What augmentation keys its randomness by: a function of the plan's seed, the
        epoch and the row, the same on any number of ranks.
    epoch, step, micro : int
        Where in the plan.
    step_rows : int
        Rows of the whole step, over all its micro-batches and ranks, pads left out.
    step_weight : float
        Sum of their weights.
    pad : bool tensor, shape (n,), or None
        True at padded rows; None where there are none.
    side : mapping
        Side columns of the plan: a Python number (kind ``batch``), a tensor of n values (``row``),
        or a `dataplane.plan.Ragged` of n lists (``csr``; numpy, on the host).
    """

    __slots__ = ("__weakref__", "_columns", "_index", "_own", "_window")

    _window: Source | None  # where what is not in `_own` comes from
    _index: int
    _columns: Mapping[str, BatchColumn] | None
    _own: dict[str, Any]

    def __init__(
        self,
        columns: Mapping[str, BatchColumn],
        rows: torch.Tensor,
        weights: torch.Tensor,
        seeds: torch.Tensor,
        epoch: int,
        step: int,
        micro: int,
        step_rows: int,
        step_weight: float,
        pad: torch.Tensor | None = None,
        side: Mapping[str, Any] | None = None,
    ) -> None:
        self._window, self._index, self._columns = None, 0, columns
        self._own = {
            "rows": rows,
            "weights": weights,
            "seeds": seeds,
            "epoch": epoch,
            "step": step,
            "micro": micro,
            "step_rows": step_rows,
            "step_weight": step_weight,
            "pad": pad,
            "side": {} if side is None else side,
        }

    @classmethod
    def of_window(cls, window: Source, index: int) -> Batch:
        """Return a window's batch, as views."""
        batch = cls.__new__(cls)
        batch._window, batch._index, batch._columns, batch._own = window, index, None, _NOTHING
        return batch

    # --- the mapping ------------------------------------------------------------------------------

    @property
    def columns(self) -> Mapping[str, BatchColumn]:
        if self._columns is None:
            assert self._window is not None  # for the type checker: one of the two is there
            window, index = self._window, self._index
            self._columns = {name: window.column(name)[index] for name in window.names}
        return self._columns

    def __getitem__(self, name: str) -> BatchColumn:
        if self._columns is None:
            return self._window.column(name)[self._index]  # type: ignore[union-attr]
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    # A mapping's equality would compare tensors element by element.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        place = f"epoch {self.epoch}, step {self.step}, micro {self.micro}"
        return f"<Batch {place}: {self.num_rows} rows of {', '.join(self.columns) or 'no columns'}>"

    # --- facts ------------------------------------------------------------------------------------

    def _fact(self, name: str) -> Any:
        if name in self._own:
            return self._own[name]
        return self._window.fact(name)[self._index]  # type: ignore[union-attr]

    def _place(self, name: str) -> Any:
        if name in self._own:
            return self._own[name]
        return getattr(self._window.pieces, name).item(self._index)  # type: ignore[union-attr]

    @property
    def rows(self) -> torch.Tensor:
        return self._fact("rows")  # type: ignore[no-any-return]

    @property
    def weights(self) -> torch.Tensor:
        return self._fact("weights")  # type: ignore[no-any-return]

    @property
    def seeds(self) -> torch.Tensor:
        return self._fact("seeds")  # type: ignore[no-any-return]

    @property
    def pad(self) -> torch.Tensor | None:
        return self._fact("pad")  # type: ignore[no-any-return]

    @property
    def side(self) -> Mapping[str, Any]:
        return self._fact("side")  # type: ignore[no-any-return]

    @property
    def epoch(self) -> int:
        if "epoch" in self._own:
            return self._own["epoch"]  # type: ignore[no-any-return]
        return self._window.pieces.record.epoch  # type: ignore[union-attr]

    @property
    def step(self) -> int:
        return self._place("step")  # type: ignore[no-any-return]

    @property
    def micro(self) -> int:
        return self._place("micro")  # type: ignore[no-any-return]

    @property
    def step_rows(self) -> int:
        return self._place("step_rows")  # type: ignore[no-any-return]

    @property
    def step_weight(self) -> float:
        return self._place("step_weight")  # type: ignore[no-any-return]

    @property
    def num_rows(self) -> int:
        if "rows" in self._own:
            return len(self._own["rows"])
        return self._window.pieces.sizes[self._index]  # type: ignore[union-attr]

    # --- other batches made of it -----------------------------------------------------------------

    def replace(self, **changes: Any) -> Batch:
        """Return the batch with some of its attributes replaced, as `dataclasses.replace` does."""
        unknown = set(changes) - {"columns", *_PLACE, *_FACTS}
        if unknown:
            raise TypeError(f"A batch has no attribute {sorted(unknown)[0]!r}.")
        made = Batch.__new__(Batch)
        made._window, made._index = self._window, self._index
        made._columns = changes.pop("columns") if "columns" in changes else self._columns
        made._own = {**self._own, **changes}
        return made

    def with_columns(self, **columns: BatchColumn) -> Batch:
        """Return the batch with columns added or replaced; for a loader's `transform`."""
        return self.replace(columns={**self.columns, **columns})

    def to(self, device: str | torch.device, transfer: Transfer = "auto") -> Batch:
        """Return the batch with all its tensors on a device; Arrow arrays stay on the host."""

        def moved(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return to_device(value, device, transfer)
            if isinstance(value, Mapping):
                return {name: moved(v) for name, v in value.items()}
            return value.to(device) if hasattr(value, "to") else value  # what `collate` made

        return self.replace(
            columns=moved(self.columns), **{name: moved(self._fact(name)) for name in _FACTS}
        )

    def copy(self) -> Batch:
        """Return the batch on memory of its own, for whoever keeps it."""
        values = self.values_by_name()

        def copied(value: Any) -> Any:
            if hasattr(value, "clone"):
                return value.clone()
            if isinstance(value, pa.Array):
                return pa.concat_arrays([value])
            if isinstance(value, Mapping):
                return {name: copied(v) for name, v in value.items()}
            return value

        return Batch(**{name: copied(value) for name, value in values.items()})

    def values_by_name(self) -> dict[str, Any]:
        """Return all that the constructor takes; what was not asked for yet is made."""
        facts = {name: self._fact(name) for name in _FACTS}
        place = {name: getattr(self, name) for name in _PLACE}
        return {"columns": dict(self.columns), **place, **facts}

    def __reduce__(self) -> tuple[Any, ...]:
        return batch_of, (self.copy().values_by_name(),)


_NOTHING: dict[str, Any] = {}


def batch_of(values: Mapping[str, Any]) -> Batch:
    """Return the batch of `Batch.values_by_name`."""
    return Batch(**values)
