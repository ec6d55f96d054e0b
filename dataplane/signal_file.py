"""A signal in one Arrow IPC or Parquet file: a column ``row`` of row ids, and one of values.

``epoch``, ``step``, ``occurrence`` and ``attempt`` may be there, and are 0 where they are not. Rows
stand in any order. A file is read once, front to back; to be found by row, its values are written
in parts as those of a store (`import_signal_file`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from .columns import as_numpy
from .errors import DatasetError, MissingFileError, SelectionError, examples, nearest
from .observations import Observations
from .rowset import RowSet
from .signal_parts import part_bytes
from .signals import SignalStore
from .snapshot import Snapshot, as_row_ids
from .storage import Location, locate, storing

__all__ = [
    "IPC_SUFFIXES",
    "PARQUET_SUFFIXES",
    "import_signal_file",
    "is_signal_file",
    "open_signal_file",
]

PARQUET_SUFFIXES = (".parquet", ".pq")
IPC_SUFFIXES = (".arrow", ".feather", ".ipc")

_BATCH_ROWS = 1 << 18
_PART_ROWS = 1 << 20


def is_signal_file(path: str | os.PathLike[str]) -> bool:
    """Whether a path or URI is named as a file of a signal is."""
    return os.fspath(path).lower().endswith(PARQUET_SUFFIXES + IPC_SUFFIXES)


def open_signal_file(location: Location) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return the schema and the record batches of a file.

    Raises
    ------
    DatasetError
        Where it cannot be read, or has no integer column ``row``.
    """
    with _reading(location):
        file = location.open()
        if location.path.lower().endswith(PARQUET_SUFFIXES):
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            schema, batches = parquet.schema_arrow, parquet.iter_batches(_BATCH_ROWS)
        else:
            reader = pa.ipc.open_file(file)
            schema = reader.schema
            batches = map(reader.get_batch, range(reader.num_record_batches))
    if "row" not in schema.names or not pa.types.is_integer(schema.field("row").type):
        raise DatasetError(
            f"The signal {location} has the columns {', '.join(schema.names)}: expected a column "
            "'row' of row ids."
        )
    return schema, _each(location, batches)


def _each(location: Location, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    while True:
        with _reading(location):
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)  # a damaged offset of a string or list ends the process
        yield batch


@contextlib.contextmanager
def _reading(location: Location) -> Iterator[None]:
    try:
        yield
    except MissingFileError:
        raise DatasetError(f"There is no signal at {location}.") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise DatasetError(f"The signal {location} cannot be read: {reason}.") from error


def import_signal_file(
    path: str | os.PathLike[str],
    folder: Path,
    snapshot: Snapshot,
    signal: str = "loss",
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> SignalStore:
    """Write a file's values in parts, and return them as a store.

    Parameters
    ----------
    path : path or URI
    folder : Path
        Where to; not there yet, and nothing that outlives the caller.
    snapshot : Snapshot
        The dataset that the row ids belong to.
    signal : str
        Column of the values.

    Raises
    ------
    SelectionError
        Where a row is not in the dataset.
    DatasetError
        Where the file cannot be read, or has not these columns.
    """
    location = locate(path, storage_options)
    schema, batches = open_signal_file(location)
    if signal not in schema.names:
        raise DatasetError(
            f"The signal {location} has no column '{signal}'.{nearest(signal, schema.names)} "
            f"It has: {', '.join(schema.names)}."
        )
    rows = RowSet(snapshot)
    place = folder / signal
    place.mkdir(parents=True)
    held: list[Observations] = []
    number = 0
    for batch in batches:
        observed = _observed(batch, signal)
        _refuse_strangers(location, rows, observed.rows)
        held.append(observed)
        if sum(map(len, held)) >= _PART_ROWS:
            _write(place, held, number)
            held, number = [], number + 1
    _write(place, held, number)
    return SignalStore(locate(folder), snapshot)


def _observed(batch: pa.RecordBatch, signal: str) -> Observations:
    def column(name: str, dtype: Any) -> npt.NDArray[Any]:
        if name not in batch.schema.names:
            return np.zeros(batch.num_rows, dtype)
        return as_numpy(batch.column(name), name).astype(dtype, copy=False)

    values = as_numpy(batch.column(signal), signal)
    return Observations(
        as_row_ids(as_numpy(batch.column("row"), "row")),
        column("epoch", np.uint32),
        column("step", np.uint64),
        column("occurrence", np.uint16),
        column("attempt", np.uint16),
        values.astype(np.float32, copy=False),
    )


def _refuse_strangers(location: Location, rows: RowSet, ids: npt.NDArray[np.uint64]) -> None:
    inside = rows.contains(ids)
    if not inside.all():
        bad = ids[~inside]
        raise SelectionError(
            f"The signal {location} has values of rows that the dataset does not hold: "
            f"{examples(bad)}; its {len(rows):,} rows have ids below {rows.snapshot.next_row_id:,}."
            " Name the dataset that was scored, or carry the signal over with batchloom rebind."
        )


def _write(place: Path, held: list[Observations], number: int) -> None:
    observed = Observations.concat(held)
    if not len(observed):
        return
    if not (observed.rows[1:] >= observed.rows[:-1]).all():
        observed = observed.take(np.argsort(observed.rows, kind="stable"))
    name, data = part_bytes(observed, writer=0, sequence=number)
    with storing("Writing intermediate results", place):
        (place / str(name)).write_bytes(data)
