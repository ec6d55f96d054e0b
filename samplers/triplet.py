"""The loss that NGAME trains with: in-batch negatives, false ones masked, the hardest counted.

Row i of a micro-batch has an embedding x_i and a positive label of embedding z_i. Every other z_j
is a negative of row i, unless its label is one of row i's too: the plan's side column ``mask``
names these columns. Of the others the k of the largest similarity count:

    l_ij = max(0, s_ij − s_ii + margin),    l_i = Σ_j p_ij l_ij,    p_ij = softmax of the l_ij > 0

(Dahiya et al., *NGAME*, WSDM 2023; the form of its published code, without two of its defects: a
row that has fewer than k negatives counts those that it has, where the code takes masked ones, the
row's own positive among them; and a row without any has loss 0.)
"""

from __future__ import annotations

import numpy as np
import torch

from ..dataplane.errors import ParameterError
from ..dataplane.plan import Ragged

__all__ = ["false_negatives", "triplet_loss"]


def false_negatives(mask: Ragged, *, device: torch.device | str | None = None) -> torch.Tensor:
    """Return the columns that are no negatives, as `triplet_loss` takes them.

    Parameters
    ----------
    mask : Ragged
        ``batch.side["mask"]``: of each row the columns whose label is one of its own.
    device : torch.device, optional

    Returns
    -------
    bool tensor, shape (b, b)
        The diagonal is set: a row's own label is its positive.
    """
    n = len(mask.offsets) - 1
    rows = np.repeat(np.arange(n), np.diff(mask.offsets))
    found = torch.eye(n, dtype=torch.bool)
    found[torch.from_numpy(rows), torch.from_numpy(mask.values.astype(np.int64))] = True
    return found.to(device) if device is not None else found


def triplet_loss(
    similarities: torch.Tensor,
    mask: torch.Tensor,
    *,
    margin: float = 0.3,
    negatives: int = 10,
) -> torch.Tensor:
    """Return the loss of each row.

    Parameters
    ----------
    similarities : float tensor, shape (b, b)
        Of row i with the positive label of row j; cosines, as a rule.
    mask : bool tensor, shape (b, b)
        Where column j is no negative of row i, the diagonal among them.
    margin : float
    negatives : int
        The hardest so many of a row count.

    Returns
    -------
    float tensor, shape (b,)
        For `weighted_loss`, or a plain mean. 0 for a row that has no negative, or none within the
        margin.
    """
    shape = tuple(similarities.shape)
    if len(shape) != 2 or shape[0] != shape[1] or tuple(mask.shape) != shape:
        raise ParameterError(
            "triplet_loss needs similarities and a mask of shape (b, b), a row and a column for "
            f"each row of the batch; found {shape} and {tuple(mask.shape)}."
        )
    if mask.dtype != torch.bool or not bool(mask.diagonal().all()):
        raise ParameterError(
            "The mask of triplet_loss must be of bools, its diagonal set: a row's own label is no "
            "negative of it. `false_negatives` makes it of a plan's side column."
        )
    if negatives < 1:
        raise ParameterError(f"'negatives' must be an int in the range [1, inf). Got {negatives}.")
    floor = torch.finfo(similarities.dtype).min
    hardest = similarities.masked_fill(mask, floor).topk(min(negatives, shape[0]), dim=1).values
    away = hardest - similarities.diagonal()[:, None] + margin
    counts = (hardest > floor) & (away > 0)
    losses = torch.where(counts, away, torch.zeros_like(away))
    shares = torch.softmax(losses.masked_fill(~counts, floor), dim=1)
    return (torch.where(counts, shares, torch.zeros_like(shares)) * losses).sum(dim=1)
