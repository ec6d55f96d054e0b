"""K-means of ten million rows in Parquet files: what its cost and memory grow with."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from clustering_peers import some_rows
from harness import Row, run_fresh

__all__ = ["growth"]

FILE_ROWS = 250_000
WIDTH = 64

_PLAN = """
import json, os, sys, threading
from pathlib import Path
import psutil
from batchloom.jobs import plan
from harness import load, measured

folder, k = Path(sys.argv[1]), int(sys.argv[2])

class Memory:
    '''The most that all processes held at once: in all, and without pages of files.'''

    def __enter__(self):
        self.all, self.own, self.done = 0, 0, threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()

    def look(self):
        me = psutil.Process()
        while not self.done.wait(0.1):
            used = []
            for process in [me, *me.children(recursive=True)]:
                try:
                    used.append(process.memory_info())
                except psutil.Error:
                    continue
            self.all = max(self.all, sum(m.rss for m in used))
            self.own = max(self.own, sum(m.rss - m.shared for m in used))

found = []
for data, centers in (("tiny", 10), ("part", k), ("whole", k)):
    used = sum(os.times()[:4])
    with Memory() as memory:
        made = measured(lambda: plan(
            "kmeans", folder / data, out=folder / f"plan-{data}", batch_size=256,
            columns=["x"], k=centers, memory="3GB",
        ))
    used = sum(os.times()[:4]) - used
    found.append([made.value.snapshot.rows, used, made.wall, memory.own, memory.all, load()])
print(json.dumps(found))
"""


def growth(folder: Path, quick: bool, rows: list[Row]) -> None:
    """Plan a quarter of the rows, and all of them, with a memory of 3 GB."""
    files, k = (4, 256) if quick else (40, 4096)
    centers = some_rows(4096, WIDTH)
    for name in ("tiny", "part", "whole"):
        (folder / name).mkdir(parents=True)
    for number in range(files):
        draw = np.random.default_rng(number)
        x = centers[draw.integers(0, len(centers), FILE_ROWS)]
        x += np.float32(0.6) * draw.standard_normal(x.shape, dtype=np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), WIDTH)
        path = folder / "whole" / f"{number:02d}.parquet"
        pq.write_table(pa.table({"x": column}), path)
        if number < files // 4:
            (folder / "part" / path.name).hardlink_to(path)
        if number == 0:
            pq.write_table(pa.table({"x": column[:10_000]}), folder / "tiny" / path.name)
    start, part, whole = run_fresh(_PLAN, folder, k)
    grown = (whole[1] - start[1]) / (part[1] - start[1])
    exponent = math.log(grown) / math.log(whole[0] / part[0])
    rows.append(
        Row(
            f"plan kmeans, {whole[0]:,} x {WIDTH} from Parquet, k = {k:,}, memory of 3 GB",
            f"{whole[1]:.0f} CPU s, wall {whole[2]:.0f} s, {whole[5]}",
            f"{part[0]:,} rows: {part[1]:.0f} CPU s; start-up {start[1]:.1f}",
            f"exponent {exponent:.2f}",
            "" if quick else "≤ 1.05",
            None if quick else exponent <= 1.05,
        )
    )
    rows.append(
        Row(
            "  memory of all processes at once",
            f"{whole[3] / 1e9:.2f} GB; pages of files besides: {(whole[4] - whole[3]) / 1e9:.2f}",
            f"{part[0]:,} rows: {part[3] / 1e9:.2f} GB",
            f"{whole[3] / 1e9:.2f} GB",
            "≤ 3 GB",
            whole[3] <= 3e9,
        )
    )
