"""Lance: ``take`` of random rows, made tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import torch
from peers.protocol import BATCH, run


def prepare(source: Path, target: str) -> None:
    x, y = (np.load(source / f"{name}.npy", mmap_mode="r") for name in "xy")
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
    lance.write_dataset(pa.table({"x": column, "y": pa.array(y)}), target)


def batches(source: Path, target: str, variant: str) -> Iterator[tuple[Any, Any]]:
    data = lance.dataset(target)
    order = np.random.default_rng().permutation(data.count_rows())
    for start in range(0, len(order) - BATCH + 1, BATCH):
        table = data.take(order[start : start + BATCH], columns=["x", "y"]).combine_chunks()
        x = table["x"].chunk(0)
        flat = x.flatten().to_numpy().reshape(len(x), -1)
        yield torch.from_numpy(flat.copy()), torch.from_numpy(table["y"].to_numpy().copy())


if __name__ == "__main__":
    run(prepare, batches, f"pylance {lance.__version__}")
