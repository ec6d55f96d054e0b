"""What a batch carries: its columns, and where its rows stand in the plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..gpu_access.cpu import Column
from ..gpu_access.transfer import Transfer, to_device

__all__ = ["Batch"]


@dataclass(frozen=True, eq=False)
class Batch(Mapping[str, Column]):
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

    columns: Mapping[str, Column]
    rows: torch.Tensor
    weights: torch.Tensor
    seeds: torch.Tensor
    epoch: int
    step: int
    micro: int
    step_rows: int
    step_weight: float
    pad: torch.Tensor | None = None
    side: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

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

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    def with_columns(self, **columns: Column) -> Batch:
        """Return the batch with columns added or replaced; for a loader's `transform`."""
        return replace(self, columns={**self.columns, **columns})

    def to(self, device: str | torch.device, transfer: Transfer = "auto") -> Batch:
        """Return the batch with all its tensors on a device; Arrow arrays stay on the host."""

        def moved(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return to_device(value, device, transfer)
            return value

        return replace(
            self,
            columns={name: moved(value) for name, value in self.columns.items()},
            rows=moved(self.rows),
            weights=moved(self.weights),
            seeds=moved(self.seeds),
            pad=moved(self.pad),
            side={name: moved(value) for name, value in self.side.items()},
        )
