"""Balanced k-means: sizes, oracles by hand and by the plain steps, what must not matter."""

from __future__ import annotations

import math
from itertools import combinations, pairwise, permutations
from typing import Any

import numpy as np
import pytest
from batchloom.clustering import balanced
from batchloom.clustering.balanced import BalancedKMeans
from batchloom.dataplane.errors import (
    InvalidValueError,
    ParameterError,
    SelectionError,
)
from batchloom.dataplane.random import Stream, keys
from batchloom.tests.contracts.clusterer import ClustererContract, blobs
from hypothesis import given, settings
from hypothesis import strategies as st


def some(n: int, d: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def some_ids(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).permutation(10 * n)[:n].astype(np.uint64)


def at_degrees(*degrees: float) -> Any:
    turned = np.radians(np.array(degrees, np.float64))
    return np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)


def groups(labels: Any) -> list[list[int]]:
    return [np.flatnonzero(labels == c).tolist() for c in range(labels.max() + 1)]


def unit(x: Any) -> Any:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def pair_cosine(x: Any, labels: Any) -> float:
    """Mean cosine over all pairs inside clusters."""
    u, total, pairs = unit(x.astype("f8")), 0.0, 0
    for rows in groups(labels):
        total += (u[rows].sum(axis=0) ** 2).sum() - len(rows)
        pairs += len(rows) * (len(rows) - 1)
    return total / pairs


# --- the contract ---------------------------------------------------------------------------------


class TestEuclidean(ClustererContract):
    def make(self, k: int, seed: int = 0) -> Any:
        return BalancedKMeans(k=k, seed=seed)

    def test_finds_separated_groups(self) -> None:
        """Of equal sizes: others must be cut."""
        rng = np.random.default_rng(0)
        truth = rng.permutation(np.repeat(np.arange(self.K), 100))
        centers = rng.normal(size=(self.K, 5)) * 20
        x = centers[truth] + rng.normal(size=(len(truth), 5))
        labels = self.make(self.K).fit(x).labels
        assert len(set(zip(labels.tolist(), truth.tolist(), strict=True))) == self.K

    def test_more_clusters_than_distinct_rows_is_refused(self) -> None:
        """It is not: sizes come first, and equal rows are told apart by their ids."""
        x = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
        found = self.make(4).fit(x)
        assert found.sizes.tolist() == [8, 8, 7, 7]


class TestCosine(TestEuclidean):
    def make(self, k: int, seed: int = 0) -> Any:
        return BalancedKMeans(k=k, seed=seed, metric="cosine")

    def test_inertia_is_the_sum_of_squared_distances(self) -> None:
        """Of rows at length 1."""
        x, _ = blobs()
        found = self.make(self.K).fit(x)
        away = unit(x.astype("f8")) - found.centers[found.labels].astype("f8")
        assert found.inertia == pytest.approx((away**2).sum(), rel=1e-6)

    def test_lengths_do_not_matter(self) -> None:
        x = some(300, 6)
        longer = x * 2.0 ** np.random.default_rng(1).integers(-60, 60, (300, 1))
        model = BalancedKMeans(k=17, metric="cosine")
        assert model.labels(x).tolist() == model.labels(longer.astype(np.float32)).tolist()


