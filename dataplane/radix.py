"""Numbers as unsigned integers of the same order, of which digits can be counted (`sketch`).

-0.0 equals 0.0; denormal numbers and ±inf stand where they belong; NaN of any sign and payload is
one word, the last. All of it is arithmetic on integers, so that no mode of the processor flushes
denormal numbers. The compiled counting (`kernels`) makes the same words.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ColumnTypeError, ParameterError

__all__ = [
    "FLOAT",
    "Order",
    "Words",
    "checked_order",
    "order_of",
    "ordered",
    "value_of",
    "values_of",
]

Words = npt.NDArray[np.unsignedinteger[Any]]

UNSIGNED, SIGNED, FLOAT = 0, 1, 2  # as `kernels` knows them


@dataclass(frozen=True)
class Order:
    """How the numbers of a dtype map to unsigned integers.

    Attributes
    ----------
    kind : int
    native : dtype
        Of the numbers, in this machine's byte order.
    words : dtype
        Unsigned, of the same width.
    infinity : int
        The bits of +inf; those of NaN are larger, their sign left out.
    """

    kind: int
    native: np.dtype[Any]
    words: np.dtype[Any]
    infinity: int

    @property
    def bits(self) -> int:
        return 8 * self.words.itemsize

    @property
    def sign(self) -> int:
        """The highest bit."""
        return 1 << (self.bits - 1)

    @property
    def last(self) -> int:
        """The last word, which is NaN's."""
        return (1 << self.bits) - 1

    @property
    def for_kernels(self) -> tuple[int, Any, Any, Any]:
        """Kind, sign, infinity and last word, as `kernels` take them."""
        return self.kind, np.uint64(self.sign), np.uint64(self.infinity), np.uint64(self.last)

    def raw(self, values: npt.NDArray[Any]) -> Words:
        """Return the bits of the numbers, as they are."""
        return np.ascontiguousarray(values, dtype=self.native).view(self.words)


@lru_cache(maxsize=64)
def order_of(dtype: np.dtype[Any]) -> Order:
    """Return how numbers of a dtype map; `ColumnTypeError` of any other."""
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise ColumnTypeError(
            f"Values of type {dtype} have no ranks: expected integers, booleans or floats of at "
            "most 64 bits."
        )
    kind = {"i": SIGNED, "f": FLOAT}.get(dtype.kind, UNSIGNED)
    native, words = dtype.newbyteorder("="), np.dtype(f"u{dtype.itemsize}")
    infinity = int(np.array(np.inf, native).view(words)) if kind == FLOAT else 0
    return Order(kind, native, words, infinity)


def ordered(values: npt.NDArray[Any]) -> Words:
    """Return unsigned integers in the order of the numbers.

    Parameters
    ----------
    values : integers, booleans or floats of 8 to 64 bits, shape (n,)

    Returns
    -------
    unsigned integers of the same width, shape (n,)
    """
    order = order_of(values.dtype)
    raw = order.raw(values)
    if order.kind == UNSIGNED:
        return raw
    if order.kind == SIGNED:
        words: Words = raw ^ order.words.type(order.sign)
        return words
    signed = raw.view(np.dtype(f"i{order.words.itemsize}"))
    words = (signed >> (order.bits - 1)).view(order.words)  # all ones where negative
    words |= order.sign
    words ^= raw
    words[raw == order.sign] = order.sign
    words[(raw & (order.sign - 1)) > order.infinity] = order.last
    return words


def value_of(word: int, dtype: npt.DTypeLike) -> Any:
    """Return the number of a word: the inverse of `ordered`, a numpy scalar."""
    words = np.array([word], order_of(np.dtype(dtype)).words)
    return values_of(words, dtype)[0]


def values_of(words: Words, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return the numbers of words: the inverse of `ordered`."""
    order = order_of(np.dtype(dtype))
    words = words.astype(order.words)
    if order.kind == SIGNED:
        words ^= order.words.type(order.sign)
    elif order.kind == FLOAT:
        above = (words & order.words.type(order.sign)) != 0
        words ^= np.where(above, order.words.type(order.sign), order.words.type(order.last))
    return words.view(order.native)


def checked_order(values: npt.NDArray[Any], dtype: str) -> Order:
    """Return the order of a dtype, which the values must have, in whatever byte order."""
    order = order_of(np.dtype(dtype))
    if values.dtype.newbyteorder("=") != order.native:
        raise ParameterError(f"Values of {order.native} were expected. Got {values.dtype} instead.")
    return order
