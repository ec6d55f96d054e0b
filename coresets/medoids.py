"""K medoids: the exact greedy choice, a sampled one, the optimum on a line, and choice in parts.

Rows are given in the order of their ids, so a tie is decided by position. `facility_location` says
what is chosen and why.

- ``"lazy"`` is the exact greedy choice, searched lazily (Minoux, 1978).
- ``"auto"`` is that, and where rows lie on a line (one number a row; or features that are multiples
  of one direction, as those of a single random probe are) the optimum as well, found as intervals
  by dynamic programming. The cheaper of the two is taken, so that a line that is none does no harm.
- ``"stochastic"`` looks at n/k · ln(1/epsilon) random candidates a round only (Mirzasoleiman et
  al., *Lazier than lazy greedy*, AAAI 2015). Where k is large, lazy search looks at few as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..dataplane.errors import SelectionError
from ..dataplane.random import Stream, keys
from .distances import Metric, distances_to, pairwise_distances

__all__ = [
    "Chosen",
    "Optimizer",
    "Search",
    "choose",
    "choose_in_parts",
    "medoids_on_a_line",
    "on_a_line",
    "unmet_gains",
]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

Optimizer = Literal["auto", "lazy", "stochastic"]

_PASSES = 100  # over all rows, of exchanges
_ROUNDS = 3  # of a choice in parts, in which each cluster finds its centre
_AT_ONCE = 4096  # rows that are compared with the chosen ones
_STRAIGHT = 1e-3  # how far rows may be from a line, as a share of their spread along it


@dataclass(frozen=True)
class Search:
    """How medoids are searched for.

    Attributes
    ----------
    optimizer : {'auto', 'lazy', 'stochastic'}
    refine : bool
        Exchange rows as long as that lowers the cost.
    epsilon : float
        Of the stochastic search.
    seed : int
    """

    optimizer: Optimizer = "auto"
    refine: bool = False
    epsilon: float = 1e-5
    seed: int = 0


@dataclass(frozen=True)
class Chosen:
    """Medoids, in the order of choice, and what is known of them.

    Attributes
    ----------
    picks : int64, shape (k,)
    gains : float64, shape (k,)
    owner : int64, shape (n,)
        Which of the picks is nearest to each row.
    near : float32, shape (n,)
        How far it is.
    farthest : float
    """

    picks: I64
    gains: F64
    owner: I64
    near: F32
    farthest: float

    @property
    def cost(self) -> float:
        return float(self.near.sum(dtype=np.float64))


def choose(
    far: F32,
    k: int,
    search: Search,
    *,
    weight: F64 | None = None,
    line: F64 | None = None,
) -> Chosen:
    """Choose k of n rows.

    Parameters
    ----------
    far : float32, shape (n, n)
        Distances between all rows.
    k : int
    search : Search
    weight : float64, shape (n,), optional
        Of the rows; 1 when None.
    line : float64, shape (n,), optional
        Where the rows are on a line, if they are on one (`on_a_line`).
    """
    mass = np.ones(len(far)) if weight is None else weight
    found = _greedy(far, k, mass, search)
    if line is not None and weight is None and k and search.optimizer == "auto":
        best = _ordered(far, medoids_on_a_line(line, k), mass)
        found = best if best.cost < found.cost else found
    if search.refine and k:
        found = _refined(far, found, mass)
    return found


def _greedy(far: F32, k: int, weight: F64, search: Search) -> Chosen:
    from .medoid_kernels import greedy, stochastic_greedy

    n = len(far)
    farthest = np.float32(far.max(initial=0.0))
    picks, gains = np.empty(k, np.int64), np.empty(k)
    # Rows as far as C from all are as near to the first one as to any.
    owner, near = np.full(n, 0 if k else -1, np.int64), np.empty(n, np.float32)
    if search.optimizer == "stochastic" and k:
        looks = min(n, math.ceil(n / k * math.log(1 / search.epsilon)))
        draws = keys(search.seed, Stream.LAZIER, 0, np.arange(k * looks)).reshape(k, looks)
        stochastic_greedy(far, weight, farthest, draws, picks, gains, owner, near)
    else:
        greedy(far, weight, farthest, picks, gains, owner, near)
    owner[picks] = np.arange(k)  # a chosen row stands for itself, whatever equals it
    return Chosen(picks, gains, owner, near, float(farthest))


def _ordered(far: F32, picks: I64, weight: F64) -> Chosen:
    """Return medoids in the order in which the greedy choice takes them."""
    from .medoid_kernels import greedy

    candidates = np.sort(picks)
    order, gains = np.empty(len(picks), np.int64), np.empty(len(picks))
    owner, near = np.zeros(len(far), np.int64), np.empty(len(far), np.float32)
    farthest = np.float32(far.max(initial=0.0))
    greedy(far[candidates], weight, farthest, order, gains, owner, near)
    owner[candidates[order]] = np.arange(len(picks))
    return Chosen(candidates[order], gains, owner, near, float(farthest))


def _refined(far: F32, found: Chosen, weight: F64) -> Chosen:
    from .medoid_kernels import swap

    picks = found.picks.copy()
    return _ordered(far, picks, weight) if swap(far, weight, picks, _PASSES) else found


# --- on a line ------------------------------------------------------------------------------------


def on_a_line(values: F32, metric: Metric) -> F64 | None:
    """Return where rows are on a line, or None where they are on none, or all at one point.

    Distances on a line are those along it by l1 and l2; by cosine they are not.
    """
    if metric == "cosine" or len(values) < 2:
        return None
    return None if _bent(values[:3]) else _along(values)


def _bent(rows: F32) -> bool:
    """Whether three rows tell already that all are on no line, as most features do."""
    if len(rows) < 3 or rows.shape[1] == 1:
        return False
    a, b = rows[1] - rows[0], rows[2] - rows[0]
    longest = max(float(a @ a), float(b @ b))
    beside = float(a @ a) * float(b @ b) - float(a @ b) ** 2  # an area, squared
    # Of vectors of d numbers an l1 length is at most √d times the Euclidean one.
    return bool(beside > _STRAIGHT**2 * rows.shape[1] * longest**2)


def _along(values: F32) -> F64 | None:
    """Return how far rows are along the way from the first one to the farthest from it.

    In units of no meaning, and exact for whole numbers, so that ties stay ties.
    """
    away = values - values[0]
    sizes = np.abs(away).sum(axis=1)
    direction = away[int(np.argmax(sizes))].astype(np.float64)
    length = float(direction @ direction)
    if not 0 < length < np.inf:
        return None
    along: F64 = away @ direction
    if away.shape[1] == 1:
        return along
    beside = np.abs(away - np.outer(along / length, direction)).sum(axis=1)
    return along if beside.max() <= _STRAIGHT * sizes.max() else None


def medoids_on_a_line(line: F64, k: int) -> I64:
    """Return the k medoids of least cost of rows on a line; int64, shape (k,)."""
    from .medoid_kernels import median_cuts

    order = np.argsort(line, kind="stable")
    at = line[order] - line[order[len(order) // 2]]
    table = median_cuts(at, np.concatenate([[0.0], np.cumsum(at)]), k)
    stops = [len(at)]  # of the intervals, the last one first
    for number in range(k - 1, 0, -1):
        stops.append(int(table[number, stops[-1]]))
    ends = np.array(stops[::-1])
    starts = np.concatenate([[0], ends[:-1]])
    # Of two in the middle the one of the smaller id, whichever way the line was walked.
    picks: I64 = np.minimum(order[(starts + ends - 1) // 2], order[(starts + ends) // 2])
    return picks


# --- in parts -------------------------------------------------------------------------------------


def choose_in_parts(
    values: F32,
    ids: U64,
    k: int,
    metric: Metric,
    search: Search,
    *,
    parts: int,
    most: int,
    threads: int | None,
) -> Chosen:
    """Choose k of each part and k of these; no more than `most` rows are compared at a time."""
    if not k:
        return _of_all(values, np.zeros(0, np.int64), metric, 0.0)
    each = min(k, most // parts)
    if each * parts < k:
        raise SelectionError(
            f"{k:,} rows cannot be chosen of {parts} parts of {most:,} rows; give kernel_bytes "
            "more."
        )
    line = on_a_line(values, metric) if search.optimizer == "auto" else None
    best = None
    if line is not None and k * len(values) <= most * most:  # a cut for each of k and n
        best = _of_all(values, medoids_on_a_line(line, k), metric, 0.0)
        if values.shape[1] == 1:
            return best
    found = _two_rounds(values, ids, k, metric, search, parts, most, each, threads)
    return found if best is None or found.cost <= best.cost else best


def _two_rounds(
    values: F32,
    ids: U64,
    k: int,
    metric: Metric,
    search: Search,
    parts: int,
    most: int,
    each: int,
    threads: int | None,
) -> Chosen:
    order = np.argsort(keys(0, Stream.PARTS, 0, ids), kind="stable")
    plain = Search(search.optimizer, False, search.epsilon, search.seed)
    kept, stands_for = [], []
    for part in np.array_split(order, parts):
        rows = np.sort(part)
        far = pairwise_distances(values[rows], metric, threads=threads)
        found = choose(far, min(each, len(rows)), plain)
        kept.append(rows[found.picks])
        stands_for.append(np.bincount(found.owner, minlength=len(found.picks)))
    candidates, weight = np.concatenate(kept), np.concatenate(stands_for).astype(np.float64)
    by_id = np.argsort(candidates)
    candidates, weight = candidates[by_id], weight[by_id]
    far = pairwise_distances(values[candidates], metric, threads=threads)
    picks = candidates[choose(far, k, search, weight=weight).picks]
    best = _of_all(values, picks, metric, float(far.max(initial=0.0)))
    for _ in range(_ROUNDS):
        centred = _centred(values, best, metric, most)
        moved = _of_all(values, centred, metric, best.farthest)
        if moved.cost >= best.cost:
            break
        best = moved
    return best


def _centred(values: F32, chosen: Chosen, metric: Metric, most: int) -> I64:
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


def _of_all(values: F32, picks: I64, metric: Metric, farthest: float) -> Chosen:
    """Compute what is known of chosen rows from their distances to all."""
    n, gains = len(values), np.zeros(len(picks))
    owner, near = np.zeros(n, np.int64), np.zeros(n, np.float32)
    if not len(picks):
        return Chosen(picks, gains, owner - 1, near + np.float32(farthest), farthest)
    from .medoid_kernels import take_in

    for start in range(0, n, _AT_ONCE):
        here = slice(start, start + _AT_ONCE)
        far = distances_to(values[here], values[picks], metric)
        farthest = max(farthest, float(far.max()))
        take_in(far, gains, owner[here], near[here])
    gains[0] += n * farthest
    owner[picks] = np.arange(len(picks))  # a chosen row stands for itself
    return Chosen(picks, gains, owner, near, farthest)


# --- what could be gained -------------------------------------------------------------------------


def unmet_gains(near: F32, k: int, far_of: Iterable[F32]) -> float:
    """Return the sum of the k largest gains that are left.

    The cost less this is one that no k rows fall below, since gains only fall as rows are chosen
    (Nemhauser et al., 1978).

    Parameters
    ----------
    near : float32, shape (n,)
        How far the nearest chosen row is from each.
    k : int
    far_of : iterable of float32, shape (some, n)
        Distances of all rows as candidates, some at a time.
    """
    from .medoid_kernels import gains_left

    found = np.concatenate([gains_left(far, near) for far in far_of])
    return float(np.sort(found)[::-1][:k].sum())
