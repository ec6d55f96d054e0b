"""One epoch of a manifest: what its header says, and random access to its micro-batches.

Every form of an epoch answers the same questions (`Epoch`), so a loader cannot tell them apart:
`StoredEpoch` reads blocks of parts, `recipe.RecipeEpoch` computes what it is asked for.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .canonical import known_fields
from .errors import ManifestError
from .manifest_part import PartRecord, block_digest
from .part_reader import PartReader
from .plan import BatchPlan, MicroBatch, Ragged, SideColumn

__all__ = [
    "LARGEST_CLASSES",
    "PERMUTATION",
    "WEIGHT_ONE",
    "Epoch",
    "EpochRecord",
    "FinishedEpoch",
    "Occurrences",
    "RecipeRecord",
    "StoredEpoch",
    "WeightClassRecord",
]

PERMUTATION = "feistel8-v1"
LARGEST_CLASSES = 4  # of weights, in a recipe
WEIGHT_ONE = 1 << 24  # the integer that stands for a weight of 1 in weight sums


@dataclass(frozen=True)
class WeightClassRecord:
    """Rows of equal weight: the SHA-256 of their bitmap, or None for all rows."""

    bitmap: str | None
    weight: float


@dataclass(frozen=True)
class RecipeRecord:
    """What the identity says of an epoch that is computed; see `recipe`."""

    permutation: str
    stream: int
    rows: int
    batch_size: int
    micro_per_step: int
    classes: tuple[WeightClassRecord, ...]

    def __post_init__(self) -> None:
        if self.permutation != PERMUTATION:
            raise ValueError(f"a recipe by the permutation '{self.permutation}'")
        for name in ("rows", "batch_size", "micro_per_step"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"a recipe with {name} = {getattr(self, name)!r}")
        if not 1 <= len(self.classes) <= LARGEST_CLASSES:
            raise ValueError(f"a recipe of {len(self.classes)} classes of rows")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RecipeRecord:
        classes = tuple(known_fields(WeightClassRecord, c) for c in value["classes"])
        return known_fields(cls, {**value, "classes": classes})

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "classes": [dict(vars(c)) for c in self.classes]}


@dataclass(frozen=True)
class EpochRecord:
    """What the identity says of one epoch; see `manifest`."""

    epoch: int
    steps: int
    micro_batches: int
    samples: int
    smallest_micro_batch: int
    last_step_micro_batches: int
    micro_divisor: int
    coverage: str
    distinct_rows: int
    dropped_rows: int
    weight_sum: int
    logical_digest: str | None
    recipe: RecipeRecord | None = None

    @property
    def total_weight(self) -> float:
        return self.weight_sum / WEIGHT_ONE

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EpochRecord:
        recipe = value.get("recipe")
        made = None if recipe is None else RecipeRecord.from_json(recipe)
        record = known_fields(cls, {**value, "recipe": made})
        if made is not None and record.micro_batches != -(-record.samples // made.batch_size):
            raise ValueError(f"a recipe of {record.micro_batches} micro-batches")
        return record

    def to_json(self) -> dict[str, Any]:
        if self.recipe is not None:
            return {**vars(self), "recipe": self.recipe.to_json()}
        return {name: value for name, value in vars(self).items() if name != "recipe"}


@dataclass(frozen=True)
class FinishedEpoch:
    """An epoch whose parts are written, before its manifest is.

    Attributes
    ----------
    record : EpochRecord
    parts : tuple of PartRecord
    fragments : tuple of int
        Indices of the fragments that hold its rows.
    """

    record: EpochRecord
    parts: tuple[PartRecord, ...]
    fragments: tuple[int, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FinishedEpoch:
        parts = tuple(PartRecord.from_json(part) for part in value["parts"])
        return cls(EpochRecord.from_json(value["record"]), parts, tuple(value["fragments"]))

    def to_json(self) -> dict[str, Any]:
        parts = [asdict(part) for part in self.parts]
        return {"record": self.record.to_json(), "parts": parts, "fragments": self.fragments}


class Occurrences(NamedTuple):
    """Where rows stand in an epoch, in order of the epoch.

    Attributes
    ----------
    rows : uint64, shape (n,)
        Row ids.
    micro_batches, positions : int64, shape (n,)
        Index of the micro-batch in the epoch, and the row's place in it.
    """

    rows: npt.NDArray[np.uint64]
    micro_batches: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]


class Epoch(ABC):
    """Random access to the micro-batches of one epoch.

    ``len(epoch)`` is their number; ``epoch[k]`` a `MicroBatch` of views; ``epoch.plan(a, b)`` a
    `BatchPlan` of a range.

    Attributes
    ----------
    record : EpochRecord
    """

    def __init__(self, record: EpochRecord, side: Sequence[SideColumn] = ()) -> None:
        self.record = record
        self._side = tuple(side)

    def __len__(self) -> int:
        return self.record.micro_batches

    @abstractmethod
    def _at(self, index: int) -> tuple[BatchPlan, int]:
        """Return (some micro-batches in a row, index in them) of a micro-batch."""

    @abstractmethod
    def blocks(self) -> Iterator[BatchPlan]:
        """Yield all micro-batches in order, as many at a time as a block of a part holds."""

    def row_chunks(self) -> Iterator[npt.NDArray[np.uint64]]:
        """Yield all its rows, repeats included, in any order, a block's worth at a time."""
        for block in self.blocks():
            yield block.rows

    @abstractmethod
    def find_step(self, step: int) -> int:
        """Return the index of the first micro-batch whose step is at or after `step`."""

    @abstractmethod
    def rows_before(self, index: int) -> int:
        """Return the rows of the micro-batches before one."""

    def __getitem__(self, index: int) -> MicroBatch:
        if not 0 <= index < self.record.micro_batches:
            raise IndexError(index)
        plan, k = self._at(index)
        a, b = plan.offsets.item(k), plan.offsets.item(k + 1)
        weights = None if plan.weights is None else plan.weights[a:b]
        side: dict[str, Any] = {}
        if self._side:  # a comprehension over nothing is a fifth of the call
            side = {c.name: _side_at(plan.side[c.name], c, k, a, b) for c in self._side}
        return MicroBatch(plan.step.item(k), plan.micro.item(k), plan.rows[a:b], weights, side)

    def run(self, start: int, count: int) -> BatchPlan:
        """Return up to `count` micro-batches from `start` on, at least one, as views.

        As many as stand together: where a block ends, so does the run.
        """
        if not 0 <= start < len(self):
            raise IndexError(start)
        plan, k = self._at(start)
        return plan.slice(k, min(k + count, len(plan)))

    def plan(self, start: int = 0, stop: int | None = None) -> BatchPlan:
        """Return micro-batches `start` to `stop` as one plan; views where that costs nothing."""
        stop = len(self) if stop is None else stop
        if not 0 <= start <= stop <= len(self):
            raise ManifestError(
                f"Epoch {self.record.epoch} holds micro-batches 0 to {len(self)}; {start} to "
                f"{stop} were asked for."
            )
        if start == stop:
            return self._at(0)[0].slice(0, 0)
        return self._plan(start, stop)

    def _plan(self, start: int, stop: int) -> BatchPlan:
        parts = []
        while start < stop:
            plan, k = self._at(start)
            end = min(len(plan), k + stop - start)
            parts.append(plan.slice(k, end))
            start += end - k
        return BatchPlan.concat(parts)

    def step(self, step: int) -> BatchPlan:
        """Return the micro-batches of one step."""
        start = self.find_step(step)
        stop = self.find_step(step + 1)
        if start == stop:
            raise ManifestError(
                f"Epoch {self.record.epoch} holds no step {step}; it has {self.record.steps} "
                f"steps, the last of them step {self[len(self) - 1].step}."
            )
        return self.plan(start, stop)

    def find_rows(self, ids: npt.NDArray[np.uint64]) -> Occurrences:
        """Return every place of the given rows, by a pass over all blocks."""
        wanted, before = np.unique(ids), 0
        found = [(wanted[:0], np.zeros(0, np.int64), np.zeros(0, np.int64))]
        for block in self.blocks():
            at = np.flatnonzero(np.isin(block.rows, wanted))
            batch = np.searchsorted(block.offsets, at, side="right") - 1
            found.append((block.rows[at], before + batch, at - block.offsets[batch]))
            before += len(block)
        return Occurrences(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def digest(self) -> str:
        """Compute the logical digest from the blocks."""
        hasher = hashlib.sha256()
        for block in self.blocks():
            hasher.update(block_digest(block, self._side))
        return hasher.hexdigest()


class StoredEpoch(Epoch):
    """An epoch whose micro-batches stand in parts."""

    def __init__(
        self, record: EpochRecord, readers: Sequence[PartReader], side: Sequence[SideColumn]
    ) -> None:
        super().__init__(record, side)
        self._blocks = [(r, i) for r in readers for i in range(len(r.record.blocks))]
        jump = [b for r in readers for b in r.record.blocks]
        self._ends = list(accumulate(b.micro_batches for b in jump))
        self._starts = [0, *self._ends[:-1]]
        self._row_ends = list(accumulate(b.rows for b in jump))
        self._first_steps = [b.first_step for b in jump]

    def _at(self, index: int) -> tuple[BatchPlan, int]:
        block = bisect_right(self._ends, index)
        reader, number = self._blocks[block]
        return reader.block(number), index - self._starts[block]

    def blocks(self) -> Iterator[BatchPlan]:
        for reader, number in self._blocks:
            yield reader.block(number)

    def find_step(self, step: int) -> int:
        if step <= self._first_steps[0]:
            return 0
        # The last block that begins before the step: it begins in there or with the next block.
        block = bisect_left(self._first_steps, step) - 1
        reader, number = self._blocks[block]
        plan = reader.block(number)
        return self._starts[block] + bisect_left(plan.step, step)

    def rows_before(self, index: int) -> int:
        block = bisect_right(self._ends, index)
        before = self._row_ends[block - 1] if block else 0
        if block == len(self._starts) or index == self._starts[block]:
            return before
        plan, k = self._at(index)
        return before + int(plan.offsets[k])


def _side_at(value: Any, column: SideColumn, k: int, a: int, b: int) -> Any:
    if isinstance(value, Ragged):
        return value.slice(a, b)
    return value[k] if column.kind == "batch" else value[a:b]
