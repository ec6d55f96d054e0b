"""Draws `evidence.png`: what PPP measures of each number of clusters, on points of a plane.

Needs the extra `report`: ``python docs/pictures/evidence.py``. With a plan of the method ``ppp``
and a file, ``python docs/pictures/evidence.py plan/ evidence.png``, it draws that plan's evidence.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from batchloom.clustering import PPP
from batchloom.clustering.ppp import evidence_series
from batchloom.dataplane import Manifest

mpl.use("svg")
from matplotlib import pyplot as plt

ROWS = 900
COLORS = ("#2e86ab", "#d1495b", "#edae49", "#66a182", "#8d6a9f")
SHOWN = {
    "stability": "stability: starts agree",
    "valley": "valley: rows between clusters",
    "replication": "replication: halves agree",
    "agreement": "agreement of the mixture",
}


def points() -> Any:
    draw = np.random.default_rng(3)
    centers = np.array([(0.0, 0.0), (4.2, 0.6), (1.2, 4.4), (6.4, 4.6), (3.4, 8.2)])
    which = draw.choice(5, ROWS, p=[0.3, 0.25, 0.2, 0.15, 0.1])
    spread = np.array([1.0, 0.9, 0.8, 0.7, 0.6])[which][:, None]
    return (centers[which] + spread * draw.standard_normal((ROWS, 2))).astype(np.float32)


def draw_series(axes: Any, series: dict[str, Any]) -> None:
    """Draw a panel for each condition: values by k, the side of the limit that fails in grey."""
    k = series["k"]
    for axis, (name, title) in zip(axes, SHOWN.items(), strict=True):
        one = series["series"][name]
        axis.axvline(series["chosen"], c="#d9d9d9", lw=7)
        shown = [(a, v) for a, v in zip(k, one["values"], strict=True) if v is not None]
        highest = max([1.05, one["limit"] * 1.05, *(v * 1.05 for _, v in shown)])
        failing = (0, one["limit"]) if one["holds"] == "at least" else (one["limit"], highest)
        axis.axhspan(*failing, color="#f1f1f1", lw=0)
        axis.axhline(one["limit"], c="#8a8a8a", lw=0.8, ls="--")
        if shown:
            axis.plot(*zip(*shown, strict=True), c="#2e86ab", lw=1)
        for a, v in shown:
            face = "#2e86ab" if a in series["valid"] else "white"
            axis.plot(a, v, "o", c="#2e86ab", mfc=face, ms=5)
        axis.set_title(f"{title} ({one['holds']} {one['limit']:g})", fontsize=9.5)
        axis.set_xlim(min(k) - 0.5, max(k) + 0.5)
        axis.set_ylim(0, highest)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)


def draw(path: Path) -> None:
    """Draw points with their clusters, and the evidence beside them."""
    x, method = points(), PPP(k_max=10)
    found = method.fit(x)
    figure = plt.figure(figsize=(10.5, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(1.25, 1, 1))
    axis = figure.add_subplot(grid[:, 0])
    for cluster, color in zip(range(found.k), COLORS, strict=False):
        inside = found.labels == cluster
        sure, unsure = x[inside & found.separable], x[inside & ~found.separable]
        axis.scatter(*sure.T, s=9, c=color, linewidths=0)
        axis.scatter(*unsure.T, s=22, facecolors="none", edgecolors=color, linewidths=0.9)
    axis.set_title(
        f"{found.k} clusters; {found.separable.mean():.1%} of the rows are separable\n"
        "(rings: the others)",
        fontsize=10,
    )
    axis.set_aspect("equal")
    axis.axis("off")
    panels = [figure.add_subplot(grid[i // 2, 1 + i % 2]) for i in range(4)]
    draw_series(panels, evidence_series(found.evidence, method.limits(len(x))))
    for panel in panels[2:]:
        panel.set_xlabel("clusters; filled: nothing fails, band: the answer", fontsize=8)
    figure.savefig(path, dpi=110)


def draw_plan(plan: str, path: Path) -> None:
    """Draw the evidence that a plan of PPP has kept."""
    report = Manifest.open(plan).provenance["reports"]["ppp"]
    figure, axes = plt.subplots(2, 2, figsize=(7.4, 4.6), layout="constrained")
    draw_series(axes.flat, evidence_series(report["evidence"], report["limits"]))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        draw_plan(sys.argv[1], Path(sys.argv[2]))
    else:
        draw(Path(__file__).with_suffix(".png"))
