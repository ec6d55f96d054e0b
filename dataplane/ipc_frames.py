"""Frames of Arrow IPC files around bodies that somebody else wrote.

pyarrow writes a record batch that is whole in memory. A packed column is larger than that, and its
buffers must lie at multiples of 64 bytes; so the metadata (flatbuffers, small and of fixed shape)
is put together here, and the body is streamed into its place. The result is an ordinary IPC file.
(Arrow columnar format, "Encapsulated message format" and "IPC File Format"; FlatBuffers,
"Internals". `ipc_messages` reads what is written here.)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pyarrow as pa

from .ipc_messages import Block, header_table

__all__ = ["ALIGNMENT", "MAGIC", "batch_message", "closing", "padded", "schema_message"]

ALIGNMENT = 64
"""Every buffer of a body lies at a multiple of so many bytes, in the body and in the file."""

MAGIC = b"ARROW1"
_V5 = 4
_RECORD_BATCH = 3


def padded(size: int) -> int:
    """Return the next multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def schema_message(schema: pa.Schema) -> bytes:
    """Return the message that every stream of this schema begins with."""
    return bytes(memoryview(schema.serialize()))


def batch_message(
    at: int, nodes: Sequence[tuple[int, int]], buffers: Sequence[tuple[int, int]], body: int
) -> bytes:
    """Return the message before the body of a record batch, which so begins aligned.

    Parameters
    ----------
    at : int
        Where in the file the message stands, a multiple of 8.
    nodes : sequence of (length, nulls)
        One an array, parents first; the first one's length is the batch's.
    buffers : sequence of (offset, length)
        In the body.
    body : int
        Bytes of the body.
    """
    count, places = len(nodes), len(buffers)
    # Message: its layout at 4, the table at 16. RecordBatch: layout at 40, table at 56.
    message = struct.pack("<I6H", 16, 12, 20, 16, 18, 4, 8)
    message += struct.pack("<iIqhBxxxxx", 12, 36, body, _V5, _RECORD_BATCH)
    second = 84 + 16 * count
    message += struct.pack("<5H6x", 10, 20, 8, 4, 16)
    message += struct.pack("<iIqI", 16, 16, nodes[0][0], second - 72)
    message += struct.pack("<I", count) + b"".join(struct.pack("<qq", *n) for n in nodes)
    message += struct.pack("<4xI", places) + b"".join(struct.pack("<qq", *b) for b in buffers)
    size = padded(at + 8 + len(message)) - at - 8
    return struct.pack("<Ii", 0xFFFFFFFF, size) + message.ljust(size, b"\0")


def closing(schema: pa.Schema, batches: Sequence[Block], dictionaries: Sequence[Block]) -> bytes:
    """Return the end of a file: the mark that no message follows, the footer, the magic word."""
    parts = [struct.pack("<I6H", 16, 12, 20, 16, 4, 8, 12)]  # the table follows at 16
    second = 44 + 24 * len(dictionaries)
    blob = 48 + 24 * (len(dictionaries) + len(batches))
    metadata = schema_message(schema)[8:]
    place = blob + header_table(metadata) - 20
    parts.append(struct.pack("<iIIIhxx", 12, place, 36 - 24, second - 28, _V5))
    parts += [struct.pack("<I", len(dictionaries)), *map(_block, dictionaries)]
    parts += [struct.pack("<4xI", len(batches)), *map(_block, batches), metadata]
    footer = b"".join(parts)
    return struct.pack("<Ii", 0xFFFFFFFF, 0) + footer + struct.pack("<i", len(footer)) + MAGIC


def _block(block: Block) -> bytes:
    return struct.pack("<qi4xq", block.offset, block.metadata, block.body)
