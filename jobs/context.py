"""What a stage is given: the dataset, the engine, a folder for large results, and progress."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataplane.dataset import Dataset
from ..dataplane.errors import OnInvalid
from ..dataplane.rowset import RowSet
from .engine import Engine
from .progress import Progress
from .tasks import TASK_BYTES, RowFunction, compute_rows, group_tasks

__all__ = ["JobContext", "OnInvalid"]


@dataclass(frozen=True)
class JobContext:
    """What a stage works with.

    Attributes
    ----------
    dataset : Dataset
    engine : Engine
    folder : Path
        Staging folder, shared with the workers; gone when the job ends.
    seed : int
    batch_size, micro_per_step : int
    on_invalid : {'fail', 'drop'}
        What to do with rows whose values cannot be used.
    progress : Progress
    task_bytes : int
        Compressed bytes a task. Never changes a result.
    reports : dict
        What batch and reduce stages tell of themselves, for the manifest's provenance.
    codes : dict
        Columns that were read as codes: name → (rows, codes by rank).
    """

    dataset: Dataset
    engine: Engine
    folder: Path
    seed: int
    batch_size: int
    on_invalid: OnInvalid
    progress: Progress
    task_bytes: int = TASK_BYTES
    micro_per_step: int = 1
    reports: dict[str, Any] = field(default_factory=dict)
    codes: dict[str, tuple[RowSet, npt.NDArray[np.int64]]] = field(default_factory=dict)

    def map_rows(
        self,
        label: str,
        function: RowFunction,
        rows: RowSet,
        reads: Sequence[str],
        /,
        **arguments: Any,
    ) -> npt.NDArray[Any]:
        """Apply a function to rows on the engine; return its values in order of row ids.

        Parameters
        ----------
        label : str
            What the progress bar says.
        function : callable
            (record batch, row ids, **arguments) → array, one value (or one row) a row. Importable.
        rows : RowSet
            Rows to compute; others are not handed to the function.
        reads : sequence of str
            Columns to decode.
        arguments : mapping
            Small values, or paths.

        Returns
        -------
        array, shape (len(rows), …)
        """
        tasks = group_tasks(self.dataset.present(), self.task_bytes)
        rows_file = None
        if rows.chosen is not None:
            rows_file = str(self.save(rows.chosen.words))
        results: dict[int, str] = {}
        with self.progress.step(label, len(rows)) as step:
            for position, (path, count) in self.engine.map(
                compute_rows,
                tasks,
                list(reads),
                self.dataset.schema,
                rows_file,
                str(self.folder),
                function,
                arguments,
            ):
                step.advance(count)
                if path:
                    results[position] = path
        parts = [np.load(results[i]) for i in sorted(results)]
        for path in results.values():
            Path(path).unlink()
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def save(self, array: npt.NDArray[Any]) -> Path:
        """Keep an array in the staging folder, for workers to map."""
        path = self.folder / f"{uuid.uuid4().hex[:12]}.npy"
        np.save(path, array)
        return path
