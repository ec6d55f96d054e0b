"""Small datasets and plans for the examples; with real data, `batchloom plan` makes the plan."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from batchloom.jobs import plan


def folder() -> Path:
    """Return a new folder that the system clears away."""
    return Path(tempfile.mkdtemp(prefix="batchloom-example-"))


def planned(home: Path, table: pa.Table, *, batch_size: int, epochs: int) -> tuple[Path, Path]:
    """Write a table as two files and plan it; return the plan's folder and the dataset's."""
    (home / "data").mkdir()
    half = table.num_rows // 2
    for number, part in enumerate((table.slice(0, half), table.slice(half))):
        pq.write_table(part, home / "data" / f"part-{number}.parquet", row_group_size=256)
    plan(
        "shuffle",
        home / "data",
        out=home / "plan",
        batch_size=batch_size,
        epochs=(0, epochs),
        seed=7,
        workers=0,
    )
    return home / "plan", home / "data"


def numbers(home: Path, *, epochs: int = 2) -> tuple[Path, Path]:
    """Vectors ``x`` and what a linear model can learn of them, ``y``."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 8)).astype(np.float32)
    y = (x @ np.arange(8) + rng.normal(size=2000)).astype(np.float32)
    columns = {"x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 8), "y": y}
    return planned(home, pa.table(columns), batch_size=50, epochs=epochs)


def images(home: Path) -> tuple[Path, Path]:
    """PNG files as bytes, of light and dark noise, and which of both they are."""
    from PIL import Image

    rng, encoded, labels = np.random.default_rng(0), [], []
    for _ in range(400):
        label = int(rng.integers(2))
        pixels = rng.integers(0, 128, size=(32, 32, 3)) + 127 * label
        out = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(out, format="png")
        encoded.append(out.getvalue())
        labels.append(label)
    table = pa.table({"image": pa.array(encoded, pa.binary()), "label": labels})
    return planned(home, table, batch_size=40, epochs=1)


def token_lists(home: Path) -> tuple[Path, Path]:
    """Lists of token numbers of very different lengths, and a label of each."""
    rng = np.random.default_rng(0)
    lengths = np.maximum(1, rng.lognormal(4, 1, size=1000)).astype(np.int64)
    labels = rng.integers(2, size=1000)
    values = rng.integers(0, 500, size=lengths.sum()) + 500 * np.repeat(labels, lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = pa.LargeListArray.from_arrays(offsets, values.astype(np.int32))
    return planned(home, pa.table({"tokens": tokens, "label": labels}), batch_size=50, epochs=2)
