"""Facility location: the k rows that stand for all others best, by exact greedy choice.

Maximises f(S) = Σ_i max_{j ∈ S} (C − d(i, j)), which is to say that it lowers the *cost*
Σ_i min_{j ∈ S} d(i, j) of k medoids. Greedy choice reaches at least 1 − 1/e of the best f
(Nemhauser et al., 1978); it is what CRAIG and CoLM select mini-batches by (Mirzasoleiman et al.,
ICML 2020; Nguyen et al., ICLR 2025). The constant C, the largest distance, changes no choice but
enters the first gain and f, where it hides differences: judge selections by their cost.

- Gains are float64 sums, computed anew where they count; a tie goes to the smaller id. So the same
  rows are chosen in whatever order, memory layout or number of threads they come.
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
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ..dataplane.checks import require_one_of
from ..dataplane.errors import SelectionError, examples
from ..dataplane.random import Stream, keys
from .distances import Metric, distances_to, pairwise_distances

__all__ = ["FacilityLocation", "Weights", "check_size", "comparable_rows", "facility_location"]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

Weights = Literal["cluster", "uniform"]

_PASSES = 100  # over all rows, of exchanges
_ROUNDS = 3  # of a choice in parts, in which each cluster finds its centre
_AT_ONCE = 4096  # rows that are compared with the chosen ones


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
        In which rows were chosen; 1 where the choice is exact.
    """

    rows: U64
    gains: F64
    weights: F32
    assignment: I64
    cost: float
    farthest: float
    left_out: U64
    parts: int = 1


