"""Near-duplicates: the rows that brute force removes, whatever the blocks and orders."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from batchloom.clustering import centroids, near_duplicates
from batchloom.clustering.near_duplicates import NearDuplicates
from batchloom.dataplane.errors import InvalidValueError, ParameterError, SelectionError
from hypothesis import given, settings
from hypothesis import strategies as st

PREFERS = ("farthest", "nearest", "lowest-id")
AGAINST = ("earlier", "kept")


def some(n: int, d: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def turned(*degrees: float) -> Any:
    """Rows of length 1 at angles."""
    angles = np.deg2rad(np.array(degrees, np.float64))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def brute(x: Any, labels: Any, ids: Any, threshold: float, prefer: str, against: str) -> Any:
    """What each row is a near-duplicate of, −1 of rows that are kept; how many pairs there are."""
    x = np.asarray(x, np.float32).astype(np.float64)
    lengths = np.linalg.norm(x, axis=1)
    unit = np.divide(x, lengths[:, None], out=np.zeros_like(x), where=lengths[:, None] > 0)
    original, pairs = np.full(len(x), -1), 0
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort(ids[rows])]
        if prefer != "lowest-id":
            center = unit[rows].mean(axis=0)
            away = 1 - unit[rows] @ center / np.linalg.norm(center)
            rows = rows[np.argsort(-away if prefer == "farthest" else away, kind="stable")]
        for number, row in enumerate(rows):
            for before in rows[:number]:
                if against == "kept" and original[before] >= 0:
                    continue
                if unit[row] @ unit[before] > threshold:
                    pairs += 1
                    original[row] = before if original[row] < 0 else original[row]
    return original, pairs


# --- against brute force --------------------------------------------------------------------------


@pytest.mark.parametrize("prefer", PREFERS)
@pytest.mark.parametrize("against", AGAINST)
def test_as_brute_force(prefer: Any, against: Any) -> None:
    draw = np.random.default_rng(1)
    for d, threshold in ((2, 0.999), (3, 0.9), (7, 0.6)):
        x, labels = some(260, d, d), draw.integers(0, 4, 260)
        ids = draw.permutation(1000)[:260].astype(np.uint64)
        found = NearDuplicates(threshold=threshold, prefer=prefer, against=against).find(
            x, labels, ids
        )
        original, pairs = brute(x, labels, ids, threshold, prefer, against)
        gone = np.flatnonzero(original >= 0)
        assert 0 < len(gone) < 260
        assert found.removed.tolist() == gone.tolist()
        assert found.rows.tolist() == np.flatnonzero(original < 0).tolist()
        assert found.original.tolist() == original[gone].tolist()
        assert found.pairs == pairs
        unit = x.astype(np.float64)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        expected = (unit[gone] * unit[original[gone]]).sum(axis=1)
        np.testing.assert_allclose(found.cosines, expected, rtol=1e-12)
        assert found.rows.dtype == found.removed.dtype == found.original.dtype == np.uint64


@settings(max_examples=40)
@given(
    points=st.lists(
        st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.integers(0, 1)), min_size=1,
        max_size=40,
    ),
    threshold=st.sampled_from([0.3, 0.75, 0.9, 0.99]), prefer=st.sampled_from(PREFERS),
    against=st.sampled_from(AGAINST), seed=st.integers(0, 99),
)  # fmt: skip
def test_permutations_change_nothing(
    points: Any, threshold: float, prefer: Any, against: Any, seed: int
) -> None:
    """Of many equal rows, opposite rows and rows of zeros too."""
    data = np.array(points)
    x, labels, ids = data[:, :2], data[:, 2], np.arange(len(data), dtype=np.uint64) * 5 + 2
    method = NearDuplicates(threshold=threshold, prefer=prefer, against=against)
    mixed = np.random.default_rng(seed).permutation(len(data))
    a, b = method.find(x, labels, ids), method.find(x[mixed], labels[mixed], ids[mixed])
    assert set(ids[a.removed]) == set(ids[mixed][b.removed])
    of_a = dict(zip(ids[a.removed], zip(ids[a.original], a.cosines, strict=True), strict=True))
    here = ids[mixed]
    of_b = dict(zip(here[b.removed], zip(here[b.original], b.cosines, strict=True), strict=True))
    assert of_a == of_b
    assert a.pairs == b.pairs
    assert a.report == b.report


@settings(max_examples=25)
@given(n=st.integers(1, 60), seed=st.integers(0, 999), threshold=st.floats(0.05, 0.999))
def test_what_the_two_rules_promise(n: int, seed: int, threshold: float) -> None:
    x = some(n, 3, seed)
    unit = x.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    alike = unit @ unit.T > threshold
    earlier = NearDuplicates(threshold=threshold).find(x)
    kept = NearDuplicates(threshold=threshold, against="kept").find(x)
    # No two kept rows are alike, and each removed one is like the kept one that is named.
    rows = kept.rows.astype(int)
    assert not (alike[np.ix_(rows, rows)] & ~np.eye(len(rows), dtype=bool)).any()
    assert set(kept.original.tolist()) <= set(rows.tolist())
    assert alike[kept.removed.astype(int), kept.original.astype(int)].all()
    # All earlier rows remove more, and all pairs are counted.
    assert set(earlier.rows.tolist()) <= set(rows.tolist())
    assert earlier.pairs == (int(alike.sum()) - n) // 2
    assert kept.pairs <= earlier.pairs


# --- by hand --------------------------------------------------------------------------------------


def test_a_chain() -> None:
    """Rows at 0, 10 and 20 degrees; only neighbours are alike."""
    x = turned(0, 10, 20)
    rule = {"threshold": 0.97, "prefer": "lowest-id"}  # cos 10° = 0.985, cos 20° = 0.940
    found = NearDuplicates(**rule).find(x)
    assert found.rows.tolist() == [0]
    assert found.original.tolist() == [0, 1]
    assert found.pairs == 2
    assert NearDuplicates(**rule, against="kept").find(x).rows.tolist() == [0, 2]


def test_which_of_a_pair_is_kept() -> None:
    """Rows 0 and 1 are alike, and row 1 is the nearer to the centroid."""
    x, ids = turned(0, 5, 40), [7, 9, 8]
    rows = {
        prefer: NearDuplicates(threshold=0.99, prefer=prefer).find(x, ids=ids).rows.tolist()
        for prefer in PREFERS
    }
    assert rows == {"farthest": [0, 2], "nearest": [1, 2], "lowest-id": [0, 2]}
    again = NearDuplicates(threshold=0.99, prefer="lowest-id").find(x, ids=[9, 7, 8])
    assert again.rows.tolist() == [1, 2]


def test_equal_rows_keep_the_lowest_id() -> None:
    x, ids = np.full((6, 3), 0.1), [5, 3, 9, 2, 8, 4]
    for prefer in PREFERS:
        found = NearDuplicates(threshold=0.999999, prefer=prefer).find(x, ids=ids)
        assert found.rows.tolist() == [3]
        assert found.original.tolist() == [3] * 5
        assert found.cosines.tolist() == [1.0] * 5  # exactly
        assert found.pairs == 15


def test_clusters_are_not_compared_with_each_other() -> None:
    x, labels = np.repeat(turned(0, 90), 3, axis=0), [4, 4, -7, 4, -7, 4]
    found = NearDuplicates().find(x, labels)
    assert found.rows.tolist() == [0, 2, 3, 4]
    assert found.report == {
        "rows": 6, "selected": 4, "saved": pytest.approx(1 / 3), "removed": 2, "pairs": 2,
        "clusters": 2, "clusters_with_near_duplicates": 1, "largest_cluster": 4,
    }  # fmt: skip
    assert found.selection.rows.tolist() == found.rows.tolist()
    assert found.selection.weights is None


def test_planted_duplicates() -> None:
    draw = np.random.default_rng(5)
    x, labels = some(3000, 64, 4), draw.integers(0, 10, 3000)
    copies = draw.choice(3000, 200, replace=False)
    noisy = x[copies] * 3 + 0.02 * some(200, 64, 6)
    both, labels = np.concatenate([x, noisy]), np.append(labels, labels[copies])
    found = NearDuplicates(threshold=0.98, prefer="lowest-id").find(both, labels)
    assert found.removed.tolist() == list(range(3000, 3200))
    assert found.original.tolist() == copies.tolist()
    assert found.pairs == 200
    assert found.cosines.min() > 0.98


# --- near the threshold ---------------------------------------------------------------------------


def test_at_the_threshold_a_row_stays() -> None:
    """The cosine of (1, 0) and (3, 4) is 0.6 in float64; only what is above counts."""
    x = np.zeros((40, 9))
    x[:, 4], x[20:, 4], x[20:, 8] = 1, 3, 4
    at = NearDuplicates(threshold=0.6).find(x)
    below = NearDuplicates(threshold=float(np.nextafter(0.6, 0))).find(x)
    assert len(at.rows) == 2
    assert at.pairs == 2 * 190
    assert len(below.rows) == 1
    assert below.pairs == 780


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 1e-44])
def test_pairs_next_to_the_threshold_are_decided_in_float64(scale: float) -> None:
    """Cosines that float32 cannot tell apart, on both sides of a threshold."""
    threshold, n = 0.95, 300
    draw = np.random.default_rng(2)
    spread = threshold + draw.integers(-40, 41, n) * 2.0**-30
    rows = np.zeros((n, 3))
    rows[:, 0], rows[:, 1] = spread, np.sqrt(1 - spread**2)
    x = (np.concatenate([[[1.0, 0, 0]], rows]) * np.float64(scale)).astype(np.float32)
    for row in range(1, n + 1):
        if not x[row].any() or not x[0].any():
            continue
        found = NearDuplicates(threshold=threshold, prefer="lowest-id").find(x[[0, row]])
        # Exactly: cos² > threshold², by rational numbers, where that is not too near to tell.
        a, b = ([Fraction(float(v)) for v in x[i]] for i in (0, row))
        dot, of_a, of_b = (
            sum(u * v for u, v in zip(p, q, strict=True)) for p, q in ((a, b), (a, a), (b, b))
        )
        exact = dot * dot / (of_a * of_b)
        limit = Fraction(threshold) ** 2
        if abs(exact - limit) > limit * 8 * Fraction(2) ** -52:
            assert (len(found.removed) == 1) == (exact > limit)


def test_blocks_and_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(8)
    x = some(700, 5, 9)
    x[::7] = x[3] * draw.uniform(0.5, 2, (100, 1)).astype(np.float32)  # one direction
    labels = draw.integers(0, 2, 700)
    methods = [
        NearDuplicates(threshold=t, prefer=k, against=a)
        for t in (0.8, 0.99) for k in PREFERS for a in AGAINST
    ]  # fmt: skip
    whole = [m.find(x, labels) for m in methods]
    for tile, block in ((256, 1), (3, 4 * 5 * 100), (64, 4 * 5 * 64), (7, 4 * 5 * 23)):
        monkeypatch.setattr(near_duplicates, "_TILE", tile)
        monkeypatch.setattr(centroids, "_BLOCK_BYTES", block if block > 1 else 4 * 5 * 41)
        for method, expected in zip(methods, whole, strict=True):
            found = method.find(x, labels)
            for name in ("rows", "removed", "original", "cosines"):
                assert getattr(found, name).tobytes() == getattr(expected, name).tobytes()
            assert found.pairs == expected.pairs


def test_memory_order_and_dtype_change_nothing() -> None:
    x = some(200, 6)
    expected = NearDuplicates(threshold=0.7).find(x).rows.tolist()
    for given_ in (np.asfortranarray(x), x.astype(np.float64), np.repeat(x, 2, axis=0)[::2]):
        assert NearDuplicates(threshold=0.7).find(given_).rows.tolist() == expected


# --- awkward rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [1e-9, 0.5, 0.999])
def test_rows_of_zeros_stay(threshold: float) -> None:
    x = np.zeros((5, 3))
    x[3:, 1] = 2
    for prefer in PREFERS:
        found = NearDuplicates(threshold=threshold, prefer=prefer).find(x)
        assert found.removed.tolist() == [4]
        assert found.pairs == 1


def test_opposite_rows_have_no_centroid() -> None:
    found = NearDuplicates(threshold=0.5).find([[1.0, 0], [-1, 0], [2, 0], [-2, 0]])
    assert found.rows.tolist() == [0, 1]


def test_one_row_and_rows_of_one_number() -> None:
    assert NearDuplicates().find([[1.0, 2]]).rows.tolist() == [0]
    found = NearDuplicates().find([[1.0], [-1], [3], [0]])
    assert found.rows.tolist() == [0, 1, 3]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_rows_that_are_not_finite_are_named(value: float) -> None:
    x = some(20, 3).astype(np.float64)
    x[[4, 11], 1] = value
    with pytest.raises(InvalidValueError, match="2 rows hold NaN or infinite values: 18, 32"):
        NearDuplicates().find(x, ids=np.arange(20) * 2 + 10)


def test_bad_input() -> None:
    x = some(4, 2)
    with pytest.raises(SelectionError, match="no rows"):
        NearDuplicates().find(x[:0])
    with pytest.raises(SelectionError, match=r"'labels' as integers of shape \(4,\)"):
        NearDuplicates().find(x, [0, 1])
    with pytest.raises(SelectionError, match="'labels' as integers"):
        NearDuplicates().find(x, [0.0, 1, 0, 1])
    with pytest.raises(SelectionError, match="Row ids repeat: 3"):
        NearDuplicates().find(x, ids=[1, 3, 3, 4])
    with pytest.raises(SelectionError, match=r"shape \(n, d\)"):
        NearDuplicates().find(x[:, 0])


@pytest.mark.parametrize("threshold", [0, 1, 1.5, -0.1, np.nan])
def test_the_threshold_has_a_range(threshold: float) -> None:
    with pytest.raises(ParameterError, match=r"'threshold' .* in the range \(0, 1\)"):
        NearDuplicates(threshold=threshold)


def test_parameter_errors_have_the_one_form() -> None:
    with pytest.raises(ParameterError) as error:
        NearDuplicates(prefer="first")  # type: ignore[arg-type]
    assert str(error.value) == (
        "The 'prefer' parameter of NearDuplicates must be one of 'farthest', 'nearest', "
        "'lowest-id'. Got 'first' instead."
    )
