"""What the ranks of a training tell one another: each row's loss, as pairs; or rows of features.

Row ids and losses travel as two tensors, int64 and float32: one tensor of the losses' type would
round most row ids to others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

__all__ = ["gather_pairs", "gather_rows", "joined", "on_several_ranks", "rank_sizes"]

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


def on_several_ranks() -> bool:
    """Whether torch.distributed runs, with more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def joined(parts: list[torch.Tensor], dtype: torch.dtype) -> npt.NDArray[Any]:
    """Return what steps gave, one after the other, whatever types and devices they used."""
    if len({(part.dtype, part.device) for part in parts}) > 1:
        parts = [part.to("cpu", dtype) for part in parts]
    whole = torch.cat(parts) if parts else torch.zeros(0)
    found: npt.NDArray[Any] = whole.to("cpu", dtype).numpy()
    return found


def gather_pairs(rows: I64, losses: F32) -> tuple[I64, F32]:
    """Return the pairs of all ranks, in their order; a collective where torch.distributed runs.

    Parameters
    ----------
    rows : int64, shape (n,)
        Of this rank; n may differ.
    losses : float32, shape (n,)
    """
    sizes = rank_sizes(len(rows))
    return gather_rows(rows, sizes), gather_rows(losses, sizes)


def rank_sizes(rows: int) -> list[int]:
    """Return how many rows each rank has, in their order; a collective."""
    if not on_several_ranks():
        return [rows]
    mine = torch.tensor([rows], device=_device())
    counts = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, mine)
    return [int(count) for count in counts]


def gather_rows(mine: npt.NDArray[Any], sizes: list[int]) -> npt.NDArray[Any]:
    """Return the rows of all ranks one after the other; a collective.

    Parameters
    ----------
    mine : array, shape (n, …)
        Of this rank; n may differ, but not the shape of a row.
    sizes : list of int
        From `rank_sizes`.
    """
    if not on_several_ranks():
        return mine
    values = torch.from_numpy(np.ascontiguousarray(mine)).to(_device())
    padded = values.new_zeros((max(sizes), *values.shape[1:]))
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    found: npt.NDArray[Any] = (
        torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)]).cpu().numpy()
    )
    return found


def _device() -> torch.device:
    """Return where tensors must be that the ranks exchange."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
