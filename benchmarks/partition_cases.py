"""Rows whose clusters are known, and other ways to find how many there are; for `partitions`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn import datasets
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import scale

__all__ = ["OTHERS", "Case", "blobs", "few_rows", "fresh", "known", "shapes"]

K_MAX = 25
FRESH = 2026  # seeds of cases that were looked at after all limits stood
NUMBERS = (2, 3, 5, 8, 13, 20)


@dataclass(frozen=True)
class Case:
    """Rows, float64 (n, d), and the cluster of each, of k; None where there are none."""

    name: str
    x: Any
    truth: Any
    k: int


def apart(draw: Any, k: int, d: int, least: float, widths: Any = None) -> Any:
    """Return centers that are `least` apart, times the wider of two widths; shape (k, d)."""
    widths = np.ones(k) if widths is None else widths
    side = least * max(1.0, k ** (1 / d))
    centers: list[Any] = []
    while len(centers) < k:
        for _ in range(2000):
            new = draw.uniform(-side, side, d)
            number = len(centers)
            if all(
                np.linalg.norm(new - c) >= least * max(widths[number], w)
                for c, w in zip(centers, widths, strict=False)
            ):
                centers.append(new)
                break
        else:
            side *= 1.1
    return np.array(centers)


def blobs(draw: Any, n: int, k: int, d: int, least: float) -> tuple[Any, Any]:
    """Return round clusters of deviation 1, and the cluster of each row."""
    centers, truth = apart(draw, k, d, least), draw.integers(0, k, n)
    return centers[truth] + draw.normal(size=(n, d)), truth


def known() -> Iterator[Case]:
    """Yield the cases that PPP's limits were set by."""
    for k in NUMBERS:
        yield Case(f"blobs, 6 apart, d=2, k={k}", *blobs(seeded(100, k), 1000, k, 2, 6.0), k)
    for d in (8, 32):
        for k in NUMBERS:
            made = datasets.make_blobs(1000, n_features=d, centers=k, random_state=k)
            yield Case(f"make_blobs, d={d}, k={k}", *made, k)
    for seed in (0, 1):
        x, truth = datasets.make_blobs(1000, centers=4, random_state=seed)
        yield Case(f"sheared {seed}", x @ [[0.6, -0.6], [-0.4, 0.8]], truth, 4)
    truth = np.repeat([0, 1, 2], [900, 100, 50])
    x = np.array([[0, 0], [8, 0], [0, 8]])[truth] + seeded(7).normal(size=(1050, 2))
    yield Case("sizes 900, 100, 50", x, truth, 3)
    places, widths = [[-6, 0], [0, 0], [6, 3.0]], [0.3, 1.5, 0.8]
    made = datasets.make_blobs(1000, centers=places, cluster_std=widths, random_state=3)
    yield Case("deviations .3, 1.5, .8", *made, 3)
    for d in (2, 8, 32):
        yield Case(f"uniform, d={d}", seeded(11, d).uniform(size=(1000, d)), None, 1)
    yield Case("box of 1 by 4", seeded(12).uniform(size=(1000, 2)) * [1, 4], None, 1)
    yield Case("one Gaussian, d=4", seeded(13).normal(size=(1000, 4)), None, 1)
    for name, k in (("wine", 3), ("iris", 3), ("breast_cancer", 2), ("digits", 10)):
        x, truth = getattr(datasets, f"load_{name}")(return_X_y=True)
        yield Case(name, x if name == "digits" else scale(x), truth, k)


def fresh(base: int = FRESH, n: int = 1500) -> Iterator[Case]:
    """Yield cases that no limit was set by: uneven sizes and widths."""
    for k in (2, 4, 6, 10, 15):
        for d in (2, 4, 16):
            for seed in (0, 1):
                draw = seeded(base, k, d, seed)
                widths = draw.uniform(0.5, 1.5, k)
                centers, shares = apart(draw, k, d, 6.0, widths), draw.uniform(0.3, 1.7, k)
                truth = draw.choice(k, n, p=shares / shares.sum())
                x = centers[truth] + draw.normal(size=(n, d)) * widths[truth][:, None]
                yield Case(f"k={k}, d={d}, {seed}", x, truth, k)
    for d in (3, 5, 16):
        for seed in (0, 1):
            x = seeded(base, d, seed, 99).uniform(size=(n, d))
            yield Case(f"uniform, d={d}, {seed}", x, None, 1)
    for seed in (0, 1):
        draw = seeded(base, seed, 98)
        x = draw.normal(size=(n, 5)) @ draw.normal(size=(5, 5))
        yield Case(f"correlated Gaussian, d=5, {seed}", x, None, 1)


