"""Files of keys: what ``keep``, ``drop`` and ``edit`` are given, read a piece at a time.

Text with one key a line, CSV, Parquet or Arrow with one column (or one of the key's name), or a
numpy ``.npy``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..dataplane.canonical import file_sha256
from ..dataplane.columns import as_arrow
from ..dataplane.dataset import Dataset
from ..dataplane.errors import DatasetError, SelectionError

__all__ = ["cast_keys", "file_digest", "key_chunks", "keys_in_file"]

_TABLES = (".csv", ".parquet", ".pq", ".arrow", ".feather", ".ipc")
_CHUNK_KEYS = 1 << 16  # keys that are read at a time


def keys_in_file(path: str, column: str | None, dataset: Dataset | None) -> pa.Array:
    """Read the distinct keys of a file as values of a key column, or as row ids where None."""
    none = pa.array([], _type_of(column, dataset))
    return pc.unique(pa.concat_arrays([none, *key_chunks(path, column, dataset)]))


def key_chunks(path: str, column: str | None, dataset: Dataset | None) -> Iterator[pa.Array]:
    """Yield the keys in a file as `keys_in_file` does, in pieces, repeats included.

    Raises
    ------
    DatasetError
        Where the file cannot be read.
    SelectionError
        Where its values are not of the key's type.
    """
    pieces = _pieces(path, column, _type_of(column, dataset))
    while True:
        try:
            keys = next(pieces, None)
        except (pa.ArrowException, ValueError, EOFError) as error:
            reason = str(error).split("\n")[0]
            raise DatasetError(f"The file of keys {path} cannot be read: {reason}.") from error
        if keys is None:
            return
        yield cast_keys(keys, f"The keys in {path}", column, dataset)


def cast_keys(keys: pa.Array, what: str, column: str | None, dataset: Dataset | None) -> pa.Array:
    """Cast keys to the type of the key column, or to row ids; nulls are left out.

    Parameters
    ----------
    keys : pyarrow.Array
    what : str
        What they are called in messages.
    column : str or None
    dataset : Dataset, optional
        Where the column is.

    Raises
    ------
    SelectionError
        Where they are no such values.
    """
    type_ = _type_of(column, dataset)
    try:
        keys = keys.cast(type_)
    except pa.ArrowException as error:
        goal = "row ids" if column is None else f"the type of '{column}', {type_}"
        reason = str(error).split("\n")[0].rstrip(".")
        raise SelectionError(f"{what} cannot be read as {goal}: {reason}.") from error
    return keys.drop_null() if keys.null_count else keys


def _type_of(column: str | None, dataset: Dataset | None) -> pa.DataType:
    if column is None or dataset is None:
        return pa.uint64()
    type_ = dataset.schema.field(column).type
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _pieces(path: str, column: str | None, type_: pa.DataType) -> Iterator[pa.Array]:
    suffix = Path(path).suffix.lower()
    if suffix == ".npy":
        return _read_arrays(path)
    return _read_tables(path, column, type_) if suffix in _TABLES else _read_lines(path)


def _read_arrays(path: str) -> Iterator[pa.Array]:
    _opened(path).close()
    values = np.load(path, mmap_mode="r").ravel()
    for start in range(0, len(values), _CHUNK_KEYS):
        part = values[start : start + _CHUNK_KEYS]
        yield as_arrow(part) if part.dtype.kind in "biuf" else pa.array(part.tolist())


def _read_lines(path: str) -> Iterator[pa.Array]:
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


def file_digest(path: str) -> str:
    """Return the SHA-256 of a file of keys."""
    with _opened(path) as handle:
        return file_sha256(handle)


def _opened(path: str) -> Any:
    try:
        return open(path, "rb")
    except OSError as error:
        raise DatasetError(f"The file of keys {path} cannot be read: {error.strerror}.") from error
