from __future__ import annotations

from fractions import Fraction
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from batchloom.clustering.assignment import assign
from batchloom.clustering.kmeans_sums import (
    MOST_ROWS,
    Scale,
    Span,
    Sums,
    partial_sums,
    refill,
    span,
    update,
)
from batchloom.dataplane.errors import InvalidValueError, SelectionError
from hypothesis import given, settings
from hypothesis import strategies as st

F32 = npt.NDArray[np.float32]
U64 = npt.NDArray[np.uint64]


def ids_of(n: int) -> U64:
    return np.arange(n, dtype=np.uint64) * np.uint64(3) + np.uint64(11)


def one_pass(x: F32, ids: U64, c: F32, parts: int = 1, **options: Any) -> Sums:
    spans = [span(p) for p in np.array_split(x, parts) if len(p)]
    scale = Scale.of(reduce(add, spans), c)
    cut = zip(np.array_split(x, parts), np.array_split(ids, parts), strict=True)
    return reduce(add, [partial_sums(a, b, c, scale, **options) for a, b in cut])


def bits(sums: Sums) -> tuple[Any, ...]:
    arrays = (sums.sums, sums.counts, sums.far.distances, sums.far.ids, sums.far.rows)
    return (*(a.tobytes() for a in arrays), sums.error, sums.scale.distance_exponent)


@pytest.mark.parametrize("levels", ["one", "two"])
def test_parts_order_and_threads_change_no_bit(levels: str) -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(5000, 7)) * [1, 1e-6, 1e6, 1, 3, 1, 1]).astype("f4")
    x[1000:1400] = x[:400]  # so that farthest rows tie
    ids, c = ids_of(5000), x[::100].copy()
    options = {"coarse": x[::500].copy() if levels == "two" else None}
    expected = one_pass(x, ids, c, **options)
    labels = assign(x, c, **options)[0]
    for parts in (1, 2, 7, 64):
        for threads in (1, 2):
            order = rng.permutation(5000)
            found = one_pass(x[order], ids[order], c, parts, threads=threads, **options)
            assert bits(found) == bits(expected)
            assert update(c, found).tobytes() == update(c, expected).tobytes()
            mine = np.empty(5000, np.int32)
            scale = Scale.of(span(x), c)
            partial_sums(x[order], ids[order], c, scale, labels=mine, threads=threads, **options)
            assert mine.tolist() == labels[order].tolist()


def test_sums_and_inertia_are_exact() -> None:
    rng = np.random.default_rng(1)
    x, c = rng.normal(size=(300, 4)).astype("f4"), rng.normal(size=(5, 4)).astype("f4")
    found = one_pass(x, ids_of(300), c, 3)
    labels, distances = assign(x, c)
    for j in range(5):
        for t in range(4):
            exact = sum((Fraction(float(v)) for v in x[labels == j, t]), Fraction(0))
            unit = Fraction(2) ** -int(found.scale.exponents[t])
            assert found.sums[j, t] * unit == exact
    exact = sum(map(Fraction, distances.tolist()), Fraction(0))
    assert abs(Fraction(found.inertia) - exact) <= exact * Fraction(1, 2**50)
    assert found.counts.tolist() == np.bincount(labels, minlength=5).tolist()


def test_a_mean_is_off_by_less_than_the_stated_error() -> None:
    """Beside a value of 1 others are so small that their last bits are rounded away."""
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(4096, 1)) * 1e-9).astype("f4")
    x[0] = 1
    found = one_pass(x, ids_of(4096), np.zeros((1, 1), "f4"))
    exact = sum((Fraction(float(v)) for v in x[:, 0]), Fraction(0)) / 4096
    mean = Fraction(int(found.sums[0, 0])) / 2 ** int(found.scale.exponents[0]) / 4096
    assert abs(mean - exact) <= Fraction(1, 2 ** (62 - 12))


@pytest.mark.parametrize("rows", [1, 2, 3, 1000, 1 << 20, (1 << 20) + 1, MOST_ROWS])
def test_no_sum_can_overflow(rows: int) -> None:
    for largest in (1.0, np.nextafter(np.float32(1), np.float32(0)), 3e38, 1e-45, 0.3):
        scale = Scale.of(Span(rows, np.array([largest], np.float32)))
        unit = Fraction(2) ** int(scale.exponents[0])
        word = round(Fraction(float(np.float32(largest))) * unit)
        assert rows * word < 2**63
        assert word >= 2**24  # float32's own precision stays
        farthest = Fraction(float(np.float32(largest))) ** 2 * 4
        assert farthest * Fraction(2) ** scale.distance_exponent < 2**62


def test_most_rows() -> None:
    with pytest.raises(SelectionError, match="at most 137,438,953,472"):
        Scale.of(Span(MOST_ROWS + 1, np.ones(2, np.float32)))


def test_a_column_of_zeros() -> None:
    x = np.zeros((5, 2), np.float32)
    found = one_pass(x, ids_of(5), x[:1].copy())
    assert found.sums.tolist() == [[0, 0]]
    assert found.inertia == 0.0


@pytest.mark.parametrize("magnitude", [1e-30, 1e18])
def test_inertia_of_any_magnitude(magnitude: float) -> None:
    x = (np.array([[1.0], [3.0]]) * magnitude).astype("f4")
    found = one_pass(x, ids_of(2), np.zeros((1, 1), "f4"))
    exact = sum(Fraction(float(v)) ** 2 for v in x[:, 0])
    assert found.inertia == pytest.approx(float(exact), rel=1e-12)


def test_nothing_of_no_rows() -> None:
    x = np.ones((4, 2), np.float32)
    scale = Scale.of(span(x))
    none = partial_sums(x[:0], ids_of(0), x[:2], scale)
    some = partial_sums(x, ids_of(4), x[:2], scale)
    assert none.rows == 0
    assert bits(none + some) == bits(some + none) == bits(some)