def shapes(base: int = FRESH, n: int = 1500) -> Iterator[Case]:
    """Yield clusters that are stretched, near, heavy-tailed, very uneven, each of its own shape."""
    for k in (3, 5, 9):
        for d in (2, 5, 12):
            draw = seeded(base, k, d, 1)
            stretch = _turned(draw, d) * np.geomspace(1, 8, d)
            x, truth = blobs(draw, n, k, d, 6.0)
            yield Case(f"stretched, k={k}, d={d}", x @ stretch.T, truth, k)
            yield Case(f"4.5 apart, k={k}, d={d}", *blobs(draw, n, k, d, 4.5), k)
            centers, truth = apart(draw, k, d, 9.0), draw.integers(0, k, n)
            x = centers[truth] + draw.standard_t(5, size=(n, d))
            yield Case(f"Student's t, k={k}, d={d}", x, truth, k)
            shares = np.geomspace(1, 15, k)
            truth = draw.choice(k, n, p=shares / shares.sum())
            x = apart(draw, k, d, 6.0)[truth] + draw.normal(size=(n, d))
            yield Case(f"sizes 1 to 15, k={k}, d={d}", x, truth, k)
            centers, truth, x = apart(draw, k, d, 8.0), draw.integers(0, k, n), np.empty((n, d))
            for j in range(k):
                own = _turned(draw, d) * np.geomspace(0.4, 1.6, d)
                x[truth == j] = centers[j] + draw.normal(size=((truth == j).sum(), d)) @ own.T
            yield Case(f"own shapes, k={k}, d={d}", x, truth, k)
    for seed in (0, 1):
        draw = seeded(base, seed, 3)
        away = draw.normal(size=(n, 3))
        away /= np.linalg.norm(away, axis=1)[:, None]
        yield Case(f"ball, {seed}", away * draw.uniform(size=(n, 1)) ** (1 / 3), None, 1)
        yield Case(f"exponential, {seed}", draw.exponential(size=(n, 4)), None, 1)
        yield Case(f"Laplace, {seed}", draw.laplace(size=(n, 3)), None, 1)
        yield Case(f"Student's t, one, {seed}", draw.standard_t(4, size=(n, 6)), None, 1)
        yield Case(f"log-normal, {seed}", draw.lognormal(0, 0.7, size=(n, 3)), None, 1)
        yield Case(f"uniform, d=1, {seed}", draw.uniform(size=(n, 1)), None, 1)
        yield Case(f"triangle, {seed}", draw.dirichlet([1, 1, 1], size=n)[:, :2], None, 1)
        angle = draw.uniform(0, np.pi, n)
        arc = 5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        yield Case(f"arc, {seed}", arc + 0.3 * draw.normal(size=(n, 2)), None, 1)


def few_rows(seeds: int, n: int = 300) -> Iterator[Case]:
    """Yield few rows of one cloud, in some of which many ways to cluster find something."""
    for seed in range(seeds):
        for d in (2, 3, 8, 16):
            yield Case(f"uniform, d={d}, {seed}", seeded(n, d, seed).uniform(size=(n, d)), None, 1)
        for d in (2, 8, 16):
            yield Case(f"Gaussian, d={d}, {seed}", seeded(n, d, seed).normal(size=(n, d)), None, 1)
        yield Case(f"exponential, {seed}", seeded(n, seed, 9).exponential(size=(n, 3)), None, 1)


def seeded(*seed: int) -> Any:
    return np.random.default_rng(seed)


def _turned(draw: Any, d: int) -> Any:
    return np.linalg.qr(draw.normal(size=(d, d)))[0]


# --- other ways -----------------------------------------------------------------------------------


def _means(x: Any, k: int, seed: int = 0) -> Any:
    return KMeans(k, n_init=3, random_state=seed).fit(x)


def silhouette(x: Any) -> int:
    """Return the k whose k-means clusters have the largest silhouette; it cannot be 1."""
    found = [silhouette_score(x, _means(x, k).labels_) for k in range(2, K_MAX + 1)]
    return int(np.argmax(found)) + 2


def gap(x: Any) -> int:
    """Return k by the gap statistic with 5 uniform references (Tibshirani et al., 2001)."""
    turned = (x - x.mean(axis=0)) @ np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2].T
    draw = seeded(0)
    references = [draw.uniform(turned.min(0), turned.max(0), turned.shape) for _ in range(5)]
    before: float | None = None
    for k in range(1, K_MAX + 1):
        logs = np.log([_means(r, k).inertia_ for r in references])
        here = logs.mean() - np.log(_means(turned, k).inertia_)
        if before is not None and before >= here - logs.std() * np.sqrt(1 + 1 / 5):
            return k - 1
        before = here
    return K_MAX


def bic(x: Any) -> int:
    """Return the k of the Gaussian mixture, full or diagonal, of the least BIC."""
    found = [
        (GaussianMixture(k, covariance_type=kind, random_state=0, reg_covar=1e-3).fit(x).bic(x), k)
        for kind in ("full", "diag")
        for k in range(1, K_MAX + 1)
    ]
    return min(found)[1]


OTHERS: dict[str, Callable[[Any], int]] = {"silhouette": silhouette, "gap": gap, "BIC": bic}
