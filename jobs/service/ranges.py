"""Ranges of micro-batches as Arrow streams, made message by message as the client takes them."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from ...dataplane.epochs import Epoch
from ...dataplane.manifest import Manifest
from ...dataplane.manifest_part import part_schema
from ...dataplane.plan import BatchPlan
from ...dataplane.remote_wire import RANGE_BATCHES, encode_message, message_stops
from .refusals import RefusedError

__all__ = ["check_range", "range_chunks"]

_CHUNK_BYTES = 1 << 19  # of small messages, as many together as make about so much


def check_range(epoch: Epoch, start: int, stop: int) -> None:
    """Raise `RefusedError` where a range is outside the epoch, or too long."""
    if not 0 <= start < stop <= len(epoch):
        raise RefusedError(
            416,
            f"Epoch {epoch.record.epoch} has micro-batches 0 to {len(epoch)}; the range {start} to "
            f"{stop} is not in it.",
        )
    if stop - start > RANGE_BATCHES:
        raise RefusedError(
            416, f"A range holds at most {RANGE_BATCHES} micro-batches; this one {stop - start}."
        )


def range_chunks(manifest: Manifest, epoch: Epoch, start: int, stop: int) -> Iterator[bytes]:
    """Yield the bytes of an Arrow stream of some micro-batches."""
    schema = part_schema(manifest.weight_semantics is not None, manifest.side_columns)
    sink = _Sink()
    rows = epoch.rows_before(start)
    with pa.ipc.new_stream(pa.PythonFile(sink, "w"), schema) as writer:
        for plan in _runs(epoch, start, stop):
            first = 0
            for last in message_stops(plan):
                message = plan.slice(first, last)
                batch, metadata = encode_message(
                    message, schema, first=start + first, rows_before=rows
                )
                writer.write_batch(batch, custom_metadata=metadata)
                rows += len(message.rows)
                first = last
                if sink.size >= _CHUNK_BYTES:
                    yield sink.take()
            start += len(plan)
    yield sink.take()


def _runs(epoch: Epoch, start: int, stop: int) -> Iterator[BatchPlan]:
    while start < stop:
        run = epoch.run(start, stop - start)
        yield run
        start += len(run)


class _Sink:
    """A file that is written by Arrow, and emptied from time to time."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.size = 0

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def take(self) -> bytes:
        data, self._parts, self.size = b"".join(self._parts), [], 0
        return data
