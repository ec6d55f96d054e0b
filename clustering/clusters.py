"""What every clusterer returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Clusters"]


@dataclass(frozen=True)
class Clusters:
    """A partition of rows.

    Attributes
    ----------
    labels : int32, shape (n,)
        Cluster of each row, 0…k−1.
    centers : float32, shape (k, d)
    inertia : float
        Sum of squared Euclidean distances of the rows to their centers.
    sizes : int64, shape (k,)
    """

    labels: npt.NDArray[np.int32]
    centers: npt.NDArray[np.float32]
    inertia: float
    sizes: npt.NDArray[np.int64]
