"""Who takes which rows: the rank rules, as pure functions.

A plan is not partitioned by rank. ``sliceable``: rank r of W takes the rows
⌊r·n/W⌋ … ⌊(r+1)·n/W⌋ of each micro-batch of n rows. ``micro``: rank r takes the micro-batches with
``micro % W == r``, whole. Every rank gets the same number of batches in every step, so that
collectives never wait for a rank that has none.

Where W does not fit, the plan is refused when the loader is made, or, with ``on_uneven='pad'``,
the rank that would have nothing gets a *pad*: a copy of one row (``sliceable``) or of the step's
last micro-batch (``micro``) with weight 0. A pad counts nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch.distributed

from ..dataplane.checks import require_int, require_one_of
from ..dataplane.epochs import EpochRecord
from ..dataplane.errors import ParameterError, WorldSizeError
from ..dataplane.plan import Unit

__all__ = ["OnUneven", "Ranks", "Shares", "check_world", "resolve_ranks", "share_steps"]

I64 = npt.NDArray[np.int64]

OnUneven = Literal["error", "pad"]


@dataclass(frozen=True)
class Shares:
    """What one rank takes of some whole steps, in order: one entry a batch.

    Attributes
    ----------
    micro_batch : int64, shape (b,)
        Index of the micro-batch that the batch is taken of.
    start, stop : int64, shape (b,)
        Rows ``start`` to ``stop`` of that micro-batch; never none.
    pad : bool, shape (b,)
        A copy with weight 0, that counts nowhere.
    """

    micro_batch: I64
    start: I64
    stop: I64
    pad: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Ranks:
    """A rank among `world_size`, and what happens where a plan does not fit them."""

    rank: int = 0
    world_size: int = 1
    on_uneven: OnUneven = "error"

    def __post_init__(self) -> None:
        require_int("world_size", self.world_size, 1)
        require_int("rank", self.rank, 0, self.world_size)
        require_one_of("on_uneven", self.on_uneven, get_args(OnUneven))


def resolve_ranks(rank: int | None, world_size: int | None, on_uneven: OnUneven = "error") -> Ranks:
    """Return the ranks given, else those of torch.distributed where it runs, else 0 of 1."""
    if (rank is None) != (world_size is None):
        given, missing = ("rank", "world_size") if world_size is None else ("world_size", "rank")
        raise ParameterError(f"The '{given}' parameter was given without '{missing}': give both.")
    if rank is not None and world_size is not None:
        return Ranks(rank, world_size, on_uneven)
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(distributed.get_rank(), distributed.get_world_size(), on_uneven)
    return Ranks(on_uneven=on_uneven)


def check_world(record: EpochRecord, unit: Unit, ranks: Ranks) -> None:
    """Raise `WorldSizeError` where the epoch cannot be dealt to that many ranks without pads."""
    world = ranks.world_size
    if ranks.on_uneven == "pad":
        return
    if unit == "sliceable" and record.smallest_micro_batch < world:
        raise WorldSizeError(
            f"Epoch {record.epoch} has a micro-batch of {record.smallest_micro_batch} rows, which "
            f"{world} ranks cannot share. Use at most {record.smallest_micro_batch} ranks, plan "
            "without the small last batch (drop_last) or in larger ones, or pass on_uneven='pad': "
            "ranks without a row then get a copy of one with weight 0."
        )
    if unit == "micro" and record.micro_divisor % world:
        raise WorldSizeError(
            f"Epoch {record.epoch} is dealt in whole micro-batches, and its steps hold multiples "
            f"of {record.micro_divisor} of them, which {world} ranks cannot share evenly. Use a "
            f"world size that divides {record.micro_divisor}, plan with another --micro-per-step, "
            "or pass on_uneven='pad': ranks without a micro-batch then get a copy with weight 0."
        )


def share_steps(unit: Unit, sizes: I64, steps: I64, rank: int, world_size: int) -> Shares:
    """Return what a rank takes of some whole steps.

    Parameters
    ----------
    unit : {'sliceable', 'micro'}
    sizes : int64, shape (m,)
        Rows of each micro-batch.
    steps : int64, shape (s + 1,)
        Step k holds the micro-batches ``steps[k]`` to ``steps[k + 1]``.
    rank, world_size : int
    """
    if unit == "sliceable":
        start, stop = rank * sizes // world_size, (rank + 1) * sizes // world_size
        pad = start == stop  # start < sizes, since rank < world_size
        return Shares(np.arange(len(sizes)), start, stop + pad, pad)
    held = np.diff(steps)
    taken = -(-held // world_size)
    ends = np.cumsum(taken)
    inside = np.arange(ends[-1]) - np.repeat(ends - taken, taken)
    wanted, last = rank + world_size * inside, np.repeat(held - 1, taken)
    micro_batch = np.repeat(steps[:-1], taken) + np.minimum(wanted, last)
    return Shares(micro_batch, np.zeros_like(wanted), sizes[micro_batch], wanted > last)


def batches_in_step(unit: Unit, micro_batches: int, world_size: int) -> int:
    """Return how many batches each rank gets in a step."""
    return micro_batches if unit == "sliceable" else -(-micro_batches // world_size)
