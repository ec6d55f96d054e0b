"""Bars of the loader: random batches, cold and remote storage, resume, packing, decoding.

    .venv/bin/python benchmarks/loader.py [--check] [--small] [--only NAME]...

One table, a line a bar; ``--check`` exits 1 where one is missed, ``--small`` takes smaller sizes to
try it out. Everything runs beside its reference, in fresh processes, turn by turn. The lines:
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import loader_speed
import loader_storage
from harness import Row, run_benchmark, run_steps
from loader_inputs import SMALL, LoaderBench, LoaderSizes, last_line

STEPS = {
    "random": loader_speed.random_batches,
    "cold": loader_storage.cold_disk,
    "store": loader_storage.object_store,
}


def run_all(folder: Path, small: bool, only: Sequence[str]) -> list[Row]:
    """Run the chosen steps and return the rows of the table."""
    bench = LoaderBench(SMALL if small else LoaderSizes(), folder)
    chosen = [(name, step) for name, step in STEPS.items() if not only or name in only]
    run_steps([(name, partial(_guarded, bench, name, step)) for name, step in chosen])
    return bench.rows


def _guarded(bench: LoaderBench, name: str, step: Callable[[LoaderBench], None]) -> None:
    """Run one step; where it fails, say so in the table and go on with the others."""
    try:
        step(bench)
    except Exception as error:
        traceback.print_exc()
        bench.add(f"{name}: failed", last_line(error), "", "", "runs", False)


if __name__ == "__main__":
    sys.exit(run_benchmark((__doc__ or "").split("\n", 1)[0], run_all, steps=list(STEPS)))
