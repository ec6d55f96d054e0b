"""Parts of a signal: files that are written once, whole or not at all, and found by row.

``part-<attempt>-<writer>-<sequence>-<sha256>.arrow`` is an uncompressed Arrow IPC file with the
columns row (uint64), epoch (uint32), step (uint64), occurrence, attempt (uint16) and value (float32
or fixed-size list of it), ascending by row, in record batches of about half a megabyte. The
metadata of the schema holds an index as JSON: each batch's first and last row, number of rows and
XXH3-128 (over the bytes of its columns, in that order), and the smallest and greatest epoch. The
SHA-256 in the name is that of the index; so a reader that wants some rows checks the bytes of the
batches that it touches, and no others. The checksums find damage, not forgery.

A writer that dies leaves at most a hidden file, which nobody reads. A part that was cut off since
is *torn*: it is left out, and told of. One that is whole and does not hold what its hashes say is
an error.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from .canonical import compact_json
from .columns import as_arrow, as_numpy
from .direct_write import aligned_bytes
from .errors import SignalCorruptError, StorageError
from .observations import Observations
from .storage import Location

__all__ = ["PartName", "PartSpace", "SignalPart", "index_text", "is_torn", "part_bytes"]

BLOCK_BYTES = 1 << 19
_KEY_BYTES = 24  # of an observation, its value left out
_FORMAT = "batchloom-signal/1"
_MAGIC = b"ARROW1"
_NAME = re.compile(r"(part|compact)-(\d{5})-(\d{5})-(\d{8})-([0-9a-f]{64})\.arrow")


@dataclass(frozen=True, order=True)
class PartName:
    """What the name of a part says.

    Attributes
    ----------
    kind : {'part', 'compact'}
    attempt, writer, sequence : int
    sha256 : str
        Of the index.
    """

    kind: str
    attempt: int
    writer: int
    sequence: int
    sha256: str

    def __str__(self) -> str:
        numbers = f"{self.attempt:05d}-{self.writer:05d}-{self.sequence:08d}"
        return f"{self.kind}-{numbers}-{self.sha256}.arrow"

    @classmethod
    def parse(cls, name: str) -> PartName | None:
        """Read a name; None where it is none of a part."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        return cls(found[1], int(found[2]), int(found[3]), int(found[4]), found[5])


