"""Facility location: the k rows that stand for all others best, by exact greedy choice.

Maximises f(S) = Σ_i max_{j ∈ S} (C − d(i, j)), which is to say that it lowers the *cost*
Σ_i min_{j ∈ S} d(i, j) of k medoids. Greedy choice reaches at least 1 − 1/e of the best f
(Nemhauser et al., 1978); it is what CRAIG and CoLM select mini-batches by (Mirzasoleiman et al.,
ICML 2020; Nguyen et al., ICLR 2025). The constant C, the largest distance, changes no choice but
enters the first gain and f, where it hides differences: judge selections by their cost.

- Gains are float64 sums, computed anew where they count; a tie goes to the smaller id. So the same
  rows are chosen in whatever order, memory layout or number of threads they come.
- On a line (one number a row, or multiples of one direction) the optimum is found as well, by
  dynamic programming, and taken where it costs less. ``optimizer="stochastic"`` looks at random
  candidates only; `medoids` says how.
- ``weights="cluster"`` are how many rows each chosen one is nearest to, itself among them: with
  them weighted sums of gradients come near those of all rows. ``"uniform"`` is 1 for each.
- ``refine`` exchanges rows as long as that lowers the cost (FasterPAM), which greedy choice leaves
  undone; the order is then that in which greedy choice takes the final rows.
- Distances take 4 n² bytes. Where that is more than ``kernel_bytes``, rows are dealt out in parts,
  by their ids; as many are chosen of each as may be compared, and k of all these, each with the
  weight of the rows that it stands for (two rounds, as Mirzasoleiman et al., NeurIPS 2013); then
  each cluster's centre stands for it, some times over. Assignment, gains and cost are those of all
  rows. The cost comes within a few hundredths of the exact choice's, as long as k may be chosen of
  each part: ``kernel_bytes`` of 4 p² k² for p parts.
- Rows with a feature that is NaN or infinite, and rows of zeros by cosine, are left out and named:
  one of them makes every distance of the authors' code NaN, and its choice the last k rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ..dataplane.checks import require_one_of
from ..dataplane.errors import ParameterError, SelectionError, examples
from ..dataplane.random import checked_seed
from ..dataplane.row_arrays import checked_ids
from .distances import Metric, distances_to, pairwise_distances
from .medoids import Chosen, Optimizer, Search, choose, choose_in_parts, on_a_line, unmet_gains

__all__ = ["FacilityLocation", "Weights", "check_size", "comparable_rows", "facility_location"]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

Weights = Literal["cluster", "uniform"]

_AT_ONCE = 1024  # candidates whose gains are computed together


@dataclass(frozen=True)
class FacilityLocation:
    """Rows that stand for others.

    Attributes
    ----------
    rows : uint64, shape (k,)
        Positions in the arrays that were given, in the order of choice.
    gains : float64, shape (k,)
        By how much each raised f when it was chosen; they never rise where the choice is exact.
    weights : float32, shape (k,)
    assignment : int64, shape (n,)
        Which of `rows`, by place, is nearest to each row; −1 of rows that were left out.
    cost : float
        Sum of the distances to it.
    farthest : float
        C.
    left_out : uint64, shape (m,)
        Positions of rows that cannot be compared.
    parts : int
        In which rows were chosen; 1 where all were compared.
    bound : float or None
        A cost that no k rows fall below, where it was asked for.
    """

    rows: U64
    gains: F64
    weights: F32
    assignment: I64
    cost: float
    farthest: float
    left_out: U64
    parts: int = 1
    bound: float | None = None


def facility_location(
    features: npt.ArrayLike,
    k: int,
    *,
    metric: Metric | Literal["kernel"] = "l1",
    ids: npt.ArrayLike | None = None,
    weights: Weights = "cluster",
    optimizer: Optimizer = "auto",
    refine: bool = False,
    epsilon: float = 1e-5,
    seed: int = 0,
    nonfinite: Literal["leave-out", "fail"] = "leave-out",
    kernel_bytes: int = 1 << 30,
    bound: bool = False,
    threads: int | None = None,
) -> FacilityLocation:
    """Choose the k rows that stand for all rows best.

    Parameters
    ----------
    features : float, shape (n, d)
        Taken as float32, in any memory order. With ``metric="kernel"`` similarities of shape
        (n, n): row i's to candidate j.
    k : int
        In the range [0, n], rows that are left out not counted.
    metric : {'l1', 'l2', 'cosine', 'kernel'}
        ``'l2'`` is the Euclidean distance, not its square.
    ids : uint64, shape (n,), optional
        Row ids, by which ties are decided; positions when None.
    weights : {'cluster', 'uniform'}
    optimizer : {'auto', 'lazy', 'stochastic'}
        The exact greedy choice, or the optimum where rows are on a line and it costs less; the
        greedy choice always; or the best of random candidates.
    refine : bool
        Exchange rows as long as that lowers the cost.
    epsilon : float
        Of the stochastic choice: n/k · ln(1/epsilon) candidates are looked at for each row chosen.
    seed : int
        Of the stochastic choice.
    nonfinite : {'leave-out', 'fail'}
        What becomes of rows that cannot be compared.
    kernel_bytes : int
        Memory that distances may take: 4 n² bytes, or rows are chosen in parts. A kernel that is
        given is there already, and not held against it.
    bound : bool
        Compute a cost that no k rows fall below, from what could be gained yet; takes a pass over
        all pairs of rows. It says little where many rows are near each one chosen.
    threads : int, optional
        That compute distances; one a core when None.

    Returns
    -------
    FacilityLocation

    Raises
    ------
    SelectionError
        Where there are fewer than k rows to choose from, shapes do not fit, ids repeat, the
        distances between k rows alone would take too much memory; or, with ``nonfinite="fail"``,
        of the first rows that cannot be compared.
    ParameterError
    """
    require_one_of("optimizer", optimizer, get_args(Optimizer))
    if not 0 < epsilon < 1:
        raise ParameterError(f"'epsilon' must be a float in the range (0, 1). Got {epsilon}.")
    values = _checked(features, metric, weights, nonfinite)
    names = checked_ids(ids, len(values))
    usable = comparable_rows(values, metric)
    left_out = np.flatnonzero(~usable)
    if len(left_out) and (nonfinite == "fail" or len(left_out) == len(values)):
        raise SelectionError(
            f"{len(left_out):,} of {len(values):,} rows have features that are NaN or infinite, or "
            f"zeros by cosine: {examples(names[left_out])}. Find out why; by default such rows are "
            "left out, as long as others remain."
        )
    # In the order of their ids, so that neither sums nor ties depend on how rows come.
    order = np.flatnonzero(usable)[np.argsort(names[usable], kind="stable")]
    n = len(order)
    check_size(k, n)
    search = Search(optimizer, refine, epsilon, checked_seed(seed))
    most = math.isqrt(kernel_bytes // 4)
    if k > most and n > most and metric != "kernel":
        raise SelectionError(
            f"The distances between {k:,} rows take {4 * k * k:,} bytes, and kernel_bytes allows "
            f"{kernel_bytes:,}. Choose fewer rows, or give it more."
        )
    parts = 1
    if metric == "kernel":
        found = choose(_kernel_distances(values, order), k, search)
    else:
        rows = values if _is_in_order(order, len(values)) else values[order]
        if n <= most:
            line = on_a_line(rows, metric) if optimizer == "auto" and k else None
            far = pairwise_distances(rows, metric, threads=threads)
            found = choose(far, k, search, line=line)
        else:
            parts = -(-n // most) if k else 1
            found = choose_in_parts(
                rows, names[order], k, metric, search, parts=parts, most=most, threads=threads
            )
    assignment = np.full(len(values), -1, np.int64)
    assignment[order] = found.owner
    counted = np.bincount(found.owner[found.owner >= 0], minlength=k) if n else np.zeros(k)
    return FacilityLocation(
        order[found.picks].astype(np.uint64),
        found.gains,
        counted.astype(np.float32) if weights == "cluster" else np.ones(k, np.float32),
        assignment,
        found.cost,
        found.farthest,
        left_out.astype(np.uint64),
        parts,
        _bound(values, order, found, metric) if bound else None,
    )


def _is_in_order(order: I64, rows: int) -> bool:
    return len(order) == rows and bool((order[:-1] < order[1:]).all())


def check_size(k: int, rows: int) -> None:
    """Raise `SelectionError` unless k rows can be chosen of so many."""
    if not 0 <= k <= rows:
        raise SelectionError(
            f"{k:,} rows cannot be chosen of {rows:,}: k must be in the range [0, {rows}]."
        )


def _bound(values: F32, order: I64, found: Chosen, metric: Metric | Literal["kernel"]) -> float:
    """Return a cost that no k rows fall below."""
    tiles: Iterable[F32]
    if metric == "kernel":
        tiles = [_kernel_distances(values, order)]
    else:
        rows = values[order]
        starts = range(0, len(rows), _AT_ONCE)
        tiles = (distances_to(rows, rows[i : i + _AT_ONCE], metric) for i in starts)
    return max(0.0, found.cost - unmet_gains(found.near, len(found.picks), tiles))


def _kernel_distances(kernel: F32, order: I64) -> F32:
    """Return how far each candidate is from each row, by a kernel; shape (candidates, rows)."""
    ordered = kernel[np.ix_(order, order)].T
    return np.ascontiguousarray(ordered.max(initial=-np.inf) - ordered)


def comparable_rows(features: npt.ArrayLike, metric: str) -> npt.NDArray[np.bool_]:
    """Return which rows can be compared: finite, and by cosine not all zeros; bool, shape (n,)."""
    values = _numbers(features)
    usable = np.isfinite(values).all(axis=1)
    if metric == "cosine":
        usable &= (values != 0).any(axis=1)
    return np.asarray(usable)


def _checked(features: npt.ArrayLike, metric: str, weights: str, nonfinite: str) -> F32:
    require_one_of("metric", metric, (*get_args(Metric), "kernel"))
    require_one_of("weights", weights, get_args(Weights))
    require_one_of("nonfinite", nonfinite, ("leave-out", "fail"))
    values = _numbers(features)
    if metric == "kernel" and values.shape[0] != values.shape[1]:
        raise SelectionError(f"A kernel is of shape (n, n); found {values.shape}.")
    return values


def _numbers(features: npt.ArrayLike) -> F32:
    values: Any = np.asarray(features)
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise SelectionError(
            "Features must be numbers of shape (n, d), a row each; found "
            f"{values.dtype} of shape {values.shape}."
        )
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32)
