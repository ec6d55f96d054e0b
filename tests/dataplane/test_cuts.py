from __future__ import annotations

import pickle

import numpy as np
import pytest
from batchloom.dataplane.cuts import CutSearch, keep_largest, keep_smallest
from batchloom.dataplane.errors import InvalidValueError, ParameterError
from batchloom.dataplane.random import keys
from batchloom.tests.dataplane.helpers import use_form
from batchloom.tests.dataplane.test_sketch import DTYPES, Array, hard_losses
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nst

U64 = np.uint64


def plain_cut(x: Array, ties: Array, k: int, largest: bool) -> set[int]:
    """Return the places that are kept, by sorting in plain Python."""
    sign = -1 if largest else 1
    rows = [(sign * v, t, i) for i, (v, t) in enumerate(zip(x.tolist(), ties.tolist(), strict=True))
            if v == v]  # fmt: skip
    return {i for _, _, i in sorted(rows)[:k]}


def kept_of(x: Array, ties: Array, k: int, parts: list[Array], *, largest: bool) -> set[int]:
    """Return the places that a search over parts (arrays of places) keeps."""
    search = CutSearch(x.dtype, k, largest=largest, ties=ties.dtype)
    while search.next is not None:
        step = pickle.loads(pickle.dumps(search.next))
        search.narrow(sum(step.count(x[p], ties[p]) for p in parts))
    assert search.cut is not None
    assert search.cut.rows == k
    return {int(i) for p in parts for i in p[search.cut.keeps(x[p], ties[p])]}


@given(
    st.sampled_from(DTYPES).flatmap(
        lambda d: nst.arrays(d, st.integers(1, 50), elements=nst.from_dtype(np.dtype(d)))
    ),
    st.lists(st.integers(0, 50), max_size=4).map(sorted),
    st.integers(0, 50),
    st.booleans(),
    st.sampled_from(["id", "key", "u4", "i8"]),
    st.sampled_from(["numpy", "numba"]),
)
def test_any_cut_of_any_parts(
    x: Array, cuts: list[int], k: int, largest: bool, by: str, form: str
) -> None:
    ids = np.arange(len(x), dtype=U64) * U64(3)
    ties = {"id": ids, "key": keys(5, 1, 0, ids), "u4": ids.astype("u4"),
            "i8": 40 - ids.astype("i8")}[by]  # fmt: skip
    k = min(k, int((~np.isnan(x)).sum()))
    places = np.split(np.arange(len(x)), [min(c, len(x)) for c in cuts])
    with pytest.MonkeyPatch.context() as patch:
        use_form(patch, form)
        found = kept_of(x, ties, k, places[::-1], largest=largest)
        whole = (keep_largest if largest else keep_smallest)(x, k, ties=ties, on_invalid="drop")
    assert found == plain_cut(x, ties, k, largest)
    assert set(np.flatnonzero(whole).tolist()) == found


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("by", ["id", "key"])
def test_two_million_losses_are_cut_inside_the_ties(form: str, largest: bool, by: str) -> None:
    n = 2_000_000
    x = hard_losses(n)
    ids = np.arange(n, dtype=U64)
    ties = ids if by == "id" else keys(3, 1, 2, ids)
    below, equal, above = (x < 0.5).sum(), (x == 0.5).sum(), (x > 0.5).sum()
    take = int(equal // 3)
    k = int(above if largest else below) + take
    kept = (keep_largest if largest else keep_smallest)(x, k, ties=ties)
    assert kept.sum() == k
    assert kept[(x > 0.5) if largest else (x < 0.5)].all()
    tied = np.flatnonzero(x == 0.5)
    chosen = tied[np.argpartition(ties[tied], take)[:take]]
    assert kept[chosen].all()  # and, by the count, no other of them


def test_ties_take_more_passes_only_where_they_decide() -> None:
    x = np.repeat(np.arange(10, dtype="f4"), 100_000)
    ids = np.arange(len(x), dtype=U64)
    ways = {"key": keys(1, 1, 1, ids), "id": ids, "narrow id": ids.astype("u4")}
    for k, expected in (
        (300_000, {"key": [2], "id": [2], "narrow id": [2]}),
        (300_001, {"key": [3, 4], "id": [6], "narrow id": [4]}),
        (400_000, {"key": [2], "id": [2], "narrow id": [2]}),
    ):
        for by, ties in ways.items():
            search, passes = CutSearch("f4", k, ties=ties.dtype), 0
            while search.next is not None:
                passes += 1
                search.narrow(search.next.count(x, ties))
            assert passes in expected[by], (k, by)
            assert search.cut is not None
            assert search.cut.value == (k - 1) // 100_000
            assert (search.cut.tie is None) == (k % 100_000 == 0)


def test_larger_cuts_only_add_rows() -> None:
    x = hard_losses(3000)
    before = np.zeros(len(x), bool)
    for k in range(0, len(x), 97):
        kept = keep_smallest(x, k)
        assert kept.sum() == k
        assert kept[before].all()
        before = kept


def test_nan_is_refused_or_never_kept(form: str) -> None:
    x = np.array([2, np.nan, 1, -np.nan, 3], "f8")
    for keep in (keep_smallest, keep_largest):
        with pytest.raises(InvalidValueError, match=r"2 rows hold NaN: 11, 13\."):
            keep(x, 1, ids=np.arange(10, 15, dtype=U64))
        assert keep(x, 3, on_invalid="drop").tolist() == [True, False, True, False, True]
        with pytest.raises(ParameterError, match="Cannot choose 4 of 3 rows"):
            keep(x, 4, on_invalid="drop")
    assert keep_largest(x, 1, on_invalid="drop").tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("k", [-1, 3])
def test_more_rows_than_there_are_cannot_be_kept(k: int) -> None:
    with pytest.raises(ParameterError, match=f"Cannot choose {k} of 2 rows"):
        keep_smallest(np.arange(2), k)


def test_nothing_is_kept_of_nothing() -> None:
    assert keep_smallest(np.zeros(0, "f4"), 0).tolist() == []
    assert keep_largest(np.array([1.0, 2.0]), 0).tolist() == [False, False]


def test_both_zeros_are_tied() -> None:
    x = np.array([0.0, -0.0, 0.0, -0.0], "f4")
    assert keep_smallest(x, 2).tolist() == [True, True, False, False]
    assert keep_largest(x, 3).tolist() == [True, True, True, False]


def test_tie_words_must_be_there_and_distinct() -> None:
    x = np.zeros(4)
    search = CutSearch("f8", 2)
    while not hasattr(search.next, "ties"):
        search.narrow(search.next.count(x))  # type: ignore[union-attr]
    with pytest.raises(ParameterError, match="told apart by tie words"):
        search.next.count(x)  # type: ignore[union-attr]
    with pytest.raises(ParameterError, match="the same tie word"):
        keep_smallest(x, 2, ties=np.zeros(4, U64))
