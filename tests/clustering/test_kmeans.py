from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from batchloom.clustering.kmeans import KMeans, KMeansClusters
from batchloom.clustering.kmeans_sums import Scale, span
from batchloom.dataplane.errors import BatchloomError, ParameterError
from batchloom.tests.contracts.clusterer import ClustererContract, blobs

F32 = npt.NDArray[np.float32]


class TestKMeans(ClustererContract):
    def make(self, k: int, seed: int = 0) -> Any:
        return KMeans(k=k, seed=seed)


class TestTwoLevels(ClustererContract):
    def make(self, k: int, seed: int = 0) -> Any:
        return KMeans(k=k, seed=seed, levels="two", probes=1)


def same(a: KMeansClusters, b: KMeansClusters) -> None:
    assert a.centers.tobytes() == b.centers.tobytes()
    assert a.labels.tolist() == b.labels.tolist()
    assert a.inertia == b.inertia
    assert a.sizes.tolist() == b.sizes.tolist()
    assert (a.iterations, a.passes) == (b.iterations, b.passes)


def normal(n: int, d: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(size=(n, d)).astype("f4")


# --- what it finds --------------------------------------------------------------------------------


def test_lloyd_by_hand() -> None:
    """Assignments 010111 (266), 000111 (40.875), 000111 (24)."""
    x = np.array([[0, 0], [0, 2], [2, 0], [8, 8], [8, 10], [5, 5]], np.float32)
    model = KMeans(2, full_passes=0)
    centers, scale = x[:2].copy(), Scale.of(span(x))
    ids = np.arange(6, dtype=np.uint64)
    for labels, inertia in (([0, 1, 0, 1, 1, 1], 266), ([0, 0, 0, 1, 1, 1], 40.875)):
        found = np.empty(6, np.int32)
        sums = model.sums(x, ids, centers, scale, labels=found)
        assert (found.tolist(), sums.inertia) == (labels, pytest.approx(inertia))
        centers = model.update(centers, sums)
    fitted = model.fit(x, initial=x[:2])
    assert fitted.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert fitted.inertia == pytest.approx(24)
    assert fitted.sizes.tolist() == [3, 3]
    np.testing.assert_allclose(fitted.centers, [[2 / 3, 2 / 3], [7, 23 / 3]], rtol=1e-6)
    assert fitted.centers.tobytes() == centers.tobytes()


def test_inertia_is_near_scikit_learns() -> None:
    from sklearn.cluster import KMeans as Reference

    x = normal(3000, 8)
    reference = Reference(20, n_init=3, random_state=0).fit(x).inertia_
    assert KMeans(20).fit(x).inertia <= 1.01 * reference


def test_inertia_is_near_that_of_faiss() -> None:
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    x, _ = blobs(60_000, 300, 16)
    x += normal(60_000, 16) * np.float32(4)
    theirs = faiss.Kmeans(16, 128, niter=10, max_points_per_centroid=1 << 30, seed=1)
    theirs.train(x)
    index = faiss.IndexFlatL2(16)
    index.add(theirs.centroids)
    inertia = index.search(x, 1)[0].sum(dtype=np.float64)
    faiss.omp_set_num_threads(before)
    ours = KMeans(128, rows_per_center=128, max_iter=10).fit(x)
    assert ours.sample_rows == 128 * 128
    assert ours.inertia <= 1.01 * inertia


def test_every_row_is_with_its_nearest_center() -> None:
    x = normal(2000, 3)
    found = KMeans(25, rows_per_center=20).fit(x)
    far = ((x[:, None].astype("f8") - found.centers) ** 2).sum(axis=2)
    assert found.labels.tolist() == far.argmin(axis=1).tolist()
    assert found.device in ("cpu", "cuda")


def test_passes_over_all_rows_improve_on_the_sample() -> None:
    x = normal(20_000, 4)
    inertia = [KMeans(16, rows_per_center=8, full_passes=p).fit(x).inertia for p in (0, 1, 3)]
    assert inertia[0] > inertia[1] > inertia[2]


def test_without_passes_it_trains_on_the_sample_only() -> None:
    x, _ = blobs(5000)
    model = KMeans(3, rows_per_center=10, full_passes=0)
    ids = np.arange(5000, dtype=np.uint64)
    assert model.sample(ids).sum() == 30
    changed = x.copy()
    changed[~model.sample(ids)] *= 1.01
    assert model.fit(x).centers.tobytes() == model.fit(changed).centers.tobytes()
    assert model.train(x[model.sample(ids)]).shape == (3, 5)


# --- the same bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"levels": "two"}, {"spherical": True}])
def test_order_threads_and_layout_change_no_bit(options: dict[str, Any]) -> None:
    x = normal(6000, 5)
    x[::2] = np.round(x[::2])  # so that rows tie and repeat
    ids = np.arange(6000, dtype=np.uint64) * np.uint64(7)
    if "spherical" in options:
        x[~x.any(axis=1)] = 1
    model = KMeans(40, rows_per_center=50, **options)
    expected = model.fit(x, ids)
    for seed, threads in ((1, 2), (2, 1), (3, 3)):
        order = np.random.default_rng(seed).permutation(6000)
        other = KMeans(40, rows_per_center=50, threads=threads, **options).fit(x[order], ids[order])
        assert expected.centers.tobytes() == other.centers.tobytes()
        assert expected.labels[order].tolist() == other.labels.tolist()
        assert expected.inertia == other.inertia
    wide = np.zeros((6000, 10))
    wide[:, ::2] = x
    same(model.fit(wide[:, ::2], ids), expected)
    same(model.fit(np.asfortranarray(x), ids.astype(np.int64)), expected)
    same(model.fit(x.astype(np.float64), ids), expected)


@pytest.mark.parametrize("parts", [1, 2, 7, 64])
@pytest.mark.parametrize("options", [{}, {"levels": "two"}, {"spherical": True}])
def test_a_job_over_parts_finds_the_same(parts: int, options: dict[str, Any]) -> None:
    """As a job does it: each step over parts of the rows, in any order."""
    x, ids = normal(4000, 6) + np.float32(0.5), np.arange(4000, dtype=np.uint64) + np.uint64(100)
    model = KMeans(30, rows_per_center=40, full_passes=2, threads=2, **options)
    expected = model.fit(x, ids)

    order = np.random.default_rng(parts).permutation(4000)
    pieces = [(x[p], ids[p]) for p in np.array_split(order, parts)]
    ready = [(model.prepared(a, b), b) for a, b in pieces]
    spans = [span(a, b) for a, b in ready]
    chosen = model.sample(ids)
    sample = model.prepared(x[chosen], ids[chosen])
    coarse = model.coarse(sample, ids[chosen])
    centers = model.train(sample, ids[chosen], coarse=coarse)
    scale = Scale.of(sum(spans[1:], spans[0]), centers)
    for _ in range(2):
        sums = [model.sums(a, b, centers, scale, coarse=coarse) for a, b in ready]
        centers = model.update(centers, sum(sums[1:], sums[0]))
    labels = {}
    last = []
    for a, b in ready:
        mine = np.empty(len(a), np.int32)
        last.append(model.sums(a, b, centers, scale, coarse=coarse, labels=mine))
        labels |= dict(zip(b.tolist(), mine.tolist(), strict=True))
    total = sum(last[1:], last[0])
    assert not len(total.empty)
    assert centers.tobytes() == expected.centers.tobytes()
    assert [labels[i] for i in ids.tolist()] == expected.labels.tolist()
    assert (total.inertia, total.counts.tolist()) == (expected.inertia, expected.sizes.tolist())


def test_ids_key_the_draws() -> None:
    x = normal(3000, 4)
    a = KMeans(10, rows_per_center=5, full_passes=0).fit(x)
    b = KMeans(10, rows_per_center=5, full_passes=0).fit(x, np.arange(5000, 8000))
    c = KMeans(10, rows_per_center=5, full_passes=0, seed=1).fit(x)
    assert len({f.centers.tobytes() for f in (a, b, c)}) == 3


# --- clusters without rows, and starting points ---------------------------------------------------


def test_clusters_without_rows_get_farthest_rows() -> None:
    x, truth = blobs(900, 6)
    start = np.repeat(x[:1], 6, axis=0)  # five of six equal centers have no rows
    found = KMeans(6).fit(x, initial=start)
    assert found.sizes.min() > 0
    pairs = set(zip(found.labels.tolist(), truth.tolist(), strict=True))
    assert len(pairs) == 6


def test_centers_far_from_all_rows_find_some() -> None:
    x = normal(500, 3)
    start = np.concatenate([x[:3], np.full((4, 3), 1e6, np.float32)])
    found = KMeans(7, max_iter=1, full_passes=0).fit(x, initial=start)
    assert found.sizes.min() > 0
    assert np.abs(found.centers).max() < 10


def test_the_last_pass_is_repeated_until_no_cluster_is_empty() -> None:
    x = np.concatenate([np.zeros((50, 1)), np.arange(10)[:, None] * 100 + 7]).astype("f4")
    start = np.full((8, 1), 1e3, np.float32) + np.arange(8)[:, None].astype("f4")
    found = KMeans(8, max_iter=1, full_passes=0).fit(x, initial=start)
    assert found.sizes.min() > 0
    assert found.sizes.sum() == 60


def test_as_many_clusters_as_rows_that_differ() -> None:
    x = np.repeat(normal(17, 2), 5, axis=0)
    for options in ({}, {"levels": "two"}, {"initial": np.zeros((17, 2), np.float32)}):
        start = options.pop("initial", None)
        found = KMeans(17, **options).fit(x, initial=start)  # type: ignore[arg-type]
        assert found.inertia == 0.0
        assert found.sizes.tolist() == [5] * 17


def test_a_warm_start_goes_on() -> None:
    x = normal(3000, 6)
    first = KMeans(20, max_iter=3, tol=0, full_passes=0).fit(x)
    on = KMeans(20, max_iter=3, tol=0, full_passes=0).fit(x, initial=first.centers)
    through = KMeans(20, max_iter=6, tol=0, full_passes=0).fit(x)
    same_but_iterations = (on.centers.tobytes(), on.inertia)
    assert same_but_iterations == (through.centers.tobytes(), through.inertia)
    done = KMeans(20, max_iter=300, tol=0, full_passes=0).fit(x)
    assert done.iterations < 300
    assert KMeans(20).fit(x, initial=done.centers).centers.tobytes() == done.centers.tobytes()


# --- spherical ------------------------------------------------------------------------------------


def test_spherical_groups_by_direction() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 5, 1000)
    axes = np.eye(5, 8)[truth] * 10 + rng.normal(size=(1000, 8))
    x = (axes * rng.lognormal(sigma=2, size=(1000, 1))).astype("f4")
    found = KMeans(5, spherical=True).fit(x)
    assert len(set(zip(found.labels.tolist(), truth.tolist(), strict=True))) == 5
    np.testing.assert_allclose(np.linalg.norm(found.centers, axis=1), 1, rtol=1e-6)
    unit = x / np.linalg.norm(x.astype("f8"), axis=1, keepdims=True)
    cosines = (unit * found.centers[found.labels]).sum(axis=1)
    assert found.inertia / 2 == pytest.approx((1 - cosines).sum(), rel=1e-5)
    assert found.labels.tolist() == (unit @ found.centers.T).argmax(axis=1).tolist()


