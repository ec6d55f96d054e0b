"""The ceiling: numpy's fancy index into a memory map; and a plain copy of as many bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.protocol import BATCH, run


def prepare(source: Path, target: str) -> None:
    """The source is its format."""


def batches(source: Path, target: str, variant: str) -> Iterator[tuple[Any, Any]]:
    x, y = (np.load(source / f"{name}.npy", mmap_mode="r") for name in "xy")
    order = np.random.default_rng().permutation(len(y))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        if variant == "memcpy":
            rows = slice(start, start + BATCH)
            yield Copied(x[rows].copy(), y[rows].copy())
        else:
            rows = order[start : start + BATCH]
            yield torch.from_numpy(x[rows]), torch.from_numpy(y[rows])


class Copied(tuple):  # type: ignore[type-arg]
    """A batch copied in order: it is compared backwards, since no random one was asked for."""

    def __new__(cls, x: Any, y: Any) -> Copied:
        return super().__new__(cls, (x[::-1], y[::-1]))


if __name__ == "__main__":
    run(prepare, batches, f"numpy {np.__version__}")
