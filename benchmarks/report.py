"""Bars of reports: what the figures and the page of a plan of ten million rows cost.

    .venv/bin/python benchmarks/report.py [--check] [--quick]

Each line is a fresh process that makes the figures and the page of a plan, as `batchloom report`
does. Its CPU seconds stand beside a plain pass over the same rows: every block read, its hash
checked, its row ids summed up. The bar is 20 CPU seconds, 500 MB and a page of 3 MB.

shuffle
    One epoch in micro-batches of 256 rows, 40,000 steps.
shuffle, --column
    ... with rows and micro-batches compared by a text column of 20 values, read from Parquet.
shuffle, --column of a number
    ... by a float column, which is cut into ten ranges.
seta, --column, --signal
    A series of two epochs with weights, the second one selected by loss, its losses read from a
    signal store.
difference
    The page of two shuffles by different seeds.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from batchloom.dataplane import SignalStore, open_dataset
from batchloom.jobs import plan
from harness import Row, run_benchmark, run_fresh, say

ROWS, QUICK_ROWS, FILES = 10_000_000, 1_000_000, 10
SECONDS, MEMORY, PAGE = 20.0, 500e6, 3e6

REPORT = """
import json, time
from harness import peak_rss
from batchloom.dataplane.series import open_plan
from batchloom.jobs.report import plan_figures, plan_page
path, data, column, signal = sys.argv[1:]
start = time.process_time()
figures = plan_figures(path, data or None, column=column or None, signal=signal or None)
counted = time.process_time()
page = plan_page(figures)
spent, peak = time.process_time() - start, peak_rss()
plain = time.process_time()
opened = open_plan(path)
rows = sum(int(b.rows.sum() >= 0) * len(b.rows) for e in opened.epochs
           for b in opened.epoch(e).blocks())
plain = time.process_time() - plain
print(json.dumps([counted - start, spent, plain, peak, len(page.encode()), rows]))
"""

DIFFERENCE = """
import json, time
from harness import peak_rss
from batchloom.dataplane.series import open_plan
from batchloom.jobs.report import difference_figures, difference_page
start = time.process_time()
figures = difference_figures(*sys.argv[1:])
counted = time.process_time()
page = difference_page(figures)
spent, peak = time.process_time() - start, peak_rss()
plain, rows = time.process_time(), 0
for path in sys.argv[1:]:
    opened = open_plan(path)
    rows += sum(int(b.rows.sum() >= 0) * len(b.rows) for e in opened.epochs
                for b in opened.epoch(e).blocks())
plain = time.process_time() - plain
print(json.dumps([counted - start, spent, plain, peak, len(page.encode()), rows]))
"""


def write(folder: Path, rows: int) -> Path:
    """Write a dataset of a text column and a number, in several files."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    names = pa.array([f"class {i}" for i in range(20)])
    for number, part in enumerate(np.array_split(np.arange(rows), FILES)):
        codes = draw.integers(0, 20, len(part)).astype(np.int8)
        table = {
            "name": pa.DictionaryArray.from_arrays(codes, names).cast(pa.string()),
            "x": draw.standard_normal(len(part)).astype(np.float32),
        }
        pq.write_table(pa.table(table), folder / f"{number}.parquet", row_group_size=250_000)
    return folder


def write_plans(folder: Path, data: Path) -> None:
    """Write two shuffles, and a series of SeTa with its losses."""
    common: dict[str, Any] = {"batch_size": 256, "workers": 0, "form": "explicit"}
    for name, seed in (("shuffle", 0), ("other", 1)):
        plan("shuffle", data, out=folder / name, seed=seed, **common)
    dataset, draw = open_dataset(data), np.random.default_rng(1)
    with SignalStore.for_writing(folder / "signals", dataset) as store:
        for part in np.array_split(np.arange(dataset.rows), 40):
            loss = draw.gamma(2, 0.5, len(part)).astype(np.float32)
            store.append(part, epoch=0, step=int(part[0]), loss=loss)
    for epoch in (0, 1):
        plan("seta", data, out=folder / "seta", signal=folder / "signals", weights="unbiased",
             epochs=(epoch, epoch + 1), training_epochs=20, **common)  # fmt: skip


def line(name: str, found: list[float]) -> Row:
    """Return the line of one process."""
    counted, spent, plain, peak, size, rows = found
    ok = spent <= SECONDS and peak <= MEMORY and size <= PAGE
    return Row(
        f"{name}, {rows:,.0f} rows",
        f"{spent:.2f} CPU s ({spent - counted:.2f} of them the page), {peak / 1e6:.0f} MB, "
        f"page {size / 1e3:.0f} kB",
        f"plain pass {plain:.2f} CPU s",
        f"{spent / plain:.1f} x",
        "≤ 20 CPU s, 500 MB, 3 MB",
        ok,
    )


def run_all(folder: Path, quick: bool) -> list[Row]:
    """Run everything and return the rows of the table."""
    say("writing data and plans")
    data = write(folder / "data", QUICK_ROWS if quick else ROWS)
    write_plans(folder, data)
    signals = folder / "signals"
    cases = {
        "shuffle": ("shuffle", "", "", ""),
        "shuffle, --column": ("shuffle", data, "name", ""),
        "shuffle, --column of a number": ("shuffle", data, "x", ""),
        "seta, --column, --signal": ("seta", data, "name", signals),
    }
    table = []
    for name, (path, *options) in cases.items():
        say(name)
        table.append(line(name, run_fresh(REPORT, folder / path, *options)))
    say("difference")
    table.append(line("difference", run_fresh(DIFFERENCE, folder / "shuffle", folder / "other")))
    shutil.rmtree(folder / "data")
    return table


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__ or "", run_all))
