"""torch's DataLoader over a TensorDataset: default collate, and ``__getitems__`` without it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.protocol import BATCH, run
from torch.utils.data import DataLoader, TensorDataset


class Whole(TensorDataset):
    """A TensorDataset that takes a list of indices at once, as the DataLoader offers."""

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, ...]:
        return tuple(tensor[indices] for tensor in self.tensors)


def prepare(source: Path, target: str) -> None:
    """The source is loaded into memory."""


def batches(source: Path, target: str, variant: str) -> Iterator[tuple[Any, Any]]:
    tensors = [torch.from_numpy(np.load(source / f"{name}.npy")) for name in "xy"]
    if variant == "getitems":
        loader = DataLoader(Whole(*tensors), BATCH, shuffle=True, collate_fn=tuple)
    else:
        loader = DataLoader(TensorDataset(*tensors), BATCH, shuffle=True)
    yield from loader


if __name__ == "__main__":
    run(prepare, batches, f"torch {torch.__version__}")
