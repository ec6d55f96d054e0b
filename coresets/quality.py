"""How well a small batch stands for a large one, beside a random one of its size.

- **cost**: how far rows are from the nearest chosen one, summed.
- **gradient error**: ‖Σ w g / Σ w − mean g‖ / ‖mean g‖ of features g, over chosen rows of weight w.
- **redundancy**: the mean cosine of each row's features with the one most like them, and with all
  others. Where rows are alike in nothing, no choice beats a random one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataplane.random import Stream, keys
from .distances import Metric, pairwise_distances, unit_rows
from .facility_location import comparable_rows

__all__ = ["ALIKE", "ChoiceQuality", "choice_quality", "summary"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

ALIKE = 0.3
"""Mean cosine with the most similar row, below which rows are said to be alike in nothing."""

_DRAWS = 8  # random batches


@dataclass(frozen=True)
class ChoiceQuality:
    """What is measured of one choice; of random ones the mean.

    Attributes
    ----------
    cost, random_cost : float
    gradient_error, random_gradient_error : float
        Relative to the length of the mean.
    nearest_cosine, mean_cosine : float
    """

    cost: float
    random_cost: float
    gradient_error: float
    random_gradient_error: float
    nearest_cosine: float
    mean_cosine: float


def choice_quality(
    features: npt.ArrayLike,
    rows: npt.ArrayLike,
    weights: npt.ArrayLike | None,
    ids: npt.ArrayLike,
    *,
    metric: Metric = "l2",
    epoch: int = 0,
) -> ChoiceQuality | None:
    """Measure a choice of some rows of a large batch.

    Parameters
    ----------
    features : float, shape (n, d)
        Rows that cannot be compared do not count.
    rows : int, shape (k,)
        Positions that were chosen.
    weights : float, shape (k,), optional
        1 when None.
    ids : uint64, shape (n,)
        By which random batches are drawn.
    metric : {'l1', 'l2', 'cosine'}
    epoch : int
        Of the draws.

    Returns
    -------
    ChoiceQuality, or None
        None where fewer than two rows can be compared, or none was chosen.
    """
    values = np.asarray(features, np.float32)
    usable = comparable_rows(values, metric) & (values != 0).any(axis=1)
    place = np.cumsum(usable) - 1
    picks = np.asarray(rows, np.int64)
    mass = np.ones(len(picks)) if weights is None else np.asarray(weights, np.float64)
    here = usable[picks]
    values, picks, mass = values[usable], place[picks[here]], mass[here]
    if len(values) < 2 or not mass.sum() > 0:
        return None
    far = pairwise_distances(values, metric, threads=1)
    wide = values.astype(np.float64)
    mean = wide.mean(axis=0)
    length = float(np.linalg.norm(mean)) or 1.0
    numbers = np.asarray(ids, np.uint64)[usable]
    chance = [
        np.argsort(keys(draw, Stream.BASELINE, epoch, numbers), kind="stable")[: len(picks)]
        for draw in range(_DRAWS)
    ]
    ones = np.ones(len(picks))
    nearest, every = _alike(values)
    return ChoiceQuality(
        _cost(far, picks),
        float(np.mean([_cost(far, c) for c in chance])),
        _error(wide, picks, mass, mean) / length,
        float(np.mean([_error(wide, c, ones, mean) for c in chance])) / length,
        nearest,
        every,
    )


def _cost(far: F32, picks: I64) -> float:
    return float(far[picks].min(axis=0).sum(dtype=np.float64))


def _error(values: F64, picks: I64, weights: F64, mean: F64) -> float:
    return float(np.linalg.norm(weights @ values[picks] / weights.sum() - mean))


def _alike(values: F32) -> tuple[float, float]:
    """Return the mean cosine of rows with the one most like them, and with all others."""
    unit = unit_rows(values)
    cosines = unit @ unit.T
    n = len(unit)
    np.fill_diagonal(cosines, 0)
    every = float(cosines.sum(dtype=np.float64)) / (n * (n - 1))
    np.fill_diagonal(cosines, -1)
    return float(cosines.max(axis=1).mean(dtype=np.float64)), every


def summary(found: Sequence[ChoiceQuality]) -> dict[str, Any]:
    """Return the means over choices, and what they say in words, as JSON holds it."""
    if not found:
        return {}
    means = {
        name: float(np.mean([getattr(q, name) for q in found]))
        for name in ChoiceQuality.__dataclass_fields__
    }
    ratio = means["cost"] / means["random_cost"] if means["random_cost"] else 1.0
    if means["nearest_cosine"] < ALIKE:
        said = (
            "rows are alike in nothing (mean cosine with the most similar one "
            f"{means['nearest_cosine']:.2f}): without redundancy no choice beats a random one"
        )
    else:
        said = (
            f"chosen rows are {ratio:.2f} times as far from the others as random ones, their "
            f"gradient error is {_times(means)} that of random ones"
        )
    return {"measured": len(found), **means, "said": said}


def _times(means: dict[str, float]) -> str:
    chance = means["random_gradient_error"]
    return f"{means['gradient_error'] / chance:.2f} times" if chance else "0, as is"
