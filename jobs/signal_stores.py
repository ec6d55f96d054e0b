"""Signal stores, carried over to new row ids."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..dataplane.commit import publish, staging
from ..dataplane.errors import ManifestConflictError, StorageError
from ..dataplane.observations import Observations
from ..dataplane.remap import RowMapping, remap_rows
from ..dataplane.signal_binding import bind as bind_store
from ..dataplane.signal_binding import copy_attempts
from ..dataplane.signal_compaction import put_part
from ..dataplane.signal_parts import SignalPart, part_bytes
from ..dataplane.signals import SignalStore
from ..dataplane.snapshot import Snapshot
from ..dataplane.storage import Location, locate
from .signal_files import RemappedSignal

__all__ = ["remapped_store"]


@contextlib.contextmanager
def remapped_store(
    source: str | Path, target: str | Path, mapping: RowMapping, snapshot: Snapshot
) -> Iterator[RemappedSignal]:
    """Write a store under its new row ids; it gets its name when the block ends well.

    Attempts, epochs and steps stay. Observations of rows that the new dataset does not hold are
    left out. The target is a local directory.

    Parameters
    ----------
    source, target : path
    mapping : RowMapping
    snapshot : Snapshot
        Of the new dataset.
    """
    store, place = SignalStore.open(source), Path(target).absolute()
    if not locate(target).is_local:
        raise StorageError(f"{target}: a store is carried over to a local directory; copy that.")
    written = gone = 0
    with staging(place) as folder:
        new = locate(folder)
        bind_store(new, snapshot)
        copy_attempts(store.location, new)
        for signal in store.signals:
            for part in store.parts(signal):
                kept, lost = _carry(part, new.join(signal), mapping)
                written, gone = written + kept, gone + lost
        yield RemappedSignal(written, gone)
        if not publish(folder, place):
            raise ManifestConflictError(
                f"{place} is there already; choose another target, or remove that one first."
            )


def _carry(part: SignalPart, folder: Location, mapping: RowMapping) -> tuple[int, int]:
    """Write one part; return how many observations were written and left out."""
    observed = Observations.concat(list(part.read()))
    rows, found = remap_rows(observed.rows, mapping)
    moved = Observations(rows, *observed.columns[1:]).take(found)
    if len(moved):
        name, data = part_bytes(
            moved.take(np.argsort(moved.rows, kind="stable")),
            writer=part.name.writer,
            sequence=part.name.sequence,
            attempt=part.name.attempt,
        )
        put_part(folder, name, data)
    return len(moved), int((~found).sum())
