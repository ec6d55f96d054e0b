"""Recipes: epochs that are computed from a permutation and a set of rows, and take no parts.

A recipe epoch holds the rows of up to four disjoint *classes*, each a bitmap over the row ids (or
all rows of the snapshot) with one weight. With n rows in their union, position p of the epoch
holds, of the union's ascending row ids, the one at rank π(p), with the weight of its class; π is
``feistel8-v1`` of (n, seed, stream, epoch), below 65,536 rows the sort of keys that belongs to it
(see `random`). Micro-batch k holds the positions from ``k · batch_size`` on, and is number ``k mod
micro_per_step`` of step ``k // micro_per_step``; the rows after ``samples`` were dropped with the
last, smaller micro-batch. Any batch is found without the ones before it.

A billion rows of which half are kept, ten times, take 125 MB; as parts they take 40 GB.

The bitmaps are files ``bitmap-<sha256>.bin``: little-endian uint64 words, bit i of word k standing
for row id 64·k + i, ``ceil(next_row_id / 64)`` words. Their size is checked when the manifest is
opened, their hash when the first row of them is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .bitmap import Bitmap
from .epoch_writer import BLOCK_MICRO_BATCHES, BLOCK_ROWS
from .epochs import (
    LARGEST_CLASSES,
    PERMUTATION,
    WEIGHT_ONE,
    Epoch,
    EpochRecord,
    Occurrences,
    RecipeRecord,
)
from .errors import ParameterError, SelectionError
from .plan import BatchPlan, fold_steps
from .random import Permutation, Stream
from .rowset import RowSet
from .snapshot import Snapshot

__all__ = [
    "RecipeEpoch",
    "RecipeRows",
    "WeightClass",
    "describe_recipe",
    "weight_classes",
]

_AHEAD_ROWS = 1 << 18  # expanded at a time where batches are asked for in order

U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class WeightClass:
    """Rows of equal weight.

    Attributes
    ----------
    rows : Bitmap or None
        None: all rows of the snapshot, in a recipe of this one class.
    weight : float
    """

    rows: Bitmap | None
    weight: float = 1.0


@dataclass(frozen=True)
class RecipeRows:
    """The rows of a recipe's classes by rank, with their weights."""

    snapshot: Snapshot
    classes: tuple[WeightClass, ...]
    weighted: bool

    @cached_property
    def union(self) -> RowSet:
        sets = [c.rows for c in self.classes]
        if len(sets) == 1:
            return RowSet(self.snapshot, sets[0])
        words = np.zeros(-(-self.snapshot.next_row_id // 64), dtype=np.uint64)
        for bitmap in sets:
            if bitmap is None or (words & bitmap.words).any():
                raise SelectionError("The weight classes of a recipe must hold different rows.")
            words |= bitmap.words
        return RowSet(self.snapshot, Bitmap(words))

    def weights_of(self, ids: U64) -> F32 | None:
        """Return the weight of each row; None where the plan has no weights."""
        if not self.weighted:
            return None
        out = np.full(len(ids), self.classes[0].weight, dtype=np.float32)
        for other in self.classes[1:]:
            assert other.rows is not None  # for the type checker; `union` saw to it
            out[other.rows.contains(ids)] = other.weight
        return out


class RecipeEpoch(Epoch):
    """An epoch that is computed.

    Batches that are asked for in order are computed ever more at a time, up to a quarter of a
    million rows; any other one by itself.

    Parameters
    ----------
    record : EpochRecord
        With its recipe.
    rows : RecipeRows
    seed : int

    Attributes
    ----------
    recipe : RecipeRecord
    """

    def __init__(self, record: EpochRecord, rows: RecipeRows, seed: int) -> None:
        assert record.recipe is not None  # for the type checker; the caller chose by it
        super().__init__(record)
        self.recipe, self._rows, self._seed = record.recipe, rows, seed
        self._chunk: tuple[int, BatchPlan] | None = None  # (first micro-batch, plan)

    @property
    def classes(self) -> tuple[WeightClass, ...]:
        """The rows that take part, by weight."""
        return self._rows.classes

    @cached_property
    def _permutation(self) -> Permutation:
        recipe = self.recipe
        return Permutation(
            recipe.rows, seed=self._seed, stream=recipe.stream, epoch=self.record.epoch
        )

    def _expanded(self, start: int, stop: int) -> BatchPlan:
        size = self.recipe.batch_size
        first, last = self.rows_before(start), self.rows_before(stop)
        ids = self._rows.union.at(self._permutation[first:last])
        weights = self._rows.weights_of(ids)
        for array in (ids, weights):
            if array is not None:
                array.flags.writeable = False
        offsets = np.minimum(np.arange(stop - start + 1, dtype=np.int64) * size, last - first)
        step, micro = fold_steps(stop - start, self.recipe.micro_per_step, start)
        return BatchPlan(offsets, ids, weights, step, micro)

    def _at(self, index: int) -> tuple[BatchPlan, int]:
        chunk, count = self._chunk, 1  # one reading: other threads may replace it
        if chunk is not None:
            first, plan = chunk
            if first <= index < first + len(plan):
                return plan, index - first
            if index == first + len(plan):
                count = min(2 * len(plan), max(1, _AHEAD_ROWS // self.recipe.batch_size))
        plan = self._expanded(index, min(index + count, len(self)))
        self._chunk = index, plan
        return plan, 0

    def run(self, start: int, count: int) -> BatchPlan:
        if not 0 <= start < len(self):
            raise IndexError(start)
        most = max(1, _AHEAD_ROWS // self.recipe.batch_size)
        return self._expanded(start, min(start + min(count, most), len(self)))

    def _plan(self, start: int, stop: int) -> BatchPlan:
        return self._expanded(start, stop)

    def blocks(self) -> Iterator[BatchPlan]:
        count = min(BLOCK_MICRO_BATCHES, -(-BLOCK_ROWS // self.recipe.batch_size))
        for start in range(0, len(self), count):
            yield self._expanded(start, min(start + count, len(self)))

    def row_chunks(self) -> Iterator[U64]:
        """Where all rows of the classes take part their order does not matter."""
        if self.record.samples == self.recipe.rows:
            return self._rows.union.chunks()
        return super().row_chunks()

    def find_step(self, step: int) -> int:
        return min(step * self.recipe.micro_per_step, len(self))

    def rows_before(self, index: int) -> int:
        return min(index * self.recipe.batch_size, self.record.samples)

    def find_rows(self, ids: U64) -> Occurrences:
        """Invert the permutation: no block is expanded."""
        union = self._rows.union
        held = ids[union.contains(ids)]
        places = self._permutation.inverse(union.ranks(held)).astype(np.int64)
        order = np.argsort(places)
        order = order[places[order] < self.record.samples]
        batch, position = np.divmod(places[order], self.recipe.batch_size)
        return Occurrences(held[order], batch, position)


def describe_recipe(
    epoch: int,
    rows: RecipeRows,
    digests: Sequence[str | None],
    *,
    seed: int,
    batch_size: int,
    micro_per_step: int = 1,
    drop_last: bool = False,
) -> tuple[EpochRecord, list[int]]:
    """Say of a recipe what the identity records of an epoch; no batch is expanded.

    Parameters
    ----------
    epoch : int
    rows : RecipeRows
    digests : sequence of str or None
        SHA-256 of each class's bitmap.
    seed, batch_size, micro_per_step : int
    drop_last : bool
        Leave out the rows of a last, smaller micro-batch.

    Returns
    -------
    EpochRecord, list of int
        The record, and the indices of the fragments that hold planned rows.
    """
    _check(rows, batch_size, micro_per_step)
    n = len(rows.union)
    samples = n // batch_size * batch_size if drop_last else n
    if samples == 0:
        raise SelectionError(
            f"Epoch {epoch} holds no micro-batch: no row was selected, or drop_last dropped the "
            "only one."
        )
    order = Permutation(n, seed=seed, stream=Stream.ORDER, epoch=epoch)
    dropped = rows.union.at(order[samples:n])
    batches = -(-samples // batch_size)
    steps = -(-batches // micro_per_step)
    last = batches - (steps - 1) * micro_per_step
    classes = [
        {"bitmap": digest, "weight": c.weight}
        for digest, c in zip(digests, rows.classes, strict=True)
    ]
    recipe = {
        "permutation": PERMUTATION,
        "stream": int(Stream.ORDER),
        "rows": n,
        "batch_size": batch_size,
        "micro_per_step": micro_per_step,
        "classes": classes,
    }
    whole = samples == rows.snapshot.rows
    record = EpochRecord(
        epoch=epoch,
        steps=steps,
        micro_batches=batches,
        samples=samples,
        smallest_micro_batch=samples - (batches - 1) * batch_size,
        last_step_micro_batches=last,
        micro_divisor=math.gcd(micro_per_step if steps > 1 else 0, last),
        coverage="exactly_once" if whole else "subset",
        distinct_rows=samples,
        dropped_rows=n - samples,
        weight_sum=_weight_sum(rows, dropped),
        logical_digest=None,
        recipe=RecipeRecord.from_json(recipe),
    )
    return record, _fragments(rows, dropped)


def _check(rows: RecipeRows, batch_size: int, micro_per_step: int) -> None:
    if batch_size < 1 or not 1 <= micro_per_step <= 1 << 16:
        raise ParameterError(
            "A recipe's micro-batches must hold at least 1 row, its steps between 1 and 65,536 of "
            f"them. Got {batch_size} rows and {micro_per_step} instead."
        )
    if not 1 <= len(rows.classes) <= LARGEST_CLASSES:
        raise SelectionError(
            f"A recipe holds between 1 and {LARGEST_CLASSES} classes of rows. Got "
            f"{len(rows.classes)} instead."
        )
    for c in rows.classes:
        if not 0 <= c.weight < math.inf:
            raise SelectionError(
                f"Weights must be finite and not negative; that of a class is {c.weight}."
            )
    known = int(rows.union.fragment_rows().sum())
    if known != len(rows.union):
        raise SelectionError(
            f"{len(rows.union) - known:,} rows of the recipe are in no fragment of the snapshot."
        )


def _weight_sum(rows: RecipeRows, dropped: U64) -> int:
    total = 0
    for c in rows.classes:
        count = len(rows.union) if c.rows is None else len(c.rows)
        count -= len(dropped) if c.rows is None else int(c.rows.contains(dropped).sum())
        total += count * int(np.rint(np.float64(np.float32(c.weight)) * WEIGHT_ONE))
    return total


def _fragments(rows: RecipeRows, dropped: U64) -> list[int]:
    """Return the fragments that hold a row which was not dropped."""
    held = rows.union.fragment_rows()
    if len(dropped):
        np.subtract.at(held, rows.snapshot.locate(dropped)[0], 1)
    return [int(i) for i in np.flatnonzero(held)]


def weight_classes(
    snapshot: Snapshot, chunks: Iterable[tuple[U64, F32]]
) -> tuple[WeightClass, ...] | None:
    """Sort rows into classes of equal weight; None where there are more than a recipe may hold.

    Parameters
    ----------
    snapshot : Snapshot
    chunks : iterable of (row ids, weights)

    Returns
    -------
    tuple of WeightClass or None
        By ascending weight.
    """
    words: dict[float, U64] = {}
    for ids, weights in chunks:
        for value in np.unique(weights).tolist():
            if value not in words:
                if len(words) == LARGEST_CLASSES:
                    return None
                words[value] = np.zeros(-(-snapshot.next_row_id // 64), dtype=np.uint64)
            Bitmap(words[value]).add(ids[weights == np.float32(value)])
    return tuple(WeightClass(Bitmap(words[value]), value) for value in sorted(words))
