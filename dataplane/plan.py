"""What a decision is: `Selection` (rows and weights) and `BatchPlan` (micro-batches of rows).

Both are plain arrays. Row ids are uint64, weights float32; a missing weight array means all 1. The
**micro-batch** is the indivisible unit of a plan; a **step** is one optimiser step of one or more
micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import ParameterError, SelectionError

__all__ = [
    "BatchPlan",
    "MicroBatch",
    "Ragged",
    "Selection",
    "SideColumn",
    "SideKind",
    "SideValue",
    "Unit",
    "WeightSemantics",
    "fold_steps",
]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

Unit = Literal["sliceable", "micro"]
"""Whether ranks may slice a micro-batch, or must take it whole."""

WeightSemantics = Literal["importance", "cluster"]
"""``importance``: inverse inclusion probabilities; ``cluster``: rows that a row stands for."""

SideKind = Literal["batch", "row", "csr"]

_SIDE_TYPES = frozenset(
    [
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float32",
        "float64",
    ]
)


@dataclass(frozen=True)
class Ragged:
    """One list a row: row i holds ``values[offsets[i]:offsets[i + 1]]``."""

    offsets: I64
    values: npt.NDArray[Any]

    def slice(self, start: int, stop: int) -> Ragged:
        """Return the lists of rows `start` to `stop`, offsets from 0 again."""
        first, last = self.offsets[start], self.offsets[stop]
        return Ragged(self.offsets[start : stop + 1] - first, self.values[first:last])

    @classmethod
    def concat(cls, parts: Sequence[Ragged]) -> Ragged:
        lengths = np.concatenate([np.diff(p.offsets) for p in parts])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return cls(offsets, np.concatenate([p.values for p in parts]))


SideValue: TypeAlias = "npt.NDArray[Any] | Ragged"


@dataclass(frozen=True)
class SideColumn:
    """A declared column beside the rows.

    Attributes
    ----------
    name : str
    kind : {'batch', 'row', 'csr'}
        One value a micro-batch; one a row, sliced with it; one list a row (a plan with such a
        column is dealt in whole micro-batches).
    type : str
        numpy dtype name.
    """

    name: str
    kind: SideKind
    type: str

    def __post_init__(self) -> None:
        if self.kind not in ("batch", "row", "csr"):
            raise SelectionError(
                f"Side column '{self.name}': kind must be 'batch', 'row' or 'csr', "
                f"found '{self.kind}'."
            )
        if self.type not in _SIDE_TYPES:
            raise SelectionError(
                f"Side column '{self.name}': type must be one of {', '.join(sorted(_SIDE_TYPES))}, "
                f"found '{self.type}'."
            )
        if self.name in ("step", "micro", "rows", "weights"):
            raise SelectionError(f"A side column cannot be called '{self.name}'.")


@dataclass(frozen=True)
class Selection:
    """Rows that take part, with their weights.

    Attributes
    ----------
    rows : uint64, shape (n,)
        Ascending. Positions in the arrays that the algorithm was given, or row ids.
    weights : float32, shape (n,), or None
    report : mapping
        What the method tells of itself: counts, thresholds.
    """

    rows: U64
    weights: F32 | None = None
    report: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_weights(self.weights, len(self.rows))
        if len(self.rows) > 1 and not (self.rows[1:] > self.rows[:-1]).all():
            raise SelectionError("The rows of a selection must be ascending and distinct.")


class MicroBatch(NamedTuple):
    """One micro-batch: views into a plan."""

    step: int
    micro: int
    rows: U64
    weights: F32 | None
    side: dict[str, Any]


@dataclass(frozen=True)
class BatchPlan:
    """Micro-batches in order.

    Attributes
    ----------
    offsets : int64, shape (m + 1,)
        Micro-batch k holds ``rows[offsets[k]:offsets[k + 1]]``.
    rows : uint64, shape (n,)
    weights : float32, shape (n,), or None
    step : uint64, shape (m,)
    micro : uint16, shape (m,)
        Index of the micro-batch inside its step.
    side : mapping
        Side columns: arrays of shape (m,) or (n,), or `Ragged` of n rows.
    """

    offsets: I64
    rows: U64
    weights: F32 | None
    step: U64
    micro: npt.NDArray[np.uint16]
    side: Mapping[str, SideValue] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def of(
        cls,
        offsets: npt.ArrayLike,
        rows: npt.ArrayLike,
        weights: npt.ArrayLike | None = None,
        side: Mapping[str, SideValue] | None = None,
    ) -> BatchPlan:
        """Make a plan of one micro-batch a step, steps from 0."""
        offsets = np.asarray(offsets, np.int64)
        step, micro = fold_steps(len(offsets) - 1, 1)
        return cls(
            offsets,
            np.asarray(rows, np.uint64),
            None if weights is None else np.asarray(weights, np.float32),
            step,
            micro,
            side or {},
        )

    @classmethod
    def cut(cls, rows: U64, size: int, weights: F32 | None = None) -> BatchPlan:
        """Cut an order into micro-batches of `size` rows; the last one may be smaller."""
        if size < 1:
            raise ParameterError(f"A micro-batch must hold at least 1 row. Got {size} instead.")
        offsets = np.append(np.arange(0, len(rows), size), len(rows))
        return cls.of(offsets, rows, weights)

    def slice(self, start: int, stop: int) -> BatchPlan:
        """Return micro-batches `start` to `stop` as views."""
        a, b = int(self.offsets[start]), int(self.offsets[stop])
        side: dict[str, SideValue] = {}
        for name, value in self.side.items():
            if isinstance(value, Ragged):
                side[name] = value.slice(a, b)
            elif len(value) == len(self):
                side[name] = value[start:stop]
            else:
                side[name] = value[a:b]
        return BatchPlan(
            self.offsets[start : stop + 1] - a,
            self.rows[a:b],
            None if self.weights is None else self.weights[a:b],
            self.step[start:stop],
            self.micro[start:stop],
            side,
        )

    def folded(self, micro_per_step: int, first: int = 0) -> BatchPlan:
        """Number steps anew, `micro_per_step` micro-batches each, from micro-batch `first`."""
        step, micro = fold_steps(len(self), micro_per_step, first)
        return replace(self, step=step, micro=micro)

    @classmethod
    def concat(cls, plans: Sequence[BatchPlan]) -> BatchPlan:
        """Join plans end to end; steps are kept as they are.

        Where some plans have weights, the others' are 1.
        """
        if len(plans) == 1:
            return plans[0]
        if not plans or any(set(p.side) != set(plans[0].side) for p in plans):
            raise SelectionError("Plans can be joined where they have the same side columns.")
        sizes = np.concatenate([np.diff(p.offsets) for p in plans])
        side: dict[str, SideValue] = {}
        for name in plans[0].side:
            values = [p.side[name] for p in plans]
            ragged = [v for v in values if isinstance(v, Ragged)]
            side[name] = Ragged.concat(ragged) if ragged else np.concatenate(values)  # type: ignore[arg-type]
        weights = None
        if any(p.weights is not None for p in plans):
            weights = np.concatenate([_weights_of(p) for p in plans])
        return cls(
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            np.concatenate([p.rows for p in plans]),
            weights,
            np.concatenate([p.step for p in plans]),
            np.concatenate([p.micro for p in plans]),
            side,
        )

    def copied(self) -> BatchPlan:
        """Return the same plan on arrays of its own."""
        side: dict[str, SideValue] = {
            name: Ragged(v.offsets.copy(), v.values.copy()) if isinstance(v, Ragged) else v.copy()
            for name, v in self.side.items()
        }
        weights = None if self.weights is None else self.weights.copy()
        return BatchPlan(
            self.offsets.copy(),
            self.rows.copy(),
            weights,
            self.step.copy(),
            self.micro.copy(),
            side,
        )

    def check(self, columns: Iterable[SideColumn] = ()) -> None:
        """Raise `SelectionError` unless the arrays make a plan."""
        _check_type("offsets", self.offsets, np.int64)
        _check_type("rows", self.rows, np.uint64)
        _check_type("step", self.step, np.uint64)
        _check_type("micro", self.micro, np.uint16)
        if self.weights is not None:
            _check_type("weights", self.weights, np.float32)
        sizes = np.diff(self.offsets)
        if len(self.offsets) == 0 or self.offsets[0] != 0 or self.offsets[-1] != len(self.rows):
            raise SelectionError("A plan's offsets must run from 0 to the number of rows.")
        if len(sizes) and sizes.min() < 1:
            raise SelectionError(f"Micro-batch {int(np.argmin(sizes))} of the plan holds no rows.")
        if len(self.step) != len(self) or len(self.micro) != len(self):
            raise SelectionError("A plan needs one step and one micro number a micro-batch.")
        _check_weights(self.weights, len(self.rows))
        declared = {c.name: c for c in columns}
        if set(declared) != set(self.side):
            raise SelectionError(
                f"The plan's side columns are {sorted(self.side)}, declared are {sorted(declared)}."
            )
        for name, value in self.side.items():
            _check_side(declared[name], value, len(self), len(self.rows))


def fold_steps(
    micro_batches: int, micro_per_step: int, first: int = 0
) -> tuple[U64, npt.NDArray[np.uint16]]:
    """Number micro-batches `first`, `first` + 1, … as (step, micro)."""
    if not 1 <= micro_per_step <= 1 << 16:
        raise ParameterError(
            f"A step must hold between 1 and 65,536 micro-batches. Got {micro_per_step} instead."
        )
    index = np.arange(first, first + micro_batches, dtype=np.uint64)
    size = np.uint64(micro_per_step)
    return index // size, (index % size).astype(np.uint16)


def _weights_of(plan: BatchPlan) -> F32:
    return np.ones(len(plan.rows), np.float32) if plan.weights is None else plan.weights


def _check_type(name: str, values: npt.NDArray[Any], type_: Any) -> None:
    if values.ndim != 1 or values.dtype != type_:
        raise SelectionError(
            f"A plan's {name} must be a one-dimensional array of {np.dtype(type_)}, found "
            f"{values.ndim} dimensions of {values.dtype}."
        )


def _check_weights(weights: F32 | None, rows: int) -> None:
    if weights is None:
        return
    if len(weights) != rows:
        raise SelectionError(f"There are {len(weights)} weights for {rows} rows.")
    fine = np.isfinite(weights) & (weights >= 0)
    if not fine.all():
        at = int(np.argmin(fine))
        raise SelectionError(
            f"Weights must be finite and not negative; the one at position {at} is {weights[at]}."
        )


def _check_side(column: SideColumn, value: SideValue, batches: int, rows: int) -> None:
    if isinstance(value, Ragged) != (column.kind == "csr"):
        raise SelectionError(f"Side column '{column.name}' is declared as '{column.kind}'.")
    if isinstance(value, Ragged):
        length, expected, dtype = len(value.offsets) - 1, rows, value.values.dtype
        _check_type(f"offsets of '{column.name}'", value.offsets, np.int64)
        whole = length >= 0 and value.offsets[0] == 0 and value.offsets[-1] == len(value.values)
        if not whole or (np.diff(value.offsets) < 0).any():
            raise SelectionError(
                f"Side column '{column.name}': offsets must ascend from 0 to the number of values."
            )
    else:
        expected = batches if column.kind == "batch" else rows
        length, dtype = len(value), value.dtype
    if length != expected or dtype != np.dtype(column.type):
        raise SelectionError(
            f"Side column '{column.name}' ({column.kind}): expected {expected} values of "
            f"{column.type}, found {length} of {dtype}."
        )
