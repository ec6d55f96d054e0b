"""What PyG hands a sampler, as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...dataplane.errors import SelectionError
from . import times
from .csc import as_ids, as_numpy
from .keys import PlannedBatches, key_of_inputs
from .relations import Times

__all__ = ["as_seed_times", "batch_key", "node_ids"]

I64 = npt.NDArray[np.int64]


def node_ids(values: Any) -> I64:
    """Return node ids, of any integer type that is taken, as int64."""
    return as_ids(values, "seeds").astype(np.int64, copy=False)


def as_seed_times(values: Any, size: int) -> Times:
    """Return the times of seeds as int64 or float64."""
    return times.as_times(as_numpy(values), size, "time of the seeds")


def batch_key(seed: int, planned: PlannedBatches | None, inputs: Any, seeds: I64) -> int:
    """Return what the draws of a batch are keyed by."""
    if planned is not None:
        if inputs is None:
            raise SelectionError(
                "The sampler has a plan's offsets, and the batch has no input_id to find it by."
            )
        return planned.key(seed, node_ids(inputs))
    return key_of_inputs(seed, seeds if inputs is None else node_ids(inputs))
