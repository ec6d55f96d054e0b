"""Hugging Face datasets: random index lists into a saved dataset in the torch format."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import numpy as np
import pyarrow as pa
from peers.protocol import BATCH, run


def prepare(source: Path, target: str) -> None:
    x, y = (np.load(source / f"{name}.npy", mmap_mode="r") for name in "xy")
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
    table = pa.table({"x": column, "y": pa.array(y)})
    datasets.Dataset(datasets.table.InMemoryTable(table)).save_to_disk(target)


def batches(source: Path, target: str, variant: str) -> Iterator[tuple[Any, Any]]:
    data = datasets.load_from_disk(target).with_format("torch")
    order = np.random.default_rng().permutation(len(data))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        batch = data[order[start : start + BATCH]]
        yield batch["x"], batch["y"]


if __name__ == "__main__":
    run(prepare, batches, f"datasets {datasets.__version__}")
