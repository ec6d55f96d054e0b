"""Rows described for people: where they lie, and the values of their columns as JSON holds them."""

from __future__ import annotations

import base64
import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataplane.dataset import Dataset, DatasetLike, open_dataset
from ..dataplane.manifest import Manifest

__all__ = ["RowValues", "plain_value"]


class RowValues:
    """Describes rows of a manifest, with their columns where a dataset is given.

    Parameters
    ----------
    data : path, URI, list or mapping, optional
    columns : sequence of str, optional
        Columns to show; all of a row's source when None.
    storage_options : mapping, optional
    """

    def __init__(
        self,
        data: DatasetLike | None,
        columns: Sequence[str] | None,
        storage_options: Mapping[str, Any] | None,
    ) -> None:
        self._data, self._columns, self._options = data, columns, storage_options

    def open(self, manifest: Manifest, fragments: Sequence[int]) -> Dataset:
        """Open the dataset as a manifest planned it; `fragments` must be there unchanged."""
        assert self._data is not None  # for the type checker; `trace` saw to it
        return open_dataset(
            self._data,
            snapshot=manifest.snapshot,
            needed=fragments,
            storage_options=self._options,
        )

    def describe(self, manifest: Manifest, ids: npt.NDArray[np.uint64]) -> list[dict[str, Any]]:
        """Return row, source, fragment, offset and columns of each row id, in order."""
        if not len(ids):
            return []
        fragments = manifest.snapshot.fragments
        index, offset = manifest.snapshot.locate(ids)
        rows = [
            {
                "row": int(ids[i]),
                "source": fragments[index[i]].source,
                "fragment": fragments[index[i]].path,
                "offset": int(offset[i]),
                "columns": None,
            }
            for i in range(len(ids))
        ]
        if self._data is not None:
            self._add_columns(self.open(manifest, np.unique(index).tolist()), rows, ids)
        return rows

    def _add_columns(
        self, dataset: Dataset, rows: list[dict[str, Any]], ids: npt.NDArray[np.uint64]
    ) -> None:
        """Read each source's rows with the columns that the source has."""
        if self._columns is not None:
            dataset.check_columns(self._columns, fragments=[])
        for source, schema in dataset.source_schemas.items():
            inside = [i for i, row in enumerate(rows) if row["source"] == source]
            if not inside:
                continue
            wanted = schema.names if self._columns is None else self._columns
            names = [name for name in wanted if name in schema.names]
            values = dataset.take(ids[inside], names).to_pydict()
            for k, i in enumerate(inside):
                rows[i]["columns"] = {name: plain_value(values[name][k]) for name in names}


def plain_value(value: Any) -> Any:
    """Return a value as JSON holds it.

    Binaries become base64, dates and times ISO 8601, NaN and infinities the strings ``nan``,
    ``inf`` and ``-inf``; what else JSON does not know is written as text.
    """
    if isinstance(value, np.generic):  # first: numpy's float64 is a float
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(k): plain_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain_value(v) for v in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
