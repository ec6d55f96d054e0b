"""Packing a dataset: its columns decoded once, into files that are addressed by row.

`pack` runs `dataplane.packing` on the engine, some whole fragments a task. With a plan's `order`
the rows of one of its epochs are written one after another instead, so that a training of one epoch
reads its data front to back.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataplane.commit import staging
from ..dataplane.dataset import Dataset, DatasetLike, open_dataset
from ..dataplane.epoch_writer import BLOCK_MICRO_BATCHES, BLOCK_ROWS
from ..dataplane.epochs import Epoch
from ..dataplane.errors import JobSpecError, PackedConflictError
from ..dataplane.fragments import FragmentRef
from ..dataplane.manifest import Manifest
from ..dataplane.mapped import Mappable
from ..dataplane.mapped_dataset import map_dataset
from ..dataplane.objects import put_file
from ..dataplane.packed import PackedTable
from ..dataplane.packed_header import HEADER, Order, PackedFile, TableParts, table_id_of
from ..dataplane.packed_target import commit, place_of, what_is_there
from ..dataplane.packed_writer import pack_batches
from ..dataplane.packing import Runner, pack_dataset, pack_refs, packed_parts
from ..dataplane.snapshot import Snapshot
from ..dataplane.storage import Location, locate
from .engine import Engine
from .progress import Progress, QuietProgress
from .tasks import ScanTask, group_tasks
from .trail import note_fragment

__all__ = ["pack"]

_ROWS_AT_ONCE = 16_384  # of a block in the order of a plan
_TASK_BYTES = 64 << 20
ROW = "row"


@dataclass(frozen=True)
class _Block:
    """Consecutive micro-batches that close together."""

    first: int
    stop: int
    rows: int


def pack(
    data: DatasetLike,
    out: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    *,
    snapshot: Snapshot | str | Path | None = None,
    since: Snapshot | str | Path | None = None,
    order: str | os.PathLike[str] | Manifest | None = None,
    epoch: int | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> PackedTable:
    """Pack columns of a dataset into a table that is addressed by row.

    Parameters
    ----------
    data : path, URI, list or mapping
    out : path or URI
        A table of the same dataset that is there already is extended by what is new.
    columns : sequence of str, optional
        All when None.
    snapshot : Snapshot, path or URI, optional
        Pack exactly its fragments; a manifest's when a manifest is named.
    since : Snapshot, path or URI, optional
        Keep the row ids of every fragment that it knows. By default those of the table that is
        extended.
    order : path, URI or Manifest, optional
        Write the rows of one epoch of this plan, in its order.
    epoch : int, optional
        With `order`: its only epoch when None.
    engine : Engine, optional
        This process when None.
    progress : Progress, optional
    storage_options : mapping, optional
        Options of the filesystem (credentials, endpoints), for URIs.

    Raises
    ------
    PackedConflictError
        Where the target holds something else.
    DatasetError, StorageError, JobSpecError
    """
    progress, engine = progress or QuietProgress(), engine or Engine(workers=0)
    if order is not None:
        if snapshot is not None or since is not None:
            raise JobSpecError("A plan has its own snapshot: give 'order' without another one.")
        plan = order if isinstance(order, Manifest) else _open(order, storage_options)
        return _pack_in_order(data, out, columns, plan, epoch, engine, progress, storage_options)
    if epoch is not None:
        raise JobSpecError("An 'epoch' is one of a plan: name it with 'order'.")
    target = locate(out, storage_options)
    if snapshot is None and since is None and target.join(HEADER).exists():
        since = PackedTable.open(out, storage_options=storage_options).snapshot
    dataset = open_dataset(data, snapshot=snapshot, since=since, storage_options=storage_options)
    parts = packed_parts(dataset, columns)
    rows = sum(count for _, count in parts.chunks())
    with progress.step("packing", rows) as step:
        return pack_dataset(
            dataset,
            out,
            columns,
            run=_on(engine),
            storage_options=storage_options,
            done=step.advance,
        )


def _open(plan: str | os.PathLike[str], options: Mapping[str, Any] | None) -> Manifest:
    return Manifest.open(plan, storage_options=options)


def _on(engine: Engine) -> Runner:
    """Return what packs fragments on the engine."""

    def run(
        refs: Sequence[FragmentRef], columns: Sequence[str], schema: pa.Schema, place: Location
    ) -> Iterator[tuple[int, list[PackedFile]]]:
        tasks = group_tasks(refs, _TASK_BYTES, whole=True)
        first = np.cumsum([0, *(len(task.refs) for task in tasks)]).tolist()
        found = engine.map(pack_task, tasks, list(columns), schema, place)
        for position, made in found:
            for index, files in enumerate(made):
                yield first[position] + index, files

    return run


def pack_task(
    task: ScanTask, columns: list[str], schema: pa.Schema, place: Location
) -> list[list[PackedFile]]:
    """Pack a task's fragments; runs on workers."""
    made = []
    for position, ref in enumerate(task.refs):
        note_fragment(position, columns)
        made += pack_refs([ref], columns, schema, place)
    return made


