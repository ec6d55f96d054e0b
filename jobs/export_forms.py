"""The forms of an export: what other libraries take of a plan's epoch, one class each.

===============  ===================================================================================
``indices``      ``epoch-000003.npy``: int64, one index a row in the plan's order, for
                 ``torch.utils.data.Subset`` and ``datasets.Dataset.select``;
                 ``epoch-000003-batches.npy``: int64, micro-batch k is rows ``[k] … [k + 1]`` of it;
                 ``epoch-000003-weights.npy``: float32, where the plan has weights
``parquet``      ``epoch-000003.parquet``: one line a row, in order: epoch, step, micro, position
                 (place in the micro-batch), row (id), index, weight, and ``side_NAME`` for each
                 side column; a row group a block
``mosaicml``     ``epoch-000003.npy``: int64, shape (ranks, workers, batches, batch size), −1 where
                 there is no row: what a ``batching_method`` of mosaicml-streaming returns, once
                 the ranks are split into nodes
===============  ===================================================================================

An *index* is the row's position: its rank among the snapshot's row ids, which is its place in the
files read one after the other. ``index="row_id"`` writes the row id itself, which differs once
files were replaced.

A form writes what it can say and refuses the rest: batches that one size does not describe, ranks
that do not fit. Every file is written in one pass over the blocks, whatever the number of rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from ..dataplane.epochs import EpochRecord
from ..dataplane.errors import ManifestError
from ..dataplane.manifest import Manifest
from ..dataplane.parameters import parameters
from ..dataplane.plan import BatchPlan, Ragged, SideColumn
from ..dataplane.snapshot import row_ids_to_int64

__all__ = ["FORMS", "Advance", "Form", "PlannedEpoch"]

I64 = npt.NDArray[np.int64]

IndexKind = Annotated[
    Literal["position", "row_id"],
    Field(description="the row's place in the files, or its row id"),
]


class Advance(Protocol):
    """Told how many more rows are written."""

    def __call__(self, rows: int, /) -> None: ...


@dataclass(frozen=True)
class PlannedEpoch:
    """One epoch as a form sees it.

    Attributes
    ----------
    manifest : Manifest
    record : EpochRecord
    advance : callable
    """

    manifest: Manifest
    record: EpochRecord
    advance: Advance

    @property
    def name(self) -> str:
        return f"epoch-{self.record.epoch:06d}"

    @property
    def weighted(self) -> bool:
        return self.manifest.weight_semantics is not None

    def blocks(self) -> Iterator[BatchPlan]:
        for block in self.manifest.epoch(self.record.epoch).blocks():
            yield block
            self.advance(len(block.rows))

    def batch_size(self, last: int) -> tuple[int | None, int]:
        """Return (rows of every micro-batch, 0); the `last` ones may hold fewer.

        (None, step of the first that differs) where they are not so.
        """
        if self.record.recipe is not None:
            return self.record.recipe.batch_size, 0
        size, left = None, self.record.micro_batches - last
        for block in self.manifest.epoch(self.record.epoch).blocks():
            sizes = np.diff(block.offsets)
            size = int(sizes[0]) if size is None else size
            odd = sizes > size
            odd[: max(left, 0)] |= sizes[: max(left, 0)] < size
            if odd.any():
                return None, int(block.step[np.argmax(odd)])
            left -= len(sizes)
        return size, 0

    def index_of(self, rows: npt.NDArray[np.uint64], kind: str) -> I64:
        """Return the indices of row ids."""
        return (
            row_ids_to_int64(rows) if kind == "row_id" else self.manifest.snapshot.positions(rows)
        )


class Form(Protocol):
    """What each form has."""

    def check(self, epoch: PlannedEpoch) -> None:
        """Raise where the epoch cannot be said in this form, before anything is written."""

    def write(self, epoch: PlannedEpoch, folder: Path) -> None:
        """Write the epoch's files."""

    def loses(self, epoch: PlannedEpoch) -> str | None:
        """Say what readers of this form will not see."""


# --- arrays as .npy, written as they come ---------------------------------------------------------