# --- farthest rows --------------------------------------------------------------------------------


def test_farthest_rows_are_different_and_of_the_smallest_id() -> None:
    x = np.array([[3], [-3], [3], [0], [2], [-0.0], [-3]], np.float32)
    ids = np.array([9, 8, 4, 3, 2, 1, 7], np.uint64)
    c = np.zeros((3, 1), np.float32)
    found = one_pass(x, ids, c, 3)
    assert found.far.ids.tolist() == [4, 7, 2]
    assert found.far.distances.tolist() == [9, 9, 4]
    assert found.far.rows[:, 0].tolist() == [3, -3, 2]
    # All rows tie for the three centers, so the lowest one has them.
    assert update(c, found)[:, 0].tolist() == pytest.approx([2 / 7, 3, -3])
    assert refill(c, found)[:, 0].tolist() == [0, 3, -3]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9))
def test_farthest_rows_merge(seed: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 4, (200, 2)).astype("f4")
    ids = rng.permutation(1000)[:200].astype("u8")
    c = np.zeros((40, 2), "f4")
    found = one_pass(x, ids, c, parts).far
    first: dict[tuple[float, ...], int] = {}
    for i in np.argsort(ids):
        first.setdefault(tuple(x[i].tolist()), int(ids[i]))
    far = sorted((-(v[0] ** 2 + v[1] ** 2), i) for v, i in first.items() if v != (0.0, 0.0))
    assert list(zip((-found.distances).tolist(), found.ids.tolist(), strict=True)) == far


def test_many_equal_farthest_rows_hide_no_others() -> None:
    x = np.zeros((5000, 1), np.float32)
    x[100:4400] = 5
    x[4400:, 0] = 1 + np.arange(600) / 600
    found = one_pass(x, ids_of(5000), np.zeros((3, 1), "f4"), 4).far
    assert len(found.ids) == 256
    assert found.rows[0, 0] == 5
    assert found.rows[1:, 0].tolist() == x[-1:-256:-1, 0].tolist()


def test_rows_that_one_center_may_serve_are_taken_one_at_a_time() -> None:
    x = np.array([[0], [0], [100], [101], [-60]], np.float32)
    c = np.zeros((4, 1), np.float32)
    found = one_pass(x, ids_of(5), c)
    assert found.far.rows[:, 0].tolist() == [101, 100, -60]
    assert refill(c, found)[:, 0].tolist() == [0, 101, -60, 0]


# --- update ---------------------------------------------------------------------------------------


def test_update_by_hand() -> None:
    x = np.array([[0, 0], [0, 2], [8, 8], [8, 10]], np.float32)
    c = np.array([[0, 1], [9, 9], [100, 100]], np.float32)
    found = one_pass(x, ids_of(4), c)
    assert found.counts.tolist() == [2, 2, 0]
    assert found.empty.tolist() == [2]
    assert found.inertia == 6.0
    # Rows 8, 8 and 8, 10 are equally far from their center; the smaller id is taken.
    assert update(c, found).tolist() == [[0, 1], [8, 9], [8, 8]]


def test_spherical_means_have_length_one() -> None:
    x = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
    c = np.array([[0.6, 0.8], [-0.6, -0.8]], np.float32)
    found = one_pass(x, ids_of(4), c)
    half = np.float32(np.sqrt(0.5))
    assert update(c, found, spherical=True).tolist() == [[half, half], [-half, -half]]


def test_a_mean_without_direction_leaves_its_center() -> None:
    x = np.array([[1, 0], [-1, 0]], np.float32)
    c = np.array([[0, 1]], np.float32)
    assert update(c, one_pass(x, ids_of(2), c), spherical=True).tolist() == [[0, 1]]


# --- refusals -------------------------------------------------------------------------------------


def test_rows_beyond_the_scale_are_refused_by_id() -> None:
    x = np.ones((3, 2), np.float32)
    scale = Scale.of(span(x))
    x[1, 1] = 2
    with pytest.raises(SelectionError, match="Row 14 .* span of all rows"):
        partial_sums(x, ids_of(3), x[:1], scale)


def test_centers_beyond_the_scale() -> None:
    x, c = np.ones((3, 1), np.float32), np.full((1, 1), 1e6, np.float32)
    with pytest.raises(SelectionError, match="Centers lie beyond .* Scale.of"):
        partial_sums(x, ids_of(3), c, Scale.of(span(x)))
    found = partial_sums(x, ids_of(3), c, Scale.of(span(x), c))
    assert found.inertia == 3 * (1e6 - 1) ** 2


def test_rows_counted_twice_are_refused() -> None:
    x = np.ones((3, 2), np.float32)
    part = partial_sums(x, ids_of(3), x[:1], Scale.of(span(x)))
    with pytest.raises(SelectionError, match="6 rows were added up, .* made for 3"):
        part + part


def test_sums_of_different_scales_are_refused() -> None:
    x = np.ones((3, 2), np.float32)
    a, b = (partial_sums(x, ids_of(3), x[:1], Scale.of(span(y))) for y in (x, x * 4))
    with pytest.raises(SelectionError, match="different scales"):
        a + b


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_span_names_rows_that_are_not_finite(bad: float) -> None:
    x = np.ones((100_000, 2), np.float32)
    x[[7, 90_000], 1] = bad
    with pytest.raises(InvalidValueError, match="2 rows .* 32, 270011"):
        span(x, ids_of(100_000))


def test_spans_merge() -> None:
    x = np.array([[1, -5], [-3, 2]], np.float32)
    whole = span(x[:1]) + span(x[1:])
    assert (whole.rows, whole.largest.tolist()) == (2, [3, 5])
