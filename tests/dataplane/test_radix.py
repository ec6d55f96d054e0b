from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchloom.dataplane.errors import ColumnTypeError
from batchloom.dataplane.radix import ordered, value_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nst

DTYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]


def every(dtype: str) -> np.ndarray[Any, Any]:
    """Return all numbers of a type of at most 16 bits, as their bits count."""
    if dtype == "?":
        return np.array([False, True])
    kind = np.dtype(dtype)
    return np.arange(1 << 8 * kind.itemsize, dtype=f"u{kind.itemsize}").view(kind)


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", "u2", "f2"])
def test_every_number_of_a_narrow_type_has_its_place(dtype: str) -> None:
    numbers = every(dtype)
    nan = np.isnan(numbers)
    words = ordered(numbers)
    assert words.dtype == np.dtype(f"u{numbers.dtype.itemsize}")
    assert (words[nan] == words.dtype.type(-1 % 2 ** (8 * words.itemsize))).all()
    real = np.sort(numbers[~nan])
    steps = np.diff(ordered(real).astype(np.int64))
    assert ((steps > 0) == (real[1:] > real[:-1])).all()
    assert (steps > 1).sum() == (numbers.dtype.kind == "f")  # only the word of -0.0 is left out
    if nan.any():
        assert words[~nan].max() < words[nan].min()
    assert [value_of(int(w), dtype) for w in words[~nan]] == numbers[~nan].tolist()


@given(st.sampled_from(DTYPES).flatmap(lambda d: nst.arrays(d, st.integers(0, 40))))
def test_words_are_ordered_as_the_numbers(numbers: np.ndarray[Any, Any]) -> None:
    numbers = numbers[~np.isnan(numbers)]
    words = ordered(numbers)
    assert ((words[:, None] < words) == (numbers[:, None] < numbers)).all()
    assert ((words[:, None] == words) == (numbers[:, None] == numbers)).all()
    back = [value_of(int(w), numbers.dtype) for w in words]
    assert all(type(b) is numbers.dtype.type for b in back)
    assert back == numbers.tolist()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_zeros_infinities_and_nan(dtype: str) -> None:
    tiny = np.finfo(dtype).smallest_subnormal
    nan = np.array([np.nan, -np.nan], dtype)
    assert np.signbit(nan).tolist() == [False, True]
    line = np.array([-np.inf, np.finfo(dtype).min, -1, -tiny, 0, tiny, 1, np.inf], dtype)
    words = ordered(line)
    assert (words[1:] > words[:-1]).all()
    assert ordered(-line[4:5]) == words[4]
    assert not np.signbit(value_of(int(ordered(-line[4:5])[0]), dtype))
    assert len(set(ordered(nan).tolist())) == 1
    assert ordered(nan)[0] > words[-1]


@pytest.mark.parametrize("dtype", ["i4", "f4", "f8", "u2"])
def test_byte_order_and_stride_do_not_matter(dtype: str) -> None:
    numbers = (np.arange(-20, 20) * 3 % 31).astype(dtype)
    foreign = numbers.astype(np.dtype(dtype).newbyteorder())
    assert foreign.dtype.byteorder != numbers.dtype.byteorder
    assert ordered(foreign).tolist() == ordered(numbers).tolist()
    assert ordered(numbers[::-2]).tolist() == ordered(numbers)[::-2].tolist()


@pytest.mark.parametrize("dtype", ["U3", "O", "c16", "M8[s]", "V4"])
def test_what_has_no_order_is_refused(dtype: str) -> None:
    with pytest.raises(ColumnTypeError, match="have no ranks: expected integers"):
        ordered(np.zeros(3, dtype))
