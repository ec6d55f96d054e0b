"""The loader's ways to a GPU, beside what a careful user of plain torch writes.

    python benchmarks/loader_gpu.py [--rows 2000000] [--batch 1024] [--seconds 2] [--json FILE]

One table of 128 float32 a row and a label, random batches, each way in turn. *Alone*: nothing but
loading, until the last batch is on the GPU. *Training*: an MLP takes a step on each batch; its time
on batches that are on the GPU already is the limit. CPU seconds are of all threads. Needs a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from batchloom.dataplane import BatchPlan, ManifestWriter, open_dataset
from batchloom.samplers import ManifestLoader

WIDTH = 128

Batches = Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]


def write(folder: Path, rows: int, batch: int) -> tuple[Path, Path]:
    x = np.random.default_rng(0).standard_normal((rows, WIDTH), dtype=np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), WIDTH)
    table = pa.table({"x": column, "y": pa.array(np.arange(rows) % 10)})
    (folder / "data").mkdir()
    with pa.ipc.new_file(folder / "data" / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    dataset = open_dataset(folder / "data")
    with ManifestWriter(folder / "plan", snapshot=dataset.snapshot) as plan:
        with plan.epoch(0):
            order = np.random.default_rng(0).permutation(rows).astype(np.uint64)
            plan.append(BatchPlan.cut(order, batch))
        plan.commit()
    return folder / "plan", folder / "data"


def ours(plan: Path, data: Path, transfer: str) -> Batches:
    loader = ManifestLoader(plan, data, device="cuda", transfer=transfer)  # type: ignore[arg-type]

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in loader:
            yield batch["x"], batch["y"]

    return batches


def plain(data: Path, batch: int, *, workers: int) -> Batches:
    """What a careful user writes: whole batches by index, pinned, copied without waiting."""
    with pa.memory_map(str(data / "a.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    x = torch.from_numpy(table["x"].chunk(0).flatten().to_numpy().reshape(-1, WIDTH).copy())
    y = torch.from_numpy(table["y"].chunk(0).to_numpy().copy())

    class Rows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(y)

        def __getitems__(self, ids: list[int]) -> Any:
            return x[ids], y[ids]

    def loader() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        made = torch.utils.data.DataLoader(
            Rows(),
            batch_size=batch,
            shuffle=True,
            pin_memory=True,
            num_workers=workers,
            collate_fn=lambda got: got,
        )
        for rows, labels in made:
            yield rows.cuda(non_blocking=True), labels.cuda(non_blocking=True)

    return loader


def resident(rows: int, batch: int) -> Batches:
    """Batches that are on the GPU already."""
    x = torch.randn(16 * batch, WIDTH, device="cuda")
    y = torch.randint(0, 10, (16 * batch,), device="cuda")

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for k in range(rows // batch):
            at = slice(k % 16 * batch, (k % 16 + 1) * batch)
            yield x[at], y[at]

    return batches


class Trainer:
    """A step of an MLP on each batch."""

    def __init__(self) -> None:
        width = 2048
        self.model = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, 10),
        ).cuda()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()


def measure(batches: Batches, step: Callable[..., Any] | None, seconds: float) -> dict[str, float]:
    """Return samples a second and CPU microseconds a batch, over about so many seconds."""
    source = itertools.chain.from_iterable(batches() for _ in itertools.count())
    for x, y in itertools.islice(source, 50):  # warm
        if step is not None:
            step(x, y)
    torch.cuda.synchronize()
    begun, cpu, rows, count = time.perf_counter(), time.process_time(), 0, 0
    for x, y in source:
        if step is not None:
            step(x, y)
        rows, count = rows + len(y), count + 1
        if count % 32 == 0 and time.perf_counter() - begun > seconds:
            break
    torch.cuda.synchronize()
    took, used = time.perf_counter() - begun, time.process_time() - cpu
    return {"samples_per_s": rows / took, "cpu_us_per_batch": used / count * 1e6}


def main() -> int:
    parser = argparse.ArgumentParser(description="The loader's ways to a GPU.")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU here.")
        return 0
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="batchloom-") as name:
        plan, data = write(Path(name), options.rows, options.batch)
        begun = time.perf_counter()
        ways: dict[str, Batches] = {"resident": resident(options.rows, options.batch)}
        for transfer in ("unified", "staged", "cpu"):
            start = time.perf_counter()
            ways[transfer] = ours(plan, data, transfer)
            print(f"{transfer}: made in {time.perf_counter() - start:.2f} s", flush=True)
        ways["DataLoader, 0 workers"] = plain(data, options.batch, workers=0)
        ways["DataLoader, 8 workers"] = plain(data, options.batch, workers=8)
        step = Trainer()
        for training in (False, True):
            for way, batches in ways.items():
                if way == "resident" and not training:
                    continue
                numbers = measure(batches, step if training else None, options.seconds)
                gbs = numbers["samples_per_s"] * (WIDTH * 4 + 8) / 1e9
                found.append({"way": way, "training": training, **numbers, "GB/s": gbs})
                print(
                    f"{'training' if training else 'alone':9} {way:24} "
                    f"{numbers['samples_per_s'] / 1e6:7.2f} M samples/s {gbs:6.1f} GB/s "
                    f"{numbers['cpu_us_per_batch']:8.0f} CPU us a batch",
                    flush=True,
                )
        print(f"{torch.cuda.get_device_name()}, {time.perf_counter() - begun:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
