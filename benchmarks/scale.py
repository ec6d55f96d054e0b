"""Bars of scale: what a plan, an order, a jump and a scan cost where rows are many.

    .venv/bin/python benchmarks/scale.py [--check] [--quick]

One table, a line a bar, as in `foundation`. Absolute rates are rows a CPU second of this machine;
peak memory is that of a process of its own. ``--quick`` takes a tenth of the rows.

plan shuffle, snapshot given
    An explicit, hashed plan of 100 million rows in batches of 256, without workers, against the
    snapshot that was scanned before. The dataset is real files of one repeated value, which cost
    nothing to read. Beside it: the same permutation in chunks of a million, written to one file
    and hashed once with SHA-256, which is the least that such a plan takes. (`growth`)
cost from … to … rows
    The same plan of a tenth of the rows: the exponent of CPU seconds, those of a plan of next to no
    rows subtracted from both, and peak memory against peak memory. The two take turns, and ten of
    the smaller plans are written in one, so that the system has as many bytes to keep. No bar with
    ``--quick``, whose smaller plan stays in the processor's cache. (`growth`)
permutation
    Random positions of a billion in a fresh process, and how much its memory grows beside the
    positions and what is returned; ten million in order against numpy. (`permutations`)
shuffle half of … rows through a bitmap
    The rows at stretches of a million positions of the permutation of what a bitmap selects:
    position → rank → row id, in a fresh process. (`permutations`)
exact quantiles
    `scan_quantiles` of one float32 column, two passes, on an embedded cluster of two workers that
    is up and has run it: CPU seconds of driver, scheduler and workers over those of a loop in one
    process that reads the column with pyarrow and counts with the same kernels. All find the same
    values. (`sketches`)
recipe
    Ten epochs of half of a billion rows, written from a bitmap, and any batch of them. (`recipes`)
jump
    Opening a plan of four million batches of 25 rows and reading the first, the middle or the last
    one, in a fresh process, imports excluded: median CPU milliseconds, which are wall milliseconds
    where nothing else runs, as all of it is in the page cache; the last against the first;
    CPU microseconds of any batch whose block was touched before. (`plans`)
races, damage, kills
    How many came out as they must: writers that race for one place of an object store; every file
    of a manifest, a dataset and a packed table damaged; jobs and workers killed at random
    moments. (`faults`)
"""

from __future__ import annotations

import sys
from pathlib import Path

import faults
import growth
import permutations
import plans
import recipes
import sketches
from harness import Row, run_benchmark, run_steps, say
from inputs import QUICK, Bench, Sizes, write_files


def run_all(folder: Path, quick: bool) -> list[Row]:
    """Run everything and return the rows of the table."""
    bench = Bench(QUICK if quick else Sizes(), folder)
    say("writing data")
    write_files(folder / "data", bench.sizes.sketch_files)
    path: list[Path] = []
    run_steps(
        [
            ("growth", lambda: growth.growth(bench)),
            ("permutation", lambda: permutations.permutation(bench)),
            ("bitmap of 1e8", lambda: permutations.selected(bench, 10**8)),
            ("bitmap of 1e9", lambda: permutations.selected(bench, 10**9)),
            ("quantiles", lambda: sketches.sketch(bench)),
            ("recipe", lambda: recipes.recipe(bench, bench.sizes.recipe_rows)),
            ("plan in small batches", lambda: path.append(growth.many_batches(bench))),
            ("jump", lambda: jump(bench, path[0])),
            ("races", lambda: faults.races(bench, bench.sizes.races)),
            ("damage", lambda: faults.damage(bench, bench.sizes.damages)),
            ("kills", lambda: faults.kills(bench, bench.sizes.kills)),
            ("workers killed", lambda: faults.worker_kills(bench, bench.sizes.worker_kills)),
        ]
    )
    return bench.rows


def jump(bench: Bench, path: Path) -> None:
    plans.jump_cold(bench, path, most=2)
    plans.read_warm(bench, path, most=5e-6)


if __name__ == "__main__":
    sys.exit(run_benchmark((__doc__ or "").split("\n", 1)[0], run_all))
