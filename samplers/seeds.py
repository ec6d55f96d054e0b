"""One seed a row, for augmentation: the same on any topology.

``seed = key(plan's seed, AUGMENT, epoch, row id) >> 1``: 63 bits, so that it fits torch's int64 and
is never negative (see `dataplane.random` for ``key``).

Where an epoch holds a row more than once (coverage ``with_replacement``), its occurrences are told
apart by where they stand in the plan, not by who reads them. With ``p`` the position in the whole,
unsliced micro-batch and ``place = step << 16 | micro``::

    inner = key(key(seed, AUGMENT, epoch, place), AUGMENT, epoch, p)
    seed  = mix64(key(seed, AUGMENT, epoch, row id) ^ inner) >> 1
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..dataplane.random import Stream, keys, mix64

__all__ = ["occurrence_seeds", "row_seeds"]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


def row_seeds(seed: int, epoch: int, rows: U64) -> I64:
    """Return the seeds of rows that an epoch holds at most once; int64, not negative."""
    return _to_63_bits(keys(seed, Stream.AUGMENT, epoch, rows))


def occurrence_seeds(
    seed: int, epoch: int, rows: U64, *, step: int, micro: int, first_position: int
) -> I64:
    """Return the seeds of rows that an epoch may hold more than once.

    Parameters
    ----------
    seed, epoch : int
    rows : uint64, shape (n,)
        Consecutive rows of one micro-batch.
    step, micro : int
    first_position : int
        Where the first of them stands in the unsliced micro-batch.
    """
    place = np.array([(step << 16 | micro) % (1 << 64)], dtype=np.uint64)
    place_key = int(keys(seed, Stream.AUGMENT, epoch, place)[0])
    positions = np.arange(first_position, first_position + len(rows), dtype=np.uint64)
    inner = keys(place_key, Stream.AUGMENT, epoch, positions)
    with np.errstate(over="ignore"):
        return _to_63_bits(mix64(keys(seed, Stream.AUGMENT, epoch, rows) ^ inner))


def _to_63_bits(row_keys: U64) -> I64:
    return (row_keys >> np.uint64(1)).view(np.int64)
