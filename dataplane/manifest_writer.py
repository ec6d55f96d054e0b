"""Writing a manifest: a stream of batch plans in, one committed directory out.

    >>> with ManifestWriter("plan/", snapshot=dataset.snapshot, seed=7) as writer:
    ...     with writer.epoch(0):
    ...         writer.append(plan)            # as many times as there are chunks
    ...     manifest = writer.commit()

Memory does not grow with the length of the plan: blocks go to disk as they fill; one bit a row of
the dataset counts the coverage. What is not committed leaves nothing behind.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, get_args

from .bitmap import Bitmap
from .bitmap_file import BitmapRecord, write_bitmap
from .canonical import digest, plain_json
from .commit import bring
from .deep_hashes import find_deep_hashes, write_deep_hashes
from .epoch_count import recount_epoch
from .epoch_writer import EpochWriter
from .epochs import EpochRecord, FinishedEpoch
from .errors import ManifestConflictError, ManifestError, ParameterError, SelectionError
from .manifest import Manifest, records_to_json
from .manifest_header import FORMAT, RECIPE, SCHEMA_VERSION, header_bytes
from .manifest_part import PartRecord, part_schema
from .plan import BatchPlan, SideColumn, Unit, WeightSemantics
from .random import checked_seed
from .recipe import RecipeEpoch, RecipeRows, WeightClass, describe_recipe
from .snapshot import Snapshot
from .storage import Location, storing
from .targets import Target, target_at
from .versions import versions

__all__ = ["ManifestWriter"]


class ManifestWriter:
    """Writes one manifest.

    Parameters
    ----------
    target : path, URI or Target
        Directory to make.
    snapshot : Snapshot
        The dataset's fragment table; every planned row must be in it.
    stages : sequence of mapping
        How the plan was made: stage, method and resolved parameters, as plain JSON values.
    seed : int
    unit : {'sliceable', 'micro'}
        Whether ranks may slice a micro-batch. A plan with a ``csr`` column is always ``micro``.
    weight_semantics : {'importance', 'cluster'}, optional
        None: no weights are stored, all are 1.
    side : sequence of SideColumn
    parent, materialized_from, signals : str, optional
        Id of the manifest that this one continues; of the recipe that it is the copy of; digest of
        the signals used.
    deep_hashes : mapping, optional
        SHA-256 of the dataset's files by fragment label.
    storage_options : mapping, optional
        Options of the target's filesystem, for a URI.

    Raises
    ------
    ManifestConflictError, StorageError
        Where the target holds something else, or cannot be committed to.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | Target,
        *,
        snapshot: Snapshot,
        stages: Sequence[Mapping[str, Any]] = (),
        seed: int = 0,
        unit: Unit = "sliceable",
        weight_semantics: WeightSemantics | None = None,
        side: Sequence[SideColumn] = (),
        parent: str | None = None,
        materialized_from: str | None = None,
        signals: str | None = None,
        deep_hashes: Mapping[str, str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        made = target if isinstance(target, Target) else target_at(target, storage_options)
        self._target, self.target = made, made.given
        self._target.prepare()
        _refuse_unknown("unit", unit, get_args(Unit))
        _refuse_unknown("weight_semantics", weight_semantics, (None, *get_args(WeightSemantics)))
        if len({c.name for c in side}) < len(side):
            raise SelectionError("Two side columns have the same name.")
        if any(c.kind == "csr" for c in side):
            unit = "micro"
        self._snapshot = snapshot
        self._side = tuple(side)
        self._schema = part_schema(weight_semantics is not None, side)
        self._identity: dict[str, Any] = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "reader_features": [],
            "snapshot": snapshot.to_json(),
            "stages": plain_json(list(stages), "stages"),
            "seed": checked_seed(seed),
            "unit": unit,
            "weight_semantics": weight_semantics,
            "side_columns": [{"name": c.name, "kind": c.kind, "type": c.type} for c in side],
            "parent": parent,
            "materialized_from": materialized_from,
            "signals": signals,
        }
        self._deep_hashes = deep_hashes
        self._closed = False
        self._records: list[EpochRecord] = []
        self._parts: list[PartRecord] = []
        self._bitmaps: dict[str, BitmapRecord] = {}
        self._last_bitmaps: list[tuple[Bitmap, str]] = []  # of the epoch before, with their digests
        self._fragments: set[int] = set()
        self._finished: dict[int, FinishedEpoch] = {}
        self._open: EpochWriter | None = None
        self._cleanup = ExitStack()
        self.folder = self._cleanup.enter_context(self._target.scratch())
        self._cleanup.callback(self._target.close)

    def __enter__(self) -> ManifestWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abandon()

    def abandon(self) -> None:
        """Drop what was staged; nothing after `commit`."""
        self._closed = True
        if self._open is not None:
            self._open.abandon()
            self._open = None
        self._cleanup.close()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ManifestError(f"The writer of {self.target} is closed; make another one.")
        if self._open is not None:
            raise SelectionError(
                f"Epoch {self._open.number} is still open; leave its 'with' block first."
            )

    @contextmanager
    def epoch(self, number: int, *, eligible_rows: int | None = None) -> Iterator[None]:
        """Write one epoch, by `append` inside the block; an exception in there drops the epoch.

        Parameters
        ----------
        number : int
            0-based; epochs are written in ascending order.
        eligible_rows : int, optional
            Rows that were selected; those that are in no micro-batch are counted as dropped.
        """
        number = self._next_epoch(number)
        self._open = epoch = EpochWriter(
            number,
            self.folder,
            len(self._parts),
            self._snapshot,
            self._schema,
            self._side,
            self._target.take,
        )
        try:
            yield
            record, fragments = epoch.finish(eligible_rows)
        except BaseException:
            epoch.abandon(keep={part.name for part in self._parts})
            raise
        finally:
            self._open = None
        self._add(FinishedEpoch(record, tuple(epoch.parts), tuple(fragments)))

    def _add(self, epoch: FinishedEpoch) -> None:
        self._records.append(epoch.record)
        self._parts += epoch.parts
        self._fragments.update(epoch.fragments)
        self._finished[epoch.record.epoch] = epoch

    def finished(self, number: int) -> FinishedEpoch | None:
        """Return an epoch that was written; None of a recipe. Its parts are in `folder`."""
        return self._finished.get(number)

    def adopt(self, epoch: FinishedEpoch, folder: Location) -> None:
        """Take over an epoch that another writer of the same plan finished.

        The parts in `folder` must hold what their names say: the caller has hashed them.
        """
        self._next_epoch(epoch.record.epoch)
        with storing("Taking over the parts of an epoch", self.folder):
            for part in epoch.parts:
                place = self.folder / part.name
                bring(folder.join(part.name), place, part.sha256)
                self._target.take(place)
        self._add(epoch)

    def _next_epoch(self, number: int) -> int:
        self._refuse_closed()
        number = operator.index(number)
        last = self._records[-1].epoch if self._records else -1
        if number <= last:
            raise SelectionError(
                f"Epochs count from 0 and are written in ascending order; {number} came after "
                f"{last if self._records else 'none'}."
            )
        return number

    def write_recipe(
        self,
        number: int,
        classes: Sequence[WeightClass],
        *,
        batch_size: int,
        micro_per_step: int = 1,
        drop_last: bool = False,
    ) -> None:
        """Write one epoch as a recipe: a shuffle of the rows of up to four classes (`recipe`).

        Epochs that are given the same bitmap object share one file.

        Parameters
        ----------
        number : int
            As of `epoch`.
        classes : sequence of WeightClass
            Disjoint sets of rows.
        batch_size, micro_per_step : int
        drop_last : bool
            Leave out the rows of a last, smaller micro-batch.
        """
        number = self._next_epoch(number)
        weighted = self._identity["weight_semantics"] is not None
        if self._side or self._identity["unit"] != "sliceable":
            raise SelectionError("A recipe has no side columns, and its micro-batches are sliced.")
        if not weighted and any(c.weight != 1 for c in classes):
            raise SelectionError(
                "The recipe has weights, but the manifest was declared without: pass "
                "weight_semantics='importance' or 'cluster'."
            )
        rows = RecipeRows(self._snapshot, tuple(classes), weighted)
        record, fragments = describe_recipe(
            number,
            rows,
            self._digests_of([c.rows for c in classes]),
            seed=self._identity["seed"],
            batch_size=batch_size,
            micro_per_step=micro_per_step,
            drop_last=drop_last,
        )
        self._identity["reader_features"] = [RECIPE]
        self._records.append(record)
        self._fragments.update(fragments)

    def _digests_of(self, bitmaps: Sequence[Bitmap | None]) -> list[str | None]:
        """Return the digests of bitmaps, written unless the epoch before had the same objects."""
        known = {id(bitmap): digest_ for bitmap, digest_ in self._last_bitmaps}
        found: list[str | None] = []
        for bitmap in bitmaps:
            if bitmap is not None and id(bitmap) not in known:
                record = write_bitmap(self.folder, bitmap)
                self._bitmaps[record.name] = record
                known[id(bitmap)] = record.sha256
            found.append(None if bitmap is None else known[id(bitmap)])
        self._last_bitmaps = [(b, known[id(b)]) for b in bitmaps if b is not None]
        return found

    def take_over(self, source: Manifest, number: int) -> None:
        """Take an epoch of another manifest of the same dataset over, byte for byte.

        Its parts are linked where the file system can, else copied. Every block is checked first,
        and what it holds is counted again. A recipe is written again: it gives the same files.

        Raises
        ------
        ManifestCorruptError
            Where the source is damaged.
        SelectionError
            Where its epochs cannot stand in this manifest.
        """
        number = self._next_epoch(number)
        mine = (self._snapshot, self._side, self._identity["weight_semantics"])
        if (source.snapshot, source.side_columns, source.weight_semantics) != mine:
            raise SelectionError(
                f"Epoch {number} of {source.path} cannot be taken over: its snapshot, side columns "
                "or weights are not those of the manifest being written."
            )
        epoch = source.epoch(number)
        if isinstance(epoch, RecipeEpoch):
            self._write_again(source, epoch)
            return
        record, fragments = recount_epoch(source, number)
        parts = [part for part in source.parts if part.epoch == number]
        self.adopt(FinishedEpoch(record, tuple(parts), tuple(fragments)), source.location)

    def _write_again(self, source: Manifest, epoch: RecipeEpoch) -> None:
        if source.seed != self._identity["seed"]:
            raise SelectionError(
                f"A recipe of {source.path} cannot be taken over: it has another seed."
            )
        self.write_recipe(
            epoch.record.epoch,
            epoch.classes,
            batch_size=epoch.recipe.batch_size,
            micro_per_step=epoch.recipe.micro_per_step,
            drop_last=epoch.record.samples < epoch.recipe.rows,
        )

    def append(self, plan: BatchPlan) -> None:
        """Append micro-batches to the open epoch; `SelectionError` where they are no plan.

        The plan's arrays may be changed afterwards. What is refused leaves the epoch as it was.
        """
        if self._open is None:
            raise SelectionError("Open an epoch before appending: with writer.epoch(0): ...")
        plan.check(self._side)
        if self._identity["weight_semantics"] is None and plan.weights is not None:
            raise SelectionError(
                "The plan has weights, but the manifest was declared without: pass "
                "weight_semantics='importance' or 'cluster'."
            )
        if self._identity["weight_semantics"] is not None and plan.weights is None:
            raise SelectionError("The manifest was declared with weights, but the plan has none.")
        self._open.append(plan)

    def commit(self, *, reports: Mapping[str, Any] | None = None) -> Manifest:
        """Write the header, publish the directory, and open it.

        Parameters
        ----------
        reports : mapping, optional
            What the stages tell of themselves, for the provenance.

        Raises
        ------
        ManifestConflictError
            Where the target holds another manifest, or anything else.
        """
        self._refuse_closed()
        if not self._records:
            raise SelectionError("A manifest needs at least one epoch.")
        everywhere = [i for i, f in enumerate(self._snapshot.fragments) if f.rows]
        planned = sorted(self._fragments)
        identity = {
            **self._identity,
            "epochs": [r.to_json() for r in self._records],
            "planned_fragments": "all" if planned == everywhere else planned,
        }
        provenance = {
            "created_by": versions(),
            "reports": plain_json(reports or {}, "reports", non_finite=True),
            "parts": records_to_json(self._parts),
        }
        if self._bitmaps:
            provenance["bitmaps"] = [vars(self._bitmaps[name]) for name in sorted(self._bitmaps)]
        if self._deep_hashes is not None:
            write_deep_hashes(self.folder, self._deep_hashes)
        if not self._target.publish(self.folder, header_bytes(identity, provenance)):
            self._accept_existing(identity)
        self.abandon()
        return self._committed()

    def _committed(self) -> Manifest:
        return Manifest.open(self.target, storage_options=self._target.location.options)

    def _accept_existing(self, identity: Mapping[str, Any]) -> None:
        self._target.refuse_foreign()
        mine, there = digest(identity), self._committed().manifest_id
        if mine != there:
            raise ManifestConflictError(
                f"{self.target} holds another manifest: expected id {mine}, found {there}. "
                "Choose another target, or remove that one first."
            )
        place = self._target.location
        if self._deep_hashes is not None and find_deep_hashes(place) is None:
            write_deep_hashes(place, self._deep_hashes)


def _refuse_unknown(name: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        choices = ", ".join(repr(k) for k in known)
        raise ParameterError(f"A manifest's '{name}' must be one of {choices}. Got {value!r}.")