# --- in the order of a plan -----------------------------------------------------------------------


def _pack_in_order(
    data: DatasetLike,
    out: str | os.PathLike[str],
    columns: Sequence[str] | None,
    plan: Manifest,
    number: int | None,
    engine: Engine,
    progress: Progress,
    storage_options: Mapping[str, Any] | None,
) -> PackedTable:
    number = _epoch_of(plan, number)
    epoch = plan.epoch(number)
    dataset = plan.open_dataset(data, storage_options=storage_options)
    planned = plan.planned_fragments()
    whole = packed_parts(dataset, columns, planned)
    if ROW in whole.schema.names:
        raise JobSpecError(
            f"A table in the order of a plan has a column '{ROW}' of its own, for the row ids. "
            "Name the columns to pack without it, or rename that of the dataset."
        )
    blocks = list(_blocks(epoch))
    schema = pa.schema([pa.field(ROW, pa.uint64()), *whole.schema])
    order = Order(plan.manifest_id, number, tuple(block.rows for block in blocks))
    parts = TableParts(whole.snapshot, schema, whole.fragments, order)
    target = locate(out, storage_options)
    there = what_is_there(target, out, storage_options)
    if there is not None and there.table_id != table_id_of(parts):
        raise PackedConflictError(
            f"{out} holds another packed table already; choose another target."
        )
    if there is not None:
        return there
    with ExitStack() as stack:
        place = place_of(target, stack)
        source = _source(dataset, whole, engine, progress, stack, target)
        files: dict[int, list[PackedFile]] = {}
        with progress.step("packing in order", sum(order.blocks)) as step:
            for chunk, block in enumerate(blocks):
                files[chunk] = _pack_block(epoch, block, source, schema, place)
                step.advance(block.rows)
        return commit(parts, files, place, target, out, storage_options, None)


def _epoch_of(plan: Manifest, number: int | None) -> int:
    if number is not None:
        return number
    if len(plan.epochs) == 1:
        return plan.epochs[0]
    held = ", ".join(map(str, plan.epochs[:20]))
    raise JobSpecError(f"{plan.path} holds the epochs {held}; name one with --epoch.")


def _blocks(epoch: Epoch) -> Iterator[_Block]:
    """Yield the blocks of an epoch: cut as an explicit plan's parts are, whatever its form."""
    first = rows = 0
    for index in range(len(epoch)):
        rows += len(epoch[index].rows)
        if rows >= BLOCK_ROWS or index + 1 - first >= BLOCK_MICRO_BATCHES:
            yield _Block(first, index + 1, rows)
            first, rows = index + 1, 0
    if rows:
        yield _Block(first, len(epoch), rows)


def _source(
    dataset: Dataset,
    parts: TableParts,
    engine: Engine,
    progress: Progress,
    stack: ExitStack,
    target: Location,
) -> Mappable:
    """Return what rows can be read from at random: the dataset as it is, or packed for now."""
    names = parts.schema.names
    mapped = map_dataset(dataset, names, parts.fragments)
    if mapped is not None:
        return mapped
    near = Path(target.path) if target.is_local else Path(tempfile.gettempdir()) / target.name
    folder = stack.enter_context(staging(near))
    with progress.step("packing", sum(n for _, n in parts.chunks())) as step:
        return pack_dataset(
            dataset,
            folder / "by-row",
            names,
            fragments=parts.fragments,
            run=_on(engine),
            done=step.advance,
        )


def _pack_block(
    epoch: Epoch, block: _Block, source: Mappable, schema: pa.Schema, place: Location
) -> list[PackedFile]:
    """Write the rows of a block; to a store, by way of a folder for temporary files."""
    if place.is_local:
        return pack_batches(
            _rows(epoch, block, source, schema), block.rows, schema, Path(place.path)
        )
    import tempfile

    with tempfile.TemporaryDirectory(prefix="batchloom-") as folder:
        files = pack_batches(_rows(epoch, block, source, schema), block.rows, schema, Path(folder))
        for file in files:
            put_file(place.join(file.name), Path(folder) / file.name)
    return files


def _rows(
    epoch: Epoch, block: _Block, source: Mappable, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a block in order, some at a time."""
    from ..gpu_access.packed_gather import PackedGather

    gather = PackedGather(source, schema.names[1:])
    held: list[npt.NDArray[np.uint64]] = []
    count = 0
    for index in range(block.first, block.stop):
        held.append(np.asarray(epoch[index].rows))
        count += len(held[-1])
        if count >= _ROWS_AT_ONCE or index + 1 == block.stop:
            ids = np.concatenate(held)
            batch = gather.take(ids)
            rows = pa.array(ids, pa.uint64())
            columns = [
                column if column.type == field.type else column.cast(field.type)
                for column, field in zip(batch.columns, list(schema)[1:], strict=True)
            ]
            yield pa.RecordBatch.from_arrays([rows, *columns], schema=schema)
            held, count = [], 0
