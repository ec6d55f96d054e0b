"""One pass of k-means over rows in parts: sums that merge exactly, and the step made from them.

`partial_sums` takes any part of the rows. Results are added up in any order (``+``), and `update`
makes the next centers of the total. The total has the same bits however the rows are divided and
ordered, since nothing in it is rounded after the division:

- **Sums** are int64 in fixed point. Column t counts in units of 2^−e, e = 62 − b − E for n ≤ 2^b
  rows of magnitude < 2^E, so that n values stay below 2^62 and no sum can overflow. A value is off
  by at most half a unit, 2^(b−62) of the column's largest magnitude, and so is a mean: less than
  float32 resolves up to n = 2^37. Values down to 2^(b−38) of the largest are added up exactly. Rows
  beyond the range that a `Scale` was made for are refused, never wrapped around.
- **Inertia** is an integer too, of any size, in units of 2^−62 of the largest possible distance.
- **Farthest rows**: each part returns those that are farthest from their centers, with different
  values, a tie in favour of the smaller id. `update` puts some in the place of clusters without
  rows, the farthest for the lowest such cluster; see `refill`.

Other clusters may lose all their rows to these; but `refill` alone, repeated on the last centers,
ends: each time at least one center is added, and the inertia falls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..dataplane.errors import InvalidValueError, SelectionError, examples
from .assignment import PROBES, Device, Nearest, in_blocks

__all__ = ["Far", "Scale", "Span", "Sums", "partial_sums", "refill", "span", "update"]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

MOST_ROWS = 1 << 37
_FAR_BYTES = 256 << 10  # of farthest rows that a part returns
_MOST_FAR, _LEAST_FAR = 256, 16
_APART = 0.25  # of a row's distance from its center, from one that was taken before
_SCAN_ROWS = 1 << 16


@dataclass(frozen=True)
class Span:
    """What values rows have; ``a + b`` is that of both parts.

    Attributes
    ----------
    rows : int
    largest : float32, shape (d,)
        The largest magnitude in each column.
    """

    rows: int
    largest: F32

    def __add__(self, other: Span) -> Span:
        return Span(self.rows + other.rows, np.maximum(self.largest, other.largest))


def span(x: F32, ids: U64 | None = None) -> Span:
    """Return what values rows have; refuse NaN and infinite ones by id.

    Parameters
    ----------
    x : float32, shape (n, d)
    ids : uint64, shape (n,), optional
        For the message; positions when None.

    Raises
    ------
    InvalidValueError
    """
    largest = np.zeros(x.shape[1], np.float32)
    for start in range(0, len(x), _SCAN_ROWS):
        np.maximum(largest, np.abs(x[start : start + _SCAN_ROWS]).max(axis=0), out=largest)
    if not np.isfinite(largest).all():
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        named = bad if ids is None else ids[bad]
        raise InvalidValueError(
            f"{len(bad):,} rows hold NaN or infinite values, as float32: {examples(named)}. Leave "
            "them out, or find out why."
        )
    return Span(len(x), largest)


@dataclass(frozen=True, eq=False)
class Scale:
    """The fixed point that sums are counted in: a function of what all rows together span.

    Attributes
    ----------
    rows : int
        Rows that may be added up.
    largest : float32, shape (d,)
        The largest magnitude that a value may have.
    exponents : int32, shape (d,)
        Column t is counted in units of 2^−exponents[t].
    distance_exponent : int
        Squared distances are counted in units of 2^−distance_exponent.
    """

    rows: int
    largest: F32
    exponents: I32
    distance_exponent: int

    @classmethod
    def of(cls, span: Span, centers: F32 | None = None) -> Scale:
        """Return the scale for rows of this span, and for centers that may be outside of it."""
        if span.rows > MOST_ROWS:
            raise SelectionError(
                f"Sums of {span.rows:,} rows would be inexact; at most {MOST_ROWS:,} can be added "
                "up."
            )
        reach = span.largest.astype(np.float64)
        if centers is not None and len(centers):
            reach = np.maximum(reach, np.abs(centers).max(axis=0))
        bits = max(0, span.rows - 1).bit_length()
        exponents = 62 - bits - np.frexp(span.largest.astype(np.float64))[1]
        farthest = float((4.0 * reach * reach).sum()) * (1 + 1e-6)
        return cls(
            span.rows,
            span.largest,
            exponents.astype(np.int32),
            62 - math.frexp(farthest)[1],
        )

    def same(self, other: Scale) -> bool:
        """Whether two scales count alike."""
        mine, others = ((s.rows, s.distance_exponent) for s in (self, other))
        return mine == others and np.array_equal(self.largest, other.largest)


@dataclass(frozen=True, eq=False)
class Far:
    """Rows that are far from their centers: the farthest first, of equal rows that of smallest id.

    Attributes
    ----------
    distances : float64, shape (t,)
        Squared, > 0.
    ids : uint64, shape (t,)
    rows : float32, shape (t, d)
    """

    distances: F64
    ids: U64
    rows: F32

    def merged(self, other: Far, most: int) -> Far:
        """Return the farthest rows of both."""
        return _farthest(
            np.concatenate([self.distances, other.distances]),
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.rows, other.rows]),
            most,
        )


@dataclass(frozen=True, eq=False)
class Sums:
    """What a pass over some rows adds up to; ``a + b`` is that of both parts.

    Attributes
    ----------
    scale : Scale
    sums : int64, shape (k, d)
    counts : int64, shape (k,)
    error : int
        Squared distances.
    far : Far
    """

    scale: Scale
    sums: I64
    counts: I64
    error: int
    far: Far

    def __add__(self, other: Sums) -> Sums:
        if not self.scale.same(other.scale) or self.sums.shape != other.sums.shape:
            raise SelectionError(
                "Sums of different scales or numbers of clusters cannot be added: make one Scale "
                "of what all rows span, and hand it to each part."
            )
        total = Sums(
            self.scale,
            self.sums + other.sums,
            self.counts + other.counts,
            self.error + other.error,
            self.far.merged(other.far, _far_rows(self.sums.shape[1])),
        )
        if total.rows > self.scale.rows:
            raise SelectionError(
                f"{total.rows:,} rows were added up, and the scale was made for "
                f"{self.scale.rows:,}: some part was counted twice, or the span lacks one."
            )
        return total

    @property
    def rows(self) -> int:
        """Rows that were added up."""
        return int(self.counts.sum())

    @property
    def inertia(self) -> float:
        """Sum of squared distances, rounded once."""
        e = self.scale.distance_exponent
        return self.error / (1 << e) if e >= 0 else float(self.error << -e)

    @property
    def empty(self) -> I64:
        """Clusters without rows."""
        return np.flatnonzero(self.counts == 0)


def partial_sums(
    x: F32,
    ids: U64,
    centers: F32,
    scale: Scale,
    *,
    coarse: F32 | None = None,
    probes: int = PROBES,
    labels: I32 | None = None,
    threads: int = 1,
    device: Device = "auto",
) -> Sums:
    """Assign a part of the rows to their nearest centers and add them up.

    Parameters
    ----------
    x : float32, shape (n, d)
        Finite; of length 1 for spherical k-means.
    ids : uint64, shape (n,)
    centers : float32, shape (k, d)
    scale : Scale
        Of all rows.
    coarse, probes, device
        See `assignment`.
    labels : int32, shape (n,), optional
        To be filled in.
    threads : int

    Raises
    ------
    SelectionError
        Where rows or centers are outside of the range that the scale was made for.
    """
    from .kmeans_kernels import add_rows, fixed_sum

    x, centers = (np.ascontiguousarray(a, np.float32) for a in (x, centers))
    nearest = Nearest(centers, coarse=coarse, probes=probes, device=device)
    factors, distances = np.ldexp(1.0, scale.exponents), np.empty(len(x), np.float64)

    def work(parts: Sequence[slice]) -> tuple[I64, I64]:
        sums, counts = np.zeros(centers.shape, np.int64), np.zeros(len(centers), np.int64)
        for part in parts:
            found, distances[part] = nearest.find(x[part])
            outside = int(add_rows(x[part], found, factors, scale.largest, sums, counts))
            if outside >= 0:
                raise SelectionError(
                    f"Row {int(ids[part][outside])} has values beyond the range that sums are "
                    "scaled for; make the Scale of the span of all rows."
                )
            if labels is not None:
                labels[part] = found
        return sums, counts

    (sums, counts), *others = in_blocks(nearest, len(x), threads, work)
    for more_sums, more_counts in others:
        sums += more_sums
        counts += more_counts
    if float(distances.max(initial=0.0)) > math.ldexp(1.0, 62 - scale.distance_exponent):
        raise SelectionError(
            "Centers lie beyond the range that distances are scaled for; hand them to Scale.of."
        )
    high, low = fixed_sum(distances, 2.0**scale.distance_exponent)
    far = _farthest_of(distances, ids, x, _far_rows(centers.shape[1]))
    return Sums(scale, sums, counts, (int(high) << 32) + int(low), far)


def update(centers: F32, sums: Sums, *, spherical: bool = False) -> F32:
    """Return the means of the clusters; farthest rows where a cluster has none.

    Parameters
    ----------
    centers : float32, shape (k, d)
        That the rows were assigned to.
    sums : Sums
        Of all rows.
    spherical : bool
        Scale the means to length 1; a mean of zeros leaves its center as it was.
    """
    filled = np.flatnonzero(sums.counts)
    totals = np.ldexp(sums.sums[filled].astype(np.float64), -sums.scale.exponents)
    means = totals / sums.counts[filled, None]
    new = centers.copy()
    if spherical:
        from .kmeans_kernels import to_unit

        unit = np.empty(means.shape, np.float32)
        to_unit(means, unit)
        pointed = means.any(axis=1)
        new[filled[pointed]] = unit[pointed]
    else:
        new[filled] = means
    return refill(new, sums)


def refill(centers: F32, sums: Sums) -> F32:
    """Return the centers with farthest rows in the place of those without rows.

    The next one is always that which is farthest from its center and from those taken before. Where
    it is much nearer to one of these than to its center, that one may serve both, and the clusters
    that are left wait for the next pass.
    """
    from .kmeans_kernels import exact_distances

    rows, alone = sums.far.rows, sums.far.distances.copy()
    places, away = np.arange(len(rows)), np.empty(len(rows))
    new = centers.copy()
    for cluster in sums.empty:
        taken = int(np.argmax(alone)) if len(alone) else 0
        if not len(alone) or alone[taken] < _APART * sums.far.distances[taken]:
            break
        new[cluster] = rows[taken]
        exact_distances(rows, places, rows, np.full(len(rows), taken), away)
        np.minimum(alone, away, out=alone)
    return new


def _far_rows(width: int) -> int:
    """Return how many farthest rows a part returns."""
    return max(_LEAST_FAR, min(_MOST_FAR, _FAR_BYTES // (4 * width + 16)))


def _farthest_of(distances: F64, ids: U64, rows: F32, most: int) -> Far:
    """Return the farthest of many rows."""
    take = most
    while True:
        cut = len(distances) - take
        least = np.partition(distances, cut)[cut] if cut > 0 else 0.0
        places = np.flatnonzero((distances >= least) & (distances > 0))
        found = _farthest(distances[places], ids[places], rows[places], most)
        if len(found.ids) == most or not least:
            return found
        take *= 8  # many of them are equal


def _farthest(distances: F64, ids: U64, rows: F32, most: int) -> Far:
    """Return the farthest of some rows, each value once."""
    taken: list[int] = []
    seen: set[bytes] = set()
    for place in np.lexsort((ids, -distances)):
        value = (rows[place] + np.float32(0)).tobytes()  # -0.0 is 0.0
        if value not in seen:
            seen.add(value)
            taken.append(place)
            if len(taken) == most:
                break
    return Far(distances[taken], ids[taken], rows[taken])