class _Npy:
    """A ``.npy`` file of known shape, written front to back or at places.

    Not `numpy.lib.format.open_memmap`: a disk that fills up under a map kills the process.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.dtype, self._items = np.dtype(dtype), int(np.prod(shape))
        self._file: IO[bytes] = open(path, "wb")  # noqa: SIM115  closed by `with`
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        )
        self._start = self._file.tell()

    def __enter__(self) -> _Npy:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, values: npt.NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values, dtype=self.dtype).data)

    def put(self, item: int, values: npt.NDArray[Any]) -> None:
        self._file.seek(self._start + item * self.dtype.itemsize)
        self.append(values)


@parameters
class Indices:
    """Indices in the plan's order."""

    method = "the form 'indices'"

    index: IndexKind = "position"

    def check(self, epoch: PlannedEpoch) -> None:
        """Any plan can be said."""

    def loses(self, epoch: PlannedEpoch) -> str | None:
        if not epoch.weighted:
            return None
        return (
            "The plan has weights, and indices carry none: each row will count the same unless the "
            f"training uses {epoch.name}-weights.npy."
        )

    def write(self, epoch: PlannedEpoch, folder: Path) -> None:
        record, name, at = epoch.record, epoch.name, 0
        with (
            _Npy(folder / f"{name}.npy", (record.samples,), "<i8") as indices,
            _Npy(folder / f"{name}-batches.npy", (record.micro_batches + 1,), "<i8") as batches,
        ):
            batches.append(np.zeros(1, np.int64))
            for block in epoch.blocks():
                indices.append(epoch.index_of(block.rows, self.index))
                batches.append(block.offsets[1:] + at)
                at += len(block.rows)
        if epoch.weighted:
            with _Npy(folder / f"{name}-weights.npy", (record.samples,), "<f4") as weights:
                for block in epoch.manifest.epoch(record.epoch).blocks():
                    weights.append(_weights(block))


# --- Parquet --------------------------------------------------------------------------------------


@parameters
class Parquet:
    """One line a row."""

    method = "the form 'parquet'"

    index: IndexKind = "position"

    def check(self, epoch: PlannedEpoch) -> None:
        """Any plan can be said."""

    def loses(self, epoch: PlannedEpoch) -> str | None:
        return None

    def write(self, epoch: PlannedEpoch, folder: Path) -> None:
        about = json.dumps({"manifest_id": epoch.manifest.manifest_id, "index": self.index})
        schema = _table_schema(epoch.manifest.side_columns, about)
        with (
            open(folder / f"{epoch.name}.parquet", "wb") as file,
            pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer,
        ):
            for block in epoch.blocks():
                writer.write_table(
                    self._table(epoch, block, schema), row_group_size=len(block.rows)
                )

    def _table(self, epoch: PlannedEpoch, block: BatchPlan, schema: pa.Schema) -> pa.Table:
        sizes = np.diff(block.offsets)
        first = np.repeat(block.offsets[:-1], sizes)
        columns: list[Any] = [
            np.full(len(block.rows), epoch.record.epoch, np.uint32),
            np.repeat(block.step, sizes),
            np.repeat(block.micro, sizes),
            (np.arange(len(block.rows)) - first).astype(np.uint32),
            block.rows,
            epoch.index_of(block.rows, self.index),
            _weights(block),
        ]
        side = epoch.manifest.side_columns
        columns += [_side(block.side[c.name], c, sizes) for c in side]
        return pa.Table.from_arrays([pa.array(c) for c in columns], schema=schema)


def _table_schema(side: tuple[SideColumn, ...], about: str) -> pa.Schema:
    fields = [
        ("epoch", pa.uint32()),
        ("step", pa.uint64()),
        ("micro", pa.uint16()),
        ("position", pa.uint32()),
        ("row", pa.uint64()),
        ("index", pa.int64()),
        ("weight", pa.float32()),
    ]
    for column in side:
        plain = pa.from_numpy_dtype(np.dtype(column.type))
        kind = pa.large_list(plain) if column.kind == "csr" else plain
        fields.append((f"side_{column.name}", kind))
    return pa.schema(fields, metadata={"batchloom": about})


def _side(value: Any, column: SideColumn, sizes: I64) -> Any:
    if isinstance(value, Ragged):
        return pa.LargeListArray.from_arrays(pa.array(value.offsets), pa.array(value.values))
    return np.repeat(value, sizes) if column.kind == "batch" else value


# --- mosaicml-streaming ---------------------------------------------------------------------------


