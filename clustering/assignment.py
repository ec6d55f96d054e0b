"""Nearest centers: faiss finds candidates in float32, near ties are decided exactly.

A row's *label* is the center with the smallest squared distance; equal ones leave it to the lower
center. The distance is Σ (x − c)² in float64, summed up coordinate by coordinate. That is a pure
function of the row and the centers: it depends neither on the rows around it nor on blocks,
threads, the matrix product's library or the processor that finds candidates.

1. Rows and centers are taken relative to the middle of the centers and scaled by a power of two, so
   that an offset of the data costs no precision, and are rounded to float32.
2. faiss finds the two nearest centers of each row, on a GPU where there is one; without one its
   distances of a few hundred rows to all centers are compared here, which is faster than its own
   search. These distances A ≤ B come from inner products, |x|² + |c|² − 2 x·c, which are off by at
   most E = (d + 8) · 2⁻²⁴ · (2 |x| + √B)² in whatever order they are summed up (Higham, Accuracy
   and Stability of Numerical Algorithms, §3.1).
3. Where B − A > 2 E the nearest center is certain. For another row the distances to all centers
   that are not surely farther are computed exactly.

**Two levels**, for many centers: the centers are listed under the nearest of ``coarse`` ones, about
√k; a row is compared with the centers listed under its ``probes`` nearest coarse ones, both decided
as above. Its label is then the nearest of these, which is not always the nearest of all.

Blocks of rows go to ``threads`` threads of Python's, in each of which faiss runs on that thread
alone: OpenMP, which does not survive a fork, never starts a second one, and the caller's number of
OpenMP threads stays as it is. No array is of n · k values: a thread holds half a million distances.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from ..dataplane.errors import ParameterError, needs_extra

__all__ = ["Device", "Nearest", "assign", "chosen_device", "in_blocks"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
T = TypeVar("T")

Device = Literal["auto", "cpu", "cuda"]

PROBES = 4
_BLOCK_BYTES = 2 << 20  # of rows that are searched together
_LIST_BYTES = 64 << 20  # of two levels, where each list should get some hundreds of them
_GPU_BYTES = 64 << 20
_BLOCK_ROWS = 1 << 16
_TILE_CENTERS = 2048  # that distances are computed to at a time
_TILE_DISTANCES = 1 << 19  # held at once, a thread
_TINY = 2.0**-100  # what may be lost to numbers too small for float32, once scaled


def assign(
    x: npt.ArrayLike,
    centers: npt.ArrayLike,
    *,
    coarse: F32 | None = None,
    probes: int = PROBES,
    threads: int = 1,
    device: Device = "auto",
) -> tuple[I32, F64]:
    """Return each row's nearest center and its squared distance.

    Parameters
    ----------
    x : float32, shape (n, d)
        Finite.
    centers : float32, shape (k, d)
    coarse : float32, shape (m, d), optional
        Centers of centers, for a search in two levels.
    probes : int
        Of these that a row looks under.
    threads : int
    device : {'auto', 'cpu', 'cuda'}

    Returns
    -------
    labels : int32, shape (n,)
    distances : float64, shape (n,)
        Squared Euclidean, ≥ 0.
    """
    rows = np.ascontiguousarray(x, np.float32)
    nearest = Nearest(centers, coarse=coarse, probes=probes, device=device)
    labels, distances = np.empty(len(rows), np.int32), np.empty(len(rows), np.float64)

    def search(parts: Sequence[slice]) -> None:
        for part in parts:
            labels[part], distances[part] = nearest.find(rows[part])

    in_blocks(nearest, len(rows), threads, search)
    return labels, distances


def in_blocks(
    nearest: Nearest, n: int, threads: int, work: Callable[[Sequence[slice]], T]
) -> list[T]:
    """Deal blocks of n rows out to threads; return what each made of its own."""
    step = nearest.block_rows
    blocks = [slice(start, min(start + step, n)) for start in range(0, n, step)]
    count = max(1, min(threads, len(blocks)))
    if nearest.device == "cuda":
        count = 1  # one thread at a time may search what is on the GPU
    with _threads(count) as pool:
        return list(pool.map(work, [blocks[i::count] for i in range(count)]))


def _threads(count: int) -> ThreadPoolExecutor:
    """Return threads on each of which OpenMP has one thread; the caller's number stays as it is."""
    return ThreadPoolExecutor(count, initializer=_faiss().omp_set_num_threads, initargs=(1,))


def _faiss() -> Any:
    with needs_extra("k-means", "plan"):
        import faiss
    return faiss


def chosen_device(device: Device) -> Literal["cpu", "cuda"]:
    """Return where faiss will search; `ParameterError` where there is no GPU but one is asked for.

    ``'auto'`` is the first GPU that faiss sees, else the CPU.
    """
    if device == "cpu":
        return "cpu"
    faiss = _faiss()
    count = getattr(faiss, "get_num_gpus", lambda: 0)()  # faiss-cpu has none of it
    if count and hasattr(faiss, "StandardGpuResources"):
        return "cuda"
    if device == "cuda":
        raise ParameterError(
            "faiss sees no GPU here. Leave the 'device' parameter at 'auto', or install faiss-gpu "
            "where there is one."
        )
    return "cpu"


