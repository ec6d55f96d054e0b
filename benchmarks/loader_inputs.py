"""What the loader's benchmark works on: sizes, its folder, the data that is written there."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from environments import run_peer
from harness import Finished, Row, run_process, say

__all__ = [
    "GB",
    "SMALL",
    "WIDTH",
    "LoaderBench",
    "LoaderSizes",
    "count",
    "last_line",
    "pack",
    "table_of",
    "write_ipc",
    "write_wide",
]

GB = 1_000_000_000
WIDTH = 128


@dataclass(frozen=True)
class LoaderSizes:
    """How much is measured."""

    rows: int = 500_000
    rounds: int = 3
    seconds: float = 3.0
    cold_bytes: int = 4 * GB
    store_bytes: int = 2 * GB
    texts: int = 200_000
    long_batches: int = 40_000
    restores: int = 5
    pack_bytes: int = 2 * GB
    pack_rounds: int = 3
    busy_batches: int = 2_000
    images: int = 20_000


SMALL = LoaderSizes(
    rows=60_000,
    rounds=1,
    seconds=0.6,
    cold_bytes=GB // 4,
    store_bytes=GB // 8,
    texts=20_000,
    long_batches=4_000,
    restores=2,
    pack_bytes=GB // 4,
    pack_rounds=1,
    busy_batches=300,
    images=2_000,
)


@dataclass
class LoaderBench:
    """What is worked on, and the rows of the table so far."""

    sizes: LoaderSizes
    folder: Path
    rows: list[Row] = field(default_factory=list)
    _formed: set[str] = field(default_factory=set)

    @cached_property
    def source(self) -> Path:
        """Vectors and their numbers, as all peers read them: ``x.npy``, ``y.npy``."""
        folder = self.folder / "source"
        folder.mkdir()
        draw = np.random.default_rng(0)
        shape = (self.sizes.rows, WIDTH)
        x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, shape)
        for start in range(0, len(x), 100_000):
            part = x[start : start + 100_000]
            part[:] = draw.standard_normal(part.shape, np.float32)
        x.flush()
        np.save(folder / "y.npy", np.arange(len(x)))
        return folder

    def form(self, peer: str) -> Path:
        """Return a peer's own form of the source, written once; UnavailableError if it cannot."""
        target = self.folder / peer
        if peer not in self._formed:
            say(f"writing the form of {peer}")
            self.run_peer(peer, "prepare", target)
            self._formed.add(peer)
        return target

    def run_peer(
        self, peer: str, verb: str, target: object, *arguments: object, **variables: str
    ) -> dict[str, Any]:
        """Run a peer's file on the source; what it leaves behind goes with our folder."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        said = run_peer(
            peer, verb, self.source, target, *arguments, HOME=str(home), TMPDIR=str(home),
            **variables,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(said)
        return found

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


def count(value: float) -> str:
    """Return a number of rows or bytes as it reads well."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def last_line(error: Exception) -> str:
    """Return what an error says last, for the table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:160]


def pack(data: str | Path, columns: str, out: Path, *more: object) -> Finished:
    """Run ``batchloom pack`` as a user does; RuntimeError with what it printed where it fails."""
    command = Path(sys.executable).with_name("batchloom")
    options = ("--columns", columns, "--out", out, "--quiet", *more)
    return run_process([command, "pack", data, *map(str, options)])


def table_of(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> pa.Table:
    """Return rows of vectors and their numbers as a table."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
    return pa.table({"x": column, "y": pa.array(y)})


def write_ipc(path: Path, x: npt.NDArray[Any], y: npt.NDArray[Any], edges: list[int]) -> None:
    """Write an Arrow file with a record batch between each two edges."""
    with pa.ipc.new_file(path, table_of(x[:0], y[:0]).schema) as writer:
        for start, stop in itertools.pairwise(edges):
            writer.write_table(table_of(x[start:stop], y[start:stop]))


def write_wide(folder: Path, total: int, width: int, files: int) -> int:
    """Write Arrow files of `total` bytes of vectors; return their rows.

    Of each file's rows every record batch holds 4 MB. All files hold the same vectors: what is
    measured is how bytes come, not which.
    """
    folder.mkdir()
    rows = total // (4 * width + 8) // files
    x = np.random.default_rng(0).standard_normal((rows, width), np.float32)
    step = max(1, (1 << 22) // (4 * width))
    for number in range(files):
        y = np.arange(number * rows, (number + 1) * rows)
        edges = [*range(0, rows, step), rows]
        write_ipc(folder / f"part-{number:03d}.arrow", x, y, edges)
    return rows * files
