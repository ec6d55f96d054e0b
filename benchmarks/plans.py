"""Planning, opening and verifying a large plan; `foundation` says what each line means."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from batchloom.dataplane import Manifest
from batchloom.jobs import plan
from harness import (
    best,
    evict,
    interleaved,
    load,
    median,
    run_fresh,
    spread,
)
from inputs import Bench, write_vectors

BATCH = 256
MILLI, MICRO = 1e-3, 1e-6

# --- planning, for information --------------------------------------------------------------------

_PLAN = """
import hashlib, json, os, sys
import numpy as np
from harness import best, interleaved, peak_rss
from batchloom.jobs import plan

files, folder, batch, rounds = json.loads(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4])
number = iter(range(100))

def ours():
    return plan("shuffle", files, out=f"{folder}/{next(number)}", batch_size=int(batch), workers=0)

def reference():
    with open(f"{folder}/reference", "wb") as file:
        digest = hashlib.sha256()
        order = np.random.default_rng(0).permutation(rows).astype(np.uint64)
        for start in range(0, rows, 1 << 20):
            digest.update(order[start : start + (1 << 20)])
            file.write(order[start : start + (1 << 20)])
        os.fsync(file.fileno())

manifest = ours()
peak, rows = peak_rss(), manifest.snapshot.rows
mine, numpys = (best(c) for c in interleaved(rounds, ours, reference))
size = sum(e.stat().st_size for e in os.scandir(manifest.path))
print(json.dumps([str(manifest.path), rows, size, mine.own, numpys.own, peak]))
"""


def plan_shuffle(bench: Bench) -> Path:
    """Measure the planning of the large plan; return it."""
    folder = bench.folder / "plans"
    folder.mkdir()
    path, rows, size, ours, reference, peak = run_fresh(
        _PLAN, json.dumps(bench.planned), folder, BATCH, bench.sizes.rounds
    )
    bench.add(
        f"plan shuffle of {rows:,} rows",
        f"{rows / ours / 1e6:.1f} M rows/CPU s, {size / rows:.2f} B/row, peak {peak >> 20} MiB",
        f"numpy permutation, hashed, written {rows / reference / 1e6:.1f} M rows/CPU s",
        f"{reference / ours:.2f} of it",
    )
    return Path(path)


def plan_kmeans(bench: Bench, *, width: int = 16, k: int = 64) -> None:
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    source, numbers = bench.folder / "vectors.parquet", iter(range(100))
    vectors = write_vectors(source, bench.sizes.vectors, width, k)
    sample = vectors[:: max(1, len(vectors) // (256 * k))].astype(np.float64)

    def ours() -> Manifest:
        out = bench.folder / f"kmeans-{next(numbers)}"
        return plan("kmeans", source, out=out, columns=["x"], k=k, batch_size=BATCH, workers=0)

    def reference() -> Any:
        with threadpool_limits(1):
            return (
                KMeans(k, n_init=1, max_iter=100, random_state=0)
                .fit(sample)
                .predict(vectors.astype(np.float64))
            )

    mine, sklearns = (best(c) for c in interleaved(bench.sizes.rounds, ours, reference))
    rows = len(vectors)
    bench.add(
        f"plan kmeans of {rows:,} x {width}, k = {k}",
        f"{rows / mine.own / 1e6:.2f} M rows/CPU s",
        f"scikit-learn, fit a sample and predict {rows / sklearns.own / 1e6:.2f} M rows/CPU s",
        f"{sklearns.own / mine.own:.2f} of it",
    )


# --- opening and verifying ------------------------------------------------------------------------

_OPEN = """
import json, sys, time
from inputs import write_files, write_small_files, write_vectors

from batchloom.dataplane import Manifest

wall, cpu = time.perf_counter(), time.process_time()
epoch = Manifest.open(sys.argv[1]).epoch(0)
rows = int(epoch[int(sys.argv[2])].rows.sum())
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""

