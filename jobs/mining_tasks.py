"""Mining negatives by tasks: some micro-batches each, with their rows' embeddings and labels."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..clustering.mining import Mined, mine, sample_positives
from ..dataplane.plan import Ragged
from ..dataplane.storage import storing
from .column_files import open_column
from .labels import take_labels

__all__ = ["MineTask", "Mining", "mine_batches", "mine_tasks", "read_mined"]

ROW = np.dtype([("id", "<u8"), ("place", "<i8"), ("start", "<i8"), ("count", "<i4")])
"""What a task is told of a row: its id, where its embedding is, where its labels are."""

_WORK = 2e10  # multiplications that a task makes: a second or so


@dataclass(frozen=True)
class Mining:
    """How negatives are mined; the same for all micro-batches of an epoch.

    Attributes
    ----------
    features, labels : str
        Listings (`column_files`); no labels where rows have none.
    shortlist, seed, epoch : int
    """

    features: str
    labels: str | None
    shortlist: int
    seed: int
    epoch: int


@dataclass(frozen=True)
class MineTask:
    """Micro-batches that a task mines.

    Attributes
    ----------
    file : str
        Of `ROW`.
    offsets : tuple of int
        Of the micro-batches, in the file.
    """

    file: str
    offsets: tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.offsets[-1] - self.offsets[0]

    @property
    def label(self) -> str:
        return f"{len(self.offsets) - 1} micro-batches"

    @property
    def example(self) -> str | None:
        """A local file that it reads."""
        return self.file


def mine_tasks(file: str, offsets: npt.NDArray[np.int64], width: int) -> list[MineTask]:
    """Cut micro-batches into tasks of about a second."""
    work = np.diff(offsets).astype(np.float64) ** 2 * max(64, width)
    place = (np.cumsum(work) - work) // _WORK
    firsts = np.flatnonzero(np.append(True, place[1:] != place[:-1])).tolist()
    return [
        MineTask(file, tuple(offsets[a : b + 1].tolist()))
        for a, b in pairwise([*firsts, len(offsets) - 1])
    ]


def mine_batches(task: MineTask, how: Mining, folder: str) -> str:
    """Write what is mined of a task's micro-batches to a file; runs on workers."""
    rows = np.load(task.file, mmap_mode="r")[task.offsets[0] : task.offsets[-1]]
    features = open_column(how.features)
    positives, parts = [], []
    for a, b in pairwise(np.array(task.offsets) - task.offsets[0]):
        here = rows[a:b]
        positive, labels = np.full(len(here), -1, np.int64), None
        if how.labels is not None:
            labels = take_labels(here["start"], here["count"], open_column(how.labels))
            positive = sample_positives(labels, here["id"], seed=how.seed, epoch=how.epoch)
        positives.append(positive)
        parts.append(mine(features.at(here["place"]), labels, positive, how.shortlist))
    return _written(np.concatenate(positives), parts, Path(folder))


def _written(positive: npt.NDArray[np.int64], parts: Sequence[Mined], folder: Path) -> str:
    path = folder / f"mined-{uuid.uuid4().hex[:12]}.npz"
    arrays: dict[str, Any] = {"positive": positive}
    for name in ("mask", "negatives", "scores"):
        joined = Ragged.concat([getattr(p, name) for p in parts])
        arrays |= {name: joined.values, f"{name}_offsets": joined.offsets}
    with storing("Writing intermediate results", path), open(path, "wb") as file:
        np.savez(file, **arrays)
    return str(path)


def read_mined(paths: Sequence[str]) -> dict[str, Any]:
    """Return the side columns of micro-batches, from files in order; the files go."""
    found = []
    for path in paths:
        with np.load(path) as file:
            found.append({name: file[name] for name in file.files})
        Path(path).unlink()
    side: dict[str, Any] = {"positive": np.concatenate([f["positive"] for f in found])}
    for name in ("mask", "negatives", "scores"):
        side[name] = Ragged.concat([Ragged(f[f"{name}_offsets"], f[name]) for f in found])
    return side
