"""The messages of Arrow IPC streams and files, read without their bodies.

A stream is a run of encapsulated messages: ``FF FF FF FF``, an int32 metadata size, that many bytes
of metadata (a flatbuffer), then the body. A file is a stream with a footer that lists the record
batches' places. pyarrow decodes the bodies to tell how many rows they hold; here only the metadata
is touched, so that counting and fingerprinting large or compressed files is cheap. (Arrow columnar
format, "Encapsulated message format" and "IPC File Format".)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Block",
    "Message",
    "field_at",
    "file_batches",
    "file_blocks",
    "file_footer",
    "header_table",
    "walk_stream",
]

_CONTINUATION = b"\xff\xff\xff\xff"
_RECORD_BATCH = 3


@dataclass(frozen=True)
class Message:
    """One message: its metadata, where it stands, and the rows of a record batch, else None."""

    metadata: bytes
    rows: int | None
    start: int
    stop: int


@dataclass(frozen=True)
class Block:
    """Where one record batch of an IPC file stands: `metadata` bytes, then `body` bytes."""

    offset: int
    metadata: int
    body: int


def file_footer(data: memoryview) -> bytes:
    """Return the footer of a whole IPC file: its size and the magic word ``ARROW1`` follow it."""
    (length,) = struct.unpack_from("<i", data, len(data) - 10)
    return bytes(data[len(data) - 10 - length : len(data) - 10])


def file_blocks(footer: bytes) -> list[Block]:
    """Return the record batches that an IPC file's footer lists (``Footer``, field 3).

    Raises ValueError or struct.error where the footer is damaged.
    """
    (root,) = struct.unpack_from("<I", footer, 0)
    slot = field_at(footer, root, 3)
    if slot is None:
        return []
    vector = slot + struct.unpack_from("<I", footer, slot)[0]
    (count,) = struct.unpack_from("<I", footer, vector)
    return [Block(*struct.unpack_from("<qi4xq", footer, vector + 4 + 24 * i)) for i in range(count)]


def file_batches(file: Any, footer: bytes, size: int) -> list[Message]:
    """Return the record batches of an IPC file of `size` bytes."""
    batches = []
    blocks = file_blocks(footer)
    for number, block in enumerate(blocks):
        end = block.offset + block.metadata + block.body
        if min(block.offset, block.metadata, block.body) < 0 or end > size:
            raise ValueError(f"record batch {number} lies outside the file")
    if hasattr(file, "keep"):  # a remote file: all in a few requests at the same time
        file.keep([(b.offset, b.offset + b.metadata) for b in blocks])
    for number, block in enumerate(blocks):
        file.seek(block.offset)
        metadata = bytes(file.read(block.metadata))
        skip = 8 if metadata[:4] == _CONTINUATION else 4
        rows, _ = _rows_and_body(metadata[skip:])
        if rows is None:
            raise ValueError(f"the footer's record batch {number} is none")
        stop = block.offset + block.metadata + block.body
        batches.append(Message(metadata, rows, block.offset, stop))
    return batches


def walk_stream(file: Any, size: int) -> Iterator[Message]:
    """Yield the messages of a stream of `size` bytes; raise ValueError where it is cut."""
    position = 0
    while position < size:
        file.seek(position)
        prefix = bytes(file.read(8))
        if len(prefix) < 8:
            raise ValueError(f"the stream ends inside a message prefix at byte {position}")
        if prefix[:4] != _CONTINUATION:
            raise ValueError(f"no message starts at byte {position}")
        (length,) = struct.unpack_from("<i", prefix, 4)
        if length == 0:
            return  # end-of-stream marker
        if length < 0 or position + 8 + length > size:
            raise ValueError(f"the stream ends inside the metadata of the message at {position}")
        metadata = bytes(file.read(length))
        try:
            rows, body = _rows_and_body(metadata)
        except struct.error:
            raise ValueError(f"the metadata of the message at byte {position} is damaged") from None
        start, position = position, position + 8 + length + body
        if position > size:
            raise ValueError("the stream ends inside a message body")
        yield Message(metadata, rows, start, position)


def header_table(metadata: bytes) -> int:
    """Return where the header's table (a schema, a record batch) stands in a message's metadata."""
    (root,) = struct.unpack_from("<I", metadata, 0)
    slot = field_at(metadata, root, 2)
    if slot is None:
        raise ValueError("a message holds no header")
    return int(slot + struct.unpack_from("<I", metadata, slot)[0])


def _rows_and_body(metadata: bytes) -> tuple[int | None, int]:
    """Read a flatbuffer ``Message``: field 1 header type, 2 header, 3 body length."""
    (root,) = struct.unpack_from("<I", metadata, 0)
    kind = _field(metadata, root, 1, "<B") or 0
    body = _field(metadata, root, 3, "<q") or 0
    if body < 0:
        raise ValueError(f"a message says that its body has {body} bytes")
    if kind != _RECORD_BATCH:
        return None, body
    slot = field_at(metadata, root, 2)
    if slot is None:
        return 0, body
    header = slot + struct.unpack_from("<I", metadata, slot)[0]
    rows = _field(metadata, header, 0, "<q") or 0
    if rows < 0:
        raise ValueError(f"a record batch says that it has {rows} rows")
    return rows, body


def field_at(data: bytes, table: int, index: int) -> int | None:
    """Return where a field of a flatbuffer's table lies; None where it is left out."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if vtable < 0:  # struct would count it from the end
        raise struct.error("a table's layout lies before the buffer")
    (vtable_size,) = struct.unpack_from("<H", data, vtable)
    entry = 4 + 2 * index
    if entry >= vtable_size:
        return None
    (offset,) = struct.unpack_from("<H", data, vtable + entry)
    return table + offset if offset else None


def _field(data: bytes, table: int, index: int, code: str) -> int | None:
    slot = field_at(data, table, index)
    return None if slot is None else int(struct.unpack_from(code, data, slot)[0])
