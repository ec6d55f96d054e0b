"""Permutations and bitmaps of a billion rows; `scale` says what each line means."""

from __future__ import annotations

import numpy as np
from batchloom.dataplane.random import Permutation
from harness import best, interleaved, load, run_fresh
from inputs import Bench

__all__ = ["permutation", "selected"]

PLACES = 1 << 22
IN_MEMORY = 10_000_000
CHUNK = 1 << 20

_PERMUTATION = """
import json, sys
import numpy as np
from harness import best, interleaved, peak_rss
from batchloom.dataplane.random import Permutation

n, count, rounds = map(int, sys.argv[1:4])
places = np.random.default_rng(0).integers(0, n, count, dtype=np.uint64)
Permutation(n, seed=1).at(places)
before = peak_rss()

def found():
    Permutation(n, seed=2).at(places)

(costs,) = interleaved(rounds, found)
print(json.dumps([best(costs).own, peak_rss() - before]))
"""

_SELECTED = """
import json, sys
import numpy as np
from harness import best, interleaved, measured, peak_rss
from batchloom.dataplane.bitmap import Bitmap
from batchloom.dataplane.random import Permutation

n, count, rounds = map(int, sys.argv[1:4])
draw = np.random.default_rng(0)
bits = Bitmap(draw.integers(0, 2**64, n // 64, dtype=np.uint64))
index = measured(lambda: bits.select(np.arange(1))).own
order = Permutation(len(bits), seed=1)
bits.select(order[:count])
starts = draw.integers(0, len(bits) - count, 64).tolist()

def rows():
    start = starts.pop()
    bits.select(order[start : start + count])

(costs,) = interleaved(rounds, rows)
print(json.dumps([best(costs).own, index, peak_rss()]))
"""


def permutation(bench: Bench) -> None:
    """Find random positions of a billion; all of what fits into memory, beside numpy."""
    n, rounds = 10**9, bench.sizes.rounds
    cpu, grown = run_fresh(_PERMUTATION, n, PLACES, rounds)
    rate = PLACES / cpu / 1e6
    bench.add(
        f"permutation of {n:,}, random positions",
        f"{rate:.1f} M rows/CPU s, {load()}",
        "",
        f"{rate:.1f} M rows/CPU s",
        "≥ 15",
        rate >= 15,
    )
    bench.add(
        "  memory beside the positions and the result",
        f"{grown / 1e6:.0f} MB",
        f"an array of it {8 * n / 1e6:,.0f} MB",
        f"{grown / 1e6:.0f} MB",
        "≤ 100 MB",
        grown <= 100e6,
    )
    mine, numpys = (best(c).own for c in interleaved(rounds, _in_order, _by_numpy, warm=1))
    ratio = numpys / mine
    bench.add(
        f"permutation of {IN_MEMORY:,}, in order",
        f"{IN_MEMORY / mine / 1e6:.1f} M rows/CPU s",
        f"numpy's Generator.permutation {IN_MEMORY / numpys / 1e6:.1f} M rows/CPU s",
        f"{ratio:.2f} of it",
        "≥ 0.8",
        ratio >= 0.8,
    )


def _in_order() -> None:
    order = Permutation(IN_MEMORY, seed=1)
    for start in range(0, IN_MEMORY, CHUNK):
        order[start : start + CHUNK]


def _by_numpy() -> None:
    np.random.default_rng(1).permutation(IN_MEMORY)


def selected(bench: Bench, rows: int) -> None:
    """Find the row ids of a shuffle of half of the rows, a stretch of the order at a time."""
    cpu, index, peak = run_fresh(_SELECTED, rows, CHUNK, bench.sizes.rounds)
    rate = CHUNK / cpu / 1e6
    bench.add(
        f"shuffle half of {rows:,} rows through a bitmap",
        f"{rate:.2f} M rows/CPU s, {load()}",
        f"index {index:.2f} CPU s, peak {peak / 1e6:.0f} MB",
        f"{rate:.2f} M rows/CPU s",
        "≥ 1.5",
        rate >= 1.5,
    )
