"""Making a manifest of another one: what `editing` and `rebinding` share.

The child keeps its parent's seed, unit, weights and side columns; its stages are the parent's and,
after them, what was changed (`lineage`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataplane.bitmap import Bitmap, count_bits
from ..dataplane.errors import SelectionError
from ..dataplane.lineage import FirstChange
from ..dataplane.manifest import Manifest
from ..dataplane.manifest_writer import ManifestWriter, check_space
from ..dataplane.plan import BatchPlan
from ..dataplane.plan_changes import MicroNumbers, keep_rows
from ..dataplane.snapshot import Snapshot

__all__ = [
    "LeftOut",
    "Mask",
    "Survey",
    "child_of",
    "open_parent",
    "planned_rows",
    "rewrite",
    "survey",
]

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LeftOut:
    """What a change leaves out of an epoch.

    Attributes
    ----------
    rows, distinct_rows : int
        With repeats, and without.
    first_step : int
        Step of the first of them.
    """

    rows: int
    distinct_rows: int
    first_step: int


@dataclass(frozen=True)
class Survey:
    """What a change would leave out of a manifest.

    Attributes
    ----------
    left_out : dict of epoch → LeftOut
        Epochs that stay whole are not in it.
    rows : Bitmap
        The rows that would be left out somewhere.
    """

    left_out: dict[int, LeftOut]
    rows: Bitmap

    @property
    def first_change(self) -> FirstChange | None:
        places = [FirstChange(epoch, left.first_step) for epoch, left in self.left_out.items()]
        return min(places, default=None)

    def refuse_empty(self, parent: Manifest) -> None:
        """Raise `SelectionError` where nothing of an epoch would be left."""
        for number, left in self.left_out.items():
            if left.rows == parent.records[number].samples:
                raise SelectionError(
                    f"Nothing would be left of epoch {number} of {parent.path}: all of its "
                    f"{left.rows:,} rows go. Leave less out, or plan anew."
                )


def open_parent(path: str | os.PathLike[str] | Manifest) -> Manifest:
    """Open the manifest to be changed; a series is refused, its members are not."""
    return path if isinstance(path, Manifest) else Manifest.open(path)


def planned_rows(manifest: Manifest, epochs: Iterable[int]) -> int:
    """Return the rows of some epochs, repeats counted."""
    return sum(manifest.records[number].samples for number in epochs)


def survey(
    parent: Manifest,
    epochs: Sequence[int],
    goes: Callable[[BatchPlan], Mask],
    advance: Callable[[int], None],
) -> Survey:
    """Count what would be left out of some epochs.

    Parameters
    ----------
    parent : Manifest
    epochs : sequence of int
    goes : callable
        Block → bool, one value a row: whether it is left out.
    advance : callable
        Told how many more rows were looked at.
    """
    left_out: dict[int, LeftOut] = {}
    everywhere = Bitmap.of(parent.snapshot.next_row_id, [])
    for number in epochs:
        rows = Bitmap.of(parent.snapshot.next_row_id, [])
        count, first = 0, 0
        for block in parent.epoch(number).blocks():
            gone = np.flatnonzero(goes(block))
            if len(gone):
                rows.add(block.rows[gone])
                if not count:
                    batch = np.searchsorted(block.offsets, gone[0], side="right") - 1
                    first = int(block.step[batch])
            count += len(gone)
            advance(len(block.rows))
        if count:
            left_out[number] = LeftOut(count, count_bits(rows.words), first)
            everywhere.words |= rows.words
    return Survey(left_out, everywhere)


@contextmanager
def child_of(
    parent: Manifest,
    out: str | os.PathLike[str],
    *,
    stages: Sequence[Mapping[str, Any]],
    rewritten: Sequence[int],
    snapshot: Snapshot | None = None,
    deep_hashes: Mapping[str, str] | None = None,
) -> Iterator[ManifestWriter]:
    """Open a writer of a manifest that is made of another one.

    Parameters
    ----------
    parent : Manifest
    out : path
    stages : sequence of mapping
        What was changed.
    rewritten : sequence of int
        Epochs that will be written anew, for a look at the free space.
    snapshot : Snapshot, optional
        The parent's when None.
    deep_hashes : mapping, optional
    """
    target = Path(out)
    row_bytes = 8 if parent.weight_semantics is None else 12
    check_space(target.absolute().parent, row_bytes * planned_rows(parent, rewritten))
    with ManifestWriter(
        target,
        snapshot=parent.snapshot if snapshot is None else snapshot,
        stages=[*parent.identity["stages"], *stages],
        seed=parent.seed,
        unit=parent.unit,
        weight_semantics=parent.weight_semantics,
        side=parent.side_columns,
        parent=parent.manifest_id,
        signals=parent.identity["signals"],
        deep_hashes=deep_hashes,
    ) as writer:
        yield writer


def rewrite(
    writer: ManifestWriter,
    parent: Manifest,
    number: int,
    change: Callable[[BatchPlan], tuple[BatchPlan, Mask]],
    advance: Callable[[int], None],
    *,
    eligible_rows: int,
) -> None:
    """Write an epoch anew, block by block, without some of its rows.

    Parameters
    ----------
    writer : ManifestWriter
    parent : Manifest
    number : int
        Epoch.
    change : callable
        Block → (changed block, which of its rows stay).
    advance : callable
        Told how many more rows were written.
    eligible_rows : int
        Rows that were selected, whether they stay or not.
    """
    numbers = MicroNumbers()
    with writer.epoch(number, eligible_rows=eligible_rows):
        for block in parent.epoch(number).blocks():
            changed, stays = change(block)
            writer.append(numbers.number(keep_rows(changed, stays)))
            advance(len(block.rows))
