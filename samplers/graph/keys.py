"""What the draws of a batch are keyed by.

Under a plan: (seed, epoch, step, micro-batch), so that a batch is sampled the same on any rank, in
any worker, after any resume. Without one: (seed, the numbers of the batch's inputs), so that it is
sampled the same wherever these inputs come together again, in the same order; inputs that are not
shuffled are then sampled the same in every epoch.

The key is a chain of `dataplane.random.base_key`; the inputs enter as the XXH3 hash of their
numbers as little-endian int64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from ...dataplane.errors import ParameterError, SelectionError
from ...dataplane.random import Stream, base_key

__all__ = ["PlannedBatches", "key_of_inputs", "key_of_step"]

I64 = npt.NDArray[np.int64]

_UNPLANNED = 1  # sets these keys apart from those of steps


@dataclass(frozen=True, eq=False)
class PlannedBatches:
    """The batches of a plan, whose inputs stand one after the other.

    Attributes
    ----------
    offsets : int64, shape (m + 1,)
        Batch b holds the inputs ``offsets[b]`` to ``offsets[b + 1]``.
    epoch, step, micro : int64, shape (m,)
    """

    offsets: I64
    epoch: I64
    step: I64
    micro: I64

    def __post_init__(self) -> None:
        offsets = self.offsets
        if (
            offsets.ndim != 1
            or offsets.size == 0
            or offsets[0] != 0
            or (np.diff(offsets) < 0).any()
        ):
            raise ParameterError(
                "The offsets of a plan's batches must ascend from 0, one more than there are "
                "batches."
            )
        for name in ("epoch", "step", "micro"):
            if getattr(self, name).shape != (offsets.size - 1,):
                raise ParameterError(
                    f"A plan of {offsets.size - 1} batches names the {name} of each. Got shape "
                    f"{getattr(self, name).shape}."
                )

    @classmethod
    def of_offsets(cls, offsets: npt.ArrayLike) -> PlannedBatches:
        """Return the batches of one epoch, each a step."""
        array = np.asarray(offsets)
        if array.dtype.kind not in "iu":
            raise ParameterError(f"The 'offsets' must be of integers. Got {array.dtype}.")
        count = max(array.size - 1, 0)
        zero = np.zeros(count, np.int64)
        return cls(array.astype(np.int64), zero, np.arange(count), zero)

    def find(self, inputs: I64) -> int:
        """Return the batch of these inputs, at least one.

        Raises
        ------
        SelectionError
            Where they are no whole batch.
        """
        first, last = int(inputs[0]), int(inputs[-1])
        batch = int(np.searchsorted(self.offsets, first, "right")) - 1
        planned = f"it has {int(self.offsets[-1])}"
        if 0 <= batch < self.offsets.size - 1:
            begin, stop = int(self.offsets[batch]), int(self.offsets[batch + 1])
            if first == begin and last == stop - 1 and inputs.size == stop - begin:
                return batch
            planned = f"batch {batch} is {begin} to {stop - 1}"
        raise SelectionError(
            f"The inputs {first} to {last} ({inputs.size}) are no batch of the plan: {planned}. "
            "Draw batches with the plan's batch sampler, or make the sampler without offsets."
        )

    def key(self, seed: int, inputs: I64) -> int:
        """Return the key of the batch of these inputs; 0 where there are none."""
        if inputs.size == 0:
            return 0
        batch = self.find(inputs)
        epoch, step, micro = (int(a[batch]) for a in (self.epoch, self.step, self.micro))
        return key_of_step(seed, epoch, step, micro)


def key_of_step(seed: int, epoch: int, step: int, micro: int = 0) -> int:
    """Return the key of a planned batch."""
    return base_key(base_key(seed, Stream.NEIGHBORS, epoch), step, micro)


def key_of_inputs(seed: int, inputs: I64) -> int:
    """Return the key of a batch that no plan knows."""
    digest = xxhash.xxh3_64_intdigest(np.ascontiguousarray(inputs, "<i8").tobytes())
    return base_key(
        base_key(base_key(seed, Stream.NEIGHBORS, 0), _UNPLANNED, inputs.size), digest, 0
    )