def facility_location(
    features: npt.ArrayLike,
    k: int,
    *,
    metric: Metric | Literal["kernel"] = "l1",
    ids: npt.ArrayLike | None = None,
    weights: Weights = "cluster",
    refine: bool = False,
    nonfinite: Literal["leave-out", "fail"] = "leave-out",
    kernel_bytes: int = 1 << 30,
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
    refine : bool
        Exchange rows as long as that lowers the cost.
    nonfinite : {'leave-out', 'fail'}
        What becomes of rows that cannot be compared.
    kernel_bytes : int
        Memory that distances may take: 4 n² bytes, or rows are chosen in parts. A kernel that is
        given is there already, and not held against it.
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
    values = _checked(features, metric, weights, nonfinite)
    names = _ids(ids, len(values))
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
    most = math.isqrt(kernel_bytes // 4)
    if k > most and n > most and metric != "kernel":
        raise SelectionError(
            f"The distances between {k:,} rows take {4 * k * k:,} bytes, and kernel_bytes allows "
            f"{kernel_bytes:,}. Choose fewer rows, or give it more."
        )
    if n <= most or metric == "kernel":
        far = _distances(values, order, metric, threads)
        found, parts = _choose(far, np.ones(n), k, refine), 1
    else:
        parts = -(-n // most) if k else 1
        found = _in_parts(values[order], names[order], k, metric, parts, most, refine, threads)
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
    )


def check_size(k: int, rows: int) -> None:
    """Raise `SelectionError` unless k rows can be chosen of so many."""
    if not 0 <= k <= rows:
        raise SelectionError(
            f"{k:,} rows cannot be chosen of {rows:,}: k must be in the range [0, {rows}]."
        )


@dataclass(frozen=True)
class _Chosen:
    picks: I64
    gains: F64
    owner: I64
    cost: float
    farthest: float


def _choose(far: F32, weight: F64, k: int, refine: bool) -> _Chosen:
    """Choose k of the rows whose distances to one another are given, shape (n, n)."""
    from .medoid_kernels import greedy, swap

    n = len(far)
    farthest = np.float32(far.max(initial=0.0))
    picks, gains = np.empty(k, np.int64), np.empty(k)
    # Rows as far as C from all are as near to the first one as to any.
    owner, near = np.full(n, 0 if k else -1, np.int64), np.empty(n, np.float32)
    greedy(far, weight, farthest, picks, gains, owner, near)
    if refine and k and swap(far, weight, picks, _PASSES):
        chosen = np.sort(picks)
        owner[:] = 0
        greedy(far[chosen], weight, farthest, picks, gains, owner, near)
        picks = chosen[picks]
    owner[picks] = np.arange(k)  # a chosen row stands for itself, whatever equals it
    return _Chosen(picks, gains, owner, float(near.sum(dtype=np.float64)), float(farthest))


def _in_parts(
    values: F32,
    ids: U64,
    k: int,
    metric: Metric,
    parts: int,
    most: int,
    refine: bool,
    threads: int | None,
) -> _Chosen:
    """Choose k of each part and k of these; no more than `most` rows are compared at a time."""
    if not k:
        return _of_all(values, np.zeros(0, np.int64), metric, 0.0)
    each = min(k, most // parts)
    if each * parts < k:
        raise SelectionError(
            f"{k:,} rows cannot be chosen of {parts} parts of {most:,} rows; give kernel_bytes "
            "more."
        )
    order = np.argsort(keys(0, Stream.PARTS, 0, ids), kind="stable")
    kept, stands_for = [], []
    for part in np.array_split(order, parts):
        rows = np.sort(part)
        far = pairwise_distances(values[rows], metric, threads=threads)
        found = _choose(far, np.ones(len(rows)), min(each, len(rows)), False)
        kept.append(rows[found.picks])
        stands_for.append(np.bincount(found.owner, minlength=len(found.picks)))
    candidates, weight = np.concatenate(kept), np.concatenate(stands_for).astype(np.float64)
    by_id = np.argsort(candidates)
    candidates, weight = candidates[by_id], weight[by_id]
    far = pairwise_distances(values[candidates], metric, threads=threads)
    picks = candidates[_choose(far, weight, k, refine).picks]
    best = _of_all(values, picks, metric, float(far.max(initial=0.0)))
    for _ in range(_ROUNDS):
        centred = _centred(values, best, metric, most)
        found = _of_all(values, centred, metric, best.farthest)
        if found.cost >= best.cost:
            break
        best = found
    return best


def _centred(values: F32, chosen: _Chosen, metric: Metric, most: int) -> I64:
    """Return for each chosen row that of its cluster which is nearest to all of it."""
    picks = chosen.picks.copy()
    order = np.argsort(chosen.owner, kind="stable")
    cuts = np.searchsorted(chosen.owner[order], np.arange(len(picks) + 1))
    for place in range(len(picks)):
        rows = order[cuts[place] : cuts[place + 1]]
        if 2 < len(rows) <= most:
            far = pairwise_distances(values[rows], metric, threads=1)
            sums = far.sum(axis=1, dtype=np.float64)
            here = int(np.searchsorted(rows, picks[place]))
            if sums.min() < sums[here]:
                picks[place] = rows[int(np.argmin(sums))]
    return picks


def _of_all(values: F32, picks: I64, metric: Metric, farthest: float) -> _Chosen:
    """Compute what is known of chosen rows from their distances to all."""
    n, gains = len(values), np.zeros(len(picks))
    owner, near = np.zeros(n, np.int64), np.zeros(n, np.float32)
    if not len(picks):
        return _Chosen(picks, gains, owner - 1, n * farthest, farthest)
    from .medoid_kernels import take_in

    for start in range(0, n, _AT_ONCE):
        here = slice(start, start + _AT_ONCE)
        far = distances_to(values[here], values[picks], metric)
        farthest = max(farthest, float(far.max()))
        take_in(far, gains, owner[here], near[here])
    gains[0] += n * farthest
    owner[picks] = np.arange(len(picks))  # a chosen row stands for itself
    return _Chosen(picks, gains, owner, float(near.sum(dtype=np.float64)), farthest)


def _distances(
    values: F32, order: I64, metric: Metric | Literal["kernel"], threads: int | None
) -> F32:
    if metric != "kernel":
        return pairwise_distances(values[order], metric, threads=threads)
    kernel = values[np.ix_(order, order)].T
    return np.ascontiguousarray(kernel.max(initial=-np.inf) - kernel)


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


def _ids(ids: npt.ArrayLike | None, n: int) -> U64:
    if ids is None:
        return np.arange(n, dtype=np.uint64)
    found = np.asarray(ids)
    if found.shape != (n,) or (found.dtype.kind not in "iu" and n):
        raise SelectionError(
            f"Expected 'ids' as integers of shape ({n},), found {found.dtype} of shape "
            f"{found.shape}."
        )
    named = found.astype(np.uint64)
    sorted_ = np.sort(named)
    again = sorted_[1:][sorted_[1:] == sorted_[:-1]]
    if len(again):
        raise SelectionError(
            f"Row ids repeat: {examples(np.unique(again))}. Give each row its own."
        )
    return named
