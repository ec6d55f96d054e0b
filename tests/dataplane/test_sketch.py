from __future__ import annotations

import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane.errors import DatasetChangedError, InvalidValueError, ParameterError
from batchloom.dataplane.sketch import (
    Pass,
    RankSearch,
    exact_share,
    quantile_rank,
    quantiles,
)
from batchloom.tests.dataplane.helpers import use_form
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nst

Array = np.ndarray[Any, Any]

DTYPES = ["?", "i1", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]


def hard_losses(n: int, dtype: str = "f4", seed: int = 0) -> Array:
    """Return losses of which 30 % are one value; both zeros, denormal numbers, infinities."""
    draw = np.random.default_rng(seed)
    x = draw.gamma(2.0, 0.5, n).astype(dtype)
    x[draw.random(n) < 0.3] = 0.5
    tiny = np.finfo(dtype).smallest_subnormal
    odd: list[Any] = [0.0, -0.0, tiny, -tiny, 7 * tiny, np.inf, -np.inf, -1.5]
    for value in odd:
        x[draw.integers(0, n, n // 1000)] = value
    return x


def search_all(dtype: Any, ranks: Any, parts: list[Array]) -> tuple[RankSearch, int]:
    """Run a search over parts; return it and how many passes it took."""
    search, passes = RankSearch(dtype, ranks), 0
    while search.next is not None:
        passes += 1
        search.narrow(sum(search.next.count(p) for p in parts))
    return search, passes


# --- against numpy --------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "passes"), [("f4", 2), ("f8", 4)])
def test_ten_million_losses(form: str, dtype: str, passes: int) -> None:
    n = 10_000_000 if dtype == "f4" else 1_000_000
    x = hard_losses(n, dtype)
    ranks = [1, n // 1000, n // 500, n // 4, n // 3, n // 2, n - n // 1000, n]
    parts = np.array_split(x, 7)
    search, taken = search_all(dtype, lambda _: ranks, parts)
    assert taken == passes
    assert (search.size, search.nan) == (n, 0)
    expected = np.partition(x, [r - 1 for r in ranks])[[r - 1 for r in ranks]]
    assert [f.value for f in search.found] == expected.tolist()
    assert {-np.inf, np.inf, 0.5} <= set(expected.tolist())
    for found in search.found:
        assert (found.below, found.equal) == ((x < found.value).sum(), (x == found.value).sum())
    assert search_all(dtype, lambda _: ranks, parts[::-1])[0].found == search.found


def test_quantiles_are_inverted_cdf_of_numpy(form: str) -> None:
    x = hard_losses(1_000_000)
    x = x[np.isfinite(x)][:900_000]  # numpy interpolates: infinities would make it NaN
    shares = [0, 0.0001, 0.01, 0.25, 0.3, 0.5, 0.75, 0.99, 1]
    expected = np.quantile(x, shares, method="inverted_cdf")
    assert quantiles(x, shares).tolist() == expected.tolist()


@given(
    st.sampled_from(DTYPES).flatmap(lambda d: nst.arrays(d, st.integers(1, 60))),
    st.lists(st.integers(0, 60), max_size=5).map(sorted),
    st.randoms(use_true_random=False),
    st.sampled_from(["numpy", "numba"]),
)
def test_every_rank_of_any_parts(x: Array, cuts: list[int], rng: Any, form: str) -> None:
    parts = np.split(x, [min(c, len(x)) for c in cuts])
    rng.shuffle(parts)
    with pytest.MonkeyPatch.context() as patch:
        use_form(patch, form)
        search, _ = search_all(x.dtype, lambda n: range(1, n + 1), parts)
    expected = np.sort(x[~np.isnan(x)])
    assert search.nan == len(x) - len(expected)
    assert [f.rank for f in search.found] == list(range(1, len(expected) + 1))
    assert [f.value for f in search.found] == expected.tolist()


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "u2", "i1", "f2"])
def test_both_forms_count_the_same(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    width = np.dtype(dtype).itemsize
    draw = np.random.default_rng(1)
    x = draw.integers(0, 256, 300_000 * width, dtype=np.uint8).view(dtype)  # NaN of all kinds
    x = np.concatenate([x, np.repeat(x[:3000], 40)])
    wanted: Any = lambda n: [1, 7, n // 9, n // 3, n // 3 + 1, n - 1]  # noqa: E731
    search = RankSearch(dtype, wanted)
    while search.next is not None:
        step = search.next
        use_form(monkeypatch, "numba")
        fast = step.count(x)
        use_form(monkeypatch, "numpy")
        assert fast.tobytes() == step.count(x).tobytes()
        assert fast.dtype == np.int64
        search.narrow(fast)
    assert (search.nan > 0) == (np.dtype(dtype).kind == "f")


def test_counts_add_up_in_place(form: str) -> None:
    x = hard_losses(5000)
    step = Pass("<f4")
    counts = step.count(x[:2000])
    assert step.count(x[2000:], into=counts) is counts
    assert counts.tobytes() == step.count(x).tobytes()


def test_a_pass_is_small_enough_to_be_sent() -> None:
    x = hard_losses(5000, "f8")
    search = RankSearch("f8", lambda n: [1, n // 2, n])
    while search.next is not None:
        sent = pickle.dumps(search.next)
        assert len(sent) < 500
        counts = pickle.loads(sent).count(x)
        assert counts.nbytes <= 3 * 65_536 * 8
        search.narrow(counts)
    assert search.found[2].value == np.inf


def test_processors_that_flush_denormal_numbers_change_nothing(form: str) -> None:
    import torch

    tiny = float(np.finfo("f4").smallest_subnormal)
    x = np.array([2 * tiny, -tiny, 0.0, tiny, -2 * tiny, -0.0], "f4")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        found = quantiles(x, [Fraction(k, 6) for k in range(1, 7)])
    finally:
        torch.set_flush_denormal(False)
    assert found.tolist() == [-2 * tiny, -tiny, 0.0, 0.0, tiny, 2 * tiny]


# --- shares and ranks -----------------------------------------------------------------------------


def test_exact_share_by_hand() -> None:
    assert exact_share(0.2, 10**6) == 200_000
    assert exact_share(0.29, 100) == 29  # 0.29 * 100 is 28.999999999999996 in floats
    assert exact_share(0.1, 3) == 0
    assert exact_share(Fraction(1, 3), 10) == 3
    assert exact_share(1, 7) == 7
    assert exact_share(1e-3, 10**12) == 10**9


@given(st.integers(0, 10_000), st.integers(0, 10**9))
def test_exact_share_reads_the_decimal(share: int, n: int) -> None:
    assert exact_share(share / 10_000, n) == share * n // 10_000


def test_quantile_ranks_by_hand() -> None:
    assert [quantile_rank(q, 10) for q in (0, 0.05, 0.1, 0.11, 0.5, 0.95, 1)] == [
        1, 1, 1, 2, 5, 10, 10,
    ]  # fmt: skip
    assert quantile_rank(0.07, 100) == 7  # 0.07 * 100 is 7.000000000000001 in floats
    assert quantile_rank(0.1, 10**12 + 1) == 10**11 + 1
    assert quantile_rank(Fraction(1, 3), 9) == 3
    assert quantile_rank(np.float64(0.07), 100) == 7
    for q in (-0.1, 1.0001, float("nan")):
        with pytest.raises(ParameterError, match=r"in the range \[0, 1\]"):
            quantile_rank(q, 10)


@given(st.integers(0, 10_000), st.integers(1, 10**9))
def test_a_quantile_is_the_first_that_the_share_does_not_exceed(q: int, n: int) -> None:
    rank = quantile_rank(q / 10_000, n)
    assert rank * 10_000 >= q * n
    assert rank == 1 or (rank - 1) * 10_000 < q * n


# --- what is odd ----------------------------------------------------------------------------------


def test_one_value_and_all_equal(form: str) -> None:
    assert quantiles(np.array([-3], "i8"), [0, 0.5, 1]).tolist() == [-3, -3, -3]
    assert quantiles(np.full(1000, 0.25, "f4"), [0.01, 0.5, 1]).tolist() == [0.25] * 3
    assert quantiles(np.array([False, True, True]), [0.3, 0.4]).tolist() == [False, True]


def test_nan_is_refused_or_dropped(form: str) -> None:
    x = np.arange(20, dtype="f4")
    x[[3, 5, 6, 11, 12, 19]] = [np.nan, -np.nan, np.nan, np.nan, np.nan, np.nan]
    with pytest.raises(InvalidValueError, match=r"6 rows hold NaN: 3, 5, 6, 11, 12, …\."):
        quantiles(x, [0.5])
    ids = np.arange(100, 120, dtype=np.uint64)
    with pytest.raises(InvalidValueError, match=r"1 rows hold NaN: 103\."):
        quantiles(x[:4], [0.5], ids=ids[:4])
    left = np.sort(x[~np.isnan(x)])
    assert quantiles(x, [0.5, 1], on_invalid="drop").tolist() == [left[6], 18]


@pytest.mark.parametrize("x", [np.zeros(0, "f4"), np.full(3, np.nan, "f4")])
def test_nothing_to_rank(form: str, x: Array) -> None:
    with pytest.raises(ParameterError, match="no rank 1 among 0 values"):
        quantiles(x, [0.5], on_invalid="drop")
    search, passes = search_all("f4", lambda n: [n] if n else [], [x])
    assert (search.found, search.nan, passes) == ((), len(x), 1)


@pytest.mark.parametrize("rank", [0, 4, -1])
def test_ranks_that_are_not_there_are_refused(rank: int) -> None:
    search = RankSearch("i4", lambda _: [rank])
    with pytest.raises(ParameterError, match=f"no rank {rank} among 3 values"):
        search.narrow(Pass("<i4").count(np.arange(3, dtype="i4")))


def test_counts_of_something_else_are_refused() -> None:
    search = RankSearch("f4", lambda _: [2])
    with pytest.raises(ParameterError, match="not the counts of the pass"):
        search.narrow(np.zeros((1, 256), np.int64))
    with pytest.raises(ParameterError, match="float32 were expected. Got float64"):
        Pass("<f4").count(np.zeros(3))
    search.narrow(Pass("<f4").count(np.array([1, 2, 3], "f4")))
    assert search.next is not None
    with pytest.raises(DatasetChangedError, match="changed between two passes: 2 of them"):
        search.narrow(search.next.count(np.array([2, 2, 3], "f4")))
