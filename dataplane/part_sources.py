"""Where the bytes of a manifest's parts come from: a mapped file, or ranges of a remote one.

A part is frame and bodies by turns: frame, body 0, frame, body 1, …, frame. The frame is small and
is read when a manifest is opened, that of all its parts at the same time; bodies are read when they
are touched.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeAlias

from .errors import ManifestCorruptError, MissingFileError
from .manifest_part import BlockRecord, PartRecord
from .remote_files import fetch_ranges
from .storage import Location

__all__ = ["PartSource", "open_sources"]

Bytes: TypeAlias = "bytes | memoryview"

_SIZES_AT_ONCE = 16


class PartSource(Protocol):
    """The bytes of one part.

    Attributes
    ----------
    place : str
        For messages.
    mapped : bool
        Whether blocks are views of a file: they take no memory, and their bytes stay as they were.
    """

    place: str
    mapped: bool

    def frame(self, number: int) -> Bytes:
        """Return the piece of frame before a body; the last one for their count."""

    def message(self, index: int, metadata: int) -> Bytes:
        """Return a body and the `metadata` bytes before it, together."""


class MappedPart:
    """A local part, mapped so that only what is asked for is read.

    Between two bodies stand small pieces of frame; the kernel's read-ahead around each would read
    the whole part for them.
    """

    mapped = True

    def __init__(self, path: Path, record: PartRecord) -> None:
        self.place = str(path)
        self._blocks = record.blocks
        try:
            size = path.stat().st_size
            if size != record.bytes:
                raise _wrong_size(self.place, record, size)
            with open(path, "rb") as file:
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise _missing(self.place) from None
        except OSError as error:
            raise ManifestCorruptError(f"{path} cannot be read: {error}.") from error
        self._mapped.madvise(mmap.MADV_RANDOM)
        self._data = memoryview(self._mapped)

    def frame(self, number: int) -> memoryview:
        start, stop = _frame(self._blocks, number, len(self._data))
        return self._data[start:stop]

    def message(self, index: int, metadata: int) -> memoryview:
        block = self._blocks[index]
        page = block.offset // mmap.PAGESIZE * mmap.PAGESIZE
        self._mapped.madvise(mmap.MADV_WILLNEED, page, block.offset + block.length - page)
        return self._data[block.offset - metadata : block.offset + block.length]


class RemotePart:
    """A part on an object store; its frame is in memory."""

    mapped = False

    def __init__(self, location: Location, record: PartRecord, frames: Sequence[bytes]) -> None:
        self.place = location.path
        self._options = location.options
        self._blocks = record.blocks
        self._frames = frames

    def frame(self, number: int) -> bytes:
        return self._frames[number]

    def message(self, index: int, metadata: int) -> bytes:
        block = self._blocks[index]
        wanted = (self.place, block.offset, block.offset + block.length)
        try:
            [body] = fetch_ranges([wanted], self._options)
        except MissingFileError:
            raise _missing(self.place) from None
        return self._frames[index][-metadata:] + body if metadata else body


def open_sources(folder: Location, records: Sequence[PartRecord]) -> list[PartSource]:
    """Open the parts of a manifest, and see that they are there in their sizes."""
    if folder.is_local:
        return [MappedPart(Path(folder.path) / r.name, r) for r in records]
    places = [folder.join(r.name) for r in records]
    with ThreadPoolExecutor(_SIZES_AT_ONCE) as pool:
        for place, record, size in zip(places, records, pool.map(_size, places), strict=True):
            if size != record.bytes:
                raise _wrong_size(place.path, record, size)
    wanted = [
        (place.path, *_frame(r.blocks, number, r.bytes))
        for place, r in zip(places, records, strict=True)
        for number in range(len(r.blocks) + 1)
    ]
    frames = iter(fetch_ranges(wanted, folder.options))
    return [
        RemotePart(place, r, [next(frames) for _ in range(len(r.blocks) + 1)])
        for place, r in zip(places, records, strict=True)
    ]


def _size(place: Location) -> int:
    try:
        return place.size()
    except MissingFileError:
        raise _missing(place.path) from None


def _frame(blocks: Sequence[BlockRecord], number: int, size: int) -> tuple[int, int]:
    """Return where the piece of frame before a body stands."""
    start = blocks[number - 1].offset + blocks[number - 1].length if number else 0
    return start, blocks[number].offset if number < len(blocks) else size


def _missing(place: str) -> ManifestCorruptError:
    return ManifestCorruptError(
        f"{place} is missing; the manifest names it. Copy the manifest again or plan anew."
    )


def _wrong_size(place: str, record: PartRecord, size: int) -> ManifestCorruptError:
    return ManifestCorruptError(
        f"{place}: expected {record.bytes:,} bytes, found {size:,}. The part is truncated or was "
        "replaced; copy the manifest again or plan anew."
    )
