"""One part of a manifest: an Arrow IPC file whose record batches are blocks of micro-batches.

See `manifest` for the format. Here a block is encoded and decoded, and hashed three ways: the bytes
of its body, the bytes outside all bodies (the *frame*), and its logical content.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .errors import ManifestCorruptError
from .plan import BatchPlan, Ragged, SideColumn, SideValue
from .storage import storing

__all__ = ["BlockRecord", "PartReader", "PartRecord", "PartWriter", "block_digest"]

_CACHED_BLOCKS = 64


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

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PartRecord:
        blocks = tuple(BlockRecord(**b) for b in value["blocks"])
        return cls(**{**value, "blocks": blocks})


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


def _encode(plan: BatchPlan, schema: pa.Schema) -> pa.RecordBatch:
    offsets = pa.array(plan.offsets)

    def lists(values: Any, type_: pa.DataType) -> pa.Array:
        return pa.LargeListArray.from_arrays(offsets, values, type=type_)

    arrays = [
        pa.array(plan.step),
        pa.array(plan.micro),
        lists(pa.array(plan.rows), schema.field("rows").type),
    ]
    if plan.weights is not None:
        arrays.append(lists(pa.array(plan.weights), schema.field("weights").type))
    for name in schema.names[len(arrays) :]:
        value, type_ = plan.side[name], schema.field(name).type
        if isinstance(value, Ragged):
            inner = pa.LargeListArray.from_arrays(
                pa.array(value.offsets), pa.array(value.values), type=type_.value_type
            )
            arrays.append(lists(inner, type_))
        elif pa.types.is_large_list(type_):
            arrays.append(lists(pa.array(value), type_))
        else:
            arrays.append(pa.array(value))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


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


# --- writing --------------------------------------------------------------------------------------


class _HashingFile:
    """A file that hashes what passes: the whole, the frame, and the body of the current block."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.closed = False
        self.position = 0
        self.whole = hashlib.sha256()
        self.frame = hashlib.sha256()
        self._body: Any = None
        self._prefix = b""
        self._metadata_left = 0
        self._body_start = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._file.write(view)
        self.whole.update(view)
        if self._body is None:
            self.frame.update(view)
        else:
            self._split(view)
        self.position += len(view)
        return len(view)

    def _split(self, view: memoryview) -> None:
        """A message is an 8-byte prefix with the size of its metadata, the metadata, the body."""
        at = 0
        if len(self._prefix) < 8:
            at = min(8 - len(self._prefix), len(view))
            self._prefix += bytes(view[:at])
            self.frame.update(view[:at])
            if len(self._prefix) == 8:
                (self._metadata_left,) = struct.unpack_from("<i", self._prefix, 4)
                self._body_start = self.position + at + self._metadata_left
        if self._metadata_left and at < len(view):
            take = min(self._metadata_left, len(view) - at)
            self.frame.update(view[at : at + take])
            self._metadata_left -= take
            at += take
        if at < len(view):
            self._body.update(view[at:])

    def begin_block(self) -> None:
        self._body, self._prefix, self._metadata_left = hashlib.sha256(), b"", 0

    def end_block(self) -> tuple[int, int, str]:
        """Return (offset, length, SHA-256) of the body just written."""
        done, self._body = self._body.hexdigest(), None
        return self._body_start, self.position - self._body_start, done

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self.position

    def close(self) -> None:
        self.closed = True


class PartWriter:
    """Writes one part into a staging folder; `finish` names it by its content."""

    def __init__(self, folder: Path, number: int, schema: pa.Schema) -> None:
        self._path = folder / f"part-{number:06d}.tmp"
        self._what = f"Writing part {number} of the manifest"
        self._schema = schema
        self._blocks: list[BlockRecord] = []
        with storing(self._what, self._path):
            self._raw = open(self._path, "wb")  # noqa: SIM115 - closed in `finish` or `abandon`
            self._file = _HashingFile(self._raw)
            self._writer = pa.RecordBatchFileWriter(pa.PythonFile(self._file, mode="w"), schema)
        self.rows = 0

    def write(self, plan: BatchPlan) -> None:
        """Append one block."""
        with storing(self._what, self._path):
            self._file.begin_block()
            self._writer.write_batch(_encode(plan, self._schema))
            offset, length, sha256 = self._file.end_block()
        self._blocks.append(
            BlockRecord(
                offset,
                length,
                sha256,
                int(plan.step[0]),
                int(plan.micro[0]),
                len(plan),
                len(plan.rows),
            )
        )
        self.rows += len(plan.rows)

    def finish(self, epoch: int) -> PartRecord:
        """Flush to disk and rename to ``part-<sha256>.arrow``."""
        with storing(self._what, self._path):
            self._writer.close()
            self._raw.flush()
            os.fsync(self._raw.fileno())
            self._raw.close()
            sha256 = self._file.whole.hexdigest()
            name = f"part-{sha256}.arrow"
            self._path.rename(self._path.with_name(name))
        return PartRecord(
            name,
            epoch,
            self._file.position,
            sha256,
            self._file.frame.hexdigest(),
            tuple(self._blocks),
        )

    def abandon(self) -> None:
        """Close without finishing."""
        self._raw.close()


