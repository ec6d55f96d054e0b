"""Orders of rows: pure functions of (seed, epoch, row ids), whatever the partition.

*Shuffle*: position p of the epoch holds the row at rank π(p), with π of `random.Permutation`.
*Stratified*: every stratum is shuffled by itself and its rows are laid out evenly over the epoch,
so that each stretch of the order holds the strata in the dataset's shares: systematic sampling with
a random start a stratum (Cochran, Sampling Techniques, §8).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .random import Stream, keys, uniform

__all__ = ["stratified"]


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
    grouped = np.lexsort((ids, row_keys, labels))
    sorted_labels = labels[grouped]
    starts = np.flatnonzero(np.diff(sorted_labels, prepend=sorted_labels[:1] - 1))
    counts = np.diff(np.append(starts, len(labels)))
    offset = uniform(seed, Stream.STRATUM_OFFSET, epoch, np.arange(len(counts), dtype=np.uint64))
    inside = np.arange(len(labels)) - np.repeat(starts, counts)
    place = (inside + np.repeat(offset, counts)) / np.repeat(counts, counts)
    return grouped[np.lexsort((row_keys[grouped], place))]
