"""A mixture of Gaussians that starts from a partition: does it come to the same clusters?

Expectation and maximisation (Dempster, Laird and Rubin, J. R. Stat. Soc. B 39, 1977) start from the
weights, means and covariances of a partition's clusters; no random start is drawn. Covariances are
as rich as the rows allow:

- ``full``, one for each component, where the smallest cluster has 10 rows a dimension;
- ``tied``, one for all components, where all rows together are 10 a dimension;
- ``diagonal`` else.

A thousandth of the mean variance within clusters is added to each variance. Iterations end where
the mean log likelihood of a row gains less than 1e-4, or after 100.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "DIMENSION_ROWS",
    "Kind",
    "Mixture",
    "covariance_kind",
    "fit_mixture",
    "inverse_factors",
]

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]

Kind = Literal["full", "tied", "diagonal"]

DIMENSION_ROWS = 10  # that a covariance takes at least
_ITERATIONS, _GAIN = 100, 1e-4
_ADDED = 1e-3  # to variances, of the mean variance within clusters
_LEAST = 1e-9  # of the mean variance of all rows: clusters may be single points


@dataclass(frozen=True)
class Mixture:
    """Gaussian components.

    Attributes
    ----------
    kind : {'full', 'tied', 'diagonal'}
    weights : float64, shape (k,)
    means : float64, shape (k, d)
    factors : float64, shape (k, d, d), (1, d, d) or (k, 1, d)
        Inverse Cholesky factors of the covariances, lower triangular; of diagonal ones their
        diagonals.
    """

    kind: Kind
    weights: F64
    means: F64
    factors: F64

    def log_weights(self) -> F64:
        """Return the logarithm of each weight times its factor's determinant, shape (k,)."""
        if self.kind == "diagonal":
            determinants = np.log(self.factors[:, 0]).sum(axis=1)
        else:
            determinants = np.log(np.diagonal(self.factors, axis1=1, axis2=2)).sum(axis=1)
        found: F64 = np.log(self.weights) + determinants
        return found

    def responsibilities(self, x: F64) -> tuple[F64, float]:
        """Return the components' shares of each row, shape (n, k), and the mean log likelihood."""
        joint = np.empty((len(x), len(self.weights)))
        shared = x @ self.factors[0].T if self.kind == "tied" else x
        for j, mean in enumerate(self.means):
            if self.kind == "full":
                away = x @ self.factors[j].T - self.factors[j] @ mean
            elif self.kind == "tied":
                away = shared - self.factors[0] @ mean
            else:
                away = (x - mean) * self.factors[j, 0]
            joint[:, j] = np.einsum("ij,ij->i", away, away)
        joint = self.log_weights() - 0.5 * joint
        top = joint.max(axis=1, keepdims=True)
        np.exp(joint - top, out=joint)
        total = joint.sum(axis=1, keepdims=True)
        likelihood = float((np.log(total) + top).mean()) - 0.5 * x.shape[1] * np.log(2 * np.pi)
        joint /= total
        return joint, likelihood


def covariance_kind(rows: int, smallest: int, width: int) -> Kind:
    """Return how rich covariances may be, given the rows of all and of the smallest cluster."""
    least = DIMENSION_ROWS * width
    return "full" if smallest >= least else "tied" if rows >= least else "diagonal"


def fit_mixture(x: F64, labels: I32, k: int) -> tuple[Mixture, F64]:
    """Fit a mixture from a partition.

    Parameters
    ----------
    x : float64, shape (n, d)
    labels : int32, shape (n,)
        Cluster of each row, 0…k−1, none empty.
    k : int

    Returns
    -------
    mixture : Mixture
    responsibilities : float64, shape (n, k)
    """
    sizes = np.bincount(labels, minlength=k)
    kind = covariance_kind(len(x), int(sizes.min()), x.shape[1])
    shares = np.zeros((len(x), k))
    shares[np.arange(len(x)), labels] = 1.0
    away = x - ((shares.T @ x) / sizes[:, None])[labels]
    added = max(_ADDED * float((away * away).mean()), _LEAST * float(x.var(axis=0).mean()))
    added = added or 1.0  # all rows are equal
    mixture = _maximised(x, shares, kind, added)
    shares, likelihood = mixture.responsibilities(x)
    for _ in range(_ITERATIONS):
        mixture = _maximised(x, shares, kind, added)
        before = likelihood
        shares, likelihood = mixture.responsibilities(x)
        if likelihood - before < _GAIN:
            break
    return mixture, shares


def _maximised(x: F64, shares: F64, kind: Kind, added: float) -> Mixture:
    """Return the likeliest mixture, given the components' shares of the rows."""
    n, width = x.shape
    rows = shares.sum(axis=0) + 1e-10
    means = (shares.T @ x) / rows[:, None]
    if kind == "diagonal":
        variances = np.stack(
            [shares[:, j] @ np.square(x - mean) / rows[j] + added for j, mean in enumerate(means)]
        )
        return Mixture(kind, rows / rows.sum(), means, 1 / np.sqrt(variances)[:, None, :])
    scatters = np.zeros((len(rows) if kind == "full" else 1, width, width))
    for j, mean in enumerate(means):
        away = x - mean
        scatter = (shares[:, j] * away.T) @ away
        if kind == "full":
            scatters[j] = scatter / rows[j]
        else:
            scatters[0] += scatter / n
    scatters += added * np.eye(width)
    return Mixture(kind, rows / rows.sum(), means, inverse_factors(scatters))


def inverse_factors(scatters: F64) -> F64:
    """Return the inverse Cholesky factors of covariances, shape (…, d, d), lower triangular."""
    found: F64 = np.tril(np.linalg.inv(np.linalg.cholesky(scatters)))
    return found
