"""Orders of rows: pure functions of (seed, epoch, row ids), whatever the partition.

*Shuffle*: position p of the epoch holds the row at rank π(p), with π of `random.Permutation`.
*Stratified*: every stratum is shuffled by itself and its rows are laid out evenly over the epoch,
so that each stretch of the order holds the strata in the dataset's shares: systematic sampling with
a random start a stratum (Cochran, Sampling Techniques, §8).
*Block*: the rows are cut into groups of neighbours; the groups are shuffled, and the rows of
`groups_open` groups at a time (after CorgiPile, Xu et al. 2022, arXiv 2206.05830). Each stretch of
the order reads few places of the files, each of them whole. How well it mixes depends on the groups
that are open, not on the rows in them: where neighbours are alike, the labels of a batch of b rows
have a chi-square of about 1 + b / `groups_open` a degree of freedom, 1 being a full shuffle
(`balance`). So many small groups beat few large ones.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .random import Permutation, Stream, keys, uniform

__all__ = ["BlockOrder", "balance", "stratified", "stratum_offsets", "stratum_places"]


def stratified(
    labels: npt.NDArray[np.integer], ids: npt.NDArray[np.uint64], *, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """Return an order in which every stretch holds the strata in equal shares.

    Row j of a stratum of n rows, counted in the stratum's random order, stands at
    (j + u) / n of the epoch, u in [0, 1) drawn once a stratum.

    Parameters
    ----------
    labels : integers, shape (n,)
        Stratum of each row.
    ids : uint64, shape (n,)
        Row ids: what randomness and ties are keyed by.

    Returns
    -------
    int64, shape (n,)
        Positions in the arrays given, in order.
    """
    row_keys = keys(seed, Stream.ORDER, epoch, ids)
    grouped = np.lexsort((row_keys, labels))
    sorted_labels = labels[grouped]
    starts = np.flatnonzero(np.diff(sorted_labels, prepend=sorted_labels[:1] - 1))
    counts = np.diff(np.append(starts, len(labels)))
    strata = np.repeat(np.arange(len(counts)), counts)
    inside = np.arange(len(labels)) - np.repeat(starts, counts)
    offsets = stratum_offsets(len(counts), seed=seed, epoch=epoch)
    place = stratum_places(strata, inside, counts, offsets)
    return grouped[np.lexsort((row_keys[grouped], place))]


def stratum_offsets(strata: int, *, seed: int, epoch: int) -> npt.NDArray[np.float64]:
    """Return what is drawn once a stratum, by its place among the strata; shape (strata,)."""
    return uniform(seed, Stream.STRATUM_OFFSET, epoch, np.arange(strata, dtype=np.uint64))


def stratum_places(
    strata: npt.NDArray[np.integer],
    inside: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Return where in the epoch rows of a stratified order stand, from 0 to 1.

    Parameters
    ----------
    strata : integers, shape (n,)
        Stratum of each row, 0…k−1.
    inside : int64, shape (n,)
        The row's number in its stratum's random order.
    counts : int64, shape (k,)
    offsets : float64, shape (k,)
        By `stratum_offsets`.

    Returns
    -------
    float64, shape (n,)
        The order is by this and by the rows' keys.
    """
    places: npt.NDArray[np.float64] = (inside + offsets[strata]) / counts[strata]
    return places


class BlockOrder:
    """The block shuffle of n ranks; ``order[a:b]`` gives those at the positions a..b−1, as uint64.

    Takes eight bytes a group. Any position is found without the ones before it.

    Parameters
    ----------
    n : int
    group_rows : int
        Neighbouring ranks a group; the last one may be smaller.
    groups_open : int
        Groups whose rows are shuffled together: a *window*.
    seed, epoch : int
    """

    def __init__(
        self, n: int, *, group_rows: int, groups_open: int, seed: int, epoch: int = 0
    ) -> None:
        self.n = n
        self._group_rows, self._groups_open = group_rows, groups_open
        self._seed, self._epoch = seed, epoch
        count = -(-n // group_rows)
        order = Permutation(count, seed=seed, stream=Stream.GROUP_ORDER, epoch=epoch)
        self._groups = order[:].astype(np.int64)
        windows = np.arange(0, count, groups_open)
        sizes = np.diff(np.append(windows, count)) * group_rows
        if count:
            last = int(np.flatnonzero(self._groups == count - 1)[0]) // groups_open
            sizes[last] -= count * group_rows - n  # the last group is short
        self._starts = np.concatenate([[0], np.cumsum(sizes)])

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, positions: slice) -> npt.NDArray[np.uint64]:
        start, stop, _ = positions.indices(self.n)
        parts = [np.zeros(0, dtype=np.uint64)]
        while start < stop:
            window = int(np.searchsorted(self._starts, start, side="right")) - 1
            end = min(stop, int(self._starts[window + 1]))
            parts.append(self._window(window, start, end))
            start = end
        return np.concatenate(parts)

    def _window(self, window: int, start: int, stop: int) -> npt.NDArray[np.uint64]:
        """Return the ranks at positions `start` to `stop`, which lie in one window."""
        first, end = int(self._starts[window]), int(self._starts[window + 1])
        opened = self._groups[window * self._groups_open :][: self._groups_open]
        opened = np.sort(opened)  # so that a short group stands last; the shuffle hides the order
        own_seed = keys(self._seed, Stream.WINDOW_ORDER, self._epoch, [window])[0]
        shuffled = Permutation(end - first, seed=int(own_seed), epoch=self._epoch)
        place = shuffled[start - first : stop - first].astype(np.int64)
        group, inside = np.divmod(place, self._group_rows)
        return (opened[group] * self._group_rows + inside).astype(np.uint64)


def balance(
    labels: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64], totals: npt.NDArray[np.int64]
) -> float:
    """Return how evenly labels spread over micro-batches: chi-square by degree of freedom.

    1 where each micro-batch is a random draw of all rows, less where labels are spread more evenly
    than that, more where a micro-batch holds few of them.

    Parameters
    ----------
    labels : integers, shape (n,)
        Label of each row, 0…k−1, in order of the plan.
    offsets : int64, shape (m + 1,)
        Micro-batches of the rows.
    totals : int64, shape (k,)
        Rows of each label in the epoch.

    Returns
    -------
    float
        Pearson's statistic against the epoch's shares, by (k − 1), the mean of the micro-batches;
        NaN where there is one label.
    """
    k = len(totals)
    if k < 2:
        return float("nan")
    sizes = np.diff(offsets)
    batch = np.repeat(np.arange(len(sizes)), sizes)
    pairs, seen = _count_pairs(batch * k + labels, len(sizes) * k)
    which, label = np.divmod(pairs, k)
    # Σ (seen − expected)² / expected = Σ seen² / expected − size: labels not seen need no term.
    terms = seen * (seen / (sizes[which] * (totals[label] / totals.sum())))
    return float((terms.sum() - len(labels)) / (k - 1) / len(sizes))


def _count_pairs(
    numbers: npt.NDArray[np.int64], limit: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the numbers that occur, all below a limit, and how often."""
    if limit > 8 * len(numbers):  # too many to count in a table
        return np.unique(numbers, return_counts=True)
    table = np.bincount(numbers, minlength=limit)
    found = np.flatnonzero(table)
    return found, table[found]
