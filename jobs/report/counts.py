"""What is counted of a plan while its blocks go by. Pure: arrays in, plain figures out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...dataplane.plan import BatchPlan, Ragged, SideColumn
from ...dataplane.radix import ordered, values_of

__all__ = ["BatchCounts", "FloatCounts", "RowTimes", "bins_of", "pieces", "whole_bins"]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Numbers = npt.NDArray[Any]

BINS = 40
MOST_VALUES = 16  # different numbers that are shown one by one
_BITS = 20  # of a float32, the leading ones: it is known to 1 in 2,048
_LOG_RATIO = 100.0  # between the largest and the smallest, from which bins are of equal ratios


def pieces(ids: int) -> Iterator[slice]:
    """Yield slices of arrays by row id, a million at a time: what is made of one is soon gone."""
    for start in range(0, ids, 1 << 20):
        yield slice(start, start + (1 << 20))


class RowTimes:
    """How often each row is planned, by row id.

    Parameters
    ----------
    ids : int
        One above the largest row id.
    most : int
        The largest count there can be.
    """

    def __init__(self, ids: int, most: int) -> None:
        small = next(t for t in (np.uint8, np.uint16, np.uint32) if most <= np.iinfo(t).max)
        self.times: Numbers = np.zeros(ids, small)

    def add(self, rows: U64, *, repeated: bool) -> None:
        """Count rows; `repeated` where one may be there twice."""
        index = rows.view(np.int64)
        if repeated:
            np.add.at(self.times, index, 1)
        else:
            self.times[index] = self.times[index] + 1


class FloatCounts:
    """How often numbers come up, to 20 leading bits of a float32; memory does not grow."""

    def __init__(self) -> None:
        self._counts = np.zeros(1 << _BITS, np.int64)
        self._example = np.zeros(1 << _BITS, np.float32)
        self._sum = 0.0

    def add(self, values: Numbers) -> None:
        """Count finite numbers."""
        found = np.ascontiguousarray(values, np.float32)
        if not len(found):
            return
        words = (ordered(found) >> np.uint32(32 - _BITS)).astype(np.int64)
        self._counts += np.bincount(words, minlength=len(self._counts))
        self._example[words] = found
        self._sum += float(found.sum(dtype=np.float64))

    def figures(self) -> dict[str, Any] | None:
        """Return the counts by value or by bin; None where nothing was counted."""
        held = np.flatnonzero(self._counts)
        if not len(held):
            return None
        counts = self._counts[held]
        if len(held) <= MOST_VALUES:
            values = self._example[held]
        else:
            first = held.astype(np.uint32) << np.uint32(32 - _BITS)
            values = values_of(first, np.float32)
        total = int(counts.sum())
        return bins_of(values.astype(np.float64), counts) | {
            "count": total,
            "mean": self._sum / total,
        }


def bins_of(values: Numbers, counts: Numbers | None = None) -> dict[str, Any]:
    """Return how often numbers come up: each of a few, or by bin.

    Parameters
    ----------
    values : float64, shape (n,)
        Finite.
    counts : int64, shape (n,), optional
        How often each is there; once when None.

    Returns
    -------
    dict
        ``values`` and ``counts``; or ``edges``, one more than ``counts``, and ``scale``: bins of
        equal width (``linear``), or of equal ratio (``log``) where the largest number is a hundred
        times the smallest one.
    """
    known, place = np.unique(values, return_inverse=True)
    if len(known) <= MOST_VALUES:
        held = np.bincount(place, counts, len(known))
        return {"values": known.tolist(), "counts": held.astype(np.int64).tolist()}
    low, high = float(known[0]), float(known[-1])
    if low > 0 and high / low > _LOG_RATIO:
        scale, edges = "log", np.geomspace(low, high, BINS + 1)
    else:
        scale, edges = "linear", np.linspace(low, high, BINS + 1)
    edges[0], edges[-1] = low, high
    held, _ = np.histogram(values, edges, weights=counts)
    return {"edges": edges.tolist(), "counts": held.astype(np.int64).tolist(), "scale": scale}


def whole_bins(values: I64, counts: I64) -> dict[str, Any]:
    """Return how often whole numbers come up, as `bins_of`; bins hold equally many of them.

    Parameters
    ----------
    values : int64, shape (n,)
        Ascending and distinct.
    counts : int64, shape (n,)
    """
    if not len(values):
        return {"values": [], "counts": [], "mean": None}
    mean = {"mean": float(values @ counts / counts.sum())}
    if len(values) <= MOST_VALUES:
        return {"values": values.tolist(), "counts": counts.tolist()} | mean
    low, high = int(values[0]), int(values[-1])
    width = -(-(high - low + 1) // BINS)
    edges = np.arange(low, high + width + 1, width) - 0.5
    held, _ = np.histogram(values, edges, weights=counts)
    return {
        "edges": edges.tolist(),
        "counts": held.astype(np.int64).tolist(),
        "scale": "linear",
    } | mean


class BatchCounts:
    """What an epoch's micro-batches are like: sizes, padding, weights, clusters, negatives."""

    def __init__(self, side: Sequence[SideColumn]) -> None:
        self._kinds = {c.name: c.kind for c in side}
        self._sizes: Counter[int] = Counter()
        self._last = 0
        self._padded: int | None = 0 if self._kinds.get("pad_to") == "batch" else None
        self._weights = FloatCounts()
        self._clusters = np.zeros(0, np.int64)
        self._lists: dict[str, Counter[int]] = {"mask": Counter(), "negatives": Counter()}
        self._hardest = FloatCounts()

    def add(self, plan: BatchPlan) -> None:
        """Count the next micro-batches."""
        sizes = np.diff(plan.offsets)
        self._sizes.update(_counted(sizes))
        self._last = int(sizes[-1])
        if self._padded is not None:
            self._padded += int(np.maximum(_array(plan, "pad_to"), sizes).sum(dtype=np.int64))
        if plan.weights is not None:
            self._weights.add(plan.weights)
        if self._kinds.get("cluster") in ("batch", "row"):
            labels = _array(plan, "cluster").astype(np.int64)
            rows = sizes if self._kinds["cluster"] == "batch" else None
            self._add_clusters(labels, rows)
        for name, counter in self._lists.items():
            value = plan.side.get(name)
            if isinstance(value, Ragged):
                counter.update(_counted(np.diff(value.offsets)))
        scores = plan.side.get("scores")
        if isinstance(scores, Ragged):
            listed = np.diff(scores.offsets) > 0
            self._hardest.add(scores.values[scores.offsets[:-1][listed]])

    def _add_clusters(self, labels: I64, rows: I64 | None) -> None:
        inside = labels >= 0
        found = np.bincount(labels[inside], None if rows is None else rows[inside])
        most = max(len(found), len(self._clusters))
        self._clusters = np.pad(self._clusters, (0, most - len(self._clusters)))
        self._clusters[: len(found)] += found.astype(np.int64)

    # --- figures ----------------------------------------------------------------------------------

    def batches(self) -> dict[str, Any]:
        """Return sizes, and how much of the batches would be padding at the largest size."""
        largest, batches = max(self._sizes), sum(self._sizes.values())
        rows = sum(size * count for size, count in self._sizes.items())
        full = self._sizes[largest]
        return {
            "micro_batches": batches,
            "rows": rows,
            "smallest": min(self._sizes),
            "largest": largest,
            "last": self._last,
            "mean": rows / batches,
            "full": full,
            "ragged": batches - full,
            "padding": 1 - rows / (batches * largest),
            "padding_planned": None if self._padded is None else 1 - rows / max(1, self._padded),
            "sizes": _of_counter(self._sizes),
        }

    def weights(self) -> dict[str, Any] | None:
        """Return how weights are spread; None where all are 1."""
        return self._weights.figures()

    def cluster_sizes(self) -> I64:
        """Return the rows of each cluster that a side column names."""
        return self._clusters

    def hardness(self) -> dict[str, Any] | None:
        """Return what was mined: negatives and masked rows of each row, and the hardest score."""
        if not self._lists["negatives"]:
            return None
        return {
            "negatives": _of_counter(self._lists["negatives"]),
            "masked": _of_counter(self._lists["mask"]),
            "hardest": self._hardest.figures(),
        }


def _array(plan: BatchPlan, name: str) -> Numbers:
    value = plan.side[name]
    assert not isinstance(value, Ragged)  # for the type checker; its kind was looked at
    return value


def _counted(sizes: I64) -> dict[int, int]:
    known, counts = np.unique(sizes, return_counts=True)
    return dict(zip(known.tolist(), counts.tolist(), strict=True))


def _of_counter(counter: Counter[int]) -> dict[str, Any]:
    known = np.array(sorted(counter), np.int64)
    return whole_bins(known, np.array([counter[int(k)] for k in known], np.int64))
