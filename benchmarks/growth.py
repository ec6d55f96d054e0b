"""What a plan costs by its number of rows; `scale` says what each line means."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from batchloom.dataplane import open_dataset
from batchloom.jobs import plan
from harness import load, run_fresh
from inputs import Bench, write_constant_files

__all__ = ["growth", "many_batches"]

BATCH = 256
SMALL_BATCH = 25
FILES = 10

_PLAN = """
import hashlib, json, os, shutil, sys
from pathlib import Path
from harness import best, interleaved, peak_rss
from batchloom.dataplane.random import Permutation
from batchloom.jobs import plan

data, tiny, folder = map(Path, sys.argv[1:4])
batch, rounds = int(sys.argv[4]), int(sys.argv[5])
out = folder / "plan"

def planned(source):
    made = plan("shuffle", sorted(source.glob("*.parquet")), out=out, snapshot=source / "snapshot",
                batch_size=batch, workers=0, form="explicit")
    size = sum(e.stat().st_size for e in os.scandir(made.path))
    shutil.rmtree(out)
    return made.snapshot.rows, size

def chain():
    order, digest = Permutation(rows, seed=0), hashlib.sha256()
    with open(folder / "chain", "wb") as file:
        for start in range(0, rows, 1 << 20):
            chunk = order[start : min(start + (1 << 20), rows)]
            digest.update(chunk)
            file.write(chunk)
        os.fsync(file.fileno())

startup = min(c.own for c in interleaved(3, lambda: planned(tiny), warm=1)[0])
rows, size = planned(data)
peak = peak_rss()
ours, bare = (best(c).own for c in interleaved(rounds, lambda: planned(data), chain))
print(json.dumps([rows, size, peak, startup, ours, bare]))
"""


@dataclass(frozen=True)
class _Planned:
    """What planning some rows took: bytes, and CPU seconds; `startup` is of next to no rows."""

    rows: int
    size: int
    peak: int
    startup: float
    cpu: float
    bare: float


def _dataset(folder: Path, rows: int, files: int) -> Path:
    """Write a dataset with its snapshot beside it; return its directory."""
    write_constant_files(folder, rows, files)
    open_dataset(sorted(folder.glob("*.parquet"))).snapshot.save(folder / "snapshot")
    return folder


def growth(bench: Bench) -> None:
    """Plan the large dataset and a tenth of it, each in a process of its own."""
    rows, folder = bench.sizes.large_rows, bench.folder / "growth"
    folder.mkdir()
    tiny = _dataset(folder / "tiny", 70_000, 1)
    small = _dataset(folder / "small", rows // 10, 1)
    large = _dataset(bench.folder / "large", rows, FILES)
    few, many = (
        _Planned(*run_fresh(_PLAN, data, tiny, folder, BATCH, bench.sizes.large_rounds))
        for data in (small, large)
    )
    rate = many.rows / many.cpu / 1e6
    bench.add(
        f"plan shuffle of {many.rows:,} rows, snapshot given",
        f"{rate:.1f} M rows/CPU s, {load()}",
        f"permutation, written, hashed {many.rows / many.bare / 1e6:.1f} M rows/CPU s",
        f"{rate:.1f} M rows/CPU s",
        "≥ 8",
        rate >= 8,
    )
    width = many.size / many.rows
    bench.add(
        "  bytes a row", f"{many.size / 1e6:.0f} MB", "", f"{width:.2f}", "≤ 8.2", width <= 8.2
    )
    bench.add(
        "  peak memory of the process",
        f"{many.peak / 1e6:.0f} MB",
        "",
        f"{many.peak / 1e6:.0f} MB",
        "≤ 600 MB",
        many.peak <= 600e6,
    )
    _compare(bench, few, many)
    shutil.rmtree(folder)


def _compare(bench: Bench, few: _Planned, many: _Planned) -> None:
    cost = [p.cpu - p.startup for p in (few, many)]
    exponent = math.log(cost[1] / cost[0]) / math.log(many.rows / few.rows)
    bench.add(
        f"cost from {few.rows:,} to {many.rows:,} rows, start-up subtracted",
        f"{cost[1]:.2f} CPU s (start-up {many.startup:.2f})",
        f"{cost[0]:.2f} CPU s",
        f"exponent {exponent:.2f}",
        "≤ 1.1",
        exponent <= 1.1,
    )
    ratio = many.peak / few.peak
    bench.add(
        "  peak memory",
        f"{many.peak / 1e6:.0f} MB",
        f"{few.peak / 1e6:.0f} MB",
        f"{ratio:.2f} x",
        "≤ 1.5 x",
        ratio <= 1.5,
    )


def many_batches(bench: Bench) -> Path:
    """Plan the large dataset in small batches; return the plan."""
    out = bench.folder / "small-batches"
    data = sorted((bench.folder / "large").glob("*.parquet"))
    plan("shuffle", data, out=out, batch_size=SMALL_BATCH, workers=0, form="explicit")
    return out