def test_spherical_refuses_rows_of_zeros_by_id() -> None:
    x = normal(20, 3)
    x[[4, 9]] = 0
    x[9, 1] = -0.0
    with pytest.raises(BatchloomError, match="2 rows are all zeros .* 104, 109"):
        KMeans(2, spherical=True).fit(x, np.arange(100, 120))


# --- two levels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["nested", "normal", "blobs"])
def test_two_levels_are_within_a_tenth_of_one(data: str) -> None:
    if data == "normal":
        x = normal(30_000, 12)
    elif data == "blobs":
        x = blobs(30_000, 700, 8)[0]
        x += normal(30_000, 8) * np.float32(5)
    else:
        rng = np.random.default_rng(1)
        top = rng.normal(size=(16, 8)) * 9
        sub = (top[:, None] + rng.normal(size=(16, 30, 8)) * 2).reshape(-1, 8)
        x = (sub[rng.integers(0, 480, 30_000)] + rng.normal(size=(30_000, 8)) * 0.7).astype("f4")
    one = KMeans(400, levels="one", max_iter=8).fit(x)
    two = KMeans(400, levels="two", max_iter=8).fit(x)
    assert one.coarse is None
    assert two.coarse is not None
    assert two.coarse.shape == (20, x.shape[1])
    assert two.sizes.min() > 0
    assert two.inertia <= 1.10 * one.inertia


