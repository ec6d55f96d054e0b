"""What a stage is given: the dataset, the engine, memory and disk to work with, and progress."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataplane.canonical import digest
from ..dataplane.dataset import Dataset
from ..dataplane.errors import OnInvalid
from ..dataplane.row_column import RowColumn, Segment
from ..dataplane.rowset import RowSet
from ..dataplane.storage import storing
from .budget import Budget
from .engine import Engine
from .losses import Losses, Signal
from .progress import Progress
from .tasks import TASK_BYTES, RowFunction, ScanTask, compute_rows, group_tasks
from .work import Entry, WorkFolder

__all__ = ["JobContext", "OnInvalid"]


@dataclass(frozen=True)
class JobContext:
    """What a stage works with.

    Attributes
    ----------
    dataset : Dataset
    engine : Engine
    work : WorkFolder
        Shared with the workers; gone when the job ends.
    budget : Budget
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
    epochs : (int, int)
        That are planned, half-open.
    signal : Signal or None
        Where the training's signals are.
    losses : dict
        Losses that were read, by where they are from.
    digests : dict
        Of the signals that were used, by name; None of what is no signal.
    kept : dict
        What stages read before the first epoch, by what it is.
    """

    dataset: Dataset
    engine: Engine
    work: WorkFolder
    budget: Budget
    seed: int
    batch_size: int
    on_invalid: OnInvalid
    progress: Progress
    task_bytes: int = TASK_BYTES
    micro_per_step: int = 1
    reports: dict[str, Any] = field(default_factory=dict)
    codes: dict[str, tuple[RowSet, RowColumn]] = field(default_factory=dict)
    epochs: tuple[int, int] = (0, 1)
    signal: Signal | None = None
    losses: dict[str, Losses] = field(default_factory=dict)
    digests: dict[str, str | None] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)

    def map_rows(
        self,
        label: str,
        function: RowFunction,
        rows: RowSet,
        reads: Sequence[str],
        /,
        **arguments: Any,
    ) -> RowColumn:
        """Apply a function to rows on the engine; return its values in order of row ids.

        A task whose result is there already, of an earlier run that was killed, does not run again.

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
            Small values, or paths of what was saved by `save`.

        Returns
        -------
        RowColumn of len(rows)
        """
        return self._map(label, function, rows, list(reads), arguments, one_each=True)

    def map_lists(
        self,
        label: str,
        function: RowFunction,
        rows: RowSet,
        reads: Sequence[str],
        /,
        **arguments: Any,
    ) -> RowColumn:
        """Apply a function that gives any number of values a row; return them, end to end.

        Parameters and files are as those of `map_rows`. How many values a row has, the caller must
        know otherwise.
        """
        return self._map(label, function, rows, list(reads), arguments, one_each=False)

    def _map(
        self,
        label: str,
        function: RowFunction,
        rows: RowSet,
        reads: list[str],
        arguments: dict[str, Any],
        *,
        one_each: bool,
    ) -> RowColumn:
        tasks = group_tasks(self.dataset.present(), self.task_bytes)
        named = {k: self._plain(v) for k, v in arguments.items()}
        step = [function.__module__, function.__qualname__, named, reads, rows.digest]
        keys = [digest([repr(step), _identity(task)]) for task in tasks]
        found = {i: e for i, e in enumerate(map(self.work.find, keys)) if e is not None}
        left = [i for i in range(len(tasks)) if i not in found]
        rows_file = None
        if rows.chosen is not None and left:
            rows_file = str(self.save(rows.chosen.words))
        segments = {i: segment for i, e in found.items() for segment in self._segments(e)}
        with self.progress.step(label, len(rows)) as bar:
            bar.advance(sum(s.rows for s in segments.values()) if one_each else 0)
            for position, segment in self.engine.map(
                compute_rows,
                [tasks[i] for i in left],
                reads,
                self.dataset.schema,
                rows_file,
                str(self.work.folder),
                function,
                arguments,
                one_each,
            ):
                index = left[position]
                self._record(keys[index], segment)
                if segment is not None:
                    segments[index] = segment
                    bar.advance(segment.rows if one_each else 0)
        ordered = [segments[i] for i in sorted(segments)]
        return RowColumn(ordered, resident=self.budget.resident)

    def column(self, parts: Iterable[npt.NDArray[Any]]) -> RowColumn:
        """Write values, in order of rank, as a column in the work folder."""
        path = self.work.new_file()
        return RowColumn.write(path, parts, resident=self.budget.resident)

    def save(self, array: npt.NDArray[Any]) -> Path:
        """Keep an array in the work folder, for workers to map; named by its content."""
        name = hashlib.sha256(repr((array.dtype, array.shape)).encode())
        name.update(np.ascontiguousarray(array).data)
        path = self.work.folder / f"{name.hexdigest()}.npy"
        if not path.exists():
            staged = path.with_suffix(".tmp")
            header = np.lib.format.header_data_from_array_1_0(np.ascontiguousarray(array))
            # Not np.save: where the disk is full its error does not say so.
            with storing("Writing intermediate results", path), open(staged, "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                file.write(np.ascontiguousarray(array).data)
            staged.replace(path)
        return path

    # --- the journal of tasks ---------------------------------------------------------------------

    def _plain(self, value: Any) -> Any:
        """Return an argument as it is named in keys: a saved file by its content."""
        return Path(value).name if str(value).startswith(str(self.work.path)) else value

    def _record(self, key: str, segment: Segment | None) -> None:
        if segment is None:
            self.work.record(key, {}, None)
            return
        name = self.work.relative(segment.path)
        dtype = np.lib.format.dtype_to_descr(segment.dtype)
        value = {"rows": segment.rows, "dtype": dtype, "shape": segment.shape}
        self.work.record(key, {name: (segment.bytes, segment.checksum)}, value)

    def _segments(self, entry: Entry) -> list[Segment]:
        """Return the file of a recorded task; none where it had no rows."""
        return [
            Segment(
                self.work.path / name,
                entry.value["rows"],
                _dtype(entry.value["dtype"]),
                tuple(entry.value["shape"]),
                size,
                checksum,
            )
            for name, (size, checksum) in entry.files.items()
        ]


def _identity(task: ScanTask) -> str:
    """Return what a task reads, wherever that is."""
    parts = asdict(task)
    del parts["index"]
    for ref in parts["refs"]:
        del ref["uri"], ref["options"]
    return repr(parts)


def _dtype(text: Any) -> np.dtype[Any]:
    """Return a type from its description, in which JSON made lists of tuples."""
    fields = text if isinstance(text, str) else [tuple(f) for f in text]
    return np.dtype(fields)
