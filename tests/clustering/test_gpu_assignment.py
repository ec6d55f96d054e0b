"""What faiss finds on a GPU: not a bit changes. Run with ``make test-gpu``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from batchloom.clustering import KMeans
from batchloom.clustering.assignment import Nearest, assign

faiss = pytest.importorskip("faiss")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not getattr(faiss, "get_num_gpus", lambda: 0)(), reason="faiss sees no GPU here"
    ),
]
F32 = npt.NDArray[np.float32]


def lattice(rng: np.random.Generator) -> tuple[F32, F32]:
    """Many rows have several nearest centers, and centers repeat."""
    return rng.integers(-2, 3, (20_000, 3)).astype("f4"), rng.integers(-2, 3, (90, 3)).astype("f4")


def halfway(rng: np.random.Generator) -> tuple[F32, F32]:
    """Rows between two centers, nearer to one of them than float32 tells."""
    c = rng.normal(size=(700, 64)).astype("f4")
    x = (c[rng.integers(0, 700, 30_000)] + c[rng.integers(0, 700, 30_000)]) / np.float32(2)
    return x + rng.normal(size=x.shape).astype("f4") * np.float32(1e-6), c


def far_from_the_origin(rng: np.random.Generator) -> tuple[F32, F32]:
    c = (1e4 + rng.normal(size=(64, 16)) * 1e-3).astype(np.float32)
    return np.repeat(c, 50, axis=0), c


def outliers(rng: np.random.Generator) -> tuple[F32, F32]:
    x, c = rng.normal(size=(5000, 8)).astype("f4"), rng.normal(size=(50, 8)).astype("f4")
    x[3], c[7], c[11] = 1e20, 1e20, -1e20
    return x, c


def tiny(rng: np.random.Generator) -> tuple[F32, F32]:
    x, c = rng.normal(size=(5000, 6)), rng.normal(size=(20, 6))
    return (x * 1e-42).astype("f4"), (c * 1e-42).astype("f4")


def many_wide(rng: np.random.Generator) -> tuple[F32, F32]:
    x = rng.normal(size=(40_000, 128)).astype("f4")
    return x, x[rng.choice(len(x), 5000, replace=False)]


@pytest.mark.parametrize("make", [lattice, halfway, far_from_the_origin, outliers, tiny, many_wide])
def test_labels_and_distances_are_the_cpus(make: Any) -> None:
    x, c = make(np.random.default_rng(0))
    assert Nearest(c).device == "cuda"  # what 'auto' takes
    there, here = assign(x, c, device="cuda", threads=4), assign(x, c, device="cpu", threads=4)
    assert [a.tobytes() for a in there] == [a.tobytes() for a in here]


@pytest.mark.parametrize("spherical", [False, True])
def test_clusters_are_the_cpus(spherical: bool) -> None:
    x = np.random.default_rng(1).normal(size=(50_000, 48)).astype("f4")
    found = [
        KMeans(k=120, rows_per_center=64, spherical=spherical, device=device, threads=4).fit(x)
        for device in ("cuda", "cpu")
    ]
    assert [f.device for f in found] == ["cuda", "cpu"]
    assert found[0].centers.tobytes() == found[1].centers.tobytes()
    assert found[0].labels.tobytes() == found[1].labels.tobytes()
    assert found[0].iterations == found[1].iterations