# --- reading --------------------------------------------------------------------------------------


class PartReader:
    """A mapped part: its frame is checked at opening, a block's hash when it is first touched."""

    def __init__(self, path: Path, record: PartRecord, schema: pa.Schema) -> None:
        self.path = path
        self.record = record
        self._schema = schema
        self._verified: set[int] = set()
        self._blocks: OrderedDict[int, BatchPlan] = OrderedDict()
        self._data = memoryview(self._map())
        self._check_frame()
        self._reader: Any = None

    def _map(self) -> Any:
        try:
            size = self.path.stat().st_size
            if size != self.record.bytes:
                raise ManifestCorruptError(
                    f"{self.path}: expected {self.record.bytes:,} bytes, found {size:,}. "
                    "The part is truncated or was replaced; copy the manifest again or plan anew."
                )
            with pa.memory_map(str(self.path), "rb") as file:
                return file.read_buffer()
        except FileNotFoundError:
            raise ManifestCorruptError(
                f"{self.path} is missing; the manifest names it. Copy the manifest again or plan "
                "anew."
            ) from None
        except OSError as error:
            raise ManifestCorruptError(f"{self.path} cannot be read: {error}.") from error

    def _check_frame(self) -> None:
        hasher, at = hashlib.sha256(), 0
        for block in self.record.blocks:
            hasher.update(self._data[at : block.offset])
            at = block.offset + block.length
        hasher.update(self._data[at:])
        if hasher.hexdigest() != self.record.frame_sha256:
            raise self._corrupt("frame", self.record.frame_sha256, hasher.hexdigest())

    def verify_block(self, index: int) -> None:
        """Compare a block's bytes with its hash, once."""
        if index in self._verified:
            return
        block = self.record.blocks[index]
        body = self._data[block.offset : block.offset + block.length]
        found = hashlib.sha256(body).hexdigest()
        if found != block.sha256:
            raise self._corrupt(f"block {index}", block.sha256, found)
        self._verified.add(index)

    def check_all(self) -> None:
        """Check the frame and every block: each byte once."""
        self._check_frame()
        self._verified.clear()
        for index in range(len(self.record.blocks)):
            self.verify_block(index)

    def block(self, index: int) -> BatchPlan:
        """Return a verified block as views of the map."""
        plan = self._blocks.get(index)
        if plan is None:
            self.verify_block(index)
            if self._reader is None:
                self._reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._data)))
                if not self._reader.schema.equals(self._schema):
                    raise self._corrupt("columns", self._schema.names, self._reader.schema.names)
            plan = _decode(self._reader.get_batch(index))
            self._blocks[index] = plan
            if len(self._blocks) > _CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        return plan

    def _corrupt(self, where: str, expected: Any, found: Any) -> ManifestCorruptError:
        return ManifestCorruptError(
            f"{self.path}, {where}: expected {expected}, found {found}. No row of it was "
            "delivered; copy the manifest again or plan anew."
        )


def _decode(batch: pa.RecordBatch) -> BatchPlan:
    rows = batch.column("rows")
    offsets = _view(rows.offsets)
    weights = batch.column("weights").values if "weights" in batch.schema.names else None
    side: dict[str, SideValue] = {}
    for name in batch.schema.names:
        if name in ("step", "micro", "rows", "weights"):
            continue
        column = batch.column(name)
        if pa.types.is_large_list(column.type):
            column = column.values
            if pa.types.is_large_list(column.type):
                side[name] = Ragged(_view(column.offsets), _view(column.values))
                continue
        side[name] = _view(column)
    return BatchPlan(
        offsets,
        _view(rows.values),
        None if weights is None else _view(weights),
        _view(batch.column("step")),
        _view(batch.column("micro")),
        side,
    )


def _view(array: pa.Array) -> Any:
    from .columns import as_numpy

    return as_numpy(array)
