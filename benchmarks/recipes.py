"""Recipes of a billion rows: writing one from a bitmap, and any batch of it."""

from __future__ import annotations

from harness import load, median, run_fresh
from inputs import Bench

__all__ = ["recipe"]

_SCRIPT = """
import hashlib, json, os, time
from pathlib import Path
import numpy as np
from harness import measured, peak_rss
from batchloom.dataplane.bitmap import Bitmap
from batchloom.dataplane.manifest import Manifest
from batchloom.dataplane.manifest_writer import ManifestWriter
from batchloom.dataplane.recipe import WeightClass
from batchloom.dataplane.snapshot import Fragment, Snapshot

folder, rows, batches = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
cuts = np.linspace(0, rows, 1001).astype(int).tolist()
fragments = [
    Fragment("data", f"part-{i}.parquet", b - a, 1, "0" * 64, a)
    for i, (a, b) in enumerate(zip(cuts, cuts[1:]))
]
snapshot = Snapshot(tuple(fragments), rows, "0" * 64)
draw = np.random.default_rng(0)
words = draw.integers(0, 2**64, -(-rows // 64), dtype=np.uint64)
words[-1] &= np.uint64((1 << (rows % 64 or 64)) - 1)

def limit():
    (folder / "words").write_bytes(words)
    return hashlib.sha256(words).hexdigest()

def write():
    with ManifestWriter(folder / "recipe", snapshot=snapshot, seed=7) as writer:
        bitmap = Bitmap(words)
        for epoch in range(10):
            writer.write_recipe(epoch, [WeightClass(bitmap)], batch_size=1024)
        return writer.commit()

writing, bare = measured(write), measured(limit)
size = sum(p.stat().st_size for p in (folder / "recipe").iterdir())
opened = measured(lambda: Manifest.open(folder / "recipe").epoch(9)[0])
epoch = Manifest.open(folder / "recipe").epoch(9)
epoch[0]
places = draw.integers(0, len(epoch), batches).tolist()
random = [measured(lambda k=k: epoch[k]).wall * 1e3 for k in places]
count = min(len(epoch), 2000)
read = sum(len(epoch[k].rows) for k in range(10))  # the chunks grow to their full size
walk = measured(lambda: sum(len(epoch[k].rows) for k in range(10, count)))
print(json.dumps({
    "write": writing.cpu, "bare": bare.cpu, "bytes": size, "random": random,
    "open": opened.wall, "rate": walk.value / walk.cpu, "peak": peak_rss(),
}))
"""


def recipe(bench: Bench, rows: int) -> None:
    """Ten epochs of half of the rows."""
    folder = bench.folder / "recipe"
    folder.mkdir()
    found = run_fresh(_SCRIPT, folder, rows, 300)
    what = f"recipe of {rows:.0e} rows, half selected, 10 epochs".replace("e+0", "e")
    bench.add(
        f"{what}: write it from the bitmap",
        f"{found['write']:.2f} CPU s, {found['bytes'] / 1e6:.0f} MB",
        f"write and hash the bitmap {found['bare']:.2f} CPU s",
        f"{found['write']:.2f} s, {found['bytes'] / 1e6:.0f} MB",
        "< 3 CPU s, <= 150 MB",
        found["write"] < 3 and found["bytes"] <= 150e6,
    )
    middle = median(found["random"])
    bench.add(
        f"{what}: any batch of 1,024",
        f"median {middle:.2f} ms, worst {max(found['random']):.2f} ms, {load()}",
        f"first batch, its file checked: {found['open'] * 1e3:.0f} ms",
        f"{middle:.2f} ms",
        "< 1 ms",
        middle < 1,
    )
    bench.add(
        f"{what}: batches in order",
        f"{found['rate'] / 1e6:.1f} M rows/CPU s, {found['peak'] / 1e6:.0f} MB",
        "",
        f"{found['rate'] / 1e6:.1f} M",
    )
