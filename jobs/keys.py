"""The select stages ``keep`` and ``drop``: rows whose key is, or is not, in a file of keys.

The file holds values of the key column, or row ids where no key column is named: text with one key
a line, CSV, Parquet or Arrow with one column (or one of the key's name), or a numpy ``.npy``.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from ..coresets.keys import match_keys
from ..dataplane.columns import as_numpy
from ..dataplane.key_hash import hash_column
from ..dataplane.parameters import parameters
from ..dataplane.row_column import RowColumn
from .context import JobContext
from .key_files import file_digest, key_chunks
from .stages import Choice, PlanState, SelectStage

__all__ = ["Drop", "Keep"]

U64 = npt.NDArray[np.uint64]

_KEY_BYTES = 32  # a key, while all of them are sorted


@parameters
class _KeyStage(SelectStage):
    """What keep and drop share; they differ in which side of the match stays."""

    file: Annotated[str, Field(description="file of keys")]
    key: Annotated[str | None, Field(description="key column; row ids where none is named")] = None

    def parameters(self) -> dict[str, Any]:
        return {"file_sha256": file_digest(self.file), "key": self.key}

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
        parts = [np.zeros(0, dtype=np.uint64)]
        for keys in key_chunks(self.file, self.key, job.dataset):
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
