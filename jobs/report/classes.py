"""The class of each row by a column: its values, or ranges of a number."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...dataplane.columns import as_numpy
from ...dataplane.dataset import Dataset
from ...dataplane.errors import ColumnTypeError, SelectionError
from ..row_values import plain_value
from .counts import pieces

__all__ = ["MOST_CLASSES", "Classes", "read_classes"]

MOST_CLASSES = 1000
_MOST_NUMBERS = 20  # different floats, above which they are cut into ranges
_RANGES = 10
_NO_VALUE = "no value"


@dataclass(frozen=True)
class Classes:
    """A class of each row.

    Attributes
    ----------
    column : str
    kind : {'values', 'ranges'}
    names : tuple of str
    codes : int16, shape (ids,)
        By row id; −1 of a row that was not read.
    """

    column: str
    kind: str
    names: tuple[str, ...]
    codes: npt.NDArray[np.int16]


class _TooMany(Exception):  # noqa: N818  # not an error: the column is read another way
    """There are more different values than are told apart."""


def read_classes(dataset: Dataset, column: str, fragments: list[int], ids: int) -> Classes:
    """Read a column as classes.

    A column of up to 1,000 different values (20 where they are floats) has a class a value; one of
    more numbers is cut into ten ranges of about equally many rows. Rows without a value are a class
    of their own.

    Parameters
    ----------
    dataset : Dataset
    column : str
    fragments : list of int
        Those to read.
    ids : int
        One above the largest row id.

    Raises
    ------
    MissingColumnError
    ColumnTypeError
        Where its values are lists.
    SelectionError
        Where it has too many values, which are no numbers.
    """
    dataset.check_columns([column], fragments=[])
    type_ = dataset.schema.field(column).type
    if pa.types.is_nested(type_):
        raise ColumnTypeError(
            f"Column '{column}' is {type_}: a report counts rows by a column of one value a row."
        )
    number = pa.types.is_floating(type_) or pa.types.is_integer(type_)
    most = _MOST_NUMBERS if pa.types.is_floating(type_) else MOST_CLASSES
    try:
        names, codes = _by_value(dataset, column, fragments, ids, most)
    except _TooMany:
        if not number:
            raise SelectionError(
                f"Column '{column}' has more than {MOST_CLASSES:,} different values. Name one with "
                "fewer, or one of numbers, which are cut into ranges."
            ) from None
        names, codes = _by_range(dataset, column, fragments, ids)
        return Classes(column, "ranges", names, codes)
    return Classes(column, "values", names, codes)


def _by_value(
    dataset: Dataset, column: str, fragments: list[int], ids: int, most: int
) -> tuple[tuple[str, ...], npt.NDArray[np.int16]]:
    codes = np.full(ids, -1, np.int16)
    known: dict[Any, int] = {}
    for part in dataset.scan([column], fragments=fragments):
        array = part.batch.column(0)
        if not pa.types.is_dictionary(array.type):
            array = array.dictionary_encode(null_encoding="encode")
        values = [plain_value(v) for v in array.dictionary.to_pylist()]
        mine = np.array([known.setdefault(v, len(known)) for v in values] or [0], np.int64)
        if len(known) > most + 1:
            raise _TooMany
        indices = array.indices
        valid = np.ones(len(indices), bool)
        if indices.null_count:
            valid = as_numpy(indices.is_valid())
            indices = indices.fill_null(0)
        found = mine[as_numpy(indices).astype(np.int64)]
        if not valid.all():
            found[~valid] = known.setdefault(None, len(known))
        codes[part.first_row_id : part.first_row_id + len(found)] = found
    if len(known) - (None in known) > most:
        raise _TooMany
    order = sorted(known, key=_by_kind)
    place = np.zeros(len(known) + 1, np.int16)
    place[-1] = -1  # of rows that were not read
    place[[known[v] for v in order]] = np.arange(len(order))
    return tuple(_NO_VALUE if v is None else str(v) for v in order), place[codes]


def _by_kind(value: Any) -> tuple[bool, bool, Any]:
    """Order values: numbers, then text, then none."""
    text = isinstance(value, str)
    return value is None, text, 0 if value is None else value


def _by_range(
    dataset: Dataset, column: str, fragments: list[int], ids: int
) -> tuple[tuple[str, ...], npt.NDArray[np.int16]]:
    numbers = np.full(ids, np.nan)
    codes = np.full(len(numbers), -1, np.int16)
    for part in dataset.scan([column], fragments=fragments):
        array = part.batch.column(0)
        rows = slice(part.first_row_id, part.first_row_id + len(array))
        codes[rows] = _RANGES  # no number; those that are one get their range below
        values = as_numpy(array.drop_null() if array.null_count else array, column)
        numbers[rows][as_numpy(array.is_valid())] = values
    shares = np.arange(1, _RANGES) / _RANGES
    held = numbers[np.isfinite(numbers)]
    cuts = held[:0]
    if len(held):
        cuts = np.unique(np.quantile(held, shares, method="inverted_cdf", overwrite_input=True))
        cuts = cuts[cuts < held.max()]
    for here in pieces(ids):
        finite = np.isfinite(numbers[here])
        codes[here][finite] = np.searchsorted(cuts, numbers[here][finite], side="left")
    ends = [held.min(), *cuts, held.max()] if len(held) else []
    names = [f"{_short(a)} to {_short(b)}" for a, b in itertools.pairwise(ends)]
    bad = codes == _RANGES
    if bad.any():
        codes[bad] = len(names)
        names.append("no number")
    return tuple(names), codes


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
