"""What every loader that is measured has in common: two verbs, one line of JSON.

    python peers/NAME.py prepare SOURCE TARGET
    python peers/NAME.py measure SOURCE TARGET VARIANT SECONDS

SOURCE holds ``x.npy`` (float32, rows x width) and ``y.npy`` (int64, the row's number); TARGET is
the peer's own copy of it, in its own format: a folder, or a URI of an object store to which that
was copied. ``measure`` draws random batches for SECONDS after a warm-up and prints ``{"rows",
"all_rows", "wall", "cpu", "version"}``; ``all_rows`` holds those of the warm-up, ``cpu`` the worker
processes too. The first and the last batch are compared with SOURCE, so that nobody is fast by
delivering other rows.

A peer gives `run` two functions: ``prepare(source, target)`` and
``batches(source, target, variant)``, which yields (x, y) tensors for one epoch or longer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import measured

BATCH = 256

Batches = Callable[[Path, str, str], Iterator[tuple[Any, Any]]]


def run(prepare: Callable[[Path, str], None], batches: Batches, version: str) -> None:
    """Do what the command line says."""
    verb, source, target = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if verb == "prepare":
        prepare(source, target)
        print(json.dumps({"version": version}), flush=True)
        return
    variant, seconds = sys.argv[4], float(sys.argv[5])
    stream = _forever(lambda: batches(source, target, variant))
    warm, _, _ = _drain(stream, seconds / 4)
    cost = measured(lambda: _drain(stream, seconds), children=True)
    rows, first, last = cost.value
    for x, y in (first, last):
        _check(source, x, y)
    made = {
        "rows": rows,
        "all_rows": warm + rows,
        "wall": cost.wall,
        "cpu": cost.cpu,
        "version": version,
    }
    print(json.dumps(made), flush=True)


def _forever(epoch: Callable[[], Iterator[tuple[Any, Any]]]) -> Iterator[tuple[Any, Any]]:
    while True:
        yield from epoch()


def _drain(stream: Iterator[tuple[Any, Any]], seconds: float) -> tuple[int, Any, Any]:
    """Take batches for some seconds, at least two; return (rows, first, last batch)."""
    end = time.perf_counter() + seconds
    first = last = next(stream)
    rows, count = len(first[1]), 1
    while count < 2 or time.perf_counter() < end:
        last = next(stream)
        rows += len(last[1])
        count += 1
    return rows, first, last


def _check(source: Path, x: Any, y: Any) -> None:
    """Raise where a batch is no random one of the source's rows."""
    x, y = np.asarray(x), np.asarray(y)
    if x.dtype != np.float32 or y.dtype != np.int64 or len(x) != len(y):
        raise ValueError(f"float32 rows and int64 numbers were due, found {x.dtype}, {y.dtype}")
    if not np.array_equal(x, np.load(source / "x.npy", mmap_mode="r")[y]):
        raise ValueError("the rows are not the source's")
    if (np.diff(y) > 0).all():
        raise ValueError("the rows are in the source's order")
