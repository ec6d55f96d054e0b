from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from itertools import product
from typing import Any

import numpy as np
import pytest
from batchloom.clustering.clusters import Clusters
from batchloom.clustering.mixture import Mixture, covariance_kind, fit_mixture
from batchloom.clustering.ppp import PPP, PPPModel, evidence_series
from batchloom.clustering.ppp_candidates import (
    Candidate,
    Run,
    adjusted_rand,
    one_cluster,
    replication,
    stability,
)
from batchloom.clustering.ppp_evidence import valley
from batchloom.dataplane.errors import InvalidValueError, ParameterError, SelectionError
from batchloom.tests.contracts.clusterer import ClustererContract
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, multivariate_normal
from sklearn.metrics import adjusted_rand_score

CORNERS = np.array([[0, 0], [9, 0], [0, 9], [9, 9]])
CONDITIONS = {
    "smallest",
    "stability",
    "valley",
    "chance",
    "replication",
    "agreement",
    "worst_agreement",
}


def four(n: int = 240, seed: int = 0) -> tuple[Any, Any]:
    """Return rows of four round groups, and the group of each."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % 4
    return (CORNERS[truth] + rng.normal(size=(n, 2))).astype(np.float32), truth


def stretched(n: int = 600) -> tuple[Any, Any]:
    """Return rows of three long groups side by side, which k-means cuts across."""
    rng = np.random.default_rng(4)
    truth = np.arange(n) % 3
    return np.stack([rng.normal(size=n) * 8, truth * 6 + rng.normal(size=n)], axis=1), truth


# --- how many clusters ----------------------------------------------------------------------------


def test_finds_separated_groups_and_numbers_them_by_size() -> None:
    rng = np.random.default_rng(1)
    truth = np.repeat([0, 1, 2], [60, 150, 90])
    x = CORNERS[truth] + rng.normal(size=(300, 2))
    found = PPP(k_max=6).fit(x)
    assert found.k == 3
    assert np.bincount(found.labels).tolist() == [150, 90, 60]
    assert adjusted_rand_score(truth, found.labels) == 1.0
    assert (found.labels.dtype, found.posterior.dtype) == (np.int32, np.float32)
    assert found.separable.all()


@pytest.mark.parametrize("k", [2, 5, 9])
def test_finds_groups_of_uneven_sizes_and_widths(k: int) -> None:
    rng = np.random.default_rng(k)
    centers = np.array(list(product(range(3), repeat=2)))[:k] * 10
    widths = np.linspace(0.5, 1.5, k)
    truth = rng.choice(k, 600, p=(w := np.linspace(1, 3, k)) / w.sum())
    x = centers[truth] + rng.normal(size=(600, 2)) * widths[truth][:, None]
    found = PPP(k_max=12).fit(x)
    assert found.k == k
    assert adjusted_rand_score(truth, found.labels) > 0.97


CLOUDS = {
    "uniform": lambda rng: rng.uniform(size=(500, 2)),
    "box": lambda rng: rng.uniform(size=(500, 2)) * [1, 4],
    "Gaussian": lambda rng: rng.normal(size=(500, 8)),
    "many dimensions": lambda rng: rng.uniform(size=(300, 16)),
    "exponential": lambda rng: rng.exponential(size=(500, 3)),
    "line": lambda rng: rng.uniform(size=(500, 1)),
}


@pytest.mark.parametrize("cloud", CLOUDS)
def test_one_cloud_is_one_cluster(cloud: str) -> None:
    found = PPP(k_max=8).fit(CLOUDS[cloud](np.random.default_rng(3)))
    assert found.k == 1
    assert not found.labels.any()
    assert (found.posterior == 1).all()
    assert found.separable.all()


def test_groups_that_share_a_stretched_shape_need_the_adaptive_metric() -> None:
    x, truth = stretched()
    found = PPP(k_max=6).fit(x)
    assert found.k == 3
    assert found.evidence[2]["metric"] == "within"
    assert adjusted_rand_score(truth, found.labels) > 0.97
    assert PPP(k_max=6, metric="euclidean").fit(x).k != 3


def test_units_do_not_matter_where_columns_are_standardised() -> None:
    x, truth = four()
    found = PPP(k_max=6, scale="standard").fit(x * [1.0, 1e4])
    assert found.k == 4
    assert adjusted_rand_score(truth, found.labels) == 1.0


def test_a_split_group_is_not_two_groups() -> None:
    """With few rows of many dimensions each half of a group lies apart from the other by chance."""
    rng = np.random.default_rng(2)
    truth = np.arange(160) % 4
    x = rng.normal(size=(4, 24))[truth] * 12 + rng.normal(size=(160, 24))
    assert PPP(k_max=7).fit(x).k == 4


class Told:
    """PPP as a clusterer: what its model and its evidence say, as `Clusters`."""

    def __init__(self, k_max: int) -> None:
        self.method = PPP(k_max=k_max)

    def fit(self, x: Any, ids: Any = None) -> Clusters:
        found, model = self.method.fit(x, ids), self.method.train(x, ids)
        assert found.k == model.k
        assert model.metric.size == 0
        return Clusters(
            labels=found.labels,
            centers=model.centers / model.unit + model.origin,
            inertia=found.evidence[found.k - 1]["inertia"],
            sizes=np.bincount(found.labels, minlength=found.k),
        )


class TestClusterer(ClustererContract):
    """What any clusterer does; k is found, so that one of too many clusters is not refused."""

    def make(self, k: int, seed: int = 0) -> Any:
        return Told(k)

    test_more_clusters_than_rows_is_refused = None  # type: ignore[assignment]
    test_more_clusters_than_distinct_rows_is_refused = None  # type: ignore[assignment]


# --- the same rows, the same bits -----------------------------------------------------------------


@pytest.mark.parametrize("make", [four, stretched])
def test_permutation_of_rows_with_their_ids(make: Any) -> None:
    x, _ = make()
    ids = np.arange(len(x), dtype=np.uint64) * 3 + 5
    mixed = np.random.default_rng(2).permutation(len(x))
    method = PPP(k_max=6, rows=200)
    a = method.fit(x, ids)
    b = method.fit(np.asfortranarray(x[mixed]), ids[mixed])
    assert a.k == b.k
    assert a.evidence == b.evidence
    assert a.labels[mixed].tobytes() == b.labels.tobytes()
    assert a.posterior[mixed].tobytes() == b.posterior.tobytes()
    assert a.separable[mixed].tolist() == b.separable.tolist()


THREADS = """
import json, numpy as np
from batchloom.clustering import PPP
draw = np.random.default_rng(0)
truth = draw.integers(0, 4, 3000)
x = draw.normal(size=(4, 6))[truth] * 3 + draw.normal(size=(3000, 6))
model = PPP(k_max=3).train(x.astype("f4"))
print(json.dumps(model.evidence), model.centers.tobytes().hex())
"""


def test_any_number_of_threads_gives_the_same_bits() -> None:
    """In a new process, where libraries that have threads of their own are loaded late."""
    said = [
        subprocess.run(
            [sys.executable, "-c", THREADS],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "4")
    ]
    assert said[0] == said[1]


def test_other_seeds_find_the_same_groups() -> None:
    x, truth = four()
    for seed in range(3):
        found = PPP(k_max=6, seed=seed).fit(x)
        assert adjusted_rand_score(truth, found.labels) == 1.0


def test_fits_to_the_sample_only() -> None:
    x, _ = four(2000)
    ids = np.arange(2000, dtype=np.uint64)
    method = PPP(k_max=5, rows=200)
    chosen = method.sample(ids)
    assert chosen.sum() == method.sample_rows(2000) == 200
    model = method.train(x[chosen], ids[chosen])
    found = method.fit(x, ids)
    assert found.evidence == model.evidence
    labels, posterior, separable = model.assign(x)
    assert found.labels.tobytes() == labels.tobytes()
    assert found.posterior.tobytes() == posterior.tobytes()
    assert found.separable.tobytes() == separable.tobytes()


def models() -> dict[str, PPPModel]:
    """Return a model of each kind of covariance, and one of a metric."""
    rng = np.random.default_rng(6)
    truth = np.arange(150) % 3
    places = rng.normal(size=(3, 60)) * 12

    def blobs(d: int) -> Any:
        return places[truth, :d] + rng.normal(size=(150, d))

    made = {
        "full": PPP(k_max=4).train(blobs(4)),
        "tied": PPP(k_max=4).train(blobs(8)),
        "diagonal": PPP(k_max=4).train(blobs(60)),
    }
    assert {name: model.mixture.kind for name, model in made.items()} == {k: k for k in made}
    assert all(model.k == 3 for model in made.values())
    made["metric"] = PPP(k_max=4, scale="standard").train(stretched()[0])
    assert made["metric"].metric.size
    return made


@pytest.fixture(scope="module")
def trained() -> dict[str, PPPModel]:
    return models()


@pytest.mark.parametrize("kind", ["full", "tied", "diagonal", "metric"])
def test_a_row_is_assigned_the_same_whatever_is_assigned_with_it(
    trained: dict[str, PPPModel], kind: str
) -> None:
    model = trained[kind]
    x = np.random.default_rng(7).normal(size=(101, len(model.origin))).astype(np.float32) * 8
    together = model.assign(x)
    for parts in ([slice(i, i + 1) for i in range(101)], [slice(0, 37), slice(37, 101)]):
        apart = [model.assign(x[part]) for part in parts]
        for whole, pieces in zip(together, zip(*apart, strict=True), strict=True):
            assert whole.tobytes() == np.concatenate(pieces).tobytes()


@pytest.mark.parametrize("kind", ["full", "tied", "diagonal", "metric"])
def test_assignment_is_the_nearest_center_and_the_mixtures_posterior(
    trained: dict[str, PPPModel], kind: str
) -> None:
    model = trained[kind]
    rng = np.random.default_rng(8)
    centers = np.linalg.inv(model.metric) @ model.centers.T if model.metric.size else None
    places = (model.centers if centers is None else centers.T) / model.unit + model.origin
    x = (places[rng.integers(0, model.k, 80)] * rng.uniform(0.3, 1, (80, 1))).astype(np.float32)
    rows = (x.astype(np.float64) - model.origin) * model.unit
    rows = rows @ model.metric.T if model.metric.size else rows
    away = ((rows[:, None] - model.centers[None]) ** 2).sum(axis=2)
    labels, posterior, separable = model.assign(x)
    assert labels.tolist() == away.argmin(axis=1).tolist()
    shares, _ = model.mixture.responsibilities(rows)
    np.testing.assert_allclose(posterior, shares[np.arange(80), labels], atol=1e-6)
    assert separable.tolist() == (posterior >= np.float32(0.95)).tolist()


def test_equal_distances_go_to_the_lower_center() -> None:
    mixture = Mixture(
        "diagonal", np.array([0.5, 0.5]), np.array([[-1.0], [1.0]]), np.ones((2, 1, 1))
    )
    model = PPPModel(2, np.zeros(1), np.ones(1), np.zeros((0, 0)), mixture.means, mixture, 0.95, ())
    labels, posterior, separable = model.assign(np.array([[0], [3], [-3], [3e38]], np.float32))
    assert labels.tolist() == [0, 1, 0, 0]  # 3e38 ± 1 are one number
    assert posterior[0] == posterior[3] == 0.5
    # Density ratio exp(-8) / exp(-2) = exp(-6).
    assert posterior[1] == posterior[2] == np.float32(1 / (1 + np.exp(-6)))
    assert separable.tolist() == [False, True, True, False]


# --- evidence -------------------------------------------------------------------------------------


def test_evidence_is_plain_and_says_why_a_k_fails() -> None:
    found = PPP(k_max=7).fit(four()[0])
    assert json.loads(json.dumps(found.evidence)) == list(found.evidence)
    assert [e["k"] for e in found.evidence] == [1, 2, 3, 4, 5, 6, 7]
    assert [e["k"] for e in found.evidence if e["chosen"]] == [4]
    chosen = found.evidence[3]
    assert chosen["failed"] == []
    assert chosen["stability"] == chosen["replication"] == chosen["agreement"] == 1.0
    assert chosen["smallest"] == 60
    assert chosen["covariance"] == "full"
    for row in found.evidence[4:]:
        assert row["failed"]
        assert set(row["failed"]) <= CONDITIONS
        assert row["agreement"] is None or "agreement" in row["failed"]
    inertia = [e["inertia"] for e in found.evidence]
    assert inertia == sorted(inertia, reverse=True)


def test_inertia_is_the_sum_of_squared_distances_to_the_means() -> None:
    x, truth = four()
    means = np.stack([x[truth == j].astype("f8").mean(axis=0) for j in range(4)])
    assert PPP(k_max=4).fit(x).evidence[3]["inertia"] == pytest.approx(
        ((x - means[truth]) ** 2).sum()
    )


def test_series_for_a_picture() -> None:
    method, (x, _) = PPP(k_max=6), four()
    evidence = method.fit(x).evidence
    series = evidence_series(evidence, method.limits(len(x)))
    assert json.loads(json.dumps(series)) == series
    assert series["k"] == [1, 2, 3, 4, 5, 6]
    assert series["chosen"] == 4
    assert series["valid"][-1] == 4
    assert set(series["series"]) == CONDITIONS
    assert series["series"]["valley"]["holds"] == "at most"
    assert series["series"]["stability"] == {
        "values": [e["stability"] for e in evidence],
        "limit": 0.85,
        "holds": "at least",
    }


def halves(n: int) -> Any:
    return (np.arange(n) % 4 < 2)[None]


def test_valley_by_hand() -> None:
    """Means at 0 and 10: windows of ± 1.5 hold 20 at either mean, none at 3.5…6.5."""
    a = np.tile([-1.0, 1.0], 10)[:, None]
    found, chance = valley(a, a + 10, halves(20), halves(20))
    assert found == 0.0
    assert chance == pytest.approx(0.5**20)
    # Two rows each at 4.4 and 5.6, with means kept by rows on the other side.
    b = np.concatenate([a, np.repeat([4.4, -4.4], 4)[:, None]])
    found, chance = valley(b, 10 - b, halves(28), halves(28))
    assert found == pytest.approx(4 / 20)
    assert chance == pytest.approx(binom.cdf(4, 24, 0.5))


def test_halves_of_an_even_cloud_have_no_valley() -> None:
    x = np.linspace(0, 1, 400)[:, None]
    found, chance = valley(x[:200], x[200:], halves(200), halves(200))
    assert found == pytest.approx(1, abs=0.05)
    assert chance > 0.3


def test_valley_of_what_cannot_be_counted() -> None:
    one = np.zeros((1, 2))
    assert valley(one, one + 1, halves(1), halves(1)) == (1.0, 1.0)
    same = np.zeros((8, 2))
    assert valley(same, same, halves(8), halves(8)) == (1.0, 1.0)


def test_stability_counts_the_starts_that_are_about_as_good() -> None:
    def candidate(labels: list[int], spread: float) -> Candidate:
        return Candidate(np.array(labels, np.int32), np.zeros((2, 1)), spread)

    best, other = [0, 0, 1, 1], [0, 1, 0, 1]
    same = [candidate(best, 1.0), candidate([1, 1, 0, 0], 1.004), candidate(other, 1.006)]
    assert stability(same) == 1.0
    near = [candidate(best, 1.0), candidate(other, 1.004)]
    assert stability(near) == pytest.approx(adjusted_rand_score(best, other))


def test_replication_is_that_of_the_worst_cluster() -> None:
    x = np.array([[0.0], [1], [10], [11], [0], [1], [10], [11]])
    half = np.arange(8) < 4
    whole = Candidate(np.array([0, 0, 1, 1] * 2, np.int32), np.array([[0.5], [10.5]]), 1.0)
    assert replication(x, whole, [whole, whole], half) == 1.0
    swapped = Candidate(whole.labels, whole.centers[::-1], 1.0)
    assert replication(x, whole, [whole, swapped], half) == 1.0
    # All but the row at 11 go to the first: its Jaccard indices are 2 of 3 and 1 of 2.
    shifted = Candidate(whole.labels, np.array([[5.0], [16.5]]), 1.0)
    assert replication(x, whole, [whole, shifted], half) == pytest.approx(1 / 2)
    assert replication(x, whole, [whole, None], half) == 0.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=40))
@settings(max_examples=60, deadline=None)
def test_adjusted_rand_equals_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array(side, np.int32) for side in zip(*pairs, strict=True))
    assert adjusted_rand(a, b) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)


def test_the_metric_within_clusters_undoes_a_stretch() -> None:
    x, truth = stretched()
    run = Run(x - x.mean(axis=0), 5, 0)
    plain, shaped = run.partitions(3, "euclidean")[0], run.partitions(3, "within")[0]
    assert adjusted_rand_score(truth, plain.labels) < 0.5
    assert adjusted_rand_score(truth, shaped.labels) > 0.97
    rows = shaped.rows(run.rows)
    away = rows - shaped.centers[shaped.labels]
    np.testing.assert_allclose(away.T @ away / len(x), np.eye(2), atol=0.05)


# --- the mixture ----------------------------------------------------------------------------------


def test_covariances_are_as_rich_as_the_rows_allow() -> None:
    assert covariance_kind(100, 20, 2) == "full"
    assert covariance_kind(100, 19, 2) == "tied"
    assert covariance_kind(19, 9, 2) == "diagonal"


@pytest.mark.parametrize("d", [2, 8, 40])
def test_responsibilities_are_those_of_scipys_densities(d: int) -> None:
    rng = np.random.default_rng(d)
    labels = np.arange(120, dtype=np.int32) % 2
    x = rng.normal(size=(120, d)) + labels[:, None]
    mixture, shares = fit_mixture(x, labels, 2)
    if mixture.kind == "diagonal":
        covariances = [np.diag(f[0] ** -2.0) for f in mixture.factors]
    else:
        inverses = [np.linalg.inv(f) for f in mixture.factors]
        covariances = [i @ i.T for i in inverses] * (2 if mixture.kind == "tied" else 1)
    joint = np.stack(
        [
            w * multivariate_normal(m, c).pdf(x)
            for w, m, c in zip(mixture.weights, mixture.means, covariances, strict=True)
        ],
        axis=1,
    )
    np.testing.assert_allclose(
        shares, joint / joint.sum(axis=1, keepdims=True), rtol=1e-6, atol=1e-9
    )
    _, likelihood = mixture.responsibilities(x)
    assert likelihood == pytest.approx(np.log(joint.sum(axis=1)).mean())


def test_a_mixture_comes_to_scikit_learns() -> None:
    from sklearn.mixture import GaussianMixture

    x, truth = four()
    x = x.astype(np.float64)
    mixture, _ = fit_mixture(x, truth.astype(np.int32), 4)
    other = GaussianMixture(4, means_init=CORNERS, tol=1e-4, random_state=0).fit(x)
    np.testing.assert_allclose(mixture.means, other.means_, atol=1e-3)
    np.testing.assert_allclose(mixture.weights, other.weights_, atol=1e-3)


# --- what cannot be partitioned -------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 9, 10, 11])
def test_few_rows(n: int) -> None:
    x = np.random.default_rng(n).normal(size=(n, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = PPP().fit(x)
    assert found.k == 1
    assert found.labels.tolist() == [0] * n


@pytest.mark.parametrize("value", [0.0, 7.0, 3e38, 1e-38])
def test_constant_rows_are_one_cluster(value: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = PPP().fit(np.full((50, 2), value, np.float32))
    assert found.k == 1
    assert len(found.evidence) == 1
    assert (found.posterior == 1).all()


@pytest.mark.parametrize("k_max", [3, 25, 10_000])
def test_single_points_are_clusters_however_many_are_allowed(k_max: int) -> None:
    x = np.repeat(np.eye(3, dtype=np.float32), 40, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = PPP(k_max=k_max).fit(x)
    assert found.k == 3
    assert len(found.evidence) == 3
    assert adjusted_rand_score(np.repeat([0, 1, 2], 40), found.labels) == 1.0


def test_k_max_of_one() -> None:
    assert PPP(k_max=1).fit(four()[0]).k == 1


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_units_change_nothing(scale: float) -> None:
    x, truth = four()
    found = PPP(k_max=5).fit((x * scale).astype(np.float32))
    assert adjusted_rand_score(truth, found.labels) == 1.0


@pytest.mark.parametrize("power", [-90, 90])
def test_units_change_nothing_by_the_metric_of_many_dimensions(power: int) -> None:
    """The determinant of 60 variances of 2^180 is no number of float64."""
    rng = np.random.default_rng(5)
    truth = np.arange(660) % 3
    x = (rng.normal(size=(3, 60))[truth] * 3 + rng.normal(size=(660, 60))).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, again = (PPP(k_max=4).fit(part) for part in (x, x * np.float32(2.0**power)))
    assert found.k == 3
    assert found.evidence[3]["metric"] == "within"
    assert again.labels.tolist() == found.labels.tolist()
    for row, other in zip(found.evidence, again.evidence, strict=True):
        assert {**row, "inertia": 0} == {**other, "inertia": 0}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_row_id(bad: float) -> None:
    x, _ = four(40)
    x[7, 1] = bad
    ids = np.arange(1000, 1040, dtype=np.uint64)
    with pytest.raises(InvalidValueError, match="1 rows .*: 1007"):
        PPP().fit(x, ids)
    with pytest.raises(InvalidValueError, match="1 rows .*: 1007"):
        PPP(k_max=1).train(four(40)[0], ids).assign(x, ids)


def test_ids_that_repeat_are_refused() -> None:
    x, _ = four(6)
    with pytest.raises(SelectionError, match="2 ids stand for several rows: 1, 4"):
        PPP().fit(x, np.array([1, 4, 1, 4, 4, 9], np.uint64))
    with pytest.raises(SelectionError, match=r"Expected 6 row ids, found shape \(2,\)"):
        PPP().fit(x, np.array([1, 2], np.uint64))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(SelectionError, match="PPP needs rows of one value or more"):
        PPP().fit(np.zeros(shape, np.float32))


def test_rows_of_another_shape_are_refused() -> None:
    with pytest.raises(SelectionError, match=r"shape \(n, d\), found shape \(4,\)"):
        PPP().fit(np.zeros(4, np.float32))
    with pytest.raises(SelectionError, match="Expected rows of 2 values, .* found 3"):
        PPP(k_max=1).train(four(8)[0]).assign(np.zeros((1, 3), np.float32))
    labels, posterior, separable = PPP(k_max=1).train(four(8)[0]).assign(np.zeros((0, 2), "f4"))
    assert len(labels) == len(posterior) == len(separable) == 0


def test_parameter_errors_have_the_one_form() -> None:
    with pytest.raises(ParameterError) as error:
        PPP(k_max=0)
    assert str(error.value) == (
        "The 'k_max' parameter of PPP must be an int in the range [1, inf). Got 0 instead."
    )


def test_one_cluster() -> None:
    found = one_cluster(np.array([[0.0, 0], [2, 0]]))
    assert found.centers.tolist() == [[1, 0]]
    assert found.spread == 2.0
