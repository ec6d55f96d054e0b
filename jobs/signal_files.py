"""Signals in one Arrow or Parquet file, carried over to new row ids."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..dataplane.canonical import file_sha256
from ..dataplane.columns import as_arrow, as_numpy
from ..dataplane.commit import sync_path
from ..dataplane.errors import ManifestConflictError, ParameterError
from ..dataplane.remap import RowMapping, remap_rows
from ..dataplane.signal_file import (
    IPC_SUFFIXES,
    PARQUET_SUFFIXES,
    is_signal_file,
    open_signal_file,
)
from ..dataplane.signals import SignalStore
from ..dataplane.snapshot import as_row_ids
from ..dataplane.storage import locate, storing

__all__ = ["RemappedSignal", "check_signal", "remapped_signal"]


@dataclass(frozen=True)
class RemappedSignal:
    """What was carried over.

    Attributes
    ----------
    rows : int
        Written.
    gone : int
        Left out: their rows are not in the new dataset.
    """

    rows: int
    gone: int


def check_signal(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Refuse what can be refused before anything is read."""
    if locate(source).is_dir():
        SignalStore.open(source)
        if Path(target).exists():
            raise ManifestConflictError(
                f"{os.fspath(target)} is there already; choose another target, or remove that one "
                "first."
            )
        return
    for name, path in (("signal", source), ("signal_out", target)):
        if not is_signal_file(path):
            raise ParameterError(
                f"The '{name}' parameter must name a signal store, or an Arrow or Parquet file "
                f"({', '.join(PARQUET_SUFFIXES + IPC_SUFFIXES)}). Got '{os.fspath(path)}' instead."
            )
    open_signal_file(locate(source))


@contextlib.contextmanager
def remapped_signal(
    source: str | os.PathLike[str], target: str | os.PathLike[str], mapping: RowMapping
) -> Iterator[RemappedSignal]:
    """Write a signal under its new row ids; it gets its name when the block ends well.

    All columns but ``row`` are kept as they are, in the file's order. Rows that the new dataset
    does not hold are left out.
    """
    place = Path(target).absolute()
    staged = place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with storing("Writing the signal", place):
            place.parent.mkdir(parents=True, exist_ok=True)
            found = _write(Path(source), staged, place.suffix.lower() in PARQUET_SUFFIXES, mapping)
            sync_path(staged)
        yield found
        _publish(staged, place)
    finally:
        staged.unlink(missing_ok=True)


def _write(source: Path, staged: Path, parquet: bool, mapping: RowMapping) -> RemappedSignal:
    written = gone = 0
    schema, batches = open_signal_file(locate(source))
    at = schema.get_field_index("row")
    schema = schema.set(at, pa.field("row", pa.uint64()))
    with _writer(staged, schema, parquet) as writer:
        for batch in batches:
            rows, found = remap_rows(as_row_ids(as_numpy(batch.column(at), "row")), mapping)
            kept = batch.set_column(at, schema.field(at), as_arrow(rows))
            if not found.all():
                kept = kept.take(as_arrow(np.flatnonzero(found)))
            writer.write_batch(kept)
            written += kept.num_rows
            gone += batch.num_rows - kept.num_rows
    return RemappedSignal(written, gone)


def _writer(path: Path, schema: pa.Schema, parquet: bool) -> Any:
    if parquet:
        return pq.ParquetWriter(path, schema)
    return pa.ipc.new_file(str(path), schema)


def _publish(staged: Path, place: Path) -> None:
    """Give the file its name; the same file already there is success, another one a conflict."""
    with storing("Writing the signal", place):
        if place.exists():
            with open(place, "rb") as there, open(staged, "rb") as mine:
                if file_sha256(there) == file_sha256(mine):
                    return
            raise ManifestConflictError(
                f"{place} holds another signal; choose another target, or remove that one first."
            )
        staged.replace(place)
        sync_path(place.parent)
