"""What to say of a task that killed its workers: which file it read, why they died, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..dataplane.chunks import SCAN_ROWS
from ..dataplane.errors import BatchloomError, EngineError
from ..dataplane.fragments import FragmentReader, FragmentRef
from .trail import Trail
from .watch import Death

__all__ = ["killed", "last_read"]

_BASE = 512 << 20  # bytes of a worker beside the rows, generously
_COPIES = 3  # of a batch: Arrow's, the matrix made of it, what is computed of that
_FROM_OUTSIDE = (9, 15)  # signals that no damaged file raises
_RECOPY = "copy it again from its source, or leave it out"
_REWRITE = "write the file with smaller row groups"


@dataclass(frozen=True)
class _Chunk:
    """A row group or record batch, and the bytes that its columns take decoded."""

    index: int
    rows: int
    bytes: int


def last_read(task: Any, trail: Trail | None) -> str:
    """Say which file, as exactly as is known, a task was reading."""
    if trail is None or trail.position is None:
        return str(task.label)
    ref = task.refs[trail.position]
    return f"{ref.label}" if not trail.row else f"{ref.label} (from its row {trail.row:,} on)"


def killed(
    task: Any, trail: Trail | None, deaths: Sequence[Death], *, embedded: bool, machine: int
) -> EngineError:
    """Return the error of a task that killed its workers.

    Parameters
    ----------
    task : ScanTask or other task
    trail : Trail, optional
        What its last run noted; None where workers and driver share no folder.
    deaths : sequence of Death
        Those that it is blamed for, in order; at least one.
    embedded : bool
        Whether the workers are of the embedded cluster.
    machine : int
        Bytes of memory that the driver's machine has.
    """
    chunk = None
    if trail is not None and trail.position is not None:
        chunk = _largest_chunk(task.refs[trail.position], trail.columns, task.chunks)
    last = deaths[-1]
    count = "a worker" if len(deaths) == 1 else f"{len(deaths)} workers one after another"
    text = f"Reading {last_read(task, trail)} killed {count}{last.how}. "
    more = _more_memory(chunk, last.limit, embedded, machine)
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


def _more_memory(chunk: _Chunk | None, limit: int, embedded: bool, machine: int) -> str:
    """Say what the largest row group takes, and which options give a worker enough for it."""
    need = 2 * limit
    text = ""
    if chunk is not None:
        batch = chunk.bytes * min(chunk.rows, SCAN_ROWS) // max(1, chunk.rows)
        need = max(need, _BASE + _COPIES * batch)
        text = (
            f"Its largest row group (number {chunk.index}, {chunk.rows:,} rows) takes about "
            f"{_size(chunk.bytes)} decoded in the columns that are read. "
        )
    enough = f"{-(-need // 2**30)}GiB"
    if not embedded:
        options = f"--memory-limit {enough} --nthreads 1"
        return f"{text}Start workers with dask worker {options}, or {_REWRITE}."
    if need > machine:
        return f"{text}This machine has {_size(machine)}, too little for it; {_REWRITE}."
    return f"{text}Run again with --memory {enough} --workers 1, or {_REWRITE}."


def _size(bytes_: int) -> str:
    return f"{bytes_ / 2**30:.1f} GiB" if bytes_ >= 2**30 else f"{max(1, bytes_ >> 20)} MiB"


def _largest_chunk(ref: FragmentRef, columns: Sequence[str], chunks: range | None) -> _Chunk | None:
    """Look it up in the fragment's footer; None where that cannot be read either."""
    try:
        reader = FragmentReader(ref, columns)
    except BatchloomError:
        return None
    try:
        inside = range(len(reader.chunk_rows)) if chunks is None else chunks
        sizes = [reader.decoded_bytes(i) for i in inside]
        largest = inside[int(np.argmax(sizes))]
        return _Chunk(largest, int(reader.chunk_rows[largest]), max(sizes))
    finally:
        reader.close()
