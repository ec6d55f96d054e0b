"""Scanning through Dask, and what a task costs; `foundation` says what each line means."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from batchloom.dataplane import open_dataset
from batchloom.dataplane.dataset import Dataset
from batchloom.jobs.engine import Engine
from batchloom.jobs.progress import QuietProgress
from batchloom.jobs.scanning import ColumnStatistics, scan_statistics
from harness import (
    best,
    interleaved,
    load,
)
from inputs import Bench

WORKERS = 2
MILLI = 1e-3


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