# --- sizes ----------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 900),
    share=st.floats(0, 1),
    d=st.sampled_from([1, 3, 8, 17]),
    sample_rows=st.sampled_from([2, 50, 16_384]),
    few=st.booleans(),
)
def test_sizes_are_exact_and_every_row_has_a_label(
    rows: int, share: float, d: int, sample_rows: int, few: bool
) -> None:
    k = 1 + int(share * (rows - 1))
    x = some(rows, d, rows)
    if few:  # many rows are equal
        x = np.round(x)
    labels = BalancedKMeans(k=k, sample_rows=sample_rows).labels(x)
    sizes = np.bincount(labels, minlength=k)
    assert sizes.tolist() == [rows // k + (c < rows % k) for c in range(k)]


@pytest.mark.parametrize(
    ("n", "k", "sizes"),
    [(10, 3, [4, 3, 3]), (11, 4, [3, 3, 3, 2]), (7, 7, [1] * 7), (7, 1, [7]), (1, 1, [1])],
)
def test_sizes(n: int, k: int, sizes: list[int]) -> None:
    found = BalancedKMeans(k=k).fit(some(n, 3))
    assert found.sizes.tolist() == sizes
    assert found.sizes.dtype == np.int64
    assert found.centers.dtype == np.float32


@pytest.mark.parametrize(("size", "k"), [(1, 10), (3, 4), (4, 3), (5, 2), (10, 1), (99, 1)])
def test_a_size_says_how_many_clusters_there_are(size: int, k: int) -> None:
    model = BalancedKMeans(size=size)
    assert model.clusters(10) == k
    found = model.fit(some(10, 2))
    assert len(found.sizes) == k
    assert found.sizes.max() <= size
    assert found.labels.tolist() == BalancedKMeans(k=k).fit(some(10, 2)).labels.tolist()


def test_one_row_a_cluster_leaves_no_inertia() -> None:
    x = some(50, 3)
    found = BalancedKMeans(k=50).fit(x)
    assert sorted(found.labels.tolist()) == list(range(50))
    assert found.inertia == 0.0
    assert found.centers[found.labels].tolist() == x.tolist()


# --- by hand --------------------------------------------------------------------------------------


def test_eight_directions_are_halved_from_any_two_of_them() -> None:
    """Of the 35 ways to halve them the best one; the runner-up is {0, 1, 2, 4}."""
    x = at_degrees(0, 10, 20, 30, 80, 90, 100, 170)
    worth = []
    for rest in combinations(range(1, 8), 3):
        left = [0, *rest]
        right = [i for i in range(8) if i not in left]
        ends = (np.linalg.norm(x[half].sum(axis=0)) for half in (left, right))
        worth.append((sum(ends) / 8, left))
    assert sorted(worth)[-2:] == [
        (pytest.approx(0.764608, abs=1e-6), [0, 1, 2, 4]),
        (pytest.approx(0.902271, abs=1e-6), [0, 1, 2, 3]),
    ]
    places = np.arange(8)
    firsts = set()
    for seed in range(300):
        found = groups(BalancedKMeans(k=2, seed=seed, metric="cosine").labels(x))
        assert sorted(found) == [[0, 1, 2, 3], [4, 5, 6, 7]]
        order = np.argsort(keys(seed, Stream.BALANCED, 0, places))
        firsts.add((int(order[0]), int(order[1])))
    assert firsts == set(permutations(range(8), 2))


@pytest.mark.parametrize("seed", range(20))
def test_four_directions_of_three_rows(seed: int) -> None:
    x = at_degrees(*(90 * (i % 4) + 2 * (i // 4) for i in range(12)))
    labels = BalancedKMeans(size=3, metric="cosine", seed=seed).labels(x)
    assert sorted(groups(labels)) == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]


@pytest.mark.parametrize("kind", ["equal", "zeros", "antipodal"])
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_equal_rows_are_split_by_their_ids(kind: str, seed: int, metric: Any) -> None:
    x = np.ones((10, 3), np.float32)
    x *= {"equal": 1, "zeros": 0, "antipodal": np.repeat([[1], [-1]], 5, axis=0)}[kind]
    mixed = np.random.default_rng(seed).permutation(10)
    labels = np.empty(10, np.int32)
    model = BalancedKMeans(k=4, seed=seed, metric=metric)
    labels[mixed] = model.labels(x[mixed], mixed.astype(np.uint64) * 7 + 1)
    assert groups(labels) == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]


@pytest.mark.parametrize("rounded", [False, True])
def test_on_a_line_clusters_are_intervals(rounded: bool) -> None:
    x = some(500, 1)
    x = np.round(x * 8) if rounded else x
    labels = BalancedKMeans(k=23, sample_rows=100).labels(x)
    spans = sorted((x[rows].min(), x[rows].max()) for rows in groups(labels))
    assert all(a[1] <= b[0] for a, b in pairwise(spans))


def test_rows_of_zeros_stay_in_the_middle_by_cosine() -> None:
    x = np.concatenate([at_degrees(*range(4)), np.zeros((4, 2)), at_degrees(*range(180, 184))])
    found = sorted(groups(BalancedKMeans(k=3, metric="cosine", seed=1).labels(x)))
    assert [0, 1, 2, 3] in found


# --- the steps, plainly ---------------------------------------------------------------------------


def plain(model: BalancedKMeans, x: Any, ids: Any, k: int) -> Any:
    """Follow the module's description in numpy."""
    order = np.argsort(keys(model.seed, Stream.BALANCED, 0, ids))
    x, ids = x[order].astype("f8"), ids[order]
    if model.metric == "cosine":
        x = unit(x).astype("f4").astype("f8")
    labels = np.empty(len(x), np.int32)

    def halved(rows: Any, w: Any, middle: Any, left: int) -> Any:
        scores = (x[rows] @ w - middle @ w).astype(np.float32)
        low = np.zeros(len(rows), bool)
        low[np.lexsort((ids[rows], scores))[:left]] = True
        return low

    def aimed(a: Any, b: Any) -> tuple[Any, Any, float]:
        apart = float(((b - a) ** 2).sum())
        return (b - a) / (math.sqrt(apart) if apart else 1.0), (a + b) / 2, apart

    def learned(rows: Any, left: int, total: int) -> tuple[Any, Any]:
        w, middle, _ = aimed(*x[sorted(rows[:2], key=lambda row: ids[row])])
        m = 512 if len(rows) >= 1024 else len(rows)
        while True:
            share = (
                left if m == total else min(max((2 * m * left + total) // (2 * total), 1), m - 1)
            )
            last, before = -1.0, None
            for turn in range(model.max_iter):
                low = halved(rows[:m], w, middle, share)
                if (low == before).all() or turn == model.max_iter - 1:
                    break
                ends = (x[rows[:m][half]].mean(axis=0) for half in (low, ~low))
                toward, between, apart = aimed(*ends)
                if apart <= last * (1 + model.tol):
                    break
                w, middle, last, before = toward, between, apart, low
            if m == len(rows):
                return w, middle
            m = 4 * m if 8 * m <= len(rows) else len(rows)

    def split(rows: Any, first: int, clusters: int) -> None:
        if clusters == 1:
            labels[rows] = first
            return
        number = (clusters + 1) // 2
        left = number * (len(rows) // clusters) + min(number, len(rows) % clusters)
        low = halved(rows, *learned(rows[: model.sample_rows], left, len(rows)), left)
        split(rows[low], first, number)
        split(rows[~low], first + number, clusters - number)

    split(np.arange(len(x)), 0, k)
    found = np.empty(len(x), np.int32)
    found[order] = labels
    return found


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize(
    ("n", "d", "k", "changes"),
    [
        (40, 3, 7, {}),
        (700, 9, 31, {"tol": 0.0}),
        (3000, 5, 5, {"seed": 3}),
        (9000, 4, 3, {"max_iter": 4}),
        (1500, 8, 200, {"sample_rows": 64}),
        (300, 2, 11, {"max_iter": 1, "sample_rows": 3}),
    ],
)
def test_equals_the_steps_in_numpy(metric: Any, n: int, d: int, k: int, changes: Any) -> None:
    model = BalancedKMeans(k=k, metric=metric, **changes)
    x, ids = some(n, d, n), some_ids(n)
    assert model.labels(x, ids).tolist() == plain(model, x, ids, k).tolist()


@settings(max_examples=300, deadline=None)
@given(
    scores=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2)
    | st.lists(st.sampled_from([-1.0, -0.0, 0.0, 1e-45, 2.0, 3e38]), min_size=2, max_size=200)
    | st.integers(2, 3000).map(lambda n: some(n, 1, n)[:, 0].tolist()),
    share=st.floats(0, 1),
)
def test_a_cut_takes_the_smallest(scores: list[float], share: float) -> None:
    from batchloom.clustering.balanced_kernels import cut

    t = np.array(scores, np.float32)
    n, rank = len(t), 1 + int(share * (len(t) - 2))
    ids, pos = some_ids(n, 1), np.random.default_rng(n).permutation(n)
    right = np.full(n, 9, np.uint8)
    cut(t, rank, pos, ids, np.empty(n, np.float32), right)
    expected = np.ones(n, np.uint8)
    expected[np.lexsort((ids[pos], t))[:rank]] = 0
    assert right.tolist() == expected.tolist()


def test_as_good_as_halving_all_rows_in_every_turn() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(300, 24))[rng.integers(0, 300, 6000)] + 0.6 * some(6000, 24)).astype("f4")
    sampled = BalancedKMeans(k=400, metric="cosine", sample_rows=2000).labels(x)
    every = BalancedKMeans(k=400, metric="cosine", tol=0.0).labels(x)
    assert pair_cosine(x, sampled) >= 0.985 * pair_cosine(x, every)
    assert pair_cosine(x, rng.permutation(sampled)) < 0.05


# --- what must not matter -------------------------------------------------------------------------


def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small inputs take the ways of large ones."""
    monkeypatch.setattr(balanced, "_SHARED", 0)
    monkeypatch.setattr(balanced, "_NODE_BYTES", 1 << 12)
    monkeypatch.setattr(balanced, "_CHUNK", 100)


def same(a: Any, b: Any) -> bool:
    fields = ("labels", "centers", "inertia", "sizes")
    return all(
        np.asarray(getattr(a, f)).tobytes() == np.asarray(getattr(b, f)).tobytes() for f in fields
    )


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_threads_and_layout_change_no_bit(metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, ids = some(4000, 11), some_ids(4000)
    model = BalancedKMeans(k=123, metric=metric, sample_rows=700)
    expected = model.fit(x, ids)
    small_parts(monkeypatch)
    for threads in (1, 2, 4, None):
        assert same(expected, model.fit(x, ids, threads=threads))
    assert same(expected, model.fit(np.asfortranarray(x), ids))
    assert same(expected, model.fit(np.repeat(x, 2, axis=1)[:, ::2], ids))
    assert same(expected, model.fit(x.astype(">f4"), ids.astype(np.int64)))
    assert same(expected, model.fit(x.astype(np.float64), ids))
    assert expected.labels.tolist() == model.labels(x, ids).tolist()


def test_half_precision_is_taken_as_it_is() -> None:
    x = some(200, 4).astype(np.float16)
    model = BalancedKMeans(k=9)
    assert same(model.fit(x), model.fit(x.astype(np.float32)))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 400), k=st.integers(1, 40), seed=st.integers(0, 99), few=st.booleans())
def test_the_order_of_the_rows_does_not_matter(n: int, k: int, seed: int, few: bool) -> None:
    x, ids = some(n, 3, seed), some_ids(n, seed)
    x = np.round(x) if few else x
    mixed = np.random.default_rng(seed).permutation(n)
    model = BalancedKMeans(k=min(k, n), seed=seed, sample_rows=40)
    a, b = model.fit(x, ids), model.fit(x[mixed], ids[mixed])
    assert a.labels[mixed].tolist() == b.labels.tolist()
    assert a.centers.tobytes() == b.centers.tobytes()
    assert a.inertia == b.inertia


def test_a_seed_changes_what_is_found() -> None:
    x = some(500, 6)
    assert (
        BalancedKMeans(k=20).labels(x).tolist() != BalancedKMeans(k=20, seed=1).labels(x).tolist()
    )


def test_wide_columns_of_zeros_change_nothing() -> None:
    x = some(200, 5)
    wide = np.concatenate([x, np.zeros((200, 3), np.float32)], axis=1)
    model = BalancedKMeans(k=13)
    assert model.labels(x).tolist() == model.labels(wide).tolist()


@pytest.mark.parametrize("scale", [2.0**-120, 2.0**110])
def test_large_and_small_numbers(scale: float) -> None:
    x = some(300, 5)
    model = BalancedKMeans(k=11)
    assert model.labels(x).tolist() == model.labels((x * scale).astype(np.float32)).tolist()


def test_the_largest_numbers_are_no_trouble() -> None:
    x = np.sign(some(64, 4)) * np.finfo(np.float32).max
    found = BalancedKMeans(k=4).fit(x)
    assert found.sizes.tolist() == [16] * 4
    assert np.isfinite(found.centers).all()
    assert math.isfinite(found.inertia)


# --- what is refused ------------------------------------------------------------------------------


def test_either_k_or_size() -> None:
    with pytest.raises(ParameterError, match="either 'k', .* or 'size', .* Got neither"):
        BalancedKMeans()
    with pytest.raises(ParameterError, match="Got k = 2 and size = 3 instead"):
        BalancedKMeans(k=2, size=3)


def test_parameter_errors_have_the_one_form() -> None:
    with pytest.raises(ParameterError) as error:
        BalancedKMeans(size=0)
    assert str(error.value) == (
        "The 'size' parameter of BalancedKMeans must be an int or None in the range [1, inf). "
        "Got 0 instead."
    )
    for wrong in (
        {"metric": "l1"},
        {"sample_rows": 1},
        {"max_iter": 0},
        {"tol": -1.0},
        {"seed": -1},
    ):
        with pytest.raises(ParameterError, match=f"The '{next(iter(wrong))}' parameter"):
            BalancedKMeans(k=1, **wrong)  # type: ignore[arg-type]


def test_rows_that_cannot_be_clustered() -> None:
    model = BalancedKMeans(k=2)
    with pytest.raises(SelectionError, match="There are no rows"):
        model.fit(np.zeros((0, 3)))
    with pytest.raises(SelectionError, match=r"shape \(n, d\), found float64 of shape \(3,\)"):
        model.fit(np.zeros(3))
    with pytest.raises(SelectionError, match="found <U1"):
        model.fit(np.array([["a"], ["b"]]))
    with pytest.raises(SelectionError, match=r"'ids' as integers ≥ 0 of shape \(2,\)"):
        model.fit(np.zeros((2, 3)), [1, 2, 3])
    with pytest.raises(SelectionError, match=r"Row ids repeat: 5, 9\. Give"):
        model.fit(np.zeros((6, 3)), [5, 1, 9, 5, 9, 9])


def test_rows_that_are_not_finite_are_named_in_order() -> None:
    x = some(10, 3)
    x[[7, 2, 4], [0, 1, 2]] = np.nan, np.inf, -np.inf
    ids = np.arange(10, dtype=np.uint64)[::-1] + 100
    with pytest.raises(
        InvalidValueError, match="3 rows hold NaN or infinite values: 102, 105, 107"
    ):
        BalancedKMeans(k=2).labels(x, ids)
    with pytest.raises(InvalidValueError, match="1 rows"):
        BalancedKMeans(k=1).labels(np.array([[1e300], [0.0]]))  # no float32


def test_rows_without_columns_are_refused() -> None:
    with pytest.raises(SelectionError, match=r"found float64 of shape \(4, 0\)"):
        BalancedKMeans(k=2).fit(np.zeros((4, 0)))