class Nearest:
    """Finds the nearest of some centers; made once, for any number of blocks of rows.

    To be used within `in_blocks`, where faiss is kept to one thread.

    Parameters
    ----------
    centers : float32, shape (k, d)
    coarse : float32, shape (m, d), optional
    probes : int
    device : {'auto', 'cpu', 'cuda'}

    Attributes
    ----------
    device : {'cpu', 'cuda'}
    block_rows : int
        Rows to hand over at a time.
    """

    def __init__(
        self,
        centers: npt.ArrayLike,
        *,
        coarse: F32 | None = None,
        probes: int = PROBES,
        device: Device = "auto",
    ) -> None:
        self.centers = np.ascontiguousarray(centers, np.float32)
        self.device = chosen_device(device)
        self._probes = probes
        width = max(1, self.centers.shape[1])
        self.block_rows = max(512, min(_BLOCK_ROWS, _BLOCK_BYTES // (4 * width)))
        self._coarse: _Set | None = None
        if coarse is None or len(coarse) < 2 or probes >= len(coarse):
            self._lists = [_Set(self.centers, self.device)]
            if self.device == "cuda":
                self.block_rows = max(1024, _GPU_BYTES // (4 * width))
        else:
            self.device = "cpu"  # the lists are too short for a GPU
            self.block_rows = max(1024, min(_BLOCK_ROWS, _LIST_BYTES // (4 * width)))
            with _threads(1) as pool:
                pool.submit(self._list_centers, np.ascontiguousarray(coarse, np.float32)).result()

    def find(self, x: F32) -> tuple[I32, F64]:
        """Return labels, int32, and squared distances, float64, of rows of shape (n, d)."""
        from .kmeans_kernels import exact_distances

        if self._coarse is not None:
            return self._find_in_lists(x, self._coarse)
        labels, distances = self._lists[0].top(x, 1)[:, 0], np.empty(len(x), np.float64)
        exact_distances(x, np.arange(len(x)), self.centers, labels, distances)
        return labels, distances

    def _list_centers(self, coarse: F32) -> None:
        """Put each center under its nearest coarse one; coarse ones without any are left out."""
        under = _Set(coarse, "cpu").top(self.centers, 1)[:, 0]
        used, places = np.unique(under, return_inverse=True)
        order = np.argsort(places, kind="stable")
        cuts = np.searchsorted(places[order], np.arange(len(used) + 1))
        self._coarse = _Set(coarse[used], "cpu")
        self._members = [order[a:b].astype(np.int32) for a, b in itertools.pairwise(cuts)]
        self._lists = [_Set(self.centers[m], "cpu") for m in self._members]

    def _find_in_lists(self, x: F32, coarse: _Set) -> tuple[I32, F64]:
        from .kmeans_kernels import exact_distances

        probed = coarse.top(x, min(self._probes, coarse.k))
        pairs = np.argsort(probed, axis=None, kind="stable")
        cuts = np.searchsorted(probed.ravel()[pairs], np.arange(coarse.k + 1))
        labels = np.full(len(x), len(self.centers), np.int32)
        distances = np.full(len(x), np.inf)
        for place, list_ in enumerate(self._lists):
            rows = pairs[cuts[place] : cuts[place + 1]] // probed.shape[1]
            if not len(rows):
                continue
            here = x[rows]
            found = self._members[place][list_.top(here, 1)[:, 0]]
            away = np.empty(len(rows), np.float64)
            exact_distances(x, rows, self.centers, found, away)
            known = distances[rows]
            nearer = (away < known) | ((away == known) & (found < labels[rows]))
            labels[rows[nearer]], distances[rows[nearer]] = found[nearer], away[nearer]
        return labels, distances


class _Set:
    """Centers that are searched together."""

    def __init__(self, centers: F32, device: str) -> None:
        self.k, width = centers.shape
        self._centers = centers
        # Most of them are near their median, however far some are.
        some = centers[:: -(-self.k // 256)].astype(np.float64)
        self._middle = np.median(some, axis=0).astype(np.float32)
        spread = float(np.abs(centers.astype(np.float64) - self._middle).max())
        exponent = -int(np.clip(np.frexp(spread)[1], -126, 126)) if spread else 0
        self._factor = np.float32(2.0**exponent)
        rounding = (width + 8) * 2.0**-24
        self._error = 1.01 * rounding / (1.0 - rounding)
        self._shifted_centers = self._shifted(centers, np.empty(centers.size, np.float32))[0]
        self._gpu_index = _gpu_index(self._shifted_centers) if device == "cuda" else None

    def top(self, x: F32, p: int) -> I32:
        """Return the p nearest centers of each row, shape (n, p): which they are, in any order."""
        if p >= self.k:
            return np.tile(np.arange(self.k, dtype=np.int32), (len(x), 1))
        shifted, lengths = self._shifted(x, _room("rows", x.size))
        if p == 1 and self._gpu_index is None:
            found, last, next_ = self._two_nearest(x, shifted, lengths)
            if self.k <= _TILE_CENTERS:
                return found
        else:
            found, last, next_ = self._searched(shifted, p)
        rows = self._uncertain(lengths, last, next_)
        if len(rows):
            for part, _, rough in self._distances(shifted[rows], self.k):
                self._decide(x, rows[part], rough, lengths, last, found)
        return found

    def _searched(self, shifted: F32, p: int) -> tuple[I32, F32, F32]:
        """Return p centers of each row, and how far the last of them and the next one are."""
        index = self._gpu_index
        if index is None:
            index = _faiss().IndexFlatL2(shifted.shape[1])
            index.add(self._shifted_centers)
        distances, places = index.search(shifted, p + 1)
        return places[:, :p].astype(np.int32), distances[:, p - 1].copy(), distances[:, p].copy()

    def _two_nearest(self, x: F32, shifted: F32, lengths: F64) -> tuple[I32, F32, F32]:
        """Return the same for p = 1; where distances to all centers are there, exactly."""
        from .kmeans_kernels import two_nearest

        found = np.zeros((len(x), 1), np.int32)
        last, next_ = (np.full(len(x), np.inf, np.float32) for _ in range(2))
        for part, first, rough in self._distances(shifted, _TILE_CENTERS):
            two_nearest(rough, first, found[part], last[part], next_[part])
            if self.k <= _TILE_CENTERS:
                rows = self._uncertain(lengths[part], last[part], next_[part])
                if len(rows):
                    here = (lengths[part], last[part], found[part])
                    self._decide(x[part], rows, rough[rows], *here)
        return found, last, next_

    def _uncertain(self, lengths: F64, last: F32, next_: F32) -> I64:
        """Return rows whose next center may be as near as the last of those found."""
        with np.errstate(invalid="ignore", over="ignore"):
            near, far = (np.maximum(a.astype(np.float64), 0) for a in (last, next_))
            error = self._error * (2.0 * lengths + np.sqrt(far)) ** 2 + _TINY
            return np.flatnonzero(~(far - near > 2.0 * error))

    def _decide(self, x: F32, rows: I64, rough: F32, lengths: F64, last: F32, found: I32) -> None:
        """Find the nearest centers of some rows exactly; `rough` are their distances to all."""
        from .kmeans_kernels import exact_nearest

        exact_nearest(
            x, rows, self._centers, rough, lengths[rows], last[rows], self._error, _TINY, found
        )

    def _distances(self, shifted: F32, tile: int) -> Iterator[tuple[slice, int, F32]]:
        """Yield blocks of rows, the first of so many centers, and the distances between them."""
        faiss = _faiss()
        n, width = shifted.shape
        tile = min(tile, self.k)
        step = max(1, min(n, _TILE_DISTANCES // tile))
        room = _room("distances", step * tile)
        for start in range(0, n, step):
            rows = shifted[start : start + step]
            for first in range(0, self.k, tile):
                centers = self._shifted_centers[first : first + tile]
                rough = room[: len(rows) * len(centers)].reshape(len(rows), len(centers))
                faiss.pairwise_L2sqr(
                    width,
                    len(rows),
                    faiss.swig_ptr(rows),
                    len(centers),
                    faiss.swig_ptr(centers),
                    faiss.swig_ptr(rough),
                )
                yield slice(start, start + len(rows)), first, rough

    def _shifted(self, x: F32, room: F32) -> tuple[F32, F64]:
        """Return rows relative to the middle and scaled, written to `room`, and their lengths."""
        from .kmeans_kernels import shift_rows

        out, lengths = room[: x.size].reshape(x.shape), np.empty(len(x), np.float64)
        shift_rows(x, self._middle, self._factor, out, lengths)
        return out, lengths


_rooms = threading.local()


def _room(name: str, size: int) -> F32:
    """Return memory for so many values that this thread uses again: fresh pages are slow."""
    room: F32 | None = getattr(_rooms, name, None)
    if room is None or room.size < size:
        room = np.empty(size, np.float32)
        setattr(_rooms, name, room)
    return room


def _gpu_index(centers: F32) -> Any:
    faiss = _faiss()
    options = faiss.GpuIndexFlatConfig()
    # Plain float32, which the bound on errors is for.
    options.useFloat16, options.use_cuvs, options.device = False, False, 0
    index = faiss.GpuIndexFlatL2(_gpu(), centers.shape[1], options)
    index.add(centers)
    return index


@lru_cache(maxsize=1)
def _gpu() -> Any:
    """Return what faiss allocates once on a GPU."""
    return _faiss().StandardGpuResources()
