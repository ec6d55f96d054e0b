"""The batch manifest: a committed batch plan of one or more epochs, with its provenance.

This docstring is the format's specification, version 1.0.

**Directory.** ``manifest.json``, written last, and ``part-<sha256>.arrow`` files; optionally
``deep-<sha256>.json`` (content hashes of the dataset's files). Names that start with a dot are not
part of it.

**Parts** are uncompressed Arrow IPC *files*, one row a micro-batch:

==========  ===================  =================================================
``step``    uint64               step within the epoch
``micro``   uint16               index within the step
``rows``    large_list<uint64>   row ids, in order
``weights`` large_list<float32>  absent: all 1
…           declared columns     ``batch``: T; ``row``: large_list<T>;
                                 ``csr``: large_list<large_list<T>>, one list a row
==========  ===================  =================================================

A *block* is a record batch. It closes after the micro-batch with which it reaches 4,096
micro-batches or 1 Mi row ids; a part closes after the block with which it reaches 4 Mi row ids, and
at an epoch's end. A part is named by the SHA-256 of its bytes.

**Header.** ``manifest.json`` is ``{manifest_id, header_sha256, identity, provenance}`` in canonical
JSON (see `canonical`). ``manifest_id`` is the SHA-256 of ``identity``, ``header_sha256`` that of
``{identity, provenance}``. This envelope is the same in every version.

*identity* is what was decided, and nothing else: ``format``, ``schema_version``,
``reader_features``; ``snapshot`` (the fragment table); ``stages`` with resolved parameters and
``seed`` (files enter as content digests, never as paths); ``unit``, ``weight_semantics``,
``side_columns``; ``planned_fragments`` (indices of the fragments that hold planned rows, or
``"all"``); ``epochs``; ``parent``, ``materialized_from``, ``signals`` (ids and digests, or null).
Each epoch has ``epoch, steps, micro_batches, samples, smallest_micro_batch,
last_step_micro_batches, micro_divisor`` (the greatest number that divides every step's count of
micro-batches), ``coverage`` (``exactly_once``, ``subset`` or ``with_replacement``),
``distinct_rows``, ``dropped_rows`` (selected but in no micro-batch), ``weight_sum`` (the integer
Σ round(w · 2²⁴), halves to even) and ``logical_digest``: SHA-256 over the blocks' logical digests
in order; a block's is SHA-256 over its columns in the order above, little-endian, a list as int64
offsets from 0 followed by its values.

*provenance* is how it was written: versions, reports of the stages, and for each part ``name,
epoch, bytes, sha256, frame_sha256`` (of all bytes outside block bodies) and for each block
``offset, length, sha256, first_step, first_micro, micro_batches, rows``: the jump index.

The same decision has the same id on any machine and version. Random order is counter-based
(`random`), so workers, partitions and paths do not enter.

**Reading.** Opening checks the header and every part's size and frame; a block's hash is checked
when it is first touched, so no row of a damaged block is ever delivered. A newer minor version
opens; a newer major version and an unknown reader feature are refused by name.

**Commit.** See `commit`. The same id already there is success, another id a conflict.
"""

from __future__ import annotations

import hashlib
import logging
import os
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from .canonical import known_fields
from .dataset import Dataset, DatasetLike, open_dataset
from .errors import ManifestCorruptError, ManifestError
from .manifest_header import HEADER, SCHEMA_VERSION, malformed, read_header
from .manifest_part import PartReader, PartRecord, block_digest, part_schema
from .plan import BatchPlan, MicroBatch, Ragged, SideColumn, Unit, WeightSemantics
from .snapshot import Snapshot

__all__ = ["HEADER", "SCHEMA_VERSION", "Epoch", "EpochRecord", "Manifest"]

WEIGHT_ONE = 1 << 24  # the integer that stands for a weight of 1 in weight sums

_log = logging.getLogger("batchloom")


@dataclass(frozen=True)
class EpochRecord:
    """What the identity says of one epoch; see the module's docstring."""

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
    logical_digest: str

    @property
    def total_weight(self) -> float:
        return self.weight_sum / WEIGHT_ONE


