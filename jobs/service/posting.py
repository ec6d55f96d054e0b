"""Taking signals in: what a body holds is checked, made a part, and durable before the answer.

A body is an Arrow IPC file or stream with the columns of a part (`dataplane.signal_parts`): row
(uint64), epoch (uint32), step (uint64), occurrence, attempt (uint16), value (float32, or a
fixed-size list of it). It has a number: of the signal, the attempt, and the writer. The same number
with the same content is success; with other content it is a conflict.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...dataplane.columns import as_numpy
from ...dataplane.errors import (
    DatasetChangedError,
    DatasetError,
    InvalidValueError,
    RowIdError,
    SelectionError,
    SignalConflictError,
    examples,
)
from ...dataplane.ipc_messages import (
    Message,
    field_at,
    file_batches,
    file_footer,
    header_table,
    walk_stream,
)
from ...dataplane.observations import Observations, stable_order
from ...dataplane.remote_wire import NAME
from ...dataplane.rowset import RowSet
from ...dataplane.signal_binding import bind, draw_attempt
from ...dataplane.signal_compaction import written_parts
from ...dataplane.signal_parts import PartName, index_text, part_bytes
from .durable import Folder
from .refusals import RefusedError
from .runs import Run

__all__ = ["MOST_SIGNALS", "Body", "Inbox", "read_body"]

MOST_SIGNALS = 64
MOST_WIDTH = 65_536
_SHORT_BYTES = 8 << 20
_MAGIC = b"ARROW1"
_ATTEMPT = re.compile(r"attempt-(\d{5})\.json")
_COLUMNS = {
    "row": pa.uint64(),
    "epoch": pa.uint32(),
    "step": pa.uint64(),
    "occurrence": pa.uint16(),
    "attempt": pa.uint16(),
}


# A short body takes a hundred short calls, of which each gives Python's lock away and waits for it:
# threads that look at bodies at the same time take half as long again as one after another.
_looking = threading.Lock()


class Body:
    """What a body holds.

    Attributes
    ----------
    blocks : list of Observations
        As it holds them: views.
    """

    def __init__(self, data: Any, batches: list[pa.RecordBatch]) -> None:
        self._data = data
        self.blocks = [Observations(*(as_numpy(c, n) for n, c in _columns(b))) for b in batches]
        self.blocks = [block for block in self.blocks if len(block)]
        metadata = batches[0].schema.metadata if batches else None
        self._index: bytes | None = (metadata or {}).get(b"batchloom")

    def part(self, writer: int, sequence: int, attempt: int) -> tuple[PartName, Any]:
        """Return the part's name and bytes: those that came, where they are a part already."""
        if self._index is not None and bytes(self._data[:6]) == _MAGIC and self._is_sorted():
            index = index_text(self.blocks)
            if index == self._index:
                sha256 = hashlib.sha256(index).hexdigest()
                return PartName("part", attempt, writer, sequence, sha256), self._data
        observed = Observations.concat(self.blocks)
        if (observed.rows[1:] < observed.rows[:-1]).any():
            observed = observed.reordered(stable_order(observed.rows))
        return part_bytes(observed, writer=writer, sequence=sequence, attempt=attempt)

    def _is_sorted(self) -> bool:
        rows = [block.rows for block in self.blocks]
        joins = all(a[-1] <= b[0] for a, b in itertools.pairwise(rows))
        return joins and all(bool((r[1:] >= r[:-1]).all()) for r in rows)

    @property
    def width(self) -> int:
        return self.blocks[0].width

    def __len__(self) -> int:
        return sum(map(len, self.blocks))


def read_body(data: Any) -> Body:
    """Read a body; `RefusedError` (400) where it is not what the schema says."""
    try:
        batches = list(_batches(data))
    except (pa.ArrowException, OSError, ValueError, EOFError, struct.error) as error:
        raise RefusedError(
            400, f"The body is no whole Arrow file or stream: {_short(error)}."
        ) from None
    try:
        for batch in batches:
            batch.validate(full=True)
        body = Body(data, batches)
    except (pa.ArrowException, InvalidValueError, DatasetError) as error:
        raise RefusedError(400, f"The body cannot be used: {_short(error)}.") from None
    if not len(body):
        raise RefusedError(400, "The body holds no observation.")
    return body


