"""litdata: a StreamingDataset of optimized chunks, shuffled; the variant is the worker count."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litdata
import numpy as np
import torch
from litdata.streaming import downloader
from peers.protocol import BATCH, run


class Row:
    """One sample by its number; a class, since the workers are spawned."""

    def __init__(self, source: Path) -> None:
        self.source = str(source)

    def __call__(self, start: int) -> Iterator[dict[str, Any]]:
        x, y = (np.load(f"{self.source}/{name}.npy", mmap_mode="r") for name in "xy")
        for row in range(start, min(start + _STRETCH, len(y))):
            yield {"x": torch.from_numpy(x[row].copy()), "y": int(y[row])}


_STRETCH = 8192


def prepare(source: Path, target: str) -> None:
    rows = len(np.load(source / "y.npy", mmap_mode="r"))
    litdata.optimize(
        fn=Row(source),
        inputs=list(range(0, rows, _STRETCH)),
        output_dir=target,
        chunk_bytes="64MB",
        num_workers=1,
    )


_kept: dict[str, Any] = {}


def batches(source: Path, target: str, variant: str) -> Iterator[tuple[Any, Any]]:
    if not _kept:  # its workers stay for all epochs
        if target.startswith("s3://"):  # it has no option for a store without TLS, as ours is here
            downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"
        data = litdata.StreamingDataset(target, shuffle=True, drop_last=True)
        workers = int(variant)
        _kept["loader"] = litdata.StreamingDataLoader(
            data, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0
        )
    for batch in _kept["loader"]:
        yield batch["x"], batch["y"]


if __name__ == "__main__":
    run(prepare, batches, f"litdata {litdata.__version__}")
