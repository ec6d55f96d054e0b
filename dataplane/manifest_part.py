"""One part of a manifest: an Arrow IPC file whose record batches are blocks of micro-batches.

See `manifest` for the format. Here a block is encoded, and hashed three ways: the bytes of its
body, the bytes outside all bodies (the *frame*), and its logical content. `part_reader` reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .canonical import known_fields
from .columns import as_arrow, as_numpy
from .commit import sync_path
from .ipc_messages import file_blocks, file_footer
from .plan import BatchPlan, Ragged, SideColumn, SideValue
from .storage import storing

__all__ = [
    "BlockRecord",
    "PartRecord",
    "PartWriter",
    "block_digest",
    "decode_plan",
    "encode_plan",
    "part_schema",
]

# The bytes of a part are part of its name: nothing about them is left to the environment, where
# ARROW_PRE_0_15_IPC_FORMAT would change them.
_OPTIONS = pa.ipc.IpcWriteOptions(
    metadata_version=pa.ipc.MetadataVersion.V5,
    use_legacy_format=False,
    compression=None,
    use_threads=False,
)


@dataclass(frozen=True)
class BlockRecord:
    """Where a block's body stands, its hash, and where it is in the epoch: the jump index."""

    offset: int
    length: int
    sha256: str
    first_step: int
    first_micro: int
    micro_batches: int
    rows: int


@dataclass(frozen=True)
class PartRecord:
    """A part as the header's provenance lists it."""

    name: str
    epoch: int
    bytes: int
    sha256: str
    frame_sha256: str
    blocks: tuple[BlockRecord, ...]

    @property
    def micro_batches(self) -> int:
        return sum(block.micro_batches for block in self.blocks)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PartRecord:
        """Read a part's record; ValueError where its name or its blocks' places cannot be."""
        blocks = tuple(known_fields(BlockRecord, b) for b in value["blocks"])
        part = known_fields(cls, {**value, "blocks": blocks})
        if part.name != f"part-{part.sha256}.arrow" or not re.fullmatch(
            "[0-9a-f]{64}", part.sha256
        ):
            raise ValueError(f"the part '{part.name}' is not named by its hash {part.sha256}")
        at = 0
        for block in blocks:
            if block.offset < at or block.length < 0:
                raise ValueError(f"the blocks of {part.name} overlap at byte {block.offset}")
            at = block.offset + block.length
        if at > part.bytes:
            raise ValueError(f"the blocks of {part.name} end at byte {at} of {part.bytes}")
        return part


def part_schema(weighted: bool, side: Sequence[SideColumn]) -> pa.Schema:
    """Return the columns of a part."""
    fields = [
        pa.field("step", pa.uint64(), nullable=False),
        pa.field("micro", pa.uint16(), nullable=False),
        pa.field("rows", pa.large_list(pa.uint64()), nullable=False),
    ]
    if weighted:
        fields.append(pa.field("weights", pa.large_list(pa.float32()), nullable=False))
    for column in side:
        type_ = pa.from_numpy_dtype(np.dtype(column.type))
        for _ in range({"batch": 0, "row": 1, "csr": 2}[column.kind]):
            type_ = pa.large_list(type_)
        fields.append(pa.field(column.name, type_, nullable=False))
    return pa.schema(fields)