def _batches(data: Any) -> Iterator[pa.RecordBatch]:
    buffer = pa.py_buffer(data)
    reader: Any
    if bytes(data[:6]) == _MAGIC:
        _check_messages(
            file_batches(pa.BufferReader(buffer), file_footer(memoryview(data)), len(data))
        )
        file = pa.ipc.open_file(buffer)
        _check_schema(file.schema)
        for number in range(file.num_record_batches):
            yield file.get_batch(number)
        return
    if bytes(data[-8:]) != b"\xff\xff\xff\xff\0\0\0\0":
        raise ValueError("it does not end as one does")
    _check_messages(walk_stream(pa.BufferReader(buffer), len(data)))
    reader = pa.ipc.open_stream(buffer)
    _check_schema(reader.schema)
    yield from reader


def _check_messages(messages: Iterable[Message]) -> None:
    """Refuse compressed batches: a small body could become more than there is memory for."""
    for message in messages:
        metadata = message.metadata
        if metadata[:4] == b"\xff\xff\xff\xff":
            metadata = metadata[8:]
        if message.rows is not None and field_at(metadata, header_table(metadata), 3) is not None:
            raise RefusedError(400, "The body is compressed; send it as it is.")


def _check_schema(schema: pa.Schema) -> None:
    expected = [*_COLUMNS, "value"]
    if schema.names != expected:
        raise RefusedError(
            400,
            f"The body must have the columns {', '.join(expected)}; found "
            f"{', '.join(schema.names)[:200] or 'none'}.",
        )
    for name, type_ in _COLUMNS.items():
        if schema.field(name).type != type_:
            raise RefusedError(
                400, f"The column '{name}' must be {type_}; found {schema.field(name).type}."
            )
    value = schema.field("value").type
    width = value.list_size if pa.types.is_fixed_size_list(value) else None
    inner = value if width is None else value.value_type
    if inner != pa.float32() or (width is not None and not 1 <= width <= MOST_WIDTH):
        raise RefusedError(
            400, f"The column 'value' must be float or a fixed-size list of it; found {value}."
        )


def _columns(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.Array]]:
    yield from zip(batch.schema.names, batch.columns, strict=True)


def _short(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:200].rstrip(".")