class Manifest:
    """A manifest opened for reading. Use `Manifest.open`.

    Attributes
    ----------
    path : Path
    manifest_id : str
    identity, provenance : dict
    snapshot : Snapshot
    seed : int
    unit : {'sliceable', 'micro'}
    weight_semantics : {'importance', 'cluster'} or None
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.manifest_id: str = header["manifest_id"]
        self.identity: dict[str, Any] = header["identity"]
        self.provenance: dict[str, Any] = header["provenance"]
        self.seed: int = self.identity["seed"]
        self.unit: Unit = self.identity["unit"]
        self.weight_semantics: WeightSemantics | None = self.identity["weight_semantics"]
        self.side_columns = tuple(
            known_fields(SideColumn, c) for c in self.identity["side_columns"]
        )
        records = [known_fields(EpochRecord, e) for e in self.identity["epochs"]]
        self.records = {record.epoch: record for record in records}
        self.parts = [PartRecord.from_json(p) for p in self.provenance["parts"]]
        schema = part_schema(self.weight_semantics is not None, self.side_columns)
        self._readers = [PartReader(path / p.name, p, schema) for p in self.parts]
        listed: Counter[int] = Counter()
        for part in self.parts:
            listed[part.epoch] += part.micro_batches
        for record in records:
            if listed[record.epoch] != record.micro_batches:
                raise ManifestCorruptError(
                    f"{path / HEADER}, epoch {record.epoch}: expected {record.micro_batches} "
                    f"micro-batches, the parts list {listed[record.epoch]}. Plan anew."
                )

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, verify: Literal["header", "all"] = "header"
    ) -> Manifest:
        """Open a manifest directory.

        Parameters
        ----------
        path : path
        verify : {'header', 'all'}
            ``'header'`` checks the header and the parts' frames, blocks when they are touched;
            ``'all'`` checks every byte now.

        Raises
        ------
        ManifestCorruptError, ManifestVersionError, ManifestError
        """
        folder = Path(path)
        header = read_header(folder)
        with malformed(folder / HEADER):
            manifest = cls(folder, header)
        if verify == "all":
            manifest.verify()
        return manifest

    def __repr__(self) -> str:
        return f"<Manifest {self.manifest_id[:12]} {self.path} epochs={list(self.epochs)}>"

    @cached_property
    def snapshot(self) -> Snapshot:
        return Snapshot.from_json(self.identity["snapshot"])

    @property
    def epochs(self) -> tuple[int, ...]:
        """Epochs that the manifest holds, ascending."""
        return tuple(sorted(self.records))

    @property
    def with_replacement(self) -> bool:
        return any(r.coverage == "with_replacement" for r in self.records.values())

    @property
    def parent(self) -> str | None:
        """Id of the manifest that this one continues or was made from."""
        value: str | None = self.identity["parent"]
        return value

    def epoch(self, number: int) -> Epoch:
        """Return one epoch's micro-batches."""
        if number not in self.records:
            held = ", ".join(map(str, self.epochs))
            raise ManifestError(f"{self.path} holds no epoch {number}; it holds {held}.")
        readers = [r for r, p in zip(self._readers, self.parts, strict=True) if p.epoch == number]
        return Epoch(self.records[number], readers, self.side_columns)

    def manifest_for(self, epoch: int) -> Manifest:
        """Return the manifest that holds an epoch: this one; a series has several."""
        self.epoch(epoch)
        return self

    def planned_fragments(self) -> list[int]:
        """Indices into the snapshot's fragments of those that hold planned rows."""
        planned = self.identity["planned_fragments"]
        if planned == "all":
            return [i for i, f in enumerate(self.snapshot.fragments) if f.rows]
        return [int(i) for i in planned]

    def open_dataset(
        self, data: DatasetLike, *, storage_options: Mapping[str, Any] | None = None
    ) -> Dataset:
        """Open the dataset that was planned; more files than planned are fine.

        Raises
        ------
        DatasetChangedError
            Where a fragment that holds planned rows is gone or changed.
        """
        dataset = open_dataset(
            data,
            snapshot=self.snapshot,
            needed=self.planned_fragments(),
            storage_options=storage_options,
        )
        if dataset.unplanned > 0:
            _log.info(
                "%d files of the dataset are not in plan %s and are left out",
                dataset.unplanned,
                self.path,
            )
        return dataset

    def verify(self, *, deep: bool = False) -> None:
        """Hash every byte once; with `deep` recompute the logical digests too.

        Raises
        ------
        ManifestCorruptError
            Naming file, block, expected and found.
        """
        for reader in self._readers:
            reader.check_all()
        if deep:
            for number in self.epochs:
                self.epoch(number).check_digest(self.path)


