"""Bars of the loader: random batches, cold and remote storage, resume, packing, decoding.

    .venv/bin/python benchmarks/loader.py [--check] [--small] [--only NAME]...

One table, a line a bar; ``--check`` exits 1 where one is missed, ``--small`` takes smaller sizes to
try it out. Everything runs beside its reference, in fresh processes, turn by turn. Peers that
cannot share this environment run in their own, under ``.bench/`` (`environments`); one that does
not install or run is said so in its line. The steps and their lines:

random
    500,000 rows of 128 float32 and an int64, in random batches of 256, page cache warm. Ours is
    `ManifestLoader` with its defaults, from plan to tensors, weights included: over the packed
    table, over an Arrow file of 62 even record batches, over one of 62 uneven ones. The ceiling (g)
    is numpy's fancy index into a memory map and ``torch.from_numpy``. The peers read the same rows
    in their own formats. Rows a second of the clock, the best of three rounds; beside it rows a
    CPU second, workers included.
cold
    4 GB packed, dropped from the page cache: a whole epoch of a block-shuffled plan against reading
    the files front to back; bytes read from the disk over bytes of the rows delivered. Beside it a
    fully random plan, for 20 seconds. Wall time.
store
    2 GB packed on an S3 server on the loopback, read through a counting proxy: a block-shuffled
    plan, and a fully random one whose table was packed in its order. Beside them the peers, on
    260 MB of their own format.
tokens
    200,000 lists of int32, lengths lognormal, 200 on average, as jagged tensors; the reference is a
    DataLoader over Hugging Face's torch format whose collate function pads.
resume
    From the loader's constructor to the first batch at the first, the middle and the last step of
    40,000, in a fresh process, imports excluded. Wall time, the best of five runs, the worst of the
    three places; CPU seconds beside it.
pack
    ``batchloom pack`` of 2 GB of Parquet in one process, less what packing one row costs, against
    pyarrow reading the same columns batch by batch and keeping nothing. CPU seconds.
waiting
    The share of its time that a trainer spends waiting, who computes 5 ms a batch on one core.
images
    20,000 JPEG images, decoded by a transform on two threads, against a thread pool that decodes
    lists of the same bytes.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import loader_speed
import loader_storage
import loader_work
from harness import Row, run_benchmark, run_steps
from loader_inputs import SMALL, LoaderBench, LoaderSizes, last_line

STEPS = {
    "random": loader_speed.random_batches,
    "cold": loader_storage.cold_disk,
    "store": loader_storage.object_store,
    "tokens": loader_work.token_lists,
    "resume": loader_work.resume,
    "pack": loader_work.packing,
    "waiting": loader_work.waiting,
    "images": loader_work.images,
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
