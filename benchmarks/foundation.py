"""Bars of the foundation: opening and verifying a plan, scanning through Dask, the command line.

    .venv/bin/python benchmarks/foundation.py [--check] [--quick]

One table, a line a bar; ``--check`` exits 1 where one is missed, ``--quick`` takes smaller sizes.
Everything runs beside its reference or limit, turn by turn (`harness`). The lines:

open and read one batch
    `Manifest.open` and the first, middle or last batch, in a fresh process, imports excluded:
    median wall milliseconds of the slowest of the three. Limit: parsing the header and hashing the
    one block that holds the batch, which nothing that checks what it delivers can avoid. Beside it,
    without a bar: the last batch against the first; the same with the files dropped from the
    system's cache; a plan of as many blocks as a billion rows have; and any batch of a plan whose
    blocks were touched before (against slicing an array).
verify
    `Manifest.verify`: hashlib's CPU seconds for the same bytes, through a map of the same files,
    over ours.
scan through Dask
    `scan_statistics` of one float32 column of Parquet files (zstd; float32, dictionary, int32) on
    an embedded cluster of two workers that is up and has run tasks: CPU seconds of driver,
    scheduler and workers, over those of a loop in one process that reads the same column with
    pyarrow alone and counts the same. Both counts must agree. Without a bar: our own functions in
    one process; and tasks of one file each.
CPU a task
    CPU milliseconds of this process, which is driver and scheduler, for each of many tasks that
    have next to nothing to read. Reference: Dask's own ``Client.map`` of a built-in function.
--help
    ``batchloom --help`` as a process: median wall seconds. Limit: a Python that does nothing.
demo
    ``batchloom demo`` run again, wall seconds. With ``--quick`` it runs once.
plan shuffle, plan kmeans
    For information: CPU seconds of planning without workers, bytes a row, peak resident memory,
    beside numpy's permutation written and hashed, and scikit-learn's k-means on as many rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from batchloom.dataplane import Manifest, open_dataset
from batchloom.dataplane.dataset import Dataset
from batchloom.jobs import plan
from batchloom.jobs.engine import Engine
from batchloom.jobs.progress import QuietProgress
from batchloom.jobs.scan import ColumnStatistics, scan_statistics
from harness import (
    Row,
    best,
    evict,
    interleaved,
    load,
    measured,
    median,
    missed,
    print_table,
    run_fresh,
    run_process,
    say,
    spread,
    workspace,
)
from inputs import write_files, write_small_files, write_vectors

BATCH = 256
WORKERS = 2
MILLI, MICRO = 1e-3, 1e-6


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    scan_files: int = 80
    scan_rounds: int = 4
    plan_files: int = 10
    many_files: int = 4
    tasks: int = 200
    rounds: int = 5
    processes: int = 5
    help_runs: int = 7
    demo_runs: int = 2
    vectors: int = 200_000


QUICK = Sizes(
    scan_files=40,
    scan_rounds=2,
    plan_files=2,
    many_files=1,
    tasks=64,
    rounds=2,
    processes=2,
    demo_runs=1,
    vectors=50_000,
)


@dataclass
class Bench:
    """What the benchmarks work on, and the rows that they made."""

    sizes: Sizes
    folder: Path
    rows: list[Row] = field(default_factory=list)

    def add(
        self,
        what: str,
        ours: str,
        reference: str,
        value: str,
        bar: str = "",
        ok: bool | None = None,
    ) -> None:
        self.rows.append(Row(what, ours, reference, value, bar, ok))

    @property
    def files(self) -> list[Path]:
        return sorted((self.folder / "data").iterdir())

    @property
    def planned(self) -> list[str]:
        """Files of the large plan."""
        return [str(p) for p in self.files[: self.sizes.plan_files]]


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
    batches = len(Manifest.open(path).epoch(0))
    places = [0, batches // 2, batches - 1]
    ours: list[list[list[float]]] = [[] for _ in places]
    limit: list[list[float]] = []
    for _ in range(bench.sizes.processes):
        for times, place in zip(ours, places, strict=True):
            times.append(run_fresh(_OPEN, path, place))
        limit.append(run_fresh(_OPEN_LIMIT, path))
    walls = [median([wall for wall, _ in times]) for times in ours]
    cpu = max(median([cpu for _, cpu in times]) for times in ours)
    bench.add(
        f"open and read one of {batches:,} batches, fresh process",
        f"{spread(walls, MILLI)} ms, CPU {cpu / MILLI:.1f} ms, {load()}",
        f"parse header, hash one block {median([w for w, _ in limit]) / MILLI:.1f} ms",
        f"{max(walls) / MILLI:.1f} ms",
        "< 50 ms",
        max(walls) < 50 * MILLI,
    )
    bench.add(
        "  last batch against the first",
        f"{walls[-1] / MILLI:.1f} ms",
        f"{walls[0] / MILLI:.1f} ms",
        f"{walls[-1] / walls[0]:.2f} x",
    )
    _open_uncached(bench, path, places)
    _open_many(bench)


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


def read_warm(bench: Bench, path: Path, reads: int = 20_000) -> None:
    """Read random batches of blocks that were touched before."""
    epoch = Manifest.open(path).epoch(0)
    flat = np.concatenate([block.rows for block in epoch.blocks()])
    places = np.random.default_rng(0).integers(0, len(epoch), reads).tolist()

    def ours() -> None:
        for place in places:
            epoch[place]

    def reference() -> None:
        for place in places:
            flat[place * BATCH : (place + 1) * BATCH]

    mine, slices = (best(c).own / reads for c in interleaved(bench.sizes.rounds, ours, reference))
    bench.add(
        "  random batch, blocks touched before",
        f"{mine / MICRO:.2f} µs",
        f"slice of an array {slices / MICRO:.2f} µs",
        f"{mine / slices:.1f} x",
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


# --- Dask -----------------------------------------------------------------------------------------


@contextmanager
def warm_engine(dataset: Dataset) -> Iterator[Engine]:
    """Give an embedded cluster whose workers have imported what their tasks need."""
    with Engine(workers=WORKERS) as engine:
        scan_loss(dataset, engine, 1)
        yield engine


def scan_loss(dataset: Dataset, engine: Engine, task_bytes: int | None = None) -> ColumnStatistics:
    sizes = {} if task_bytes is None else {"task_bytes": task_bytes}
    return scan_statistics(dataset, engine, QuietProgress(), ["loss"], **sizes)[0]


def count_loss(files: list[Path]) -> tuple[int, int, int, float, float, float]:
    """Count a column the plain way: (rows, nulls, not finite, low, high, sum)."""
    rows = nulls = bad = 0
    low, high, total = np.inf, -np.inf, 0.0
    for path in files:
        with pq.ParquetFile(path, memory_map=True) as file:
            for batch in file.iter_batches(65_536, columns=["loss"], use_threads=False):
                column = batch.column(0)
                rows += len(column)
                nulls += column.null_count
                values = column.drop_null().to_numpy(zero_copy_only=False)
                finite = np.isfinite(values)
                if not finite.all():
                    bad += int((~finite).sum())
                    values = values[finite]
                low, high = min(low, float(values.min())), max(high, float(values.max()))
                total += float(values.sum(dtype=np.float64))
    return rows, nulls, bad, low, high, total


def dask(bench: Bench) -> None:
    """Measure the scan and the tasks on one cluster."""
    small = open_dataset(str(bench.folder / "small"))
    with warm_engine(small) as engine:
        scan(bench, engine)
        schedule(bench, engine, small)


def scan(bench: Bench, engine: Engine) -> None:
    files = bench.files
    dataset = open_dataset([str(p) for p in files])
    ours, many, here, loop = interleaved(
        bench.sizes.scan_rounds,
        partial(scan_loss, dataset, engine),
        partial(scan_loss, dataset, engine, 1),
        partial(scan_loss, dataset, Engine(workers=0)),
        partial(count_loss, files),
        children=True,
    )
    _same_counts(ours[0].value, loop[0].value)
    reference, wall = min(c.own for c in loop), min(c.wall for c in loop)
    limit = f"pyarrow loop {reference:.2f} CPU s"
    cost = best(ours)
    ratio = cost.cpu / reference
    bench.add(
        f"scan {dataset.rows / 1e6:.0f} M rows in {len(files)} files, 1 column, Dask",
        f"{cost.cpu:.2f} CPU s (driver {cost.own:.2f}); wall {cost.wall:.2f} s, {load()}",
        f"{limit}; wall {wall:.2f} s",
        f"{ratio:.2f} x",
        "≤ 1.6",
        ratio <= 1.6,
    )
    ratio = best(many).cpu / reference
    bench.add("  a task a file", f"{best(many).cpu:.2f} CPU s", limit, f"{ratio:.2f} x")
    mine = min(c.own for c in here)
    bench.add("  without workers", f"{mine:.2f} CPU s", limit, f"{mine / reference:.2f} x")


def _same_counts(ours: ColumnStatistics, plain: tuple[int, int, int, float, float, float]) -> None:
    rows, nulls, bad, low, high, total = plain
    if (ours.rows, ours.nulls, ours.not_finite, ours.low, ours.high) != (
        rows,
        nulls,
        bad,
        low,
        high,
    ) or not np.isclose(ours.mean or 0.0, total / rows, rtol=1e-12):
        raise RuntimeError(f"the scans disagree: {ours} and {plain}")


def schedule(bench: Bench, engine: Engine, small: Dataset) -> None:
    """Measure what a task costs beside its work."""
    tasks = len(small.present())
    client = engine._connected(tasks)  # the same cluster, so that both see the same settings

    def reference() -> None:
        client.gather(client.map(operator.neg, range(tasks), pure=False))

    costs = interleaved(
        bench.sizes.rounds, partial(scan_loss, small, engine, 1), reference, children=True
    )
    ours, plain = (min(c.own for c in cost) / tasks for cost in costs)
    workers = best(costs[0]).children / tasks
    bench.add(
        f"CPU a task of driver and scheduler, {tasks} tasks",
        f"{ours / MILLI:.2f} ms (and the workers' {workers / MILLI:.2f} ms), {load()}",
        f"Client.map of a built-in {plain / MILLI:.2f} ms",
        f"{ours / MILLI:.1f} ms",
        "≤ 10 ms",
        ours <= 10 * MILLI,
    )


# --- the command line -----------------------------------------------------------------------------


def command() -> list[str | Path]:
    """Return how to run ``batchloom``: the script beside this interpreter."""
    script = Path(sys.executable).with_name("batchloom")
    return [script] if script.exists() else [sys.executable, "-m", "batchloom.jobs.cli"]


def help_text(bench: Bench) -> None:
    runs = bench.sizes.help_runs
    costs = interleaved(
        runs,
        partial(run_process, [*command(), "--help"]),
        partial(run_process, [sys.executable, "-c", "pass"]),
        warm=1,
    )
    ours, nothing = ([c.value for c in cost] for cost in costs)
    wall = median([f.wall for f in ours])
    bench.add(
        f"batchloom --help, median of {runs}",
        f"{wall:.3f} s, CPU {median([f.cpu for f in ours]):.3f} s, {load()}",
        f"python -c pass {median([f.wall for f in nothing]):.3f} s",
        f"{wall:.2f} s",
        "< 0.3 s",
        wall < 0.3,
    )


def demo(bench: Bench) -> None:
    runs = [
        run_process([*command(), "demo", "--out", bench.folder / "demo"])
        for _ in range(bench.sizes.demo_runs)
    ]
    last = runs[-1]
    bench.add(
        "batchloom demo, " + ("run again" if len(runs) > 1 else "run once"),
        f"{last.wall:.1f} s, CPU {last.cpu:.1f} s, {load()}",
        f"the first run {runs[0].wall:.1f} s" if len(runs) > 1 else "",
        f"{last.wall:.1f} s",
        "< 60 s",
        last.wall < 60,
    )


# --- all of it ------------------------------------------------------------------------------------


def run_all(bench: Bench) -> list[Row]:
    """Run everything and return the rows of the table."""
    say("writing data")
    write_files(bench.folder / "data", bench.sizes.scan_files)
    write_small_files(bench.folder / "small", bench.sizes.tasks)
    path: list[Path] = []
    steps: list[tuple[str, Callable[[], Any]]] = [
        ("plan shuffle", lambda: path.append(plan_shuffle(bench))),
        ("open", lambda: open_plan(bench, path[0])),
        ("read", lambda: read_warm(bench, path[0])),
        ("verify", lambda: verify(bench, path[0])),
        ("scan and tasks", lambda: dask(bench)),
        ("help", lambda: help_text(bench)),
        ("demo", lambda: demo(bench)),
        ("plan kmeans", lambda: plan_kmeans(bench)),
    ]
    for label, step in steps:
        say(f"{label}: {measured(step).wall:.0f} s")
    return sorted(bench.rows, key=lambda r: r.what.startswith("plan "))  # information last


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where a bar is missed")
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    options = parser.parse_args()
    with workspace() as folder:
        rows = run_all(Bench(QUICK if options.quick else Sizes(), folder))
    print_table(rows)
    failed = missed(rows)
    print(f"\n{'missed: ' + ', '.join(failed) if failed else 'every bar is met'}; {load()}")
    return 1 if failed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
