"""Bars of the foundation: opening and verifying a plan, scanning through Dask, the command line.

    .venv/bin/python benchmarks/foundation.py [--check] [--quick]

One table, a line a bar; ``--check`` exits 1 where one is missed, ``--quick`` takes smaller sizes.
Everything runs beside its reference or limit, turn by turn (`harness`). The lines (`plans` and
`scans` measure the first and the second half of them):

open and read one batch
    `Manifest.open` and the first, middle or last batch, in a fresh process, imports excluded:
    median CPU milliseconds of the slowest of the three. Limit: parsing the header and hashing the
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
    ``batchloom demo`` run again, wall seconds. ``--quick`` leaves it out.
plan shuffle, plan kmeans
    For information: CPU seconds of planning without workers, bytes a row, peak resident memory,
    beside numpy's permutation written and hashed, and scikit-learn's k-means on as many rows.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import plans
import scans
from harness import (
    Row,
    interleaved,
    load,
    median,
    run_benchmark,
    run_process,
    run_steps,
    say,
)
from inputs import QUICK, Bench, Sizes, write_files, write_small_files

# --- the command line -----------------------------------------------------------------------------


def command() -> list[str | Path]:
    """Return how to run ``batchloom``: the script beside this interpreter."""
    script = Path(sys.executable).with_name("batchloom")
    return (
        [script]
        if script.exists()
        else [
            sys.executable,
            "-c",
            "from batchloom.jobs.cli import main; main()",
        ]
    )


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
    if not runs:
        return
    last = runs[-1]
    bench.add(
        "batchloom demo, run again",
        f"{last.wall:.1f} s, CPU {last.cpu:.1f} s, {load()}",
        f"the first run {runs[0].wall:.1f} s",
        f"{last.wall:.1f} s",
        "< 60 s",
        last.wall < 60,
    )


# --- all of it ------------------------------------------------------------------------------------


def run_all(folder: Path, quick: bool) -> list[Row]:
    """Run everything and return the rows of the table."""
    bench = Bench(QUICK if quick else Sizes(), folder)
    say("writing data")
    write_files(folder / "data", bench.sizes.scan_files)
    write_small_files(folder / "small", bench.sizes.tasks)
    path: list[Path] = []
    run_steps(
        [
            ("plan shuffle", lambda: path.append(plans.plan_shuffle(bench))),
            ("open", lambda: plans.open_plan(bench, path[0])),
            ("read", lambda: plans.read_warm(bench, path[0])),
            ("verify", lambda: plans.verify(bench, path[0])),
            ("scan and tasks", lambda: scans.dask(bench)),
            ("help", lambda: help_text(bench)),
            ("demo", lambda: demo(bench)),
            ("plan kmeans", lambda: plans.plan_kmeans(bench)),
        ]
    )
    return sorted(bench.rows, key=lambda r: r.what.startswith("plan "))  # information last


if __name__ == "__main__":
    sys.exit(run_benchmark((__doc__ or "").split("\n", 1)[0], run_all))
