"""What the selection service and its client say to each other: addresses, and ranges of batches.

A run has the address ``http(s)://host:port/runs/NAME``. A range of an epoch's micro-batches travels
as an Arrow IPC stream with the columns of a part (`manifest`), at most 64 micro-batches or about
1 MiB a record batch. Each record batch carries, as metadata, ``first`` (the index of its first
micro-batch in the epoch), ``rows_before`` (rows of the epoch before that one) and ``xxh3``
(XXH3-128 over its columns), so that a client sees a gap, a repeat or a flipped bit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from .errors import BatchloomError, ManifestCorruptError, ParameterError, ServiceError
from .manifest_part import decode_plan, encode_plan
from .plan import BatchPlan, Ragged

__all__ = [
    "MESSAGE_BATCHES",
    "MESSAGE_BYTES",
    "RANGE_BATCHES",
    "Received",
    "RunAddress",
    "ServiceError",
    "decode_range",
    "encode_message",
    "is_run_address",
    "message_stops",
    "run_address",
]

MESSAGE_BATCHES = 64
MESSAGE_BYTES = 1 << 20
RANGE_BATCHES = 4096
"""The most micro-batches that one request may ask for."""

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
_ADDRESS = re.compile(rf"https?://[^/?#@\s]+/runs/({NAME})/?", re.IGNORECASE)


class RunAddress(NamedTuple):
    """Where a run of a service is: the service's own address, and the run's name."""

    service: str
    run: str


def is_run_address(path: Any) -> bool:
    """Whether a path is the address of a run of a service."""
    return isinstance(path, str) and _ADDRESS.fullmatch(path) is not None


def run_address(text: str | os.PathLike[str]) -> RunAddress:
    """Read the address of a run."""
    found = _ADDRESS.fullmatch(os.fspath(text))
    if found is None:
        raise ParameterError(
            f"A run of a service has an address such as http://host:8765/runs/NAME. Got '{text}' "
            "instead."
        )
    parts = urlsplit(os.fspath(text))
    return RunAddress(f"{parts.scheme.lower()}://{parts.netloc}", found[1])


# --- ranges ---------------------------------------------------------------------------------------


class Received(NamedTuple):
    """A range as it came.

    Attributes
    ----------
    plan : BatchPlan
    rows_before : int
        Rows of the epoch before it.
    """

    plan: BatchPlan
    rows_before: int


def message_stops(plan: BatchPlan) -> list[int]:
    """Return where the record batches end that a range is cut into."""
    stops, start = [], 0
    per_row = 8 + (0 if plan.weights is None else 4)
    while start < len(plan):
        most = plan.offsets[start] + MESSAGE_BYTES // per_row
        full = int(np.searchsorted(plan.offsets, most, side="right")) - 1
        start = min(max(start + 1, full), start + MESSAGE_BATCHES, len(plan))
        stops.append(start)
    return stops


def encode_message(
    plan: BatchPlan, schema: pa.Schema, *, first: int, rows_before: int
) -> tuple[pa.RecordBatch, dict[str, str]]:
    """Return a record batch and its metadata."""
    metadata = {"first": str(first), "rows_before": str(rows_before), "xxh3": _checksum(plan)}
    return encode_plan(plan, schema), metadata


def decode_range(data: Any, schema: pa.Schema, *, start: int, stop: int, where: str) -> Received:
    """Return the micro-batches that an answer holds.

    Raises
    ------
    ManifestCorruptError
        Where they are not `start` to `stop`, or not as they were sent.
    """
    plans: list[BatchPlan] = []
    before, at = 0, start
    try:
        for batch, metadata in _messages(data, schema):
            plan = decode_plan(batch)
            if int(metadata[b"first"]) != at:
                raise _corrupt(where, f"micro-batch {at}", metadata[b"first"].decode())
            expected, found = metadata[b"xxh3"].decode(), _checksum(plan)
            if expected != found:
                raise _corrupt(where, f"XXH3 {expected} of micro-batch {at}", found)
            if not plans:
                before = int(metadata[b"rows_before"])
            plans.append(plan)
            at += len(plan)
    except BatchloomError:
        raise
    except (pa.ArrowException, ValueError, KeyError, TypeError, OSError) as error:
        raise _corrupt(where, "an Arrow stream of micro-batches", error) from error
    if at != stop:
        raise _corrupt(where, f"micro-batches {start} to {stop}", f"{start} to {at}")
    return Received(BatchPlan.concat(plans), before)


def _messages(data: Any, schema: pa.Schema) -> Iterator[tuple[pa.RecordBatch, dict[bytes, bytes]]]:
    reader = pa.ipc.open_stream(data)
    if not reader.schema.equals(schema):
        raise ValueError(f"columns {reader.schema.names}, not {schema.names}")
    while True:
        try:
            batch, metadata = reader.read_next_batch_with_custom_metadata()
        except StopIteration:
            return
        batch.validate()
        yield batch, {} if metadata is None else dict(metadata)


def _checksum(plan: BatchPlan) -> str:
    import xxhash

    found = xxhash.xxh3_128()
    arrays: list[Any] = [plan.step, plan.micro, plan.offsets, plan.rows]
    if plan.weights is not None:
        arrays.append(plan.weights)
    for _, value in sorted(plan.side.items()):
        arrays += [value.offsets, value.values] if isinstance(value, Ragged) else [value]
    for array in arrays:
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _corrupt(where: str, expected: Any, found: Any) -> ManifestCorruptError:
    return ManifestCorruptError(
        f"{where}: expected {expected}, found {found}. No row of it was delivered; check the "
        "network between here and the service."
    )
