"""Compiled loops that give rows to the nearest center and weigh that against a Gaussian mixture.

Rows are taken ``LANES`` at a time, each in a lane of its own: what is added up for a row is added
up in one order, in float64, whatever the other lanes hold. So a row's result has the same bits
whichever rows are computed together, and on any number of threads.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

LANES = 16
FULL, TIED, DIAGONAL = 0, 1, 2


@njit(cache=True, nogil=True, inline="always")
def _multiply(factor, rows, out):
    """Set out to factor · rows; factor is lower triangular, rows and out of shape (d, LANES)."""
    for i in range(factor.shape[0]):
        for lane in range(LANES):
            out[i, lane] = 0.0
        for j in range(i + 1):
            value = factor[i, j]
            for lane in range(LANES):
                out[i, lane] += value * rows[j, lane]


@njit(cache=True, nogil=True, inline="always")
def _add_squares(rows, center, scale, out):
    """Add Σ ((row − center) · scale)² to each lane of out."""
    for i in range(center.size):
        for lane in range(LANES):
            away = (rows[i, lane] - center[i]) * scale[i]
            out[lane] += away * away


@njit(cache=True, nogil=True)
def _log_joint(kind, rows, means, factors, weights, ones, work, shifted, out):
    """Set out to the logarithm of weight · density of each component, less a constant."""
    k, width = means.shape
    if kind == TIED:
        _multiply(factors[0], rows, work)
    for j in range(k):
        squares = out[j]
        squares[:] = 0.0
        if kind == TIED:
            _add_squares(work, means[j], ones, squares)
        elif kind == DIAGONAL:
            _add_squares(rows, means[j], factors[j, 0], squares)
        else:
            for i in range(width):
                for lane in range(LANES):
                    shifted[i, lane] = rows[i, lane] - means[j, i]
            _multiply(factors[j], shifted, work)
            for i in range(width):
                for lane in range(LANES):
                    squares[lane] += work[i, lane] * work[i, lane]
        for lane in range(LANES):
            squares[lane] = weights[j] - 0.5 * squares[lane]


@njit(cache=True, nogil=True)
def assign_rows(x, origin, unit, metric, centers, kind, weights, means, factors, labels, posterior):
    """Fill in each row's nearest center, the lower one of equals, and the posterior of its own.

    Parameters
    ----------
    x : float32, shape (n, d)
    origin, unit : float64, shape (d,)
        A row is (x − origin) · unit.
    metric : float64, shape (d, d) or (0, 0)
        Lower triangular, what rows are multiplied by then; empty: nothing.
    centers : float64, shape (k, d)
    kind : int
    weights : float64, shape (k,)
        Logarithms: of a component's weight and of its factor's determinant.
    means : float64, shape (k, d)
        Of tied components multiplied by their factor.
    factors : float64, shape (k, d, d), (1, d, d) or (k, 1, d)
        Full, tied, diagonal.
    labels : int32, shape (n,)
    posterior : float32, shape (n,)
    """
    n, width = x.shape
    k = len(centers)
    read, rows = np.zeros((width, LANES)), np.zeros((width, LANES))
    work, shifted = np.empty((width, LANES)), np.empty((width, LANES))
    joint, distance = np.empty((k, LANES)), np.empty((k, LANES))
    ones = np.ones(width)
    for start in range(0, n, LANES):
        count = min(LANES, n - start)
        for lane in range(count):
            for i in range(width):
                read[i, lane] = (np.float64(x[start + lane, i]) - origin[i]) * unit[i]
        if metric.size:
            _multiply(metric, read, rows)
        else:
            rows[:] = read
        for j in range(k):
            distance[j, :] = 0.0
            _add_squares(rows, centers[j], ones, distance[j])
        _log_joint(kind, rows, means, factors, weights, ones, work, shifted, joint)
        for lane in range(count):
            own = 0
            for j in range(1, k):
                if distance[j, lane] < distance[own, lane]:
                    own = j
            total = 0.0
            for j in range(k):
                total += math.exp(joint[j, lane] - joint[own, lane])
            share = 1.0 / total
            labels[start + lane] = own
            posterior[start + lane] = share if share >= 0.0 else 0.0
