from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from batchloom.clustering import assignment
from batchloom.clustering.assignment import Nearest, assign, chosen_device
from batchloom.dataplane.errors import ParameterError
from hypothesis import given, settings
from hypothesis import strategies as st

F32 = npt.NDArray[np.float32]


def brute(x: F32, c: F32) -> tuple[Any, Any]:
    """Sum up squared differences coordinate by coordinate, in float64."""
    total = np.zeros((len(x), len(c)))
    for t in range(x.shape[1]):
        away = x[:, t, None].astype("f8") - c[None, :, t].astype("f8")
        total += away * away
    return total.argmin(axis=1), total.min(axis=1)


def same(x: F32, c: F32, **options: Any) -> None:
    labels, distances = assign(x, c, **options)
    expected, nearest = brute(x, c)
    assert labels.dtype == np.int32
    assert labels.tolist() == expected.tolist()
    assert distances.tobytes() == nearest.tobytes()


@pytest.mark.parametrize(("n", "k", "d"), [(500, 31, 7), (300, 2500, 16), (70, 64, 1), (9, 1, 3)])
def test_equals_brute_force(n: int, k: int, d: int) -> None:
    rng = np.random.default_rng(1)
    same(rng.normal(size=(n, d)).astype("f4"), rng.normal(size=(k, d)).astype("f4"))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 5), st.integers(1, 3))
def test_ties_go_to_the_lower_center(seed: int, k: int, d: int, side: int) -> None:
    """On a small lattice many rows have several nearest centers, and centers repeat."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-side, side + 1, (60, d)).astype("f4")
    same(x, rng.integers(-side, side + 1, (k, d)).astype("f4"))


def test_ties_by_hand() -> None:
    c = np.array([[1, 0], [-1, 0], [0, 1]], dtype=np.float32)
    labels, _ = assign(np.array([[0, 0], [0, -1], [-0.5, 0.5]], np.float32), c)
    assert labels.tolist() == [0, 0, 1]


def test_a_label_does_not_depend_on_the_rows_around() -> None:
    """Far from the origin a matrix product cannot tell these centers apart; differences can."""
    rng = np.random.default_rng(3)
    c = (1e4 + rng.normal(size=(64, 16)) * 1e-3).astype(np.float32)
    x = np.repeat(c, 5, axis=0)
    together, _ = assign(x, c)
    alone = [int(assign(x[i : i + 1], c)[0][0]) for i in range(len(x))]
    assert together.tolist() == alone
    same(x, c)


@pytest.mark.parametrize("factor", [1e-42, 1e-30, 1e30, 3e37])
def test_values_of_any_magnitude(factor: float) -> None:
    rng = np.random.default_rng(5)
    x, c = rng.normal(size=(200, 6)), rng.normal(size=(20, 6))
    same((x * factor).astype("f4"), (c * factor).astype("f4"))


@pytest.mark.parametrize("far", [1e6, 1e20, 3e38])
def test_outliers_cost_no_exactness(far: float) -> None:
    rng = np.random.default_rng(6)
    x, c = rng.normal(size=(400, 8)).astype("f4"), rng.normal(size=(50, 8)).astype("f4")
    x[3], c[7], c[11] = far, far, -far
    same(x, c)


def test_two_groups_far_apart() -> None:
    rng = np.random.default_rng(7)
    place = np.where(np.arange(600) % 2, 1e4, -1e4)[:, None]
    x = (rng.normal(size=(600, 12)) + place).astype("f4")
    same(x, x[:80].copy())


def test_strided_and_other_types() -> None:
    rng = np.random.default_rng(8)
    x, c = rng.normal(size=(90, 10)), rng.normal(size=(12, 5)).astype("f4")
    view = np.asfortranarray(x)[:, ::2]
    expected = brute(np.ascontiguousarray(view, "f4"), c)[0]
    assert assign(view, c)[0].tolist() == expected.tolist()


@pytest.mark.parametrize("levels", ["one", "two"])
def test_threads_and_blocks_change_nothing(levels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    x, c = rng.normal(size=(9000, 6)).astype("f4"), rng.normal(size=(100, 6)).astype("f4")
    x[::3] = (c[rng.integers(0, 100, 3000)] + c[rng.integers(0, 100, 3000)]) / 2
    coarse = c[:10].copy() if levels == "two" else None
    results = [assign(x, c, coarse=coarse, threads=t) for t in (1, 2, 4)]
    monkeypatch.setattr(assignment, "_BLOCK_ROWS", 1024)
    monkeypatch.setattr(assignment, "_TILE_DISTANCES", 700)
    monkeypatch.setattr(assignment, "_TILE_CENTERS", 33)
    results += [assign(x, c, coarse=coarse, threads=t) for t in (1, 2)]
    parts = [assign(x[a : a + 7], c, coarse=coarse) for a in range(0, 2100, 7)]
    assert len({(a.tobytes(), b.tobytes()) for a, b in results}) == 1
    for at in (0, 1):
        assert np.concatenate([p[at] for p in parts]).tolist() == results[0][at][:2100].tolist()


def test_rounding_of_another_processor_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU rounds otherwise: here its distances are off by nearly as much as they may be."""

    class Rough:
        def __init__(self, centers: F32) -> None:
            self.centers = centers.astype("f8")

        def search(self, x: F32, p: int) -> tuple[Any, Any]:
            far = ((x[:, None].astype("f8") - self.centers) ** 2).sum(axis=2)
            lengths = np.linalg.norm(x.astype("f8"), axis=1)[:, None]
            off = (x.shape[1] + 6) * 2.0**-24 * (2 * lengths + np.sqrt(far)) ** 2
            far = (far + off * np.random.default_rng(1).uniform(-1, 1, far.shape)).astype("f4")
            places = np.argsort(far, axis=1)[:, :p]
            return np.take_along_axis(far, places, axis=1), places

    rng = np.random.default_rng(10)
    c = rng.normal(size=(40, 16)).astype("f4")
    x = (c[rng.integers(0, 40, 3000)] + c[rng.integers(0, 40, 3000)]) / np.float32(2)
    x += rng.normal(size=x.shape).astype("f4") * np.float32(1e-6)
    expected = assign(x, c)
    monkeypatch.setattr(assignment, "chosen_device", lambda _: "cuda")
    monkeypatch.setattr(assignment, "_gpu_index", Rough)
    assert Nearest(c).device == "cuda"
    found = assign(x, c, threads=3)
    assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]