_OPEN_LIMIT = """
import hashlib, json, sys, time
import pyarrow as pa

wall, cpu = time.perf_counter(), time.process_time()
with open(f"{sys.argv[1]}/manifest.json", "rb") as file:
    part = json.load(file)["provenance"]["parts"][0]
with pa.memory_map(f"{sys.argv[1]}/{part['name']}") as file:
    block, data = part["blocks"][0], memoryview(file.read_buffer())
    hashlib.sha256(data[block["offset"] : block["offset"] + block["length"]]).digest()
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""


def open_plan(bench: Bench, path: Path) -> None:
    """Open the plan in fresh processes and read a batch."""
    _open_uncached(bench, path, jump_cold(bench, path))
    _open_many(bench)


def jump_cold(bench: Bench, path: Path, most: float | None = None) -> list[int]:
    """Open a plan and read its first, middle or last batch; return which they are.

    With `most` the last may take that many times as long as the first.
    """
    batches = len(Manifest.open(path).epoch(0))
    places = [0, batches // 2, batches - 1]
    ours: list[list[list[float]]] = [[] for _ in places]
    limit: list[list[float]] = []
    for _ in range(bench.sizes.processes):
        for times, place in zip(ours, places, strict=True):
            times.append(run_fresh(_OPEN, path, place))
        limit.append(run_fresh(_OPEN_LIMIT, path))
    walls = [median([wall for wall, _ in times]) for times in ours]
    spent = [median([cpu for _, cpu in times]) for times in ours]
    cpu = max(spent)
    # All of it is in the page cache: on an idle machine wall time is CPU time.
    bench.add(
        f"open and read one of {batches:,} batches, fresh process",
        f"CPU {cpu / MILLI:.1f} ms; wall {spread(walls, MILLI)} ms, {load()}",
        f"parse header, hash one block {median([c for _, c in limit]) / MILLI:.1f} ms",
        f"CPU {cpu / MILLI:.1f} ms",
        "< 50 ms",
        cpu < 50 * MILLI,
    )
    ratio = spent[-1] / spent[0]
    bench.add(
        "  last batch against the first",
        f"CPU {spent[-1] / MILLI:.1f} ms",
        f"{spent[0] / MILLI:.1f} ms",
        f"{ratio:.2f} x",
        "" if most is None else f"≤ {most:g} x",
        None if most is None else max(ratio, 1 / ratio) <= most,
    )
    return places


def _open_uncached(bench: Bench, path: Path, places: list[int]) -> None:
    ours, limit = [], []
    for place in places:
        if not evict(path):
            return
        ours.append(run_fresh(_OPEN, path, place)[0])
        evict(path)
        limit.append(run_fresh(_OPEN_LIMIT, path)[0])
    bench.add(
        "  with files out of the cache",
        f"{spread(ours, MILLI)} ms, {load()}",
        f"{spread(limit, MILLI)} ms",
        f"{max(ours) / MILLI:.1f} ms",
    )


def _open_many(bench: Bench) -> None:
    """Open a plan of batches of one row: as many blocks as a plan of many rows has."""
    many = plan(
        "shuffle",
        bench.files[: bench.sizes.many_files],
        out=bench.folder / "many",
        batch_size=1,
        workers=0,
    )
    batches = len(many.epoch(0))
    times = [run_fresh(_OPEN, many.path, batches - 1) for _ in range(bench.sizes.processes)]
    wall, cpu = (median(column) for column in zip(*times, strict=True))
    bench.add(
        f"  one of {batches:,} batches of one row",
        f"{wall / MILLI:.1f} ms, CPU {cpu / MILLI:.1f} ms, {load()}",
        "",
        f"{wall / MILLI:.1f} ms",
    )


def read_warm(bench: Bench, path: Path, most: float | None = None, reads: int = 20_000) -> None:
    """Read random batches of blocks that were touched before; with `most`, in so many seconds."""
    epoch = Manifest.open(path).epoch(0)
    flat = list(epoch.blocks())[-1].rows
    size = len(epoch[0].rows)
    places = np.random.default_rng(0).integers(0, len(epoch), reads).tolist()
    starts = [place * size % (len(flat) - size) for place in places]

    def ours() -> None:
        for place in places:
            epoch[place]

    def reference() -> None:
        for start in starts:
            flat[start : start + size]

    mine, slices = (best(c).own / reads for c in interleaved(bench.sizes.rounds, ours, reference))
    bench.add(
        "  random batch, blocks touched before",
        f"{mine / MICRO:.2f} µs",
        f"slice of an array {slices / MICRO:.2f} µs",
        f"{mine / slices:.1f} x" if most is None else f"{mine / MICRO:.2f} µs",
        "" if most is None else f"< {most / MICRO:g} µs",
        None if most is None else mine < most,
    )


def verify(bench: Bench, path: Path) -> None:
    manifest = Manifest.open(path)
    maps = [memoryview(pa.memory_map(str(path / p.name)).read_buffer()) for p in manifest.parts]

    def reference() -> list[str]:
        return [hashlib.sha256(data).hexdigest() for data in maps]

    costs = interleaved(2 * bench.sizes.rounds, manifest.verify, reference)
    if reference() != [p.sha256 for p in manifest.parts]:
        raise RuntimeError("hashlib was given other bytes than the manifest's")
    mine, hashing = (best(c).own for c in costs)
    size = sum(p.bytes for p in manifest.parts)
    ratio = hashing / mine
    bench.add(
        f"verify {size / 1e6:.0f} MB of plan",
        f"{size / mine / 1e9:.2f} GB/CPU s",
        f"hashlib {size / hashing / 1e9:.2f} GB/CPU s",
        f"{ratio:.2f} of it",
        "≥ 0.7",
        ratio >= 0.7,
    )
