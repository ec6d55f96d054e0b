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
*Homes*: shares of the fragments, each shuffled by itself, that every step holds micro-batches of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import SelectionError
from .random import Permutation, Stream, keys, uniform

__all__ = [
    "BlockOrder",
    "Homes",
    "balance",
    "stratified",
    "stratum_offsets",
    "stratum_places",
]


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


@dataclass(frozen=True)
class Homes:
    """Shares of the fragments, and how their rows are cut into micro-batches.

    Micro-batch m of every step is of share m mod H. Every share is cut into the same number of
    micro-batches, `steps` · `batches_a_step`, whose sizes differ by at most one.

    Attributes
    ----------
    starts : int64, shape (H + 1,)
        First rank of each share, and the number of rows.
    steps, batches_a_step : int
        Steps of the epoch; micro-batches of a share in a step.
    batch_size : int or None
        Exactly so many rows a micro-batch, the rest left out; None: all rows.
    """

    starts: npt.NDArray[np.int64]
    steps: int
    batches_a_step: int
    batch_size: int | None = None

    @classmethod
    def of(
        cls,
        fragment_rows: npt.NDArray[np.int64],
        homes: int,
        *,
        batch_size: int,
        batches_a_step: int,
        drop_last: bool = False,
    ) -> Homes:
        """Cut fragments into shares of neighbours, each cut where it comes nearest to even.

        Parameters
        ----------
        fragment_rows : int64, shape (f,)
            Rows that take part of each fragment, in order of row ids.
        homes : int
        batch_size : int
            Rows a micro-batch at most; with `drop_last`, of every micro-batch.
        batches_a_step : int

        Raises
        ------
        SelectionError
            Where there are fewer fragments with rows than shares, or a share has too few rows.
        """
        filled = fragment_rows[fragment_rows > 0]
        if len(filled) < homes:
            raise SelectionError(
                f"{len(filled)} fragments hold rows, too few for homes={homes}, which are made of "
                f"whole fragments. Use at most {len(filled)} homes, or more files."
            )
        ends = np.cumsum(filled)
        cuts = [0]
        for share in range(1, homes):
            # At least one fragment in this share, and one left for each of those to come.
            possible = ends[cuts[-1] : len(ends) - (homes - share)]
            nearest = np.abs(possible * homes - int(ends[-1]) * share).argmin()
            cuts.append(cuts[-1] + int(nearest) + 1)
        starts = np.append(np.concatenate([[0], ends])[cuts], ends[-1]).astype(np.int64)
        rows = np.diff(starts)
        a_step = batch_size * batches_a_step
        steps = int(rows.min()) // a_step if drop_last else -(-int(rows.max()) // a_step)
        if steps == 0 or rows.min() < steps * batches_a_step:
            raise SelectionError(
                f"The smallest of homes={homes} shares of the files holds {int(rows.min()):,} "
                f"rows, the largest {int(rows.max()):,}: too uneven for {max(steps, 1):,} steps of "
                f"{batches_a_step} micro-batches of each. Use fewer homes, or files of equal size."
            )
        return cls(starts, steps, batches_a_step, batch_size if drop_last else None)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Rows of each share; int64, shape (H,)."""
        return np.diff(self.starts)

    def deal(
        self, orders: Sequence[Any], start: int, stop: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the micro-batches of the steps `start` to `stop`.

        Parameters
        ----------
        orders : sequence of H orders
            ``order[a:b]`` gives the ranks in the share at positions a..b−1.

        Returns
        -------
        ranks : int64, shape (n,)
        offsets : int64, shape ((stop − start) · H · batches_a_step + 1,)
        """
        first, last = start * self.batches_a_step, stop * self.batches_a_step
        dealt: list[list[npt.NDArray[np.int64]]] = []
        for home, order in enumerate(orders):
            edges = self._edges(home, np.arange(first, last + 1))
            ranks = order[int(edges[0]) : int(edges[-1])].astype(np.int64) + self.starts[home]
            dealt.append(np.split(ranks, edges[1:-1] - edges[0]))
        pieces = [piece for batch in zip(*dealt, strict=True) for piece in batch]
        sizes = [len(piece) for piece in pieces]
        return np.concatenate(pieces), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def _edges(self, home: int, pieces: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the position in a share's order at which each of its micro-batches begins."""
        if self.batch_size is not None:
            return pieces * self.batch_size
        return pieces * int(self.rows[home]) // (self.steps * self.batches_a_step)


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
