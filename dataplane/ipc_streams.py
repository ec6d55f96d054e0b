"""The record batches of an Arrow IPC stream, by number; a stream has no index of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from .ipc_messages import Message

__all__ = ["MappedStream", "RangedStream"]


class MappedStream:
    """The batches of a stream over a memory map: views, so all of them can be listed."""

    def __init__(self, file: Any) -> None:
        reader = pa.ipc.open_stream(file)
        self.schema: pa.Schema = reader.schema
        self._batches = list(reader)

    def get_batch(self, index: int) -> pa.RecordBatch:
        return self._batches[index]


class RangedStream:
    """The batches of a remote stream, each read when it is asked for.

    A batch is decoded as the last one of a stream that holds the schema, the dictionaries that came
    before it, and itself.
    """

    def __init__(self, file: Any, messages: Sequence[Message]) -> None:
        self._file = file
        self._batches = [m for m in messages if m.rows is not None]
        self._before = [m for m in messages if m.rows is None]
        self._read: dict[int, bytes] = {}
        self.schema: pa.Schema = pa.ipc.open_stream(self._bytes(self._before[0])).schema

    def get_batch(self, index: int) -> pa.RecordBatch:
        batch = self._batches[index]
        needed = [m for m in self._before if m.start < batch.start]
        for message in needed:
            if message.start not in self._read:
                self._read[message.start] = self._bytes(message)
        stream = [*(self._read[m.start] for m in needed), self._bytes(batch)]
        return pa.ipc.open_stream(b"".join(stream)).read_next_batch()

    def _bytes(self, message: Message) -> bytes:
        self._file.seek(message.start)
        return bytes(self._file.read(message.stop - message.start))
