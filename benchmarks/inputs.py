"""What the benchmarks work on: sizes, a folder, and the data that is written there."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from harness import Row

__all__ = [
    "QUICK",
    "Bench",
    "Sizes",
    "write_constant_files",
    "write_files",
    "write_small_files",
    "write_vectors",
]

FILE_ROWS = 1_024_000
SOURCES = 20


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    scan_files: int = 80
    scan_rounds: int = 4
    plan_files: int = 10
    many_files: int = 4
    tasks: int = 200
    rounds: int = 5
    processes: int = 5
    help_runs: int = 7
    demo_runs: int = 2
    vectors: int = 200_000
    sketch_files: int = 100
    large_rows: int = 100_000_000
    large_rounds: int = 3
    recipe_rows: int = 1_000_000_000
    races: int = 5
    damages: int = 200
    kills: int = 50
    worker_kills: int = 20


QUICK = Sizes(
    scan_files=40,
    scan_rounds=2,
    plan_files=2,
    many_files=1,
    tasks=64,
    rounds=2,
    processes=2,
    demo_runs=0,
    vectors=50_000,
    sketch_files=20,
    large_rows=10_000_000,
    large_rounds=1,
    recipe_rows=100_000_000,
    races=1,
    damages=80,
    kills=4,
    worker_kills=2,
)


@dataclass
class Bench:
    """What the benchmarks work on, and the rows that they made."""

    sizes: Sizes
    folder: Path
    rows: list[Row] = field(default_factory=list)

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

    @property
    def files(self) -> list[Path]:
        return sorted((self.folder / "data").iterdir())

    @property
    def planned(self) -> list[str]:
        """Files of the large plan."""
        return [str(p) for p in self.files[: self.sizes.plan_files]]


# --- data -----------------------------------------------------------------------------------------


def write_files(folder: Path, files: int, different: int = 4) -> None:
    """Write Parquet files of a loss, a source and a length; some are copies of others."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    names = pa.array([f"source-{i:02d}" for i in range(SOURCES)])
    for number in range(files):
        path = folder / f"part-{number:04d}.parquet"
        if number >= different:
            shutil.copy(folder / f"part-{number % different:04d}.parquet", path)
            continue
        codes = draw.integers(0, SOURCES, FILE_ROWS, dtype=np.int32)
        columns = {
            "loss": draw.gamma(2.0, 0.5, FILE_ROWS).astype(np.float32),
            "source": pa.DictionaryArray.from_arrays(codes, names),
            "length": draw.integers(16, 4096, FILE_ROWS, dtype=np.int32),
        }
        pq.write_table(pa.table(columns), path, compression="zstd")


def write_constant_files(folder: Path, rows: int, files: int) -> None:
    """Write Parquet files of many rows and next to no bytes: a column of one value."""
    folder.mkdir()
    edges = np.linspace(0, rows, files + 1).astype(int).tolist()
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        table = pa.table({"x": np.zeros(stop - start, dtype=np.int8)})
        pq.write_table(table, folder / f"part-{number:04d}.parquet", compression="zstd")


def write_small_files(folder: Path, files: int) -> None:
    folder.mkdir()
    table = pa.table({"loss": np.arange(64, dtype=np.float32)})
    for number in range(files):
        pq.write_table(table, folder / f"part-{number:04d}.parquet")


def write_vectors(path: Path, rows: int, width: int, groups: int) -> npt.NDArray[np.float32]:
    """Write one file of vectors around some centers; return them."""
    draw = np.random.default_rng(0)
    centers = draw.normal(size=(groups, width))
    x = centers[draw.integers(0, groups, rows)] + draw.normal(scale=0.5, size=(rows, width))
    vectors = x.astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width)
    pq.write_table(pa.table({"x": column}), path)
    return vectors
