"""Draws `batches.png`: which rows share a micro-batch, by each method, on points of a plane.

Needs the extra `report`: ``python docs/pictures/batches.py``
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from batchloom.clustering import NGAME, BalancedKMeans, KMeans, across, aligned, within
from batchloom.dataplane.plan import BatchPlan
from batchloom.dataplane.random import Stream, keys

mpl.use("svg")
from matplotlib import pyplot as plt

ROWS, BATCH, SHOWN = 360, 36, 3
COLORS = ("#d1495b", "#2e86ab", "#edae49")


def points() -> Any:
    draw = np.random.default_rng(4)
    centers = np.array([(0.0, 0.0), (4.5, 0.5), (1.5, 4.0), (6.0, 4.5), (3.2, 7.0)])
    which = draw.choice(5, ROWS, p=[0.34, 0.26, 0.2, 0.12, 0.08])
    spread = np.array([1.0, 0.7, 0.6, 0.5, 0.4])[which][:, None]
    return (centers[which] + spread * draw.standard_normal((ROWS, 2))).astype(np.float32)


def plans(x: Any) -> dict[str, BatchPlan]:
    ids = np.arange(ROWS, dtype=np.uint64)
    clusters = KMeans(k=5).fit(x).labels
    equal = BalancedKMeans(size=12).fit(x).labels
    options: dict[str, Any] = {"batch_size": BATCH, "seed": 1}
    order = np.argsort(keys(1, Stream.ORDER, 0, ids)).astype(np.uint64)
    wide = np.concatenate([x - x.mean(axis=0), np.full((ROWS, 1), 6, np.float32)], axis=1)
    return {
        "shuffle: anything": BatchPlan.cut(order, BATCH),
        "k-means, within: one cluster": within(clusters, ids, **options),
        "k-means, across: all of them": across(clusters, ids, **options),
        "balanced, aligned: whole clusters of 12": aligned(equal, ids, **options),
        "NGAME, clusters of 12, three a batch": NGAME(
            batch_size=BATCH, cluster_size=12, seed=1
        ).batches(wide),
        "NGAME, one cluster a batch": NGAME(batch_size=BATCH, cluster_size=BATCH, seed=1).batches(
            wide
        ),
    }


def draw(path: Path) -> None:
    x = points()
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 6.6), layout="constrained")
    for axis, (title, plan) in zip(axes.flat, plans(x).items(), strict=True):
        axis.scatter(*x.T, s=7, c="#d9d9d9", linewidths=0)
        for color, batch in zip(COLORS, (0, len(plan) // 2, len(plan) - 1), strict=True):
            rows = plan.slice(batch, batch + 1).rows.astype(int)
            axis.scatter(*x[rows].T, s=20, c=color, linewidths=0)
        axis.set_title(title, fontsize=11)
        axis.set_aspect("equal")
        axis.axis("off")
    figure.suptitle(f"{SHOWN} micro-batches of about {BATCH} of {ROWS} rows each", fontsize=12)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".png"))
