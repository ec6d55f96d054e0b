"""The select stages ``keep`` and ``drop``: rows whose key is, or is not, in a file of keys.

The file holds values of the key column, or row ids where no key column is named: text with one key
a line, CSV, Parquet or Arrow with one column (or one of the key's name), or a numpy ``.npy``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from ..coresets.keys import match_keys
from ..dataplane.canonical import file_sha256
from ..dataplane.columns import as_arrow, as_numpy
from ..dataplane.errors import BatchloomError, DatasetError, SelectionError
from ..dataplane.key_hash import hash_column
from ..dataplane.parameters import parameters
from ..dataplane.row_column import RowColumn
from .context import JobContext
from .stages import Choice, PlanState, SelectStage

__all__ = ["Drop", "Keep", "read_keys"]

U64 = npt.NDArray[np.uint64]

_TABLES = (".csv", ".parquet", ".pq", ".arrow", ".feather", ".ipc")
_CHUNK_KEYS = 1 << 16  # keys that are read at a time
_KEY_BYTES = 32  # a key, while all of them are sorted


@parameters
class _KeyStage(SelectStage):
    """What keep and drop share; they differ in which side of the match stays."""

    file: Annotated[str, Field(description="file of keys")]
    key: Annotated[str | None, Field(description="key column; row ids where none is named")] = None

    def parameters(self) -> dict[str, Any]:
        with _opened(self.file) as handle:
            return {"file_sha256": file_sha256(handle), "key": self.key}

    def reads(self) -> list[str]:
        return [] if self.key is None else [self.key]

    def select(self, job: JobContext, state: PlanState, epoch: int) -> Choice:
        wanted = self._wanted(job)
        found = np.zeros(len(wanted), dtype=bool)
        matches = None if self.key is None else self._matches(job, state, wanted)

        def stays(ids: U64, ranks: slice) -> npt.NDArray[np.bool_]:
            match = match_keys(ids, wanted) if matches is None else matches[ranks]
            inside: npt.NDArray[np.bool_] = match >= 0
            found[match[inside]] = True
            return inside if self.method == "keep" else ~inside

        rows = state.rows.filter(stays)
        missing = len(wanted) - int(np.count_nonzero(found))
        if missing:
            what = "row ids" if self.key is None else f"keys of '{self.key}'"
            job.progress.warn(
                f"{self.method}: {missing:,} of {len(wanted):,} {what} in {self.file} are not "
                "among the rows."
            )
        return Choice(
            rows, report={"keys": len(wanted), "keys_not_found": missing, "rows": len(rows)}
        )

    def _matches(self, job: JobContext, state: PlanState, wanted: U64) -> RowColumn:
        return job.map_rows(
            f"matching '{self.key}'",
            match_rows,
            state.rows,
            self.reads(),
            column=self.key,
            keys_file=str(job.save(wanted)),
        )

    def _wanted(self, job: JobContext) -> U64:
        """Return the keys in the file as row ids or hashes, ascending and distinct."""
        type_ = pa.uint64() if self.key is None else job.dataset.schema.field(self.key).type
        if pa.types.is_dictionary(type_):
            type_ = type_.value_type
        parts = [np.zeros(0, dtype=np.uint64)]
        for keys in read_keys(self.file, self.key, type_):
            if self.key is None:
                parts.append(as_numpy(keys))
            else:
                parts.append(hash_column(keys, self.key))
            count = sum(map(len, parts))
            job.budget.require(count * _KEY_BYTES, f"Reading the keys in {self.file}")
        return np.unique(np.concatenate(parts))


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


def read_keys(path: str, column: str | None, type_: pa.DataType) -> Iterator[pa.Array]:
    """Yield the keys in a file, in chunks, nulls left out.

    Parameters
    ----------
    path : str
    column : str, optional
        Column of a table; else the only one.
    type_ : pyarrow.DataType
        Type of the keys.

    Raises
    ------
    DatasetError
        Where the file cannot be read.
    SelectionError
        Where its values are not of the type.
    """
    suffix = Path(path).suffix.lower()
    chunks = _read_arrays if suffix == ".npy" else _read_lines
    if suffix in _TABLES:
        chunks = _read_tables
    try:
        for keys in chunks(path, column, type_):
            try:
                cast = keys.cast(type_)
            except pa.ArrowException as error:
                what = "row ids" if column is None else f"the type of '{column}', {type_}"
                reason = str(error).split("\n")[0]
                raise SelectionError(
                    f"The keys in {path} cannot be read as {what}: {reason}."
                ) from error
            yield cast.drop_null() if cast.null_count else cast
    except (pa.ArrowException, ValueError, EOFError) as error:
        if isinstance(error, BatchloomError):
            raise
        reason = str(error).split("\n")[0]
        raise DatasetError(f"The file of keys {path} cannot be read: {reason}.") from error


def _read_arrays(path: str, column: str | None, type_: pa.DataType) -> Iterator[pa.Array]:
    _opened(path).close()
    values = np.load(path, mmap_mode="r").ravel()
    for start in range(0, len(values), _CHUNK_KEYS):
        part = values[start : start + _CHUNK_KEYS]
        yield as_arrow(part) if part.dtype.kind in "biuf" else pa.array(part.tolist())


def _read_lines(path: str, column: str | None, type_: pa.DataType) -> Iterator[pa.Array]:
    with _opened(path) as file:
        while lines := list(itertools.islice(file, _CHUNK_KEYS)):
            texts = (line.decode().strip() for line in lines)
            yield pa.array([text for text in texts if text], pa.string())


def _read_tables(path: str, column: str | None, type_: pa.DataType) -> Iterator[pa.Array]:
    with _opened(path) as file:
        for batch in _record_batches(path, file, column, type_):
            if column is not None and column in batch.schema.names:
                yield batch.column(column)
                continue
            if batch.num_columns != 1:
                raise DatasetError(
                    f"The file of keys {path} has columns {', '.join(batch.schema.names)}: "
                    f"expected one column, or one called '{column or 'row'}'."
                )
            yield batch.column(0)


def _record_batches(
    path: str, file: Any, column: str | None, type_: pa.DataType
) -> Iterator[pa.RecordBatch]:
    suffix = Path(path).suffix.lower()
    if suffix == ".csv":
        from pyarrow import csv

        types = {}
        if pa.types.is_string(type_) or pa.types.is_large_string(type_):
            # Not as what the first lines look like: a key of digits may have zeros in front.
            types = dict.fromkeys(csv.open_csv(path).schema.names, pa.string())
        yield from csv.open_csv(path, convert_options=csv.ConvertOptions(column_types=types))
    elif suffix in (".parquet", ".pq"):
        import pyarrow.parquet as pq

        yield from pq.ParquetFile(file).iter_batches(batch_size=_CHUNK_KEYS, use_threads=False)
    else:
        reader = pa.ipc.open_file(file)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)


def _opened(path: str) -> Any:
    try:
        return open(path, "rb")
    except OSError as error:
        raise DatasetError(f"The file of keys {path} cannot be read: {error.strerror}.") from error