def test_two_levels_of_many_clusters_by_default() -> None:
    assert KMeans(5000).two_levels
    assert not KMeans(4096).two_levels
    assert not KMeans(5000, levels="one").two_levels
    assert KMeans(20, levels="two").two_levels


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"levels": "two"}])
def test_constant_data(options: dict[str, Any]) -> None:
    x = np.full((50, 3), 2.5, np.float32)
    found = KMeans(1, **options).fit(x)
    assert (found.inertia, found.centers.tolist()) == (0.0, [[2.5, 2.5, 2.5]])
    with pytest.raises(BatchloomError, match="k = 5 .* only 1 rows differ"):
        KMeans(5, **options).fit(x)
    with pytest.raises(BatchloomError, match="k = 5 .* only 1 rows differ"):
        KMeans(5, **options).fit(x, initial=normal(5, 3))


def test_a_sample_of_too_few_rows_that_differ() -> None:
    x = np.zeros((5000, 1), np.float32)
    x[:3, 0] = (1, 2, 3)
    with pytest.raises(BatchloomError, match="only 1 rows differ of the 8 that it looked at"):
        KMeans(4, rows_per_center=2).fit(x)


def test_repeated_ids_are_refused() -> None:
    with pytest.raises(BatchloomError, match="Row ids repeat: 7"):
        KMeans(2).fit(normal(4, 2), [7, 8, 7, 9])


