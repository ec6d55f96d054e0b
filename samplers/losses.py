"""The loss of a weighted batch, exact over ranks and micro-batches."""

from __future__ import annotations

import torch

from ..dataplane.errors import InvalidValueError, ParameterError
from .batch import Batch

__all__ = ["weighted_loss"]


def weighted_loss(per_row_loss: torch.Tensor, batch: Batch, world_size: int = 1) -> torch.Tensor:
    r"""Return this batch's share of the step's weighted mean loss.

    A step's loss is :math:`L = \sum_i w_i l_i / S` over *all* its rows, whichever rank and
    micro-batch they are in, with :math:`S = \sum_i w_i` (``batch.step_weight``). Distributed data
    parallel training averages gradients over W ranks, and gradients of micro-batches add up. A
    rank's batch b therefore contributes

    .. math:: L_b = W \sum_{i \in b} w_i l_i / S

    since the average over ranks of the sums of the :math:`\nabla L_b` is
    :math:`\frac{1}{W} \sum_r \sum_{b \in r} W \sum_{i \in b} w_i \nabla l_i / S = \nabla L`,
    however unevenly the rows are dealt. Averaging each rank's own weighted mean would not give
    that. Padded rows have weight 0 and contribute nothing.

    Parameters
    ----------
    per_row_loss : tensor, shape (n,)
        One loss a row (``reduction='none'``).
    batch : Batch
        The batch that the losses are of.
    world_size : int
        Ranks that gradients are averaged over; 1 where they are summed or there is one.

    Returns
    -------
    tensor, shape ()
        Call ``backward()`` on it for each micro-batch of the step, then take one optimiser step.
    """
    if tuple(per_row_loss.shape) != (batch.num_rows,):
        raise ParameterError(
            f"weighted_loss needs one loss a row: expected shape ({batch.num_rows},), found "
            f"{tuple(per_row_loss.shape)}. Compute it with reduction='none' and average over all "
            "dimensions but the first."
        )
    if not batch.step_weight > 0:
        raise InvalidValueError(
            f"All weights of epoch {batch.epoch}, step {batch.step} are 0, so its weighted mean is "
            "not defined. Skip that step, or plan without rows of weight 0."
        )
    weights = batch.weights.to(per_row_loss.device)  # float32: a half-precision loss is widened
    return world_size * (weights * per_row_loss).sum() / batch.step_weight
