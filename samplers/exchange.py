"""What the ranks of a training tell one another: each row's loss, as pairs.

Row ids and losses travel as two tensors, int64 and float32: one tensor of the losses' type would
round most row ids to others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

__all__ = ["gather_pairs", "on_several_ranks"]

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


def on_several_ranks() -> bool:
    """Whether torch.distributed runs, with more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_pairs(rows: I64, losses: F32) -> tuple[I64, F32]:
    """Return the pairs of all ranks, in their order; a collective where torch.distributed runs.

    Parameters
    ----------
    rows : int64, shape (n,)
        Of this rank; n may differ.
    losses : float32, shape (n,)
    """
    if not on_several_ranks():
        return rows, losses
    on_gpu = dist.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    world = dist.get_world_size()
    mine = torch.tensor([len(rows)], device=device)
    counts = [torch.zeros_like(mine) for _ in range(world)]
    dist.all_gather(counts, mine)
    sizes = [int(count) for count in counts]
    return (
        _gathered(torch.from_numpy(rows).to(device), sizes).numpy(),
        _gathered(torch.from_numpy(losses).to(device), sizes).numpy(),
    )


def _gathered(mine: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Return all ranks' values one after the other, on the host."""
    padded = torch.zeros(max(sizes), dtype=mine.dtype, device=mine.device)
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)]).cpu()
