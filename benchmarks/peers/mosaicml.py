"""mosaicml-streaming: a StreamingDataset of MDS files, shuffled; the variant is the worker count.

Importing it needs torchvision, which what is measured does not: a module of that name that holds
the one class it asks for takes its place.
"""

# ruff: noqa: E402

from __future__ import annotations

import importlib.machinery
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class _Empty(types.ModuleType):
    """A module that has any class one asks for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


for _name in ("torchvision", "torchvision.datasets", "torchvision.transforms",
              "torchvision.transforms.functional", "torchvision.datasets.folder"):  # fmt: skip
    sys.modules[_name] = _Empty(_name)
    sys.modules[_name].__spec__ = importlib.machinery.ModuleSpec(_name, None)
    sys.modules[_name].__path__ = []

import numpy as np
import streaming
import torch
from peers.protocol import BATCH, run
from torch.utils.data import DataLoader


def prepare(source: Path, target: str) -> None:
    x, y = (np.load(source / f"{name}.npy", mmap_mode="r") for name in "xy")
    columns = {"x": f"ndarray:float32:{x.shape[1]}", "y": "int64"}
    with streaming.MDSWriter(out=target, columns=columns, size_limit=1 << 26) as writer:
        for row in range(len(y)):
            writer.write({"x": x[row], "y": y[row]})


_kept: dict[str, Any] = {}


def batches(source: Path, target: str, variant: str) -> Iterator[tuple[Any, Any]]:
    if not _kept:  # its workers stay for all epochs
        workers = int(variant)
        place = {"local": target}
        if "://" in target:
            place = {"remote": target, "local": tempfile.mkdtemp(prefix="mosaicml-")}
        data = streaming.StreamingDataset(**place, shuffle=True, shuffle_seed=7, batch_size=BATCH)
        _kept["loader"] = DataLoader(
            data, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0
        )
    for batch in _kept["loader"]:
        yield batch["x"], torch.as_tensor(batch["y"])


if __name__ == "__main__":
    run(prepare, batches, f"mosaicml-streaming {streaming.__version__}")
