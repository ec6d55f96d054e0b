"""The data that the benchmarks work on: Parquet files of losses, tiny files, a file of vectors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["write_files", "write_small_files", "write_vectors"]

FILE_ROWS = 1_024_000
SOURCES = 20


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