class PartSpace:
    """Memory that parts are laid out in, one after another."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def take(self, size: int) -> pa.Buffer:
        """Return the memory of a part; the part before is overwritten."""
        if len(self._bytes) < size:
            self._bytes = aligned_bytes(size)
        return pa.py_buffer(self._bytes[:size])


def part_bytes(
    observed: Observations,
    *,
    writer: int,
    sequence: int,
    attempt: int = 0,
    kind: str = "part",
    space: PartSpace | None = None,
) -> tuple[PartName, pa.Buffer]:
    """Return the name and the bytes of a part.

    Parameters
    ----------
    observed : Observations
        At least one, ascending by row.
    writer, sequence, attempt : int
        For the name.
    kind : {'part', 'compact'}
    space : PartSpace, optional
        Where the bytes are put; else in memory of their own.
    """
    width = observed.width
    step = _block_rows(width)
    blocks = [observed.take(slice(cut, cut + step)) for cut in range(0, len(observed), step)]
    text = _index_text(blocks)
    value: pa.DataType = pa.list_(pa.float32(), width) if width else pa.float32()
    schema = pa.schema(
        [
            ("row", pa.uint64()),
            ("epoch", pa.uint32()),
            ("step", pa.uint64()),
            ("occurrence", pa.uint16()),
            ("attempt", pa.uint16()),
            ("value", value),
        ],
        metadata={"batchloom": text},
    )
    batches = [_batch(block, schema) for block in blocks]
    sha256 = hashlib.sha256(text).hexdigest()
    data = _file_bytes(schema, batches, PartSpace() if space is None else space)
    return PartName(kind, attempt, writer, sequence, sha256), data


def _batch(block: Observations, schema: pa.Schema) -> pa.RecordBatch:
    arrays = [as_arrow(c.reshape(-1)) for c in block.columns]
    if block.width:
        arrays[-1] = pa.FixedSizeListArray.from_arrays(arrays[-1], block.width)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _file_bytes(schema: pa.Schema, batches: list[pa.RecordBatch], space: PartSpace) -> pa.Buffer:
    """Return record batches as an Arrow IPC file.

    It is sized first, by a writer that stores nothing: a buffer that grows is copied as it does.
    """
    table = pa.Table.from_batches(batches)  # its chunks are the batches
    size = pa.MockOutputStream()
    _write(size, table)
    data = space.take(size.size())
    _write(pa.FixedSizeBufferWriter(data), table)
    return data


def _write(sink: Any, table: pa.Table) -> None:
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)


def index_text(blocks: Sequence[Observations]) -> bytes | None:
    """Return the text of the index that `part_bytes` would write of these blocks.

    None where it would cut them in another way.
    """
    step = _block_rows(blocks[0].width)
    sizes = [len(block) for block in blocks]
    if any(size != step for size in sizes[:-1]) or not 0 < sizes[-1] <= step:
        return None
    return _index_text(blocks)


def _block_rows(width: int) -> int:
    return max(1, BLOCK_BYTES // (_KEY_BYTES + 4 * max(1, width)))


def _index_text(blocks: Sequence[Observations]) -> bytes:
    index = {
        "format": _FORMAT,
        "width": blocks[0].width,
        "epochs": [
            min(int(block.epoch.min()) for block in blocks),
            max(int(block.epoch.max()) for block in blocks),
        ],
        "blocks": [[int(b.rows[0]), int(b.rows[-1]), len(b), _checksum(b)] for b in blocks],
    }
    return compact_json(index)


def _checksum(block: Observations) -> str:
    import xxhash

    found = xxhash.xxh3_128()
    for column in block.columns:
        found.update(np.ascontiguousarray(column).data)
    return found.hexdigest()


def is_torn(location: Location) -> bool:
    """Whether a part was cut off: it does not end as an Arrow file does."""
    if location.is_local:
        try:
            with open(location.path, "rb") as file:
                file.seek(0, 2)
                file.seek(max(0, file.tell() - len(_MAGIC)))
                return file.read() != _MAGIC
        except FileNotFoundError:
            return False  # said better when it is read
        except OSError as error:
            raise StorageError(f"{location} cannot be read: {error.strerror}.") from error
    return location.size() < 2 * len(_MAGIC)  # a store puts an object whole


@dataclass(frozen=True)
class SignalPart:
    """A part of a signal.

    Attributes
    ----------
    location : Location
    name : PartName
    """

    location: Location
    name: PartName

    @functools.cached_property
    def index(self) -> dict[str, Any]:
        """What the schema's metadata holds, checked against the name."""
        return self._open()[1]

    @property
    def width(self) -> int:
        return int(self.index["width"])

    @property
    def epochs(self) -> tuple[int, int]:
        """Smallest and greatest epoch."""
        low, high = self.index["epochs"]
        return int(low), int(high)

    @property
    def rows(self) -> int:
        """Observations in it."""
        return sum(int(b[2]) for b in self.index["blocks"])

    def read(self, start: int = 0, stop: int = 1 << 63) -> Iterator[Observations]:
        """Yield the observations of the row ids `start` to `stop`, ascending, batch by batch."""
        wanted = [
            i
            for i, (low, high, _, _) in enumerate(self.index["blocks"])
            if low < stop and start <= high
        ]
        if not wanted:
            return
        file, index = self._open()
        for i in wanted:
            block = self._block(file, i, index["blocks"][i][3])
            a, b = np.searchsorted(block.rows, np.array([start, stop], np.uint64))
            yield block.take(slice(a, b))

    def _open(self) -> tuple[Any, dict[str, Any]]:
        try:
            file = pa.ipc.open_file(self.location.open())
            text = (file.schema.metadata or {}).get(b"batchloom", b"")
        except (pa.ArrowException, OSError) as error:
            raise self._corrupt("its frame cannot be read") from error
        found = hashlib.sha256(text).hexdigest()
        if found != self.name.sha256:
            raise self._corrupt(f"expected an index of SHA-256 {self.name.sha256}, found {found}")
        return file, json.loads(text)

    def _block(self, file: Any, number: int, expected: str) -> Observations:
        try:
            batch = file.get_batch(number)
            batch.validate()
            block = Observations(*(as_numpy(c) for c in batch.columns))
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            raise self._corrupt(f"batch {number} cannot be read") from error
        found = _checksum(block)
        if found != expected:
            raise self._corrupt(f"batch {number}: expected XXH3 {expected}, found {found}")
        return block

    def _corrupt(self, what: str) -> SignalCorruptError:
        return SignalCorruptError(
            f"The part {self.location} of a signal is damaged: {what}. Put a good copy back, or "
            "remove it and score its rows again."
        )