@parameters
class Mosaicml:
    """The work of each rank's DataLoader workers.

    A StreamingDataset hands each worker its share of sample ids, and the DataLoader takes one batch
    from each worker in turn; so batch k of a rank is the worker's (k mod workers) next one. Sample
    ids are positions, which they are where the MDS files were written from the dataset in order.
    """

    method = "the form 'mosaicml'"

    index: IndexKind = "position"
    world_size: Annotated[int, Field(ge=1, description="ranks that train")] = 1
    workers: Annotated[int, Field(ge=1, description="DataLoader workers a rank; 0 counts as 1")] = 1

    def check(self, epoch: PlannedEpoch) -> None:
        from ..samplers.ranks import Ranks, check_world

        if epoch.weighted:
            raise ManifestError(
                f"{epoch.manifest.path} has weights, which the order of a StreamingDataset cannot "
                "carry. Export it --to parquet and join the weights by index, or train with "
                "ManifestLoader."
            )
        check_world(epoch.record, epoch.manifest.unit, Ranks(0, self.world_size))
        self._batch_rows(epoch)

    def loses(self, epoch: PlannedEpoch) -> str | None:
        if epoch.record.micro_batches == epoch.record.steps:
            return None
        return (
            f"The plan has {epoch.record.micro_batches:,} micro-batches in {epoch.record.steps:,} "
            "steps; a StreamingDataset knows batches only: accumulate gradients as the plan does."
        )

    def write(self, epoch: PlannedEpoch, folder: Path) -> None:
        rows = self._batch_rows(epoch)
        batches = epoch.record.micro_batches
        if epoch.manifest.unit == "micro":
            batches //= self.world_size
        length = -(-batches // self.workers)
        shape = (self.world_size, self.workers, length, rows)
        with _Npy(folder / f"{epoch.name}.npy", shape, "<i8") as file:
            for place, share in self._shares(epoch, length):
                padded = np.full(rows, -1, np.int64)
                padded[: len(share)] = share
                file.put(place * rows, padded)
            for rank in range(self.world_size):  # workers that get one batch less
                for k in range(batches, length * self.workers):
                    place = self._place(rank, k, length)
                    file.put(place * rows, np.full(rows, -1, np.int64))

    def _place(self, rank: int, k: int, length: int) -> int:
        return (rank * self.workers + k % self.workers) * length + k // self.workers

    def _shares(self, epoch: PlannedEpoch, length: int) -> Iterator[tuple[int, I64]]:
        """Yield (place among all batches, indices) of each rank's share of each micro-batch."""
        world, k = self.world_size, 0
        for block in epoch.blocks():
            indices = epoch.index_of(block.rows, self.index)
            for a, b in pairwise(block.offsets.tolist()):
                if epoch.manifest.unit == "micro":
                    yield self._place(k % world, k // world, length), indices[a:b]
                else:
                    for rank in range(world):
                        start, stop = rank * (b - a) // world, (rank + 1) * (b - a) // world
                        yield self._place(rank, k, length), indices[a + start : a + stop]
                k += 1

    def _batch_rows(self, epoch: PlannedEpoch) -> int:
        """Return the one batch size that describes the epoch; only a rank's last may be smaller.

        A worker's samples are one list that the DataLoader cuts into batches, so a small batch in
        the middle would move all that follow.
        """
        whole = epoch.manifest.unit == "micro"
        size, last = epoch.batch_size(self.world_size if whole else 1)
        if size is None:
            raise ManifestError(
                f"Epoch {epoch.record.epoch} of {epoch.manifest.path} has micro-batches of "
                f"different sizes (the first that differs stands in step {last}), which a "
                "StreamingDataset cannot say: it knows one batch size. Export it --to indices or "
                "parquet, or plan with even batches."
            )
        if whole or size % self.world_size == 0:
            return size if whole else size // self.world_size
        raise ManifestError(
            f"Micro-batches of {size} rows cannot be cut evenly for {self.world_size} ranks, and a "
            f"StreamingDataset knows one batch size. Choose a --world-size that divides {size}, or "
            "export --to indices."
        )


def _weights(block: BatchPlan) -> npt.NDArray[np.float32]:
    return np.ones(len(block.rows), np.float32) if block.weights is None else block.weights


FORMS: dict[str, type[Any]] = {"indices": Indices, "parquet": Parquet, "mosaicml": Mosaicml}