@pytest.mark.parametrize(
    ("x", "ids", "message"),
    [
        (np.zeros(4), None, "shape \\(n, d\\), found float64 of shape \\(4,\\)"),
        (np.zeros((2, 2, 2)), None, "shape \\(n, d\\)"),
        (np.zeros((4, 0)), None, "shape \\(n, d\\)"),
        (np.array([["a"], ["b"]]), None, "rows of numbers"),
        (np.zeros((0, 3)), None, "k = 2 clusters of 0 rows"),
        (np.zeros((4, 2)), [1, 2], "shape \\(4,\\)"),
        (np.zeros((4, 2)), [-1, 2, 3, 4], "integers ≥ 0"),
        (np.zeros((4, 2)), [0.5, 2, 3, 4], "integers"),
        ([[1e300, 0.0], [0, 0], [1, 1]], None, "1 rows hold NaN or infinite .*: 0"),
    ],
)
def test_what_it_cannot_cluster(x: Any, ids: Any, message: str) -> None:
    with pytest.raises(BatchloomError, match=message):
        KMeans(2).fit(x, ids)


def test_initial_centers_must_fit() -> None:
    x = normal(30, 3)
    with pytest.raises(BatchloomError, match="'initial' centers of shape \\(4, 3\\)"):
        KMeans(4).fit(x, initial=x[:5])
    with pytest.raises(BatchloomError, match="NaN"):
        KMeans(4).fit(x, initial=np.full((4, 3), np.nan))


def test_parameter_errors_have_the_one_form() -> None:
    with pytest.raises(ParameterError) as error:
        KMeans(k=0)
    assert str(error.value) == (
        "The 'k' parameter of KMeans must be an int in the range [1, inf). Got 0 instead."
    )
