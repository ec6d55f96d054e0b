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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch.distributed

from ..dataplane.epochs import EpochRecord
from ..dataplane.errors import ParameterError, WorldSizeError
from ..dataplane.plan import Unit
from .checks import require_int, require_one_of

__all__ = ["OnUneven", "Ranks", "Share", "check_world", "resolve_ranks", "share_step"]

OnUneven = Literal["error", "pad"]


@dataclass(frozen=True)
class Share:
    """What one rank takes of one step in one go: rows of one of the step's micro-batches.

    Attributes
    ----------
    micro : int
        Index of the micro-batch in the step.
    start, stop : int
        Rows ``start`` to ``stop`` of it; never none.
    pad : bool
        A copy with weight 0, that counts nowhere.
    """

    micro: int
    start: int
    stop: int
    pad: bool = False


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


def share_step(unit: Unit, sizes: Sequence[int], rank: int, world_size: int) -> list[Share]:
    """Return what a rank takes of a step, in order.

    Parameters
    ----------
    unit : {'sliceable', 'micro'}
    sizes : sequence of int
        Rows of each of the step's micro-batches.
    rank, world_size : int
    """
    if unit == "sliceable":
        return [_slice(i, n, rank, world_size) for i, n in enumerate(sizes)]
    last = len(sizes) - 1
    mine = range(
        rank, rank + world_size * batches_in_step(unit, len(sizes), world_size), world_size
    )
    return [Share(min(i, last), 0, sizes[min(i, last)], pad=i > last) for i in mine]


def batches_in_step(unit: Unit, micro_batches: int, world_size: int) -> int:
    """Return how many batches each rank gets in a step."""
    return micro_batches if unit == "sliceable" else -(-micro_batches // world_size)


def _slice(micro: int, rows: int, rank: int, world_size: int) -> Share:
    start, stop = rank * rows // world_size, (rank + 1) * rows // world_size
    if start == stop:  # start < rows, since rank < world_size
        return Share(micro, start, start + 1, pad=True)
    return Share(micro, start, stop)