class Epoch:
    """Random access to the micro-batches of one epoch.

    ``len(epoch)`` is their number; ``epoch[k]`` a `MicroBatch` of views; ``epoch.plan(a, b)`` a
    `BatchPlan` of a range.
    """

    def __init__(
        self, record: EpochRecord, readers: list[PartReader], side: tuple[SideColumn, ...]
    ) -> None:
        self.record = record
        self._side = side
        self._blocks = [(r, i) for r in readers for i in range(len(r.record.blocks))]
        jump = [b for r in readers for b in r.record.blocks]
        self._ends = list(accumulate(b.micro_batches for b in jump))
        self._first_steps = [b.first_step for b in jump]

    def __len__(self) -> int:
        return self.record.micro_batches

    def _at(self, index: int) -> tuple[BatchPlan, int]:
        """Return (block, index in it) of a micro-batch."""
        block = bisect_right(self._ends, index)
        reader, number = self._blocks[block]
        plan = reader.block(number)
        return plan, index - (self._ends[block] - len(plan))

    def __getitem__(self, index: int) -> MicroBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        plan, k = self._at(index)
        a, b = int(plan.offsets[k]), int(plan.offsets[k + 1])
        return MicroBatch(
            int(plan.step[k]),
            int(plan.micro[k]),
            plan.rows[a:b],
            None if plan.weights is None else plan.weights[a:b],
            {c.name: _side_at(plan.side[c.name], c, k, a, b) for c in self._side},
        )

    def blocks(self) -> Iterator[BatchPlan]:
        """Yield the blocks in order."""
        for reader, number in self._blocks:
            yield reader.block(number)

    def plan(self, start: int = 0, stop: int | None = None) -> BatchPlan:
        """Return micro-batches `start` to `stop` as one plan; views where they are in one block."""
        stop = len(self) if stop is None else stop
        if not 0 <= start <= stop <= len(self):
            raise ManifestError(
                f"Epoch {self.record.epoch} holds micro-batches 0 to {len(self)}; {start} to "
                f"{stop} were asked for."
            )
        if start == stop:
            return self._at(0)[0].slice(0, 0)
        parts = []
        while start < stop:
            block, k = self._at(start)
            end = min(len(block), k + stop - start)
            parts.append(block.slice(k, end))
            start += end - k
        return BatchPlan.concat(parts)

    def find_step(self, step: int) -> int:
        """Return the index of the first micro-batch whose step is at or after `step`."""
        if step <= self._first_steps[0]:
            return 0
        # The last block that begins before the step: it begins in there or with the next block.
        block = bisect_left(self._first_steps, step) - 1
        reader, number = self._blocks[block]
        plan = reader.block(number)
        return self._ends[block] - len(plan) + bisect_left(plan.step, step)

    def step(self, step: int) -> BatchPlan:
        """Return the micro-batches of one step."""
        start = self.find_step(step)
        stop = self.find_step(step + 1)
        if start == stop:
            raise ManifestError(
                f"Epoch {self.record.epoch} holds no step {step}; it has {self.record.steps} "
                f"steps, the last of them step {self._last_step()}."
            )
        return self.plan(start, stop)

    def _last_step(self) -> int:
        return int(self._at(len(self) - 1)[0].step[-1])

    def check_digest(self, path: Path) -> None:
        """Recompute the logical digest."""
        hasher = hashlib.sha256()
        for block in self.blocks():
            hasher.update(block_digest(block, self._side))
        if hasher.hexdigest() != self.record.logical_digest:
            raise ManifestCorruptError(
                f"{path}, epoch {self.record.epoch}: expected logical digest "
                f"{self.record.logical_digest}, found {hasher.hexdigest()}."
            )


def _side_at(value: Any, column: SideColumn, k: int, a: int, b: int) -> Any:
    if isinstance(value, Ragged):
        return value.slice(a, b)
    return value[k] if column.kind == "batch" else value[a:b]


def records_to_json(parts: Sequence[PartRecord]) -> list[dict[str, Any]]:
    """Return part records as the provenance holds them."""
    return [asdict(p) for p in parts]
