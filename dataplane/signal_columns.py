"""Columns that observations are appended to, and the arrays in which they are sorted by row.

The columns are filled by the training, one after another. Rows and values are copied as they come.
Epochs and steps, which are the same for all of a call, are kept as runs. When a part is made of
them, what is sorted is one number an observation, which holds its row and its position; the other
columns follow by position. All of it lies in arrays that are kept for the next part.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import RowIdError
from .observations import Observations, position_bits, stable_order
from .snapshot import as_row_ids

__all__ = ["Appended", "Copy", "Workspace", "rows_given", "values_given"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of an array or tensor, on its way to the host.

    Attributes
    ----------
    shape : tuple of int
    fetch : callable
        Returns it as an array; waits for the device that it is on.
    """

    shape: tuple[int, ...]
    fetch: Callable[[], npt.NDArray[Any]]

    @classmethod
    def of(cls, values: Any) -> Copy:
        """Copy an array or tensor, as it is now; torch is not imported for it."""
        if hasattr(values, "detach"):
            return cls._of_tensor(values.detach())
        array = np.array(values)
        return cls(array.shape, lambda: array)

    @classmethod
    def _of_tensor(cls, values: Any) -> Copy:
        shape = tuple(values.shape)
        if values.device.type == "cpu":
            array = np.array(values.numpy())
            return cls(shape, lambda: array)
        # Copied on the device, in order with what runs there; the thread waits, not the step.
        clone, event = values.clone(), None
        if values.is_cuda:
            event = sys.modules["torch"].cuda.Event()
            event.record()

        def fetch() -> npt.NDArray[Any]:
            if event is not None:
                event.synchronize()
            found: npt.NDArray[Any] = clone.cpu().numpy()
            return found

        return cls(shape, fetch)


Given = npt.NDArray[Any] | Copy


def rows_given(values: Any) -> Given:
    """Return integers of the host over the same memory, and a copy of all else."""
    array = _on_host(values)
    return array if array is not None and array.dtype.kind in "iu" else Copy.of(values)


def values_given(values: Any) -> Given:
    """Return numbers of the host, over the same memory where they can be, else a copy."""
    if type(values) is np.ndarray and values.dtype.kind in "fiu":
        return values
    if not hasattr(values, "detach"):
        return np.asarray(values, dtype=np.float32)
    values = values.detach().float()
    array = _on_host(values)
    return Copy.of(values) if array is None else array


def _on_host(values: Any) -> npt.NDArray[Any] | None:
    """Return an array or a tensor of the host as an array over the same memory; None of others."""
    if type(values) is np.ndarray:
        return values
    if hasattr(values, "detach"):
        return values.detach().numpy() if values.device.type == "cpu" else None
    return np.asarray(values)


class Workspace:
    """Arrays that are kept and used again: fresh memory costs more than what is written to it."""

    def __init__(self) -> None:
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._constants: dict[str, tuple[npt.NDArray[Any], int]] = {}
        self._positions = np.empty(0, np.uint64)

    def array(self, name: str, n: int, dtype: Any, width: int = 0) -> npt.NDArray[Any]:
        """Return an array of a name, shape (n,) or (n, width); holds anything."""
        found = self._arrays.get(name)
        if (
            found is None
            or len(found) < n
            or found.dtype != dtype
            or found.shape[1:] != ((width,) if width else ())
        ):
            found = self._arrays[name] = np.empty((n, width) if width else n, dtype)
        return found[:n]

    def constant(self, name: str, n: int, dtype: Any, value: int) -> npt.NDArray[Any]:
        """Return an array of a name that holds one value, shape (n,); not to be written to."""
        found, held = self._constants.get(name, (None, 0))
        if found is None or len(found) < n or held != value:
            found = np.full(max(n, 0 if found is None else len(found)), value, dtype)
            found.flags.writeable = False
            self._constants[name] = found, value
        return found[:n]

    def positions(self, n: int) -> npt.NDArray[np.uint64]:
        """Return 0…n-1; not to be written to."""
        if len(self._positions) < n:
            self._positions = np.arange(n, dtype=np.uint64)
        return self._positions[:n]

    def trim(self, most: int) -> None:
        """Give back arrays that are longer."""
        self._arrays = {k: a for k, a in self._arrays.items() if len(a) <= most}
        self._constants = {k: c for k, c in self._constants.items() if len(c[0]) <= most}
        if len(self._positions) > most:
            self._positions = np.empty(0, np.uint64)