# --- two levels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("probes", [1, 3])
def test_two_levels_look_under_the_nearest_coarse_centers(probes: int) -> None:
    rng = np.random.default_rng(11)
    x, c = rng.integers(-4, 5, (700, 3)).astype("f4"), rng.integers(-4, 5, (60, 3)).astype("f4")
    coarse = np.concatenate([c[:8], [[1000, 0, 0]]]).astype("f4")  # nothing is under the last one
    under = brute(c, coarse)[0]
    used = np.unique(under)
    expected = []
    for row in x:
        far = ((row.astype("f8") - coarse[used]) ** 2).sum(axis=1)
        probed = used[np.argsort(far, kind="stable")[:probes]]
        members = np.flatnonzero(np.isin(under, probed))
        expected.append(int(members[brute(row[None], c[members])[0][0]]))
    labels, distances = assign(x, c, coarse=coarse, probes=probes)
    assert labels.tolist() == expected
    away = ((x.astype("f8") - c[labels]) ** 2).sum(axis=1)
    np.testing.assert_allclose(distances, away, rtol=1e-12)


def test_two_levels_with_all_probes_find_the_nearest() -> None:
    rng = np.random.default_rng(12)
    x, c = rng.normal(size=(300, 4)).astype("f4"), rng.normal(size=(50, 4)).astype("f4")
    same(x, c, coarse=c[:7].copy(), probes=7)


# --- devices and threads --------------------------------------------------------------------------


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    assert chosen_device("auto") == "cpu"
    with pytest.raises(ParameterError, match="no GPU"):
        chosen_device("cuda")


def test_the_callers_openmp_threads_stay_as_they_are() -> None:
    import faiss

    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        x = np.random.default_rng(0).normal(size=(200, 4)).astype("f4")
        assign(x, x[:20], threads=2)
        assign(x, x[:20], coarse=x[:5], threads=2)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


_FORK = """
import os, signal
import numpy as np
from batchloom.clustering.kmeans import KMeans

x = np.random.default_rng(0).normal(size=(20000, 16)).astype("f4")
model = KMeans(50, threads=2, max_iter=3, levels="two")
expected = model.fit(x).labels.tobytes()
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if model.fit(x).labels.tobytes() == expected else 3)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")
def test_a_process_may_fork_afterwards() -> None:
    """An OpenMP that had started a second thread would hang in the child."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", _FORK], check=True, timeout=120)
