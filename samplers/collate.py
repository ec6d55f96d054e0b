"""Ragged columns as tensors: padded, or jagged with the offsets that attention kernels take.

Lists of numbers, binary and text arrive as Arrow arrays. ``collate`` turns them into tensors, a
window at a time and from Arrow's own offsets and values; no Python object is made for a row.

``'jagged'``
    A `Jagged`: all values of the batch end to end, with ``cu_seqlens`` and ``max_seqlen`` as
    variable-length attention takes them. Its values are the gathered memory, not a copy.
``'padded'`` or `Padded`
    A tensor of shape (n, length, …), and beside it ``<name>_lengths``, int64, shape (n,).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ..dataplane.columns import as_numpy, numpy_type
from ..dataplane.errors import (
    ColumnTypeError,
    InvalidValueError,
    MissingColumnError,
    ParameterError,
)
from ..gpu_access.cpu import host_tensor
from .window import Window

__all__ = ["Collate", "Jagged", "Padded", "collated", "resolve_collate"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Padded:
    """How to pad a ragged column.

    Attributes
    ----------
    to : int, str or None
        Values a row; or the plan's side column of kind ``batch`` that says so, the same on every
        rank; None: as many as the batch's longest row.
    multiple_of : int
        Rounded up to a multiple of this.
    value : int or float
        What it is padded with.
    truncate : bool
        Cut longer rows; else they are an error.
    """

    to: int | str | None = None
    multiple_of: int = 1
    value: float = 0
    truncate: bool = False

    def __post_init__(self) -> None:
        fine = self.to is None or isinstance(self.to, str) or _is_length(self.to)
        if not fine or not _is_length(self.multiple_of):
            name, value = ("multiple_of", self.multiple_of) if fine else ("to", self.to)
            raise ParameterError(
                f"The '{name}' parameter of Padded must be an int in the range [1, inf)"
                f"{'' if fine else ', the name of a side column, or None'}. Got {value!r} instead."
            )


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


How: TypeAlias = "Literal['jagged', 'padded'] | Padded"
Collate: TypeAlias = "How | Mapping[str, How] | None"


@dataclass(frozen=True, eq=False)
class Jagged:
    """Rows of different lengths, end to end.

    Attributes
    ----------
    values : tensor, shape (total, …)
        Row i holds ``values[cu_seqlens[i]:cu_seqlens[i + 1]]``.
    cu_seqlens : int32 tensor, shape (n + 1,)
        From 0 to total.
    max_seqlen : int
        Of the longest row.
    """

    values: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int

    def __len__(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def lengths(self) -> torch.Tensor:
        """Values of each row; int32, shape (n,)."""
        return self.cu_seqlens.diff()

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes + self.cu_seqlens.nbytes)

    def nested(self) -> torch.Tensor:
        """Return them as a torch nested tensor of jagged layout, over the same values."""
        offsets = self.cu_seqlens.to(torch.int64)
        return torch.nested.nested_tensor_from_jagged(self.values, offsets)

    def to(self, device: str | torch.device) -> Jagged:
        """Return them on a device."""
        return Jagged(self.values.to(device), self.cu_seqlens.to(device), self.max_seqlen)

    def clone(self) -> Jagged:
        """Return them on memory of their own."""
        return Jagged(self.values.clone(), self.cu_seqlens.clone(), self.max_seqlen)


def resolve_collate(collate: Collate, schema: pa.Schema) -> dict[str, Padded | None]:
    """Return how each ragged column is collated: padded, or jagged (None).

    Raises
    ------
    MissingColumnError, ColumnTypeError, ParameterError
    """
    if collate is None:
        return {}
    if not isinstance(collate, Mapping):
        return _free_names({f.name: _how(collate) for f in schema if _is_ragged(f.type)}, schema)
    for name in collate:
        if name not in schema.names:
            raise MissingColumnError(
                f"There is no column '{name}' to collate; the loader reads "
                f"{', '.join(schema.names) or 'none'}."
            )
        if not _is_ragged(schema.field(name).type):
            raise ColumnTypeError(
                f"Column '{name}' ({schema.field(name).type}) cannot be collated: expected lists "
                "of numbers, binary or text. Leave it out of collate."
            )
    return _free_names({name: _how(how) for name, how in collate.items()}, schema)


def _free_names(how: dict[str, Padded | None], schema: pa.Schema) -> dict[str, Padded | None]:
    taken = [n for n, padded in how.items() if padded and f"{n}_lengths" in schema.names]
    if taken:
        raise ParameterError(
            f"The lengths of the padded column '{taken[0]}' would be called '{taken[0]}_lengths', "
            "as another column is. Leave that one out with columns=[…]."
        )
    return how


def _how(how: Any) -> Padded | None:
    if isinstance(how, Padded):
        return how
    if how not in ("jagged", "padded"):
        raise ParameterError(
            "The 'collate' parameter must be 'jagged', 'padded', a Padded, or a mapping from "
            f"column names to these. Got {how!r} instead."
        )
    return Padded() if how == "padded" else None


def _is_ragged(type_: pa.DataType) -> bool:
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return numpy_type(type_.value_type) is not None
    return _is_bytes(type_)


def _is_bytes(type_: pa.DataType) -> bool:
    of = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_string,
        pa.types.is_large_string,
    )
    return any(kind(type_) for kind in of)


# --- windows --------------------------------------------------------------------------------------


def collated(window: Window, how: Mapping[str, Padded | None]) -> Window:
    """Replace ragged columns of a window by tensors.

    Raises
    ------
    InvalidValueError
        Where a row is null, or longer than what it is padded to.
    """
    ends = np.cumsum([0, *window.pieces.sizes]).tolist()
    bounds = list(itertools.pairwise(ends))
    for name, padded in how.items():
        offsets, values = _offsets_and_values(window.whole[name], name, window.pieces.ids)
        if padded is None:
            window.put(name, [_jagged(offsets[a : b + 1], values) for a, b in bounds])
            continue
        made, lengths = [], []
        for index, (a, b) in enumerate(bounds):
            held = np.diff(offsets[a : b + 1])
            length = _length(window, index, held, padded)
            if held.max() > length:
                if not padded.truncate:
                    _refuse(name, int(window.pieces.ids[a + held.argmax()]), held.max(), length)
                held = np.minimum(held, length)
            made.append(_rectangle(values, offsets[a:b], held, length, padded.value))
            lengths.append(torch.from_numpy(held))
        window.put(name, made)
        window.put(f"{name}_lengths", lengths)
    return window


def _jagged(offsets: I64, values: torch.Tensor) -> Jagged:
    first, last = offsets.item(0), offsets.item(-1)
    starts = torch.from_numpy((offsets - first).astype(np.int32))
    return Jagged(values[first:last], starts, int(np.diff(offsets).max()))


def _length(window: Window, index: int, held: I64, padded: Padded) -> int:
    """Return what the rows of a batch are padded to."""
    if isinstance(padded.to, str):
        side = window.fact("side")[index]
        if not isinstance(side.get(padded.to), int):
            raise ParameterError(
                f"Padded(to={padded.to!r}) needs a side column of that name, of kind 'batch' and "
                f"of integers; the plan has {', '.join(side) or 'none'}."
            )
        wanted = int(side[padded.to])
    else:
        wanted = int(held.max()) if padded.to is None else padded.to
    return -(-wanted // padded.multiple_of) * padded.multiple_of


def _refuse(name: str, row: int, held: int, length: int) -> None:
    raise InvalidValueError(
        f"Row {row} holds {held} values of column '{name}', more than the {length} that it is "
        "padded to. Pad to more, plan without such rows, or pass Padded(…, truncate=True)."
    )


def _rectangle(
    values: torch.Tensor, starts: I64, held: I64, length: int, value: float
) -> torch.Tensor:
    """Return a tensor of shape (rows, length, …) of which each row's first values are filled."""
    out = torch.full((len(held), length, *values.shape[1:]), value, dtype=values.dtype)
    inside = np.arange(length) < held[:, None]
    ends = np.cumsum(held)
    places = np.arange(ends[-1]) + np.repeat(starts - (ends - held), held)
    out[torch.from_numpy(inside)] = values[torch.from_numpy(places)]
    return out


