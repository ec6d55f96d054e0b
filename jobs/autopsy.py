"""What to say of a task that killed its workers: which file it read, why they died, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..dataplane.chunks import SCAN_BYTES
from ..dataplane.errors import BatchloomError, EngineError
from ..dataplane.fragments import FragmentReader, FragmentRef
from .trail import Trail
from .watch import Death, size_text

__all__ = ["Machine", "killed", "last_read"]

_BASE = 512 << 20  # bytes of a worker beside the rows, generously
_LEAST = 2 << 30  # bytes that are advised at least
_COPIES = 3  # of a batch: Arrow's, the matrix made of it, what is computed of that
_FROM_OUTSIDE = (9, 15)  # signals that no damaged file raises
_RECOPY = "copy it again from its source, or leave it out"
_REWRITE = "write the file in smaller row groups"


@dataclass(frozen=True)
class _Chunk:
    """A row group or record batch, and the bytes that its columns take decoded.

    `batch` are those decoded at a time: some rows of a row group, but a whole record batch.
    """

    kind: str
    index: int
    rows: int
    bytes: int
    batch: int


@dataclass(frozen=True)
class Machine:
    """The machine of an embedded cluster: its bytes of memory, and those that the driver keeps."""

    memory: int
    beside: int = 0


def last_read(task: Any, trail: Trail | None) -> str:
    """Say which file, as exactly as is known, a task was reading."""
    if trail is None or trail.position is None:
        return str(task.label)
    ref = task.refs[trail.position]
    return f"{ref.label}" if not trail.row else f"{ref.label} (from its row {trail.row:,} on)"


def killed(
    task: Any, trail: Trail | None, deaths: Sequence[Death], machine: Machine | None
) -> EngineError:
    """Return the error of a task that killed its workers.

    Parameters
    ----------
    task : ScanTask or other task
    trail : Trail, optional
        What its last run noted; None where workers and driver share no folder.
    deaths : sequence of Death
        Those that it is blamed for, in order.
    machine : Machine, optional
        None where the workers are of a cluster elsewhere.
    """
    what = last_read(task, trail)
    if not deaths:
        return EngineError(
            f"The task that reads {what} was given up: each worker that ran it left before it was "
            "done. Run the same command again when the workers stay."
        )
    chunk = None
    if trail is not None and trail.position is not None:
        chunk = _largest_chunk(task.refs[trail.position], trail.columns, task.chunks)
    last = next((d for d in reversed(deaths) if d.cause == "memory"), deaths[-1])
    count = "a worker" if len(deaths) == 1 else f"{len(deaths)} workers one after another"
    text = f"Reading {what} killed {count}{last.how}. "
    more = _more_memory(chunk, last.limit, machine)
    if last.cause == "memory":
        text += more
    elif last.cause == "unknown":
        text += (
            f"Their logs say why. If they ran out of memory: {more} If not, the file crashes what "
            f"reads it: {_RECOPY}."
        )
    elif last.cause == "signal" and last.code in _FROM_OUTSIDE:
        text += (
            "Either the system ended them as the machine ran out of memory: use fewer workers; "
            f"or the file crashes what reads it: {_RECOPY}."
        )
    else:
        text += f"The file crashes what reads it: {_RECOPY}."
    return EngineError(text)


def _more_memory(chunk: _Chunk | None, limit: int, machine: Machine | None) -> str:
    """Say what the largest row group takes, and which options give a worker enough for it."""
    need = max(2 * limit, _LEAST)
    text = ""
    if chunk is not None and chunk.bytes:
        need = max(need, _BASE + _COPIES * chunk.batch)
        text = (
            f"Its largest {chunk.kind} (number {chunk.index}, {chunk.rows:,} rows) takes about "
            f"{size_text(chunk.bytes)} decoded in the columns that are read. "
        )
    if machine is None:
        options = f"--memory-limit {_whole(need)} --nthreads 1"
        return f"{text}Start workers with dask worker {options}, or {_REWRITE}."
    # The driver and its only worker have equal shares, or the driver what it needs.
    total = need + max(need, machine.beside) if machine.beside else need
    if total > machine.memory:
        return f"{text}This machine has {size_text(machine.memory)}, too little for it; {_REWRITE}."
    return f"{text}Run again with --memory {_whole(total)} --workers 1, or {_REWRITE}."


def _whole(bytes_: int) -> str:
    return f"{-(-bytes_ // 2**30)}GiB"


def _largest_chunk(ref: FragmentRef, columns: Sequence[str], chunks: range | None) -> _Chunk | None:
    """Look it up in the fragment's footer; None where that cannot be read either."""
    try:
        reader = FragmentReader(ref, columns)
    except BatchloomError:
        return None
    try:
        inside = range(len(reader.chunk_rows)) if chunks is None else chunks
        sizes = [reader.decoded_bytes(i) for i in inside]
        largest, size = inside[int(np.argmax(sizes))], max(sizes)
        rows = int(reader.chunk_rows[largest])
        if reader.is_parquet:
            batch = min(size, max(SCAN_BYTES, size // max(1, rows)))
            return _Chunk("row group", largest, rows, size, batch)
        return _Chunk("record batch", largest, rows, size, size)
    finally:
        reader.close()
