"""Quantiles of a scan through Dask; `scale` says what the line means."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from batchloom.dataplane import open_dataset
from batchloom.dataplane.columns import as_numpy
from batchloom.dataplane.dataset import Dataset
from batchloom.dataplane.sketch import RankSearch, quantile_rank
from batchloom.jobs.engine import Engine
from batchloom.jobs.progress import QuietProgress
from batchloom.jobs.quantiles import scan_quantiles
from harness import best, interleaved, load
from inputs import Bench

__all__ = ["sketch"]

SHARES = (0.01, 0.5, 0.99)
WORKERS = 2


def scan_job(dataset: Dataset, engine: Engine) -> list[Any]:
    (column,) = scan_quantiles(dataset, engine, QuietProgress(), {"loss": SHARES})
    return [q.value for q in column.quantiles]


def plain_loop(files: list[Path]) -> list[Any]:
    """Find the same by pyarrow and the same kernels, in one process."""
    search = RankSearch(np.float32, lambda n: [quantile_rank(q, n) for q in SHARES])
    while (step := search.next) is not None:
        counts = np.zeros(step.shape, np.int64)
        for path in files:
            with pq.ParquetFile(path, memory_map=True) as file:
                for batch in file.iter_batches(65_536, columns=["loss"], use_threads=False):
                    step.count(as_numpy(batch.column(0)), into=counts)
        search.narrow(counts)
    return [f.value for f in search.found]


def sketch(bench: Bench) -> None:
    """Measure the job and the loop turn by turn."""
    files = bench.files
    dataset = open_dataset([str(p) for p in files])
    with Engine(workers=WORKERS) as engine:
        scan_job(dataset, engine)
        ours, here, loop = interleaved(
            bench.sizes.scan_rounds,
            partial(scan_job, dataset, engine),
            partial(scan_job, dataset, Engine(workers=0)),
            partial(plain_loop, files),
            children=True,
        )
    if not ours[0].value == here[0].value == loop[0].value:
        raise RuntimeError(f"the scans disagree: {ours[0].value} and {loop[0].value}")
    cost, reference = best(ours), min(c.own for c in loop)
    ratio = cost.cpu / reference
    limit = f"pyarrow loop, same kernels {reference:.2f} CPU s"
    bench.add(
        f"3 exact quantiles of {dataset.rows / 1e6:.0f} M rows in {len(files)} files, Dask",
        f"{cost.cpu:.2f} CPU s (driver {cost.own:.2f}); wall {cost.wall:.2f} s, {load()}",
        limit,
        f"{ratio:.2f} x",
        "≤ 1.6",
        ratio <= 1.6,
    )
    mine = min(c.own for c in here)
    bench.add("  without workers", f"{mine:.2f} CPU s", limit, f"{mine / reference:.2f} x")