class Appended:
    """What was appended to a signal: columns with room for more, and the steps as runs.

    Attributes
    ----------
    width : int
        Numbers in a value; 0 of plain numbers.
    room : int
        Observations that there is room for, before more is made.
    given : int
        Observations that were appended, those that were refused too.
    refused : int
        Those whose values have another width.
    counted : bool
        Whether occurrences are to be counted: none was given.
    """

    def __init__(self, width: int, room: int = 0) -> None:
        self.width = width
        self._rows = np.empty(room, np.uint64)
        self._value = self._room_for_values(room)
        self.clear()

    @property
    def room(self) -> int:
        return len(self._rows)

    def clear(self, most: int = 1 << 62) -> None:
        """Forget all of them; the columns are kept where they are not longer than `most`."""
        if len(self._rows) > most:
            self._rows, self._value = np.empty(0, np.uint64), self._room_for_values(0)
        self.given = self.refused = self._n = 0
        self.counted, self._signed = True, False
        self._epochs: list[int] = []
        self._steps: list[int] = []
        self._ends: list[int] = []
        self._later: list[tuple[str, slice, Callable[[], npt.NDArray[Any]]]] = []

    def _room_for_values(self, n: int) -> F32:
        return np.empty((n, self.width) if self.width else n, np.float32)

    def __len__(self) -> int:
        return self._n

    def add(self, n: int, epoch: int, step: int, rows: Given, value: Given) -> slice:
        """Append n observations, at least one, of a step; return where they are.

        Integers are copied as row ids, and any numbers as values; what has a ``fetch`` is fetched
        when the observations are read.
        """
        start, stop = self._n, self._n + n
        if stop > len(self._rows):
            self._grow(max(stop, 2 * start, 1 << 12))
        here = slice(start, stop)
        if isinstance(rows, np.ndarray):
            self._rows[here] = rows
            self._signed |= rows.dtype.kind == "i"
        else:
            self._later.append(("rows", here, rows.fetch))
        if isinstance(value, np.ndarray):
            self._value[here] = value
        else:
            self._later.append(("value", here, value.fetch))
        self._n = stop
        self.given += n
        if start and self._epochs[-1] == epoch and self._steps[-1] == step:
            self._ends[-1] = stop
        else:
            self._epochs.append(epoch)
            self._steps.append(step)
            self._ends.append(stop)
        return here

    def add_later(self, column: str, here: slice, fetch: Callable[[], npt.NDArray[Any]]) -> None:
        """Say that a part has a ``pad`` or an ``occurrence``, fetched when it is read."""
        self._later.append((column, here, fetch))
        self.counted &= column != "occurrence"

    def refuse(self, n: int) -> None:
        """Count observations that are left out, as their values have another width."""
        self.given += n
        self.refused += n

    def _grow(self, room: int) -> None:
        rows, value = self._rows, self._value
        self._rows, self._value = np.empty(room, np.uint64), self._room_for_values(room)
        self._rows[: self._n], self._value[: self._n] = rows[: self._n], value[: self._n]

    def by_row(self, attempt: int, space: Workspace) -> tuple[Observations, Observations]:
        """Return (all of them, ascending by row; those of the last step, as they came).

        Those of one row are as they came. The first lie in the columns and in the workspace: they
        hold until either is used again, and the columns can only be cleared.

        Raises
        ------
        RowIdError
            Where one is negative or none.
        """
        occurrence = self._settle()
        n, rows = self._n, self._rows[: self._n]
        if not n:
            return Observations.zeros(0, self.width), Observations.zeros(0, self.width)
        top = int(rows.max())
        if self._signed and top >> 63:
            self._refuse_negative()
        last = self._last_step()
        order, ascending = _order_and_rows(rows, top, space)

        def ordered(name: str, column: npt.NDArray[Any]) -> npt.NDArray[Any]:
            if order is None:
                return column
            out = space.array(name, n, column.dtype, self.width if column.ndim > 1 else 0)
            # "clip" is what copies without a buffer in between; none is out of range.
            return np.take(column, order, axis=0, out=out, mode="clip")

        def of_runs(name: str, values: list[int], dtype: Any) -> npt.NDArray[Any]:
            of_run = np.array(values, dtype)
            if (of_run == of_run[0]).all():
                return space.constant(name, n, dtype, values[0])
            spread = space.array(f"{name} as it came", n, dtype)
            spread.fill(0)
            spread[0], spread[self._ends[:-1]] = of_run[0], of_run[1:] - of_run[:-1]
            return ordered(name, np.add.accumulate(spread, out=spread))

        return Observations(
            ascending,
            of_runs("epoch", self._epochs, np.uint32),
            of_runs("step", self._steps, np.uint64),
            space.constant("occurrence", n, np.uint16, 0)
            if occurrence is None
            else ordered("occurrences", occurrence),
            space.constant("attempt", n, np.uint16, attempt),
            ordered("value", self._value[:n]),
        ), last

    def _settle(self) -> npt.NDArray[np.uint16] | None:
        """Fetch what is to be, and leave padding out; return the occurrences that were given."""
        later, self._later = self._later, []
        kept = occurrence = None
        for column, here, fetch in later:
            found = fetch()
            if column == "rows":
                self._rows[here] = as_row_ids(found)
            elif column == "value":
                self._value[here] = found
            elif column == "pad":
                kept = np.ones(self._n, bool) if kept is None else kept
                kept[here] = ~found.astype(bool)
            else:
                occurrence = np.zeros(self._n, np.uint16) if occurrence is None else occurrence
                occurrence[here] = found
        if kept is None or kept.all():
            return occurrence
        before = np.concatenate([[0], np.cumsum(kept)])
        n, self._n = self._n, int(before[-1])
        self._rows[: self._n] = self._rows[:n][kept]
        self._value[: self._n] = self._value[:n][kept]
        ends = before[self._ends].tolist()
        some = [i for i, end in enumerate(ends) if end > (ends[i - 1] if i else 0)]
        self._epochs, self._steps, self._ends = (
            [of[i] for i in some] for of in (self._epochs, self._steps, ends)
        )
        return None if occurrence is None else occurrence[kept]

    def _refuse_negative(self) -> None:
        """Raise the error of the first step that has a negative row."""
        first = int(np.argmax(self._rows[: self._n] >> np.uint64(63)))
        run = int(np.searchsorted(self._ends, first, side="right"))
        start = self._ends[run - 1] if run else 0
        lowest = int(self._rows[start : self._ends[run]].view(np.int64).min())
        raise RowIdError(f"Row {lowest} cannot be: row ids are not negative.")

    def _last_step(self) -> Observations:
        key = self._epochs[-1], self._steps[-1]
        starts = [0, *self._ends[:-1]]
        keys = zip(self._epochs, self._steps, strict=True)
        rows = np.concatenate(
            [self._rows[starts[i] : self._ends[i]] for i, k in enumerate(keys) if k == key]
        )
        found = Observations.zeros(len(rows), self.width)
        found.rows[:], found.epoch[:], found.step[:] = rows, *key
        return found


def _order_and_rows(
    rows: npt.NDArray[np.uint64], top: int, space: Workspace
) -> tuple[I64 | None, npt.NDArray[np.uint64]]:
    """Return (the stable order, None where rows are in it; the rows in it).

    Rows are sorted in place where they and their positions fit into one number.
    """
    n, bits = len(rows), position_bits(len(rows))
    if _is_ascending(rows[:1024]) and _is_ascending(rows):
        return None, rows
    if top >> (64 - bits):
        order = stable_order(rows)
        return order, rows[order]
    packed = np.left_shift(rows, np.uint64(bits), out=space.array("packed", n, np.uint64))
    np.bitwise_or(packed, space.positions(n), out=packed)
    packed.sort()
    np.right_shift(packed, np.uint64(bits), out=rows)
    packed &= np.uint64((1 << bits) - 1)
    return packed.view(np.int64), rows


def _is_ascending(rows: npt.NDArray[np.uint64]) -> bool:
    return bool((rows[1:] >= rows[:-1]).all())
