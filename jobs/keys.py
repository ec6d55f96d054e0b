"""The select stages ``keep`` and ``drop``: rows whose key is, or is not, in a file of keys.

The file holds values of the key column, or row ids where no key column is named: text with one key
a line, CSV, Parquet or Arrow with one column (or one of the key's name), or a numpy ``.npy``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from ..coresets.keys import match_keys
from ..dataplane.canonical import file_sha256
from ..dataplane.dataset import Dataset
from ..dataplane.errors import DatasetError, SelectionError
from ..dataplane.key_hash import hash_column
from ..dataplane.parameters import parameters
from ..dataplane.plan import Selection
from .context import JobContext
from .stages import PlanState, SelectStage

__all__ = ["Drop", "Keep", "cast_keys", "file_digest", "read_keys", "read_keys_as"]

U64 = npt.NDArray[np.uint64]


@parameters
class _KeyStage(SelectStage):
    """What keep and drop share; they differ in which side of the match stays."""

    file: Annotated[str, Field(description="file of keys")]
    key: Annotated[str | None, Field(description="key column; row ids where none is named")] = None

    def parameters(self) -> dict[str, Any]:
        return {"file_sha256": file_digest(self.file), "key": self.key}

    def reads(self) -> list[str]:
        return [] if self.key is None else [self.key]

    def select(self, job: JobContext, state: PlanState, epoch: int) -> Selection:
        wanted = self._wanted(job)
        if self.key is None:
            match = match_keys(state.rows.ids(), wanted)
        else:
            match = job.map_rows(
                f"matching '{self.key}'",
                match_rows,
                state.rows,
                [self.key],
                column=self.key,
                keys_file=str(job.save(wanted)),
            )
        found = len(np.unique(match[match >= 0]))
        missing = len(wanted) - found
        if missing:
            what = "row ids" if self.key is None else f"keys of '{self.key}'"
            job.progress.warn(
                f"{self.method}: {missing:,} of {len(wanted):,} {what} in {self.file} are not "
                "among the rows."
            )
        kept = (match >= 0) if self.method == "keep" else (match < 0)
        return Selection(
            np.flatnonzero(kept).astype(np.uint64),
            report={"keys": len(wanted), "keys_not_found": missing, "rows": int(kept.sum())},
        )

    def _wanted(self, job: JobContext) -> U64:
        keys = read_keys_as(self.file, self.key, job.dataset)
        hashes = (
            np.array(keys, dtype=np.uint64) if self.key is None else hash_column(keys, self.key)
        )
        return np.unique(hashes)


@parameters
class Keep(_KeyStage):
    """Parameters of keep."""

    method = "keep"
    summary = "only rows whose key is in a file"
    example = "batchloom plan shuffle data/ --out plan/ --keep ids.txt --key doc_id"


@parameters
class Drop(_KeyStage):
    """Parameters of drop."""

    method = "drop"
    summary = "all rows but those whose key is in a file"
    example = "batchloom plan shuffle data/ --out plan/ --drop takedown.csv --key url"


def match_rows(
    batch: pa.RecordBatch, ids: Any, column: str, keys_file: str
) -> npt.NDArray[np.int64]:
    """Match a batch's keys; a row function."""
    return match_keys(hash_column(batch.column(column), column), np.load(keys_file, mmap_mode="r"))


def read_keys_as(path: str, column: str | None, dataset: Dataset | None) -> pa.Array:
    """Read a file of keys as values of the key column, or as row ids where none is named."""
    return cast_keys(read_keys(path, column), f"The keys in {path}", column, dataset)


def cast_keys(keys: pa.Array, what: str, column: str | None, dataset: Dataset | None) -> pa.Array:
    """Cast keys to the type of the key column, or to row ids; nulls are left out."""
    type_ = pa.uint64()
    if column is not None and dataset is not None:
        type_ = dataset.schema.field(column).type
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    try:
        keys = keys.cast(type_)
    except pa.ArrowException as error:
        goal = "row ids" if column is None else f"the type of '{column}', {type_}"
        reason = str(error).split("\n")[0].rstrip(".")
        raise SelectionError(f"{what} cannot be read as {goal}: {reason}.") from error
    return keys.drop_null() if keys.null_count else keys


def read_keys(path: str, column: str | None = None) -> pa.Array:
    """Read a file of keys as one Arrow array."""
    suffix = Path(path).suffix.lower()
    try:
        with _opened(path) as handle:
            if suffix == ".npy":
                return pa.array(np.load(handle).ravel())
            if suffix not in (".csv", ".parquet", ".pq", ".arrow", ".feather", ".ipc"):
                lines = handle.read().decode().split("\n")
                return pa.array([s for line in lines if (s := line.strip())], pa.string())
        table = _read_table(path, suffix)
    except (pa.ArrowException, ValueError, UnicodeDecodeError) as error:
        reason = str(error).split("\n")[0]
        raise DatasetError(f"The file of keys {path} cannot be read: {reason}.") from error
    if column is not None and column in table.column_names:
        return table.column(column).combine_chunks()
    if table.num_columns != 1:
        raise DatasetError(
            f"The file of keys {path} has columns {', '.join(table.column_names)}: expected one "
            f"column, or one called '{column or 'row'}'."
        )
    return table.column(0).combine_chunks()


def _read_table(path: str, suffix: str) -> pa.Table:
    if suffix == ".csv":
        from pyarrow import csv

        return csv.read_csv(path)
    if suffix in (".parquet", ".pq"):
        import pyarrow.parquet as pq

        return pq.read_table(path)
    with pa.memory_map(path) as file:
        return pa.ipc.open_file(file).read_all()


def file_digest(path: str) -> str:
    """Return the SHA-256 of a file of keys."""
    with _opened(path) as handle:
        return file_sha256(handle)


def _opened(path: str) -> Any:
    try:
        return open(path, "rb")
    except OSError as error:
        raise DatasetError(f"The file of keys {path} cannot be read: {error.strerror}.") from error