def _offsets_and_values(column: pa.Array, name: str, ids: U64) -> tuple[I64, torch.Tensor]:
    """Return where each row begins and ends in the values, and the values."""
    if column.null_count:
        row = int(ids[np.argmin(as_numpy(column.is_valid()))])
        raise InvalidValueError(
            f"Column '{name}' holds a null in row {row}, and a tensor cannot. Plan with --where "
            f'"{name} is not null", or leave the column out of collate.'
        )
    if _is_bytes(column.type):
        large = pa.types.is_large_binary(column.type) or pa.types.is_large_string(column.type)
        _, places, data = column.buffers()
        whole = np.frombuffer(places, np.int64 if large else np.int32)
        offsets = whole[column.offset : column.offset + len(column) + 1].astype(np.int64)
        held = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    else:
        offsets = as_numpy(column.offsets).astype(np.int64)
        held = _writable(column.values, name)
    if held.dtype.kind == "u" and held.itemsize > 1:
        # Widened, as a column of single numbers is.
        inside = held[offsets[0] : offsets[-1]]
        return offsets - offsets[0], host_tensor(inside, np.repeat(ids, np.diff(offsets)), name)
    return offsets, torch.from_numpy(held if held.flags.writeable else held.copy())


def _writable(values: pa.Array, name: str) -> npt.NDArray[Any]:
    """Return the values; writable where their memory is, since the gather made it for us."""
    view = as_numpy(values, name)
    data = values.buffers()[-1]
    plain = pa.types.is_primitive(values.type) and not pa.types.is_boolean(values.type)
    if plain and data is not None and data.is_mutable:
        start = values.offset * view.itemsize
        return np.frombuffer(data, view.dtype, count=len(view), offset=start)
    return view