class Inbox:
    """Takes the signals of one run in."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._held: dict[tuple[str, int, int, int], str] = {}  # hash by number
        self._widths: dict[str, int] = {}
        self._folders: dict[str, Folder] = {}
        self._writing: dict[tuple[str, int, int, int], threading.Lock] = {}
        self._attempts: set[int] = set()
        self._bound = ""
        for name, size in run.signals.entries():
            if size is None:
                self._look_into(name)
            elif found := _ATTEMPT.fullmatch(name):
                self._attempts.add(int(found[1]))

    def _look_into(self, signal: str) -> None:
        for part in written_parts(self._run.signals.join(signal)):
            self._held[signal, part.attempt, part.writer, part.sequence] = part.sha256

    def register(self, fingerprint: str | None) -> int:
        """Return the number of a new start of the training."""
        if fingerprint is not None and not self._run.knows(fingerprint):
            raise DatasetChangedError(
                f"The run '{self._run.name}' was planned from another dataset: expected the "
                f"snapshot {self._run.snapshot().fingerprint}, found {fingerprint[:64]}."
            )
        self._bind()
        with self._lock:
            attempt = draw_attempt(self._run.signals)
            self._attempts.add(attempt)
        return attempt

    def _bind(self) -> None:
        snapshot = self._run.snapshot()
        if self._bound != snapshot.fingerprint:
            with self._lock:
                bind(self._run.signals, snapshot)
                self._bound = snapshot.fingerprint

    def check_attempt(self, attempt: int) -> None:
        if attempt not in self._attempts:
            raise RefusedError(
                409,
                f"The run '{self._run.name}' has had no attempt {attempt}: draw one first (POST "
                f"/v1/runs/{self._run.name}/attempts).",
            )

    def missing(self, attempt: int, writer: int, parts: dict[str, int]) -> list[str]:
        """Return the first few of the parts that a writer counts and that are not here."""
        absent = (
            f"{signal} {number}"
            for signal, count in sorted(parts.items())
            for number in range(count)
            if (signal, attempt, writer, number) not in self._held
        )
        return list(itertools.islice(absent, 5))

    def post(
        self, signal: str, attempt: int, writer: int, sequence: int, data: Any
    ) -> dict[str, Any]:
        """Take one body in; durable when this returns.

        Raises
        ------
        RefusedError, RowIdError, SelectionError, SignalConflictError, StorageError
        """
        if re.fullmatch(NAME, signal) is None:
            raise RefusedError(
                400, "A signal's name is of letters, digits, '_' and '-', 64 at most."
            )
        self.check_attempt(attempt)
        self._bind()
        with _looking if len(data) <= _SHORT_BYTES else contextlib.nullcontext():
            body = read_body(data)
            for block in body.blocks:
                self._check(signal, attempt, block)
            part, stored = body.part(writer, sequence, attempt)
        key = signal, attempt, writer, sequence
        with self._lock:
            lock = self._writing.setdefault(key, threading.Lock())
        with lock:  # the same number at the same time: one of them is first
            folder = self._folder(signal, body.width)
            held = self._held.get(key)
            if held is None:
                folder.put(str(part), stored)
                self._held[key] = part.sha256
        with self._lock:
            self._writing.pop(key, None)
        if held is not None and held != part.sha256:
            raise SignalConflictError(
                f"Part {sequence} of the signal '{signal}' by writer {writer}, attempt {attempt}, "
                "is here already with other content. Number what is new anew."
            )
        return {
            "attempt": attempt,
            "writer": writer,
            "sequence": sequence,
            "rows": len(body),
            "sha256": part.sha256,
            "again": held is not None,
        }

    def _folder(self, signal: str, width: int) -> Folder:
        """Return where a signal's parts are put."""
        with self._lock:
            known = {key[0] for key in self._held} if signal not in self._widths else {signal}
            if signal not in known and len(known) >= MOST_SIGNALS:
                raise RefusedError(
                    409, f"The run '{self._run.name}' has {MOST_SIGNALS} signals; that is the most."
                )
            if self._widths.setdefault(signal, width) != width:
                raise SelectionError(
                    f"The signal '{signal}' holds values of width {self._widths[signal]}; this "
                    f"body's are of width {width}."
                )
            if signal not in self._folders:
                place = Path(self._run.signals.path) / signal
                self._folders[signal] = Folder(place, "Writing signals")
            return self._folders[signal]

    def _check(self, signal: str, attempt: int, observed: Observations) -> None:
        if (observed.attempt != attempt).any():
            raise SelectionError(
                f"The body is of attempt {attempt}, and its column 'attempt' says "
                f"{examples(np.unique(observed.attempt))}."
            )
        run = self._run
        last = int(observed.epoch.max())
        if last not in run.epochs or run.holds(last) is None:
            raise SelectionError(f"The run '{run.name}' has no plan of epoch {last}.")
        inside = RowSet(run.snapshot()).contains(observed.rows)
        if not inside.all():
            bad = np.unique(observed.rows[~inside])
            raise RowIdError(
                f"{len(bad):,} of the rows are not in the dataset of the run '{run.name}': "
                f"{examples(bad)}. Nothing was taken."
            )
        if not run.keeps_nonfinite and not np.isfinite(observed.value).all():
            finite = np.isfinite(observed.value.reshape(len(observed), -1)).all(axis=1)
            bad = np.unique(observed.rows[~finite])
            raise SelectionError(
                f"{len(bad):,} rows have a value of '{signal}' that is NaN or infinite: "
                f"{examples(bad)}. Nothing was taken; find out why, or let such rows be with "
                "nonfinite = 'keep' or on_invalid = 'drop' in the job file."
            )