def encode_plan(plan: BatchPlan, schema: pa.Schema) -> pa.RecordBatch:
    """Return micro-batches as a record batch of a part's schema."""
    offsets = as_arrow(plan.offsets)

    def lists(values: Any, type_: pa.DataType) -> pa.Array:
        return pa.LargeListArray.from_arrays(offsets, values, type=type_)

    arrays = [
        as_arrow(plan.step),
        as_arrow(plan.micro),
        lists(as_arrow(plan.rows), schema.field("rows").type),
    ]
    if plan.weights is not None:
        arrays.append(lists(as_arrow(plan.weights), schema.field("weights").type))
    for name in schema.names[len(arrays) :]:
        value, type_ = plan.side[name], schema.field(name).type
        if isinstance(value, Ragged):
            inner = pa.LargeListArray.from_arrays(
                as_arrow(value.offsets), as_arrow(value.values), type=type_.value_type
            )
            arrays.append(lists(inner, type_))
        elif pa.types.is_large_list(type_):
            arrays.append(lists(as_arrow(value), type_))
        else:
            arrays.append(as_arrow(value))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def decode_plan(batch: pa.RecordBatch) -> BatchPlan:
    """Return the micro-batches of a record batch, views of it; see `encode_plan`."""
    rows = batch.column("rows")
    weighted = "weights" in batch.schema.names
    side: dict[str, SideValue] = {}
    for name in batch.schema.names:
        if name in ("step", "micro", "rows", "weights"):
            continue
        column = batch.column(name)
        if pa.types.is_large_list(column.type):
            column = column.values
            if pa.types.is_large_list(column.type):
                side[name] = Ragged(as_numpy(column.offsets), as_numpy(column.values))
                continue
        side[name] = as_numpy(column)
    return BatchPlan(
        as_numpy(rows.offsets),
        as_numpy(rows.values),
        as_numpy(batch.column("weights").values) if weighted else None,
        as_numpy(batch.column("step")),
        as_numpy(batch.column("micro")),
        side,
    )


def block_digest(plan: BatchPlan, side: Sequence[SideColumn]) -> bytes:
    """Return the logical digest of a block (raw 32 bytes).

    SHA-256 over its columns in header order, little-endian; a list is its int64 offsets from 0
    followed by its values; absent weights contribute nothing.
    """
    hasher = hashlib.sha256()

    def add(values: Any) -> None:
        hasher.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)

    add(plan.step)
    add(plan.micro)
    add(plan.offsets)
    add(plan.rows)
    if plan.weights is not None:
        add(plan.offsets)
        add(plan.weights)
    for column in side:
        value = plan.side[column.name]
        if column.kind != "batch":
            add(plan.offsets)
        if isinstance(value, Ragged):
            add(value.offsets)
            add(value.values)
        else:
            add(value)
    return hasher.digest()


class PartWriter:
    """Writes one part into a staging folder; `finish` names it by its content.

    Arrow writes the file by itself: a sink in Python would be called from inside Arrow, where an
    interrupt of the user's can get lost. The hashes are taken from the page cache at the end.
    """

    def __init__(self, folder: Path, number: int, schema: pa.Schema) -> None:
        self._path = folder / f"part-{number:06d}.tmp"
        self._what = f"Writing part {number} of the manifest"
        self._schema = schema
        self._firsts: list[tuple[int, int, int, int]] = []
        with storing(self._what, self._path):
            self._file = pa.OSFile(str(self._path), "wb")
            self._writer = pa.RecordBatchFileWriter(self._file, schema, options=_OPTIONS)
        self.rows = 0

    def write(self, plan: BatchPlan) -> None:
        """Append one block."""
        with storing(self._what, self._path):
            self._writer.write_batch(encode_plan(plan, self._schema))
        self._firsts.append((int(plan.step[0]), int(plan.micro[0]), len(plan), len(plan.rows)))
        self.rows += len(plan.rows)

    def finish(self, epoch: int) -> PartRecord:
        """Flush to disk and rename to ``part-<sha256>.arrow``."""
        with storing(self._what, self._path):
            self._writer.close()
            self._file.close()
            sync_path(self._path)
            with pa.memory_map(str(self._path), "rb") as file:
                data = memoryview(file.read_buffer())
            record = self._record(epoch, data)
            self._path.rename(self._path.with_name(record.name))
        return record

    def _record(self, epoch: int, data: memoryview) -> PartRecord:
        """Hash the file: the whole, each body, and the frame around them."""
        frame, at, blocks = hashlib.sha256(), 0, []
        places = file_blocks(file_footer(data))
        for place, first in zip(places, self._firsts, strict=True):
            start = place.offset + place.metadata
            frame.update(data[at:start])
            at = start + place.body
            sha256 = hashlib.sha256(data[start:at]).hexdigest()
            blocks.append(BlockRecord(start, place.body, sha256, *first))
        frame.update(data[at:])
        whole = hashlib.sha256(data).hexdigest()
        name = f"part-{whole}.arrow"
        return PartRecord(name, epoch, len(data), whole, frame.hexdigest(), tuple(blocks))

    def abandon(self) -> None:
        """Close and remove the file; a full disk may keep it from being flushed first."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)
