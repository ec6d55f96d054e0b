"""Bars of ``batchloom graph build``: its rate against a sort in memory, and its memory.

    .venv/bin/python benchmarks/graph_build.py [--check] [--edges 100e6] [--workers 2]

A Parquet table of random edges, sources uniform, targets by a power law, a node to ten edges.

rate
    CPU seconds of the whole build in a process of its own (``--workers 0``: reading, sorting,
    hashing, flushing), against those of ``numpy.argsort(targets, kind="stable")`` of the same edges
    in memory, which reads and writes nothing.
memory
    The largest resident sets of the build's processes, added up, with ``--memory 2GiB``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import Row, load, missed, print_table, run_fresh, say, workspace

FILE_EDGES = 10_000_000
GROUP = 1 << 20
NODES_SHARE = 10

BUILD = """
import json, threading, time
import psutil
from harness import peak_rss
from batchloom.jobs.graph_build import build_graph

peaks = {}
def look():
    while True:
        for child in psutil.Process().children(recursive=True):
            try:
                peaks[child.pid] = max(peaks.get(child.pid, 0), child.memory_info().rss)
            except psutil.Error:
                pass
        time.sleep(0.05)

if __name__ == "__main__":
    threading.Thread(target=look, daemon=True).start()
    before = time.process_time()
    wall = time.perf_counter()
    header = build_graph(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]), memory=sys.argv[4])
    print(json.dumps({
        "cpu": time.process_time() - before,
        "wall": time.perf_counter() - wall,
        "own": peak_rss(),
        "children": sum(peaks.values()),
        "id": header.fingerprint,
    }))
"""

SORT = """
import json, time
from pathlib import Path
import numpy as np
import pyarrow.parquet as pq
targets = np.concatenate([
    pq.read_table(p, columns=["dst"])["dst"].to_numpy() for p in sorted(Path(sys.argv[1]).iterdir())
])
begin = time.process_time()
order = np.argsort(targets, kind="stable")
print(json.dumps({"cpu": time.process_time() - begin}))
"""


def write(folder: Path, edges: int) -> Path:
    """Write the table, some millions of edges a file."""
    folder.mkdir()
    nodes = max(1000, edges // NODES_SHARE)
    for number, start in enumerate(range(0, edges, FILE_EDGES)):
        count = min(FILE_EDGES, edges - start)
        draw = np.random.default_rng(number)
        source = draw.integers(0, nodes, count)
        rank = (draw.random(count) ** 3 * nodes).astype(np.int64)
        target = rank * 2_654_435_761 % nodes  # hubs anywhere among the ids
        pq.write_table(
            pa.table({"src": source, "dst": target}),
            folder / f"part-{number:04d}.parquet",
            row_group_size=GROUP,
            use_dictionary=False,
        )
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description="Bars of graph build.")
    parser.add_argument("--check", action="store_true", help="exit 1 where a bar is missed")
    parser.add_argument("--edges", type=float, default=5e6)
    parser.add_argument("--workers", type=int, default=0, help="of the run whose memory is shown")
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--folder", type=Path, help="where to work")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    edges = int(options.edges)
    with workspace() as home:
        folder = options.folder or home
        begun = time.perf_counter()
        data = write(folder / "edges", edges)
        say(f"writing {edges:,} edges: {time.perf_counter() - begun:.0f} s")
        ours, sorts, ids = [], [], set()
        rounds = 3 if edges <= 20_000_000 else 1
        for number in range(rounds):
            out = folder / "graph"
            if number == 0:
                run_fresh(BUILD, write(folder / "few", 1000), folder / "tiny", 0, options.memory)
            found = run_fresh(BUILD, data, out, 0, options.memory)
            ours.append(found)
            ids.add(found["id"])
            shutil.rmtree(out)
            sorts.append(run_fresh(SORT, data))
            say(f"round {number}: {json.dumps(found)} {json.dumps(sorts[-1])}")
        if options.workers:
            found = run_fresh(BUILD, data, folder / "graph", options.workers, options.memory)
            ids.add(found["id"])
            say(f"{options.workers} workers: {json.dumps(found)}")
        peak = found["own"] + found["children"]
        mine, theirs = min(o["cpu"] for o in ours), min(s["cpu"] for s in sorts)
        rows = [
            Row(
                f"build of {edges:,} edges",
                f"{mine:.2f} CPU s, {edges / mine / 1e6:.1f} M edges a second",
                f"argsort {theirs:.2f} CPU s",
                f"{theirs / mine:.2f} of its rate",
                "≥ 0.3",
                theirs / mine >= 0.3,
            ),
            Row(
                f"memory, {options.workers} workers",
                f"{peak / 1e6:.0f} MB",
                f"--memory {options.memory}",
                f"{peak / 1e9:.2f} GB",
                "≤ 2 GB",
                peak <= 2e9,
            ),
            Row(
                "the same graph in all runs",
                f"{len(ids)} fingerprints",
                "",
                str(len(ids)),
                "1",
                len(ids) == 1,
            ),
        ]
    print_table(rows)
    failed = missed(rows)
    print(f"\n{'missed: ' + ', '.join(failed) if failed else 'every bar is met'}; {load()}")
    return 1 if failed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
